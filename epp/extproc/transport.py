"""The seam between a gRPC transport and what runs over it: two transports, one session."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable


class Stream(Protocol):
    """One open gRPC call, as the transport lends it to a session. Safe to call after the peer has gone: nothing happens."""

    @property
    def metadata(self) -> Mapping[bytes, bytes]:
        """What the peer said when it opened the call: lower-case gRPC metadata, and `:authority` where the transport tells it.

        To be asked for while the session is opened.
        """
        ...

    def send(self, message: bytes) -> None:
        """Queue one gRPC message. Everything queued while the transport handles one read leaves in one write."""
        ...

    def close(self, status: int = 0, message: str = "") -> None:
        """End the call with a gRPC status after what is queued. Later sends are dropped."""
        ...


class Session(Protocol):
    """What answers one call. The transport calls it from the event loop, never concurrently."""

    def received(self, message: bytes) -> None:
        """One whole gRPC message, decompressed."""
        ...

    def closed(self, clean: bool) -> None:
        """The peer will send no more. Called exactly once: `clean` after a half-close, else reset, deadline or lost connection.

        After a clean close the session still has to `Stream.close`. A session that closed before its peer is told too,
        with False, once its own method has returned.
        """
        ...


@runtime_checkable
class Abandonable(Protocol):
    """A session that goes on answering after the half-close, and wants to know when nobody listens any more."""

    def abandoned(self) -> None:
        """Reset, deadline or lost connection after `closed(True)` and before `Stream.close`. Called at most once, last."""
        ...


OpenSession = Callable[[Stream], Session]

Admits = Callable[[frozenset[str]], bool]
"""Whether a client may call, by the subject alternative names of its verified certificate."""
