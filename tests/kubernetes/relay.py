"""A TCP relay before a server, which cuts every connection through it again and again."""

from __future__ import annotations

import contextlib
import socket
import threading

from bench.processes import free_port


class Relay:
    """Takes connections at `port` for the server at port `target`, both on loopback. None lives on for longer than `quiet_s` after the
    server's last word, however long that took; `cuts` counts those that were still open then.
    """

    def __init__(self, target: int, quiet_s: float) -> None:
        self.port = free_port()
        self.cuts = 0
        self._target = target
        self._quiet_s = quiet_s
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
                heard = threading.Event()
                ways = ((near, far, threading.Event()), (far, near, heard))
                pumps = [threading.Thread(target=_pump, args=way, daemon=True) for way in ways]
                for pump in pumps:
                    pump.start()
                while heard.wait(self._quiet_s):
                    heard.clear()
                    if not pumps[1].is_alive():
                        break
                with self._counting:
                    self.cuts += pumps[1].is_alive()
                for end in (near, far):
                    with contextlib.suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)
                for pump in pumps:
                    pump.join()


def _pump(source: socket.socket, sink: socket.socket, heard: threading.Event) -> None:
    """Sets `heard` whenever something came."""
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
            heard.set()
