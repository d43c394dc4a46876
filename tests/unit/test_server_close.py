"""The asyncio shell of a connection, at the one moment that sockets make hard to meet: the peer is gone while we close."""

from __future__ import annotations

import asyncio
from typing import cast

from epp.extproc.server import Http2Server, _Link


class GoneTransport:
    """Takes writes; its socket was reset by the peer, which the loop has not noticed."""

    def __init__(self) -> None:
        self.aborted = False

    def get_extra_info(self, name: str) -> None:
        return None

    def write(self, data: bytes) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        raise OSError(107, "Transport endpoint is not connected")

    def close(self) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


async def test_closing_to_a_peer_that_reset_the_connection_ends_it() -> None:
    link = _Link(Http2Server({}), asyncio.get_running_loop())
    transport = GoneTransport()
    link.connection_made(cast("asyncio.Transport", transport))
    link.abort()
    assert transport.aborted
    link.connection_lost(None)
