"""What the prefix index costs: memory of a million blocks, look-ups and records, beside a plain LRU of blocks.

    python -m bench.prefix_index

The plain one is what comes to mind first: a dictionary of block → bit mask, an `OrderedDict` of blocks per endpoint, every
block of a prompt looked up and moved on every use. Each memory figure is from a process of its own.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import timeit
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from epp.prefix.fingerprints import FINGERPRINT_BITS, fingerprints
from epp.prefix.index import PrefixIndex

MILLION = 1_000_000
UNBOUNDED = 1 << 60
_rng = np.random.default_rng(1)


class Index(Protocol):
    def match(self, fingerprints: NDArray[np.uint64]) -> NDArray[np.int32] | NDArray[np.float64]: ...

    def record(self, slot: int, fingerprints: NDArray[np.uint64]) -> None: ...


class PlainIndex:
    """Every block in an LRU of its endpoint; the same answers as `PrefixIndex`."""

    def __init__(self, slots: int, capacity: int) -> None:
        self._capacity = capacity
        self._masks: dict[int, int] = {}
        self._recent: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(slots)]

    def match(self, fingerprints: NDArray[np.uint64]) -> NDArray[np.int32]:
        hits = np.zeros(len(self._recent), dtype=np.int32)
        mask = -1
        for block in fingerprints.tolist():
            mask &= self._masks.get(block, 0)
            if not mask:
                break
            rest = mask
            while rest:
                slot = rest.bit_length() - 1
                hits[slot] += 1
                rest ^= 1 << slot
        return hits

    def record(self, slot: int, fingerprints: NDArray[np.uint64]) -> None:
        recent, bit = self._recent[slot], 1 << slot
        for block in reversed(fingerprints.tolist()):
            recent[block] = None
            recent.move_to_end(block)
            self._masks[block] = self._masks.get(block, 0) | bit
        while len(recent) > self._capacity:
            block, _ = recent.popitem(last=False)
            self._masks[block] &= ~bit
            if not self._masks[block]:
                del self._masks[block]


def blocks(count: int) -> NDArray[np.uint64]:
    """Fingerprints of a made-up prompt."""
    return _rng.integers(0, 1 << FINGERPRINT_BITS, count, dtype=np.uint64)


def make(kind: str, slots: int, capacity: int) -> Index:
    if kind == "plain":
        return PlainIndex(slots, capacity)
    return PrefixIndex(max_blocks=UNBOUNDED, default_blocks=capacity)


def resident_mib() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def memory(kind: str, slots: int, prompt_blocks: int) -> float:
    """MiB that a million blocks take, in prompts of `prompt_blocks` each."""
    index = make(kind, slots, UNBOUNDED)
    index.record(0, blocks(1))
    gc.collect()
    before = resident_mib()
    for number in range(MILLION // prompt_blocks):
        index.record(number % slots, blocks(prompt_blocks))
    gc.collect()
    return resident_mib() - before


def microseconds(action: Callable[[], object], number: int) -> float:
    return min(timeit.repeat(action, number=number, repeat=5)) / number * 1e6


def small(kind: str) -> dict[str, float]:
    """8 endpoints, prompts of 10 blocks that share a system prompt of 4."""
    index = make(kind, 8, 4000)
    system = blocks(4)
    prompts = [np.concatenate([system, blocks(6)]) for _ in range(16_000)]
    for number, prompt in enumerate(prompts[:8000]):
        index.record(number % 8, prompt)
    ahead = iter(prompts[8000:])
    return {
        "10 blocks, 8 endpoints: match": microseconds(lambda: index.match(prompts[7999]), 1000),
        "10 blocks, 8 endpoints: record a known prompt": microseconds(lambda: index.record(3, prompts[7995]), 1000),
        "10 blocks, 8 endpoints: record a new one, evict": microseconds(lambda: index.record(3, next(ahead)), 1000),
    }


def large(kind: str) -> dict[str, float]:
    """1,000 endpoints, a prompt of 1,600 blocks: all hold its first 8, sixteen hold 200 to 1,500 of it."""
    index = make(kind, 1000, 31_250)
    prompt = blocks(1600)
    for slot in range(1000):
        index.record(slot, np.concatenate([prompt[:8], blocks(50)]))
    for number in range(16):
        index.record(number * 60, prompt[: 200 + number * 85])
    turns = iter([np.concatenate([prompt[:1590], blocks(10)]) for _ in range(200)])
    result = {
        "1,600 blocks, 1,000 endpoints: match": microseconds(lambda: index.match(prompt), 20),
        "1,600 blocks, 1,000 endpoints: record a next turn": microseconds(lambda: index.record(900, next(turns)), 20),
    }
    stairs = make(kind, 1000, 31_250)
    for slot in range(1000):
        stairs.record(slot, prompt[: slot + 1])
    result["the same, each endpoint at its own depth: match"] = microseconds(lambda: stairs.match(prompt), 5)
    return result


def hashing() -> dict[str, float]:
    result = {}
    for kib in (4, 64, 400, 1024):
        prompt = _rng.bytes(kib * 1024)

        def once(prompt: bytes = prompt) -> NDArray[np.uint64]:
            return fingerprints((prompt,), 1, UNBOUNDED)

        result[f"fingerprints of {kib} KiB"] = microseconds(once, max(5, 4000 // kib))
    return result


MEMORY_CASES = ((8, 10), (8, 100), (1000, 10), (8, 3))


def main() -> None:
    if len(sys.argv) > 1:
        kind, slots, prompt_blocks = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
        print(memory(kind, slots, prompt_blocks))
        return
    print(f"{'':<58}{'ours':>10}{'plain':>10}")
    for slots, prompt_blocks in MEMORY_CASES:
        row = [_in_own_process(kind, slots, prompt_blocks) for kind in ("ours", "plain")]
        _print(f"MiB: 1,000,000 blocks, {slots} endpoints, {prompt_blocks} a prompt", row)
    for measure in (small, large):
        ours, plain = measure("ours"), measure("plain")
        for name in ours:
            _print(f"µs: {name}", [ours[name], plain[name]])
    for name, value in hashing().items():
        _print(f"µs: {name}", [value])


def _print(name: str, row: list[float]) -> None:
    print(f"{name:<58}" + "".join(f"{value:>10.1f}" for value in row), flush=True)


def _in_own_process(kind: str, slots: int, prompt_blocks: int) -> float:
    command = [sys.executable, "-m", "bench.prefix_index", kind, str(slots), str(prompt_blocks)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
