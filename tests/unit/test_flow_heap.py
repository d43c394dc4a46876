"""A heap with entries taken out anywhere, against a sorted list."""

from __future__ import annotations

import random
from math import inf

from hypothesis import given
from hypothesis import strategies as st

from epp.flow.heap import Entry, Heap


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), max_size=200))
def test_it_is_a_sorted_list_that_keeps_little_of_what_left(steps: list[tuple[bool, int]]) -> None:
    heap: Heap[int] = Heap()
    kept: list[tuple[int, int, Entry[int]]] = []
    for number, (push, value) in enumerate(steps):
        if push or not kept:
            kept.append((value, number, heap.push(float(value), number)))
        else:
            _, _, entry = kept.pop(value % len(kept))
            heap.discard(entry)
            heap.discard(entry)
        expected = min(kept, key=lambda each: each[:2], default=None)
        assert len(heap) == len(kept)
        assert heap.top() == (expected[1] if expected else None)
        assert heap.floor() <= (expected[0] if expected else inf)
        assert not expected or heap.floor() == expected[0], "top() has cleared the way"
        assert len(heap._entries) <= 2 * len(kept) + 34


def test_it_stays_sorted_after_a_sweep() -> None:
    rng = random.Random(5)
    heap: Heap[float] = Heap()
    entries = [heap.push(key, key) for key in (rng.random() for _ in range(500))]
    gone = rng.sample(entries, 400)
    for entry in gone:
        heap.discard(entry)
    left = []
    while (key := heap.top()) is not None:
        left.append(key)
        heap.discard(next(entry for entry in entries if entry.item == key))
    assert len(left) == 100
    assert left == sorted(left)
