"""Takes the text out of traces: `python -m bench.traces.reduce FILE... > blocks.jsonl`, one file a session, merged by time.

What two prompts have in common stays visible, in blocks of 64 tokens; nothing of what they say does.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from bench.lab.formats import read_file
from bench.lab.offered import Offered


def lines(paths: list[Path]) -> Iterator[bytes]:
    """One line a request. Blocks are named anew, by their first appearance; sessions begin at the same time."""
    names: dict[int, int] = {}

    def of(session: int, path: Path) -> Iterator[tuple[float, int, Offered]]:
        for one in read_file(path):
            yield one.at_s, session, one

    for at_s, session, one in heapq.merge(
        *(of(number, path) for number, path in enumerate(paths)), key=lambda row: row[:2]
    ):
        row = {
            "timestamp": round(at_s * 1000),
            "input_length": one.prompt_tokens,
            "output_length": one.output_tokens,
            "hash_ids": [names.setdefault(block, len(names)) for block in one.blocks],
            "block_tokens": one.block_tokens,
            "tenant": f"session-{session}",
        }
        yield msgspec.json.encode(row) + b"\n"


if __name__ == "__main__":
    sys.stdout.buffer.writelines(lines([Path(name) for name in sys.argv[1:]]))
