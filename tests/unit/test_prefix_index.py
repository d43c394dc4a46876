"""The prefix index against a model that is too slow to use: per endpoint a list of blocks, most recently used first."""

from __future__ import annotations

import random
from math import inf

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from numpy.typing import NDArray

from epp.endpoint import CacheConfig
from epp.prefix import index as module
from epp.prefix.fingerprints import fingerprints
from epp.prefix.index import PrefixIndex, blocks_in
from epp.request import BLOCK_BYTES, NO_FINGERPRINTS

Chain = NDArray[np.uint64]


def chain_of(words: str) -> Chain:
    """One block per letter: two words share the blocks of their common beginning."""
    return fingerprints((b"".join(letter.encode() * BLOCK_BYTES for letter in words),), 1, 1 << 30)


class Model:
    """Blocks by slot, most recently used first; when each was used last, and who had to drop some."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.capacity: dict[int, int] = {}
        self.used: dict[tuple[int, int], int] = {}
        self.full: set[int] = set()
        self.clock = 0

    def record(self, slot: int, chain: list[int]) -> None:
        chain = chain[: self.capacity[slot]]
        if not chain:
            return
        self.clock += 1
        self.used |= {(slot, block): self.clock for block in chain}
        self.held[slot] = chain + [block for block in self.held.get(slot, []) if block not in chain]
        self.cut(slot)

    def cut(self, slot: int) -> None:
        held = self.held.get(slot, [])
        if len(held) > self.capacity[slot]:
            self.held[slot] = held[: self.capacity[slot]]
            self.full.add(slot)

    def resize(self, slot: int, blocks: int) -> None:
        self.capacity[slot] = blocks
        if len(self.held.get(slot, [])) < blocks:
            self.full.discard(slot)
        self.cut(slot)

    def empty(self, slot: int) -> None:
        self.held.pop(slot, None)
        self.full.discard(slot)

    def churn(self) -> list[float]:
        ages = [self._tail_age(slot) for slot in range(4)]
        return [min(ages) / age if age < inf else 0.0 for age in ages]

    def _tail_age(self, slot: int) -> float:
        held = self.held.get(slot, [])
        return self.clock + 1 - self.used[slot, held[-1]] if held and slot in self.full else inf

    def hit(self, slot: int, chain: list[int]) -> int:
        held = set(self.held.get(slot, []))
        for depth, block in enumerate(chain):
            if block not in held:
                return depth
        return len(chain)


def hits(index: PrefixIndex, chain: Chain, slots: int) -> list[int]:
    found = index.match(chain).tolist()
    assert not any(found[slots:])
    result: list[int] = (found + [0] * slots)[:slots]
    return result


def churn(index: PrefixIndex) -> list[float]:
    found: list[float] = index.churn().tolist()
    assert index.holdings(chain_of("nobody has it")).churn.tolist() == found
    return found


words = st.one_of(
    st.text(alphabet="ab", min_size=0, max_size=9),
    st.tuples(st.text(alphabet="ab", max_size=3), st.integers(0, 60)).map(lambda parts: parts[0] + "c" * parts[1]),
)
slots = st.integers(0, 3)


class Comparison(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex(default_blocks=40)
        self.model = Model()
        self.model.capacity = dict.fromkeys(range(4), 40)
        self.seen: set[str] = {"", "a", "b" * 70}

    @rule(slot=slots, word=words)
    def record(self, slot: int, word: str) -> None:
        chain = chain_of(word)
        self.index.record(slot, chain)
        self.model.record(slot, chain.tolist())
        self.seen.add(word)

    @rule(slot=slots, blocks=st.integers(0, 80))
    def resize(self, slot: int, blocks: int) -> None:
        self.index.resize(slot, blocks)
        self.model.resize(slot, blocks)

    @rule(slot=slots)
    def restart(self, slot: int) -> None:
        self.index.empty(slot)
        self.model.empty(slot)

    @rule(slot=slots)
    def forget(self, slot: int) -> None:
        self.index.forget(slot)
        self.model.empty(slot)
        self.model.capacity[slot] = 40

    @rule(word=words)
    def look_up(self, word: str) -> None:
        self.compare(word)

    @invariant()
    def same_hits(self) -> None:
        for word in self.seen:
            self.compare(word)

    @invariant()
    def same_counts(self) -> None:
        counts = [len(self.model.held.get(slot, [])) for slot in range(4)]
        assert [self.index.blocks(slot) for slot in range(4)] == counts
        assert len(self.index) == sum(counts)
        distinct = {block for held in self.model.held.values() for block in held}
        assert set(self.index._masks) == distinct

    @invariant()
    def same_churn(self) -> None:
        self.index._churn_due = 0
        assert churn(self.index)[:4] == self.model.churn()

    def compare(self, word: str) -> None:
        chain = chain_of(word)
        assert hits(self.index, chain, 4) == [self.model.hit(slot, chain.tolist()) for slot in range(4)]


TestComparison = Comparison.TestCase
TestComparison.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def test_only_the_contiguous_beginning_counts() -> None:
    index = PrefixIndex()
    index.record(0, chain_of("abcd"))
    index.record(1, chain_of("ab"))
    assert hits(index, chain_of("abcx"), 3) == [3, 2, 0]
    assert hits(index, chain_of("xbcd"), 3) == [0, 0, 0]


def test_the_tail_leaves_before_the_head() -> None:
    index = PrefixIndex(default_blocks=6)
    index.record(0, chain_of("abcd"))
    index.record(0, chain_of("xyz"))
    assert hits(index, chain_of("abcd"), 1) == [3]
    assert hits(index, chain_of("xyz"), 1) == [3]


def test_use_refreshes_the_whole_beginning() -> None:
    index = PrefixIndex(default_blocks=6)
    index.record(0, chain_of("abc"))
    index.record(0, chain_of("xyz"))
    index.record(0, chain_of("abd"))
    assert hits(index, chain_of("abd"), 1) == [3]
    assert hits(index, chain_of("abc"), 1) == [2]
    assert hits(index, chain_of("xyz"), 1) == [3]


def test_a_prompt_longer_than_the_capacity_keeps_its_beginning() -> None:
    index = PrefixIndex(default_blocks=5)
    index.record(0, chain_of("abcdefgh"))
    assert index.blocks(0) == 5
    assert hits(index, chain_of("abcdefgh"), 1) == [5]


def test_an_endpoint_without_room_holds_nothing() -> None:
    index = PrefixIndex()
    index.resize(0, 0)
    index.record(0, chain_of("abc"))
    assert hits(index, chain_of("abc"), 1) == [0]
    assert len(index) == 0


def test_nothing_matches_nothing() -> None:
    index = PrefixIndex()
    assert not index.match(NO_FINGERPRINTS).any()
    index.record(2, NO_FINGERPRINTS)
    assert not index.match(NO_FINGERPRINTS).any()
    assert len(index) == 0


def test_a_slot_given_to_another_starts_empty_with_the_default_capacity() -> None:
    index = PrefixIndex(default_blocks=10)
    index.resize(1, 3)
    index.record(1, chain_of("abc"))
    index.forget(1)
    assert hits(index, chain_of("abc"), 2) == [0, 0]
    index.record(1, chain_of("abcdef"))
    assert hits(index, chain_of("abcdef"), 2) == [0, 6]


def test_a_restarted_server_keeps_its_capacity() -> None:
    index = PrefixIndex(default_blocks=10)
    index.resize(1, 3)
    index.record(1, chain_of("abc"))
    index.empty(1)
    index.record(1, chain_of("abcdef"))
    assert index.blocks(1) == 3


def test_forgetting_a_stranger_is_harmless() -> None:
    index = PrefixIndex()
    index.record(0, chain_of("ab"))
    index.forget(7)
    index.empty(7)
    assert hits(index, chain_of("ab"), 1) == [2]


def test_many_endpoints_with_a_common_beginning() -> None:
    index = PrefixIndex()
    rng = random.Random(1)
    shared = "s" * 30
    depths = [rng.randrange(0, 200) for _ in range(300)]
    tail = "".join(rng.choice("ab") for _ in range(200))
    for slot, depth in enumerate(depths):
        index.record(slot, chain_of(shared + tail[:depth]))
    assert hits(index, chain_of(shared + tail), 300) == [30 + depth for depth in depths]
    assert hits(index, chain_of(shared + "z"), 300) == [30] * 300
    assert hits(index, chain_of("s" * 20), 300) == [20] * 300


def test_the_bound_over_all_endpoints_takes_the_least_recently_used_of_any() -> None:
    index = PrefixIndex(max_blocks=40)
    for slot in range(8):
        index.record(slot, chain_of(chr(ord("a") + slot) * 10))
    assert [index.blocks(slot) for slot in range(8)] == [0, 0, 0, 0, 10, 10, 10, 10]
    index.record(0, chain_of("z" * 5))
    assert [index.blocks(slot) for slot in range(8)] == [5, 0, 0, 0, 5, 10, 10, 10]
    assert hits(index, chain_of("e" * 10), 8) == [0, 0, 0, 0, 5, 0, 0, 0]


def test_churn_is_where_what_leaves_next_was_used_last() -> None:
    index = PrefixIndex(default_blocks=6)
    for slot, word in ((0, "abcd"), (1, "abcdef"), (20, "abcdef"), (0, "xyz"), (1, "xyz")):
        index.record(slot, chain_of(word))
    # On 0 what the first prompt has left leaves next, five prompts old, on 1 that of the second, four old; 20 dropped nothing.
    assert churn(index) == [0.8, 1.0, *[0.0] * 30]
    index.resize(1, 9)
    assert churn(index) == [1.0, *[0.0] * 31]
    index.empty(0)
    assert not any(churn(index))


def test_churn_is_looked_at_anew_once_in_as_many_prompts_as_there_are_endpoints_and_no_sooner_than_in_eight() -> None:
    for endpoints, prompts in ((1, 8), (20, 20)):
        index = PrefixIndex(default_blocks=3)
        for slot in range(endpoints):
            index.record(slot, chain_of("abc"))
        assert not any(churn(index))
        seen = []
        for number in range(prompts):
            index.record(0, chain_of(f"{number:03}"))
            seen.append(churn(index)[0])
        assert seen == [*[0.0] * (prompts - 1), 1.0]


def test_holdings_are_of_one_length_when_a_slot_beyond_it_is_heard_of() -> None:
    index = PrefixIndex()
    assert len(index.holdings(chain_of("abc")).churn) == 16
    for slot in (16, 100, 999):
        index.record(slot, chain_of("abc"))
        held = index.holdings(chain_of("abc"))
        assert len(held.churn) == len(held.hit_blocks) > slot


def demand(index: PrefixIndex, word: str) -> float:
    return index.holdings(chain_of(word)).demand


def test_demand_is_for_the_longest_beginning_that_anybody_has() -> None:
    index = PrefixIndex()
    assert demand(index, "abc") == demand(index, "abc") == 0
    index.record(0, chain_of("ab"))
    index.record(1, chain_of("abcd"))
    assert [demand(index, word) for word in ("abx", "aby", "abcz", "abcdefgh", "abz", "abcdef")] == [0, 1, 0, 0, 2, 1]


def test_demand_halves_with_the_prompts_of_the_pool() -> None:
    index = PrefixIndex()
    index.record(0, chain_of("a"))
    assert [demand(index, "ab") for _ in range(4)] == [0, 1, 2, 3]
    for _ in range(module.DEMAND_HALF_LIFE):
        index.record(1, chain_of("x"))
    assert demand(index, "ac") == 2
    assert demand(index, "ac") == 3


def test_prefixes_that_are_not_asked_for_again_are_forgotten() -> None:
    index = PrefixIndex()
    rest = [chain_of(f"{number:05}") for number in range(module._MOST_ASKED)]
    index.record(0, chain_of("hot"))
    for chain in rest:
        index.record(0, chain)
    assert demand(index, "hot") == 0
    for number, chain in enumerate(rest):
        assert index.holdings(chain).demand == 0
        assert demand(index, "hot") == number + 1
    assert len(index._asked) == module._MOST_ASKED
    assert index.holdings(rest[0]).demand == 0
    assert index.holdings(rest[-1]).demand == 1


def test_where_the_bound_over_all_took_blocks_there_is_churn() -> None:
    index = PrefixIndex(max_blocks=40)
    for slot in range(5):
        index.record(slot, chain_of(chr(ord("a") + slot) * 9))
    assert churn(index)[:6] == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    assert index.blocks(0) == 4


@given(st.lists(st.tuples(st.integers(0, 5), words), max_size=60), st.integers(1, 50))
@settings(max_examples=60, deadline=None)
def test_the_bound_over_all_endpoints_holds(steps: list[tuple[int, str]], bound: int) -> None:
    index = PrefixIndex(max_blocks=bound)
    for slot, word in steps:
        index.record(slot, chain_of(word))
        assert len(index) <= bound
        assert len(index) == sum(index.blocks(slot) for slot in range(6))
        assert len(index._masks) <= bound


@given(
    st.lists(st.tuples(st.integers(0, 2), st.lists(st.integers(0, 5), max_size=40)), max_size=30), st.integers(1, 12)
)
@example(steps=[(0, [0, 1, 0]), (0, [0, 0, 0])], capacity=3)
@settings(max_examples=100, deadline=None)
def test_colliding_fingerprints_do_no_harm(steps: list[tuple[int, list[int]]], capacity: int) -> None:
    """A client that forges collisions gets wrong hits for itself; the index neither raises nor outgrows its bounds."""
    index = PrefixIndex(max_blocks=20, default_blocks=capacity)
    for slot, values in steps:
        chain = np.array(values, dtype=np.uint64)
        index.record(slot, chain)
        assert all(0 <= hit <= len(chain) for hit in index.match(chain).tolist())
        assert len(index) <= 20
        assert all(0 <= index.blocks(slot) <= capacity for slot in range(3))
    for slot in range(3):
        index.forget(slot)
    assert len(index) == 0
    assert not index._masks


@pytest.mark.parametrize("blocks", range(module._SMALL - 2, module._SMALL + 3))
def test_both_ways_to_look_up_agree(blocks: int) -> None:
    index = PrefixIndex()
    word = "".join(random.Random(blocks).choice("abc") for _ in range(blocks))
    for slot, depth in enumerate((0, 1, blocks // 2, blocks - 1, blocks)):
        index.record(slot, chain_of(word[:depth]))
    assert hits(index, chain_of(word), 5) == [0, 1, blocks // 2, blocks - 1, blocks]


def test_capacity_counts_our_blocks_and_not_the_engine_s() -> None:
    assert blocks_in(CacheConfig(block_size=16, num_blocks=31_250)) == 500_000 // 64
