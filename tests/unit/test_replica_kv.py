"""Blocks are conserved, freed tail first, reused oldest first, and found by content."""

from __future__ import annotations

import struct

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bench.replica.kv import BlockPool, block_hashes


def tokens(*ids: int) -> bytes:
    return struct.pack(f"<{len(ids)}I", *ids)


def test_a_hash_covers_everything_before_it_and_partial_blocks_have_none() -> None:
    first = block_hashes(tokens(1, 2, 3, 4, 5), 2)
    second = block_hashes(tokens(1, 2, 9, 4), 2)
    third = block_hashes(tokens(9, 2, 3, 4), 2)
    assert len(first) == 2
    assert first[0] == second[0]
    assert first[1] != second[1]
    assert not set(first) & set(third)


def test_seeds_keep_caches_apart() -> None:
    assert block_hashes(tokens(1, 2), 2, seed=1) != block_hashes(tokens(1, 2), 2, seed=2)


def filled(pool: BlockPool, *contents: int) -> list[int]:
    blocks = pool.take(len(contents))
    for block, content in zip(blocks, contents, strict=True):
        pool.name(block, content)
    return blocks


def test_only_the_contiguous_prefix_is_found() -> None:
    pool = BlockPool(8)
    blocks = filled(pool, 11, 12, 13)
    assert pool.lookup([11, 12, 99, 13], 4) == blocks[:2]
    assert pool.lookup([11, 12, 13], 2) == blocks[:2]
    assert pool.lookup([12], 1) == [blocks[1]]


def test_a_released_sequence_loses_its_tail_first() -> None:
    pool = BlockPool(4)
    blocks = filled(pool, 1, 2, 3)
    pool.release(blocks)
    pool.take(2)  # the never used one, then the tail
    assert pool.lookup([1, 2, 3], 3) == blocks[:2]
    pool.take(1)
    assert pool.lookup([1, 2, 3], 3) == blocks[:1]


def test_referring_to_a_free_block_keeps_it_from_being_taken() -> None:
    pool = BlockPool(2)
    blocks = filled(pool, 1, 2)
    pool.release(blocks)
    assert pool.idle(blocks) == 2
    pool.refer(blocks[:1])
    assert pool.idle(blocks) == 1
    assert pool.take(1) == blocks[1:]
    assert pool.free == 0
    assert pool.lookup([1], 1) == blocks[:1]


def test_a_twin_is_found_when_the_first_is_gone() -> None:
    pool = BlockPool(2)
    (old,) = filled(pool, 7)
    (twin,) = filled(pool, 7)
    assert pool.lookup([7], 1) == [old]
    pool.release([old])
    pool.take(1)
    assert pool.lookup([7], 1) == [twin]
    pool.release([twin])
    pool.take(1)
    assert pool.lookup([7], 1) == []


class PoolMachine(RuleBasedStateMachine):
    """Sequences come, share, grow and go in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(12)
        self.held: list[list[int]] = []

    @rule(chain=st.lists(st.integers(0, 2), min_size=1, max_size=5))
    def come(self, chain: list[int]) -> None:
        hashes = [hash(tuple(chain[: i + 1])) for i in range(len(chain))]
        hits = self.pool.lookup(hashes, len(hashes))
        if len(hashes) - len(hits) + self.pool.idle(hits) > self.pool.free:
            return
        self.pool.refer(hits)
        fresh = self.pool.take(len(hashes) - len(hits))
        for block, content in zip(fresh, hashes[len(hits) :], strict=True):
            self.pool.name(block, content)
        self.held.append(hits + fresh)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def go(self, data: st.DataObject) -> None:
        self.pool.release(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.pool.free)
    @rule()
    def take_one_unnamed(self) -> None:
        self.held.append(self.pool.take(1))

    @invariant()
    def every_block_is_either_free_or_held(self) -> None:
        held = {block for blocks in self.held for block in blocks}
        assert self.pool.free == self.pool.num_blocks - len(held)
        assert self.pool.usage == 1 - self.pool.free / self.pool.num_blocks
        assert self.pool.idle(held) == 0


PoolMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPool = PoolMachine.TestCase
