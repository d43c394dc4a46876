"""A TCP relay before a server, which cuts every connection through it again and again."""

from __future__ import annotations

import contextlib
import socket
import threading

from bench.processes import free_port


class Relay:
    """Takes connections at `port` for the server at port `target`, both on loopback. None lives longer than `life_s`;
    `cuts` counts those that were still open then.
    """

    def __init__(self, target: int, life_s: float) -> None:
        self.port = free_port()
        self.cuts = 0
        self._target = target
        self._life_s = life_s
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self._counting = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Take no more; those that are open live out their time."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                threading.Thread(target=self._relay, args=(near,), daemon=True).start()

    def _relay(self, near: socket.socket) -> None:
        with near:
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with far:
                pumps = [threading.Thread(target=_pump, args=way, daemon=True) for way in ((near, far), (far, near))]
                for pump in pumps:
                    pump.start()
                pumps[1].join(self._life_s)
                with self._counting:
                    self.cuts += pumps[1].is_alive()
                for end in (near, far):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                for pump in pumps:
                    pump.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
