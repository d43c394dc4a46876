"""Paged KV cache: blocks with reference counts, found again by the hash of everything up to their end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import xxhash

TOKEN_BYTES = 4
"""One token id as the hash sees it: an unsigned 32-bit number."""


def block_hashes(tokens: bytes | memoryview, block_size: int, seed: int = 0) -> list[int]:
    """One hash for each full block of `tokens` (4 bytes a token), each covering all blocks before it.

    `seed` separates caches that must not share: adapter, cache salt.
    """
    digest = xxhash.xxh3_64_intdigest
    width = block_size * TOKEN_BYTES
    hashes: list[int] = []
    parent = seed
    for start in range(0, len(tokens) - width + 1, width):
        parent = digest(tokens[start : start + width], parent)
        hashes.append(parent)
    return hashes


class BlockPool:
    """All KV blocks of one engine, as vLLM keeps them.

    A block is free when nothing refers to it, and keeps its content and its hash until it is taken for something else. Free
    blocks are taken in the order in which they became free. Two blocks may hold the same content, when two sequences
    computed it side by side; the older is the one found.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._references = [0] * num_blocks
        self._hash_of: list[int | None] = [None] * num_blocks
        self._found: dict[int, int] = {}
        self._twins: dict[int, list[int]] = {}
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    def copy(self) -> BlockPool:
        twin = object.__new__(BlockPool)
        twin.num_blocks = self.num_blocks
        twin._references = self._references.copy()
        twin._hash_of = self._hash_of.copy()
        twin._found = self._found.copy()
        twin._twins = {content: blocks.copy() for content, blocks in self._twins.items()}
        twin._free = self._free.copy()
        return twin

    @property
    def free(self) -> int:
        """Blocks that can be taken, those with cached content included."""
        return len(self._free)

    @property
    def usage(self) -> float:
        """Share of blocks that some sequence refers to, as `vllm:kv_cache_usage_perc` has it."""
        return 1.0 - len(self._free) / self.num_blocks

    def __repr__(self) -> str:
        return f"<BlockPool {self.num_blocks - self.free}/{self.num_blocks} in use, {len(self._found)} cached>"

    def lookup(self, hashes: Sequence[int], limit: int) -> list[int]:
        """Blocks holding the longest cached prefix of the first `limit` hashes. Takes nothing."""
        found = self._found
        blocks: list[int] = []
        for i in range(min(limit, len(hashes))):
            block = found.get(hashes[i])
            if block is None:
                break
            blocks.append(block)
        return blocks

    def idle(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` are free, so that referring to them leaves fewer to take."""
        references = self._references
        return sum(1 for block in blocks if not references[block])

    def refer(self, blocks: Iterable[int]) -> None:
        """Add one reference to each of these cached blocks."""
        for block in blocks:
            if not self._references[block]:
                del self._free[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """The `count` blocks that are longest free, emptied, with one reference each. Needs `count` <= `free`."""
        blocks: list[int] = []
        pop, references, hash_of = self._free.popitem, self._references, self._hash_of
        for _ in range(count):
            block = pop(last=False)[0]
            references[block] = 1
            if hash_of[block] is not None:
                self._forget(block)
            blocks.append(block)
        return blocks

    def name(self, block: int, content: int) -> None:
        """Say that `block` is full and holds what hashes to `content`: it can be found from now on."""
        self._hash_of[block] = content
        if self._found.setdefault(content, block) != block:
            self._twins.setdefault(content, []).append(block)

    def release(self, blocks: Sequence[int]) -> None:
        """Drop one reference to each block of a sequence. The tail becomes free first: it is the least shared."""
        references, free = self._references, self._free
        for block in reversed(blocks):
            left = references[block] - 1
            references[block] = left
            if not left:
                free[block] = None

    def _forget(self, block: int) -> None:
        content = self._hash_of[block]
        assert content is not None
        self._hash_of[block] = None
        twins = self._twins.get(content)
        if twins is None:
            del self._found[content]
            return
        if self._found[content] == block:
            self._found[content] = twins.pop(0)
        else:
            twins.remove(block)
        if not twins:
            del self._twins[content]
