"""Which endpoint is believed to hold which prompt blocks in its prefix cache, from what we sent where.

Engines evict the tail of a prompt before its head, and a block is of no use without all before it. So what an endpoint
holds is always a set of whole beginnings: whoever holds a block holds every block before it. Two structures live off that:

- One dictionary, fingerprint → bit mask of the slots that hold it. Along a prompt these masks only lose bits, so a look-up
  needs no walk over the blocks: it gallops to the places where the mask changes, two to five in practice, and costs the same
  for 8 endpoints and 1,000.
- Per endpoint, the prompts in the order of their last use, each keeping only the blocks that no later prompt has in common
  with it: the end of its chain. A new prompt takes over its whole beginning by cutting the (one or two) older prompts that
  own it, and the least recently used block is the last of the oldest prompt. That is the order of an LRU over blocks in which
  a prompt's tail is older than its head, without touching every block of a prompt on every use.

Measured by `bench/prefix_index.py` beside an LRU over blocks with the same answers (ours / that; a shared machine):

    a million blocks in prompts of 10, 8 endpoints             104 / 164 MiB      (in prompts of 3: 148 / 165)
    a million blocks in prompts of 10, 1,000 endpoints         103 / 246 MiB
    10 blocks, 8 endpoints: look up                            2.9 / 25 µs
    10 blocks, 8 endpoints: record new ones and evict          9.6 / 11 µs
    1,600 blocks, 1,000 endpoints: look up                     83 / 14,000 µs
    1,600 blocks, 1,000 endpoints: record a next turn          18 / 485 µs
    the same, every endpoint at its own depth: look up         2,100 / 180,000 µs
"""

from __future__ import annotations

import heapq
import math
import sys
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

from epp.endpoint import CacheConfig, Holdings
from epp.request import BLOCK_BYTES

DEFAULT_BLOCKS = 31_250
"""Blocks of an endpoint that does not say how much KV memory it has: 2 million tokens."""

DEFAULT_MAX_BLOCKS = 2_000_000
"""Bound on the sum over all endpoints: about 200 MiB; 640 where every prompt is a single block."""

DEMAND_HALF_LIFE = 2000
"""Prompts of the pool after which one that asked for a prefix counts half in the demand for it."""

BLOCK_TOKENS = BLOCK_BYTES // 4
"""Tokens of text behind one of our blocks, at 4 bytes a token; engines' own blocks are smaller (16 or 32 tokens)."""

_MOST_ASKED = 4 * DEMAND_HALF_LIFE
_WIDTH = 8
_SMALL = 24
"""Prompts up to this many blocks are walked block by block: 50 ns each, less than galloping costs."""
_FEW_SLOTS = 16
_LEAST_SLOTS = 16
"""Length of a look-up's result at first; it doubles as `Endpoints`' columns do."""


def blocks_in(cache: CacheConfig) -> int:
    """How many of our blocks a server's KV cache holds: what to `resize` its slot to."""
    return cache.tokens // BLOCK_TOKENS


class _Shelf:
    """What one endpoint holds. `prompts`: stamp of last use → the fingerprints it owns, as raw bytes, oldest first.

    `stamp_of`: the first fingerprint that a prompt owns → its stamp. `full`: blocks had to leave for others.
    """

    __slots__ = ("bit", "blocks", "capacity", "full", "prompts", "stamp_of")

    def __init__(self, slot: int, capacity: int) -> None:
        self.bit = 1 << slot
        self.capacity = capacity
        self.blocks = 0
        self.full = False
        self.prompts: OrderedDict[int, bytes] = OrderedDict()
        self.stamp_of: dict[int, int] = {}


class PrefixIndex:
    """The blocks of all endpoints by slot. At most `max_blocks` (endpoint, block) pairs are kept over all.

    An endpoint keeps at most `default_blocks` unless `resize` says otherwise.
    """

    def __init__(self, *, max_blocks: int = DEFAULT_MAX_BLOCKS, default_blocks: int = DEFAULT_BLOCKS) -> None:
        self._max_blocks = max_blocks
        self._default_blocks = default_blocks
        self._masks: dict[int, int] = {}
        self._shelves: dict[int, _Shelf] = {}
        self._width = _LEAST_SLOTS
        self._churn: NDArray[np.float64] = np.zeros(self._width)
        self._churn_due = 0
        # The last fingerprint of a prefix that was asked for → how often, and when last; least recently asked first. A dict finds its first
        # item only behind the gaps that removed ones left: 3 µs, 0.2 here.
        self._asked: OrderedDict[int, tuple[float, int]] = OrderedDict()
        self._clock = 0
        self._blocks = 0

    def __len__(self) -> int:
        """(endpoint, block) pairs kept."""
        return self._blocks

    def __repr__(self) -> str:
        return f"<PrefixIndex {self._blocks} blocks on {len(self._shelves)} endpoints>"

    def blocks(self, slot: int) -> int:
        """How many blocks the endpoint in `slot` is believed to hold."""
        shelf = self._shelves.get(slot)
        return 0 if shelf is None else shelf.blocks

    def match(self, fingerprints: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Leading blocks held, by slot, whole numbers. Slots beyond the array's end hold nothing."""
        return self._match(fingerprints)[0]

    def _match(self, fingerprints: NDArray[np.uint64]) -> tuple[NDArray[np.float64], int]:
        """The hits by slot, and the most of them."""
        hits = np.zeros(self._width)
        n = len(fingerprints)
        if n <= _SMALL:
            return hits, self._match_small(fingerprints.tolist(), hits)
        depth = 0
        mask = self._masks.get(fingerprints.item(0), 0)
        while mask:
            depth = self._end_of_run(fingerprints, depth, n, mask)
            following = self._masks.get(fingerprints.item(depth), 0) & mask if depth < n else 0
            _put(hits, mask ^ following, depth)
            mask = following
        return hits, depth

    def churn(self) -> NDArray[np.float64]:
        """By slot, how soon a block is missed that a new one pushes out of the endpoint's cache: [0, 1]. Not to be changed.

        1 at the endpoint whose next block to leave was used last of all, 1/2 where twice as many prompts came since then, 0 where no block
        had to leave yet and beyond the array's end. For n endpoints it is up to n prompts old, at least 8, unless one of them was
        resized, emptied or forgotten since.
        """
        if self._clock >= self._churn_due:
            self._look_at_churn()
        return self._churn

    def holdings(self, fingerprints: NDArray[np.uint64]) -> Holdings:
        """What is known of a prompt of one block at least that is about to be sent somewhere: it counts as one that asks for what it matches.

        In the demand a prompt counts half after `DEMAND_HALF_LIFE` more of the pool.
        """
        if self._clock >= self._churn_due:
            self._look_at_churn()
        hits, depth = self._match(fingerprints)
        times = 0.0
        if depth:
            asked, now, end = self._asked, self._clock, fingerprints.item(depth - 1)
            times, then = asked.pop(end, (0.0, now))
            times *= math.exp2((then - now) / DEMAND_HALF_LIFE)
            asked[end] = times + 1.0, now
            if len(asked) > _MOST_ASKED:
                asked.popitem(last=False)
        return Holdings(hits, self._churn, times)

    def record(self, slot: int, fingerprints: NDArray[np.uint64]) -> None:
        """The prompt was sent to `slot`: all its blocks are now that endpoint's most recently used, head before tail.

        Of a prompt longer than the endpoint's capacity, the beginning is kept.
        """
        shelf = self._shelf(slot)
        n = min(len(fingerprints), shelf.capacity)
        if not n:
            return
        raw = fingerprints.tobytes() if n == len(fingerprints) else fingerprints[:n].tobytes()
        held = _take_over(shelf, fingerprints, raw, n)
        self._clock += 1
        shelf.prompts[self._clock] = raw
        shelf.stamp_of[fingerprints.item(0)] = self._clock
        if held == n:
            return
        self._mark(fingerprints, held, n, shelf.bit)
        shelf.blocks += n - held
        self._blocks += n - held
        if shelf.blocks > shelf.capacity:
            self._shrink(shelf, shelf.blocks - shelf.capacity)
        if self._blocks > self._max_blocks:
            self._relieve()

    def resize(self, slot: int, blocks: int) -> None:
        """Let the endpoint in `slot` keep at most `blocks`; what is too much now leaves, least recently used first."""
        shelf = self._shelf(slot)
        shelf.capacity = max(0, blocks)
        if shelf.blocks > shelf.capacity:
            self._shrink(shelf, shelf.blocks - shelf.capacity)
        elif shelf.blocks < shelf.capacity:
            shelf.full = False
        self._churn_due = 0

    def empty(self, slot: int) -> None:
        """The server in `slot` restarted: it holds nothing. Its capacity stays."""
        shelf = self._shelves.get(slot)
        if shelf is not None:
            self._shrink(shelf, shelf.blocks)
            shelf.full = False
            self._churn_due = 0

    def forget(self, slot: int) -> None:
        """The endpoint in `slot` is gone, with all that was known of it; the slot may be another's next."""
        self.empty(slot)
        self._shelves.pop(slot, None)

    def _shelf(self, slot: int) -> _Shelf:
        shelf = self._shelves.get(slot)
        if shelf is None:
            shelf = self._shelves[slot] = _Shelf(slot, self._default_blocks)
            while self._width <= slot:
                self._width *= 2
                # As long as the hits from here on.
                self._churn_due = 0
        return shelf

    def _look_at_churn(self) -> None:
        ages = np.full(self._width, math.inf)
        for slot, shelf in self._shelves.items():
            if shelf.full and shelf.prompts:
                ages[slot] = self._clock + 1 - next(iter(shelf.prompts))
        youngest = ages.min()
        self._churn = youngest / ages if youngest < math.inf else np.zeros(self._width)
        self._churn_due = self._clock + max(8, len(self._shelves))

    def _match_small(self, values: list[int], hits: NDArray[np.float64]) -> int:
        masks = self._masks
        mask = -1
        for depth, value in enumerate(values):
            following = masks.get(value, 0)
            if following != mask:
                if depth:
                    following &= mask
                    _put(hits, mask ^ following, depth)
                if not following:
                    return depth
                mask = following
        if values:
            _put(hits, mask, len(values))
        return len(values)

    def _end_of_run(self, fingerprints: NDArray[np.uint64], depth: int, n: int, mask: int) -> int:
        """The first index behind `depth` whose mask differs from `mask`, the one at `depth`; n if there is none."""
        get, item = self._masks.get, fingerprints.item
        step = 1
        while depth + step < n and get(item(depth + step)) == mask:
            depth += step
            step *= 2
        end = min(depth + step, n)
        depth += 1
        while depth < end:
            middle = (depth + end) // 2
            if get(item(middle)) == mask:
                depth = middle + 1
            else:
                end = middle
        return end

    def _mark(self, fingerprints: NDArray[np.uint64], start: int, stop: int, bit: int) -> None:
        """Set `bit` for the blocks from `start` to `stop`."""
        masks = self._masks
        values = fingerprints[start:stop].tolist()
        known = 0
        # Blocks with the same holders share one int: with 1,000 endpoints a mask takes 160 bytes.
        old = new = 0
        for value in values:
            mask = masks.get(value)
            if mask is None:
                break
            if mask is not old:
                old, new = mask, mask | bit
            masks[value] = new
            known += 1
        masks.update(dict.fromkeys(values[known:], bit))

    def _unmark(self, raw: bytes, bit: int) -> None:
        masks = self._masks
        old = new = 0
        for value in memoryview(raw).cast("Q").tolist():
            mask = masks.get(value, 0)
            if mask == bit:
                del masks[value]
            elif mask:
                if mask is not old:
                    old, new = mask, mask & ~bit
                masks[value] = new

    def _shrink(self, shelf: _Shelf, excess: int) -> None:
        """Drop `excess` blocks, at most all: from the oldest prompt, its tail first."""
        prompts = shelf.prompts
        shelf.full = True
        shelf.blocks -= excess
        self._blocks -= excess
        while excess:
            stamp = next(iter(prompts))
            owned = prompts[stamp]
            count = len(owned) // _WIDTH
            if count > excess:
                cut = -excess * _WIDTH
                prompts[stamp] = owned[:cut]
                self._unmark(owned[cut:], shelf.bit)
                return
            del prompts[stamp]
            # Not so only where two fingerprints of one prompt collide, which a client may bring about.
            if shelf.stamp_of.get(_first(owned)) == stamp:
                del shelf.stamp_of[_first(owned)]
            self._unmark(owned, shelf.bit)
            excess -= count

    def _relieve(self) -> None:
        """Drop the least recently used blocks of all endpoints, a thousandth more than need be."""
        goal = self._max_blocks - self._max_blocks // 1024
        oldest = [(next(iter(shelf.prompts)), slot) for slot, shelf in self._shelves.items() if shelf.prompts]
        heapq.heapify(oldest)
        while self._blocks > goal:
            stamp, slot = oldest[0]
            shelf = self._shelves[slot]
            self._shrink(shelf, min(len(shelf.prompts[stamp]) // _WIDTH, self._blocks - goal))
            if shelf.prompts:
                heapq.heapreplace(oldest, (next(iter(shelf.prompts)), slot))
            else:
                heapq.heappop(oldest)


def _take_over(shelf: _Shelf, fingerprints: NDArray[np.uint64], raw: bytes, n: int) -> int:
    """Cut from older prompts what the new one has in common with them; how many leading blocks were held."""
    depth = 0
    while depth < n:
        stamp = shelf.stamp_of.pop(fingerprints.item(depth), None)
        if stamp is None:
            break
        owned = shelf.prompts[stamp]
        common = _common(owned, raw, depth, n)
        depth += common
        if common * _WIDTH == len(owned):
            del shelf.prompts[stamp]
        else:
            rest = owned[common * _WIDTH :]
            shelf.prompts[stamp] = rest
            shelf.stamp_of[_first(rest)] = stamp
    return depth


def _common(owned: bytes, raw: bytes, depth: int, n: int) -> int:
    """How many leading blocks of `owned` are those of `raw` from `depth` on. The first one is.

    Compared whole, although a fingerprint covers all before it: one forged collision would leave blocks that nobody owns.
    """
    offset = depth * _WIDTH
    most = min(len(owned) // _WIDTH, n - depth)
    if owned[: most * _WIDTH] == raw[offset : offset + most * _WIDTH]:
        return most
    least = 1
    while most - least > 1:
        middle = (least + most) // 2
        if owned[: middle * _WIDTH] == raw[offset : offset + middle * _WIDTH]:
            least = middle
        else:
            most = middle
    return least


def _first(raw: bytes) -> int:
    return int.from_bytes(raw[:_WIDTH], sys.byteorder)


def _put(hits: NDArray[np.float64], mask: int, depth: int) -> None:
    """Set `hits` to `depth` at every bit of `mask`."""
    if mask.bit_count() <= _FEW_SLOTS:
        while mask:
            slot = mask.bit_length() - 1
            hits[slot] = depth
            mask ^= 1 << slot
        return
    packed = np.frombuffer(mask.to_bytes((len(hits) + 7) // 8, "little"), np.uint8)
    hits[np.unpackbits(packed, count=len(hits), bitorder="little").view(np.bool_)] = depth
