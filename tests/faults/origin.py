"""A model server that can refuse, stall and die, and come back on the same port."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading

from tests.integration.origin import Origin


class FaultyOrigin(Origin):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._awake = threading.Event()
        self._awake.set()

    def stall(self) -> None:
        """Connections are still taken, by the kernel; nothing is read or written until `wake`."""
        self._awake.clear()
        self._loop.call_soon_threadsafe(self._awake.wait)

    def wake(self) -> None:
        self._awake.set()

    def refuse(self) -> None:
        """Take no new connections and close those that wait for a request; answers begun go on to their end."""
        asyncio.run_coroutine_threadsafe(self._close_listener(), self._loop).result(5)

    def die(self) -> None:
        """Reset every connection and take no new ones, as a process that was killed."""
        asyncio.run_coroutine_threadsafe(self._die(), self._loop).result(5)

    def listen(self) -> None:
        """Take connections again, after `refuse` or `die`."""
        asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result(5)

    def close(self) -> None:
        self.wake()
        super().close()

    async def _close_listener(self) -> None:
        self._server.close()
        for writer in self._writers - self._busy:
            writer.close()

    async def _die(self) -> None:
        self._server.close()
        for writer in list(self._writers):
            sock: socket.socket = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _listen(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self._server = await asyncio.start_server(self._serve, sock=listener, limit=1 << 20)
