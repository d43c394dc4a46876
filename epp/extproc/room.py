"""How much of bodies that are not whole yet all exchanges of a process may hold together."""

from __future__ import annotations

from collections.abc import Callable

DEFAULT_BYTES = 512 * 1024 * 1024
"""Eight of the largest bodies. In full duplex clients decide how slowly a body comes, and Envoy sets no limit."""


class Room:
    """`bytes_in_all` shared by whoever takes. Nobody may hold more than is left for the others.

    A few slow giants thus never shut everyone out: eight of them leave a ninth of the whole free, and small bodies pass. `on_full` is
    called for each refusal.
    """

    def __init__(self, bytes_in_all: int = DEFAULT_BYTES, on_full: Callable[[], None] | None = None) -> None:
        self._bytes_in_all = bytes_in_all
        self._on_full = on_full
        self.held_bytes = 0

    def take(self, more: int, held: int) -> bool:
        """Let the holder of `held` bytes have `more`; False, and nothing is taken, where that is too much."""
        if held + more > self._bytes_in_all - self.held_bytes - more:
            if self._on_full is not None:
                self._on_full()
            return False
        self.held_bytes += more
        return True

    def give(self, held: int) -> None:
        self.held_bytes -= held
