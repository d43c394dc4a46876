"""A router's guess of prefix caches: who was sent which blocks, forgotten least recently used first, a prompt's tail before its head."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Prefixes:
    """At most `max_blocks` a server; None for any number."""

    def __init__(self, max_blocks: int | None = None) -> None:
        self._max_blocks = max_blocks
        # Holders in the order of their last use.
        self._holders: dict[int, dict[int, None]] = {}
        self._shelves: dict[int, OrderedDict[int, None]] = {}

    def matched(self, blocks: Sequence[int]) -> dict[int, int]:
        """Leading blocks held, by server; those that hold none are not there."""
        depth_of: dict[int, int] = {}
        holding = self._holders.get(blocks[0], {}) if blocks else {}
        for depth, block in enumerate(blocks):
            still = {server: None for server in self._holders.get(block, ()) if server in holding}
            if len(still) < len(holding):
                depth_of.update((server, depth) for server in holding if server not in still)
            holding = still
            if not holding:
                break
        depth_of.update(dict.fromkeys(holding, len(blocks)))
        return depth_of

    def held(self, server: int) -> OrderedDict[int, None]:
        """The server's blocks, least recently used first. Not to be changed."""
        return self._shelves.setdefault(server, OrderedDict())

    def latest(self, block: int) -> int | None:
        """Who was sent the block last of those that are believed to hold it."""
        holders = self._holders.get(block)
        return next(reversed(holders)) if holders else None

    def record(self, server: int, blocks: Sequence[int]) -> None:
        shelf = self.held(server)
        for block in reversed(blocks):
            shelf[block] = None
            shelf.move_to_end(block)
            holders = self._holders.setdefault(block, {})
            holders.pop(server, None)
            holders[server] = None
        while self._max_blocks is not None and len(shelf) > self._max_blocks:
            self._drop(server, shelf.popitem(last=False)[0])

    def resize(self, server: int, max_blocks: int) -> None:
        """Drop what is too much in that one cache now."""
        shelf = self.held(server)
        while len(shelf) > max_blocks:
            self._drop(server, shelf.popitem(last=False)[0])

    def forget(self, server: int) -> None:
        for block in self._shelves.pop(server, ()):
            self._drop(server, block)

    def _drop(self, server: int, block: int) -> None:
        holders = self._holders[block]
        del holders[server]
        if not holders:
            del self._holders[block]
