"""A listening port that knows how many it may let in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable

BACKLOG = 1024
ACCEPTED_AT_ONCE = 64
"""Connections taken before the loop does other work: a storm of them must not stall open calls."""
RETRY_S = 1.0
"""How long to take no connections when the process has no file descriptors or memory for one."""

KEEPALIVE_IDLE_S = 60
KEEPALIVE_INTERVAL_S = 15
KEEPALIVE_PROBES = 4
"""A peer that vanished without a word holds its calls until the kernel gives it up: after two minutes, not two hours."""
UNREAD_S = 120
"""How long a peer may leave bytes of ours unacknowledged, or its receive window shut, before the kernel ends it."""

_OPTIONS = tuple(
    (level, getattr(socket, name), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", KEEPALIVE_IDLE_S),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", KEEPALIVE_INTERVAL_S),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", KEEPALIVE_PROBES),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", UNREAD_S * 1000),
    )
    # Not every system has them all.
    if hasattr(socket, name)
)


class Door:
    """Accepts connections, does the TLS handshake, and hands each to a protocol of `make`.

    Where the handshakes under way take up all of `room()`, a new connection is closed at once, before a handshake costs
    anything. `hit` is told each time: `max_connections`, `handshake_timeout_s`, or `open_files` where the process can have no
    more. All methods belong to one loop.
    """

    def __init__(
        self,
        make: Callable[[], asyncio.Protocol],
        tls: ssl.SSLContext | None,
        *,
        room: Callable[[], int],
        handshake_timeout_s: float,
        hit: Callable[[str], None],
    ) -> None:
        self._make = make
        self._tls = tls
        self._room = room
        self._handshake_timeout_s = handshake_timeout_s
        self._hit = hit
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._entering: set[asyncio.Task[None]] = set()

    @property
    def entering(self) -> int:
        """Connections accepted whose handshake is under way."""
        return len(self._entering)

    def open(self, host: str | None, port: int) -> int:
        """Listen on `host` (None: every interface) and return the port (`port` 0: any free one). Raises OSError."""
        self._listener = _bound(host, port)
        self._listener.setblocking(False)
        self._listen(self._listener)
        bound: int = self._listener.getsockname()[1]
        return bound

    def close(self) -> None:
        """Let nobody in any more, those at the handshake neither. Safe to call twice."""
        if self._retry is not None:
            self._retry.cancel()
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        for task in self._entering:
            task.cancel()

    async def closed(self) -> None:
        """Wait until those who were at the handshake are gone."""
        await asyncio.gather(*self._entering, return_exceptions=True)

    def _listen(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTED_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionError):
                return
            except OSError:
                # Accepting again would fail again, and the listener stays readable: wait instead of spinning.
                self._hit("open_files")
                self._loop.remove_reader(listener)
                self._retry = self._loop.call_later(RETRY_S, self._listen, listener)
                return
            self._admit(sock)

    def _admit(self, sock: socket.socket) -> None:
        if len(self._entering) >= self._room():
            self._hit("max_connections")
            sock.close()
            return
        sock.setblocking(False)
        for level, option, value in _OPTIONS:
            sock.setsockopt(level, option, value)
        task = self._loop.create_task(self._enter(sock))
        self._entering.add(task)
        task.add_done_callback(self._entering.discard)

    async def _enter(self, sock: socket.socket) -> None:
        timeout_s = self._handshake_timeout_s if self._tls is not None else None
        try:
            await self._loop.connect_accepted_socket(self._make, sock, ssl=self._tls, ssl_handshake_timeout=timeout_s)
        except ConnectionAbortedError:
            # How both loops say that the handshake took too long.
            self._hit("handshake_timeout_s")
        except OSError:
            # The peer left, or speaks no TLS that we do: nobody is there to be told.
            pass


def _bound(host: str | None, port: int) -> socket.socket:
    if host is None:
        try:
            return socket.create_server(("", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)
        except (OSError, ValueError):
            # A system without IPv6; a port that is taken fails again, and then says so.
            return socket.create_server(("", port), backlog=BACKLOG)
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=BACKLOG)
