"""`python -m tests.faults`: run the matrix, print it, and compare it with docs/failure-modes.md (--write replaces it there)."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
import tempfile
from pathlib import Path

from bench.processes import ROOT
from tests.faults.faults import FAULTS
from tests.faults.matrix import SETTINGS, Row, Setting, run_setting, table

DOCUMENT = ROOT / "docs" / "failure-modes.md"
MARKED = re.compile(r"(<!-- matrix -->\n).*(<!-- end of matrix -->)", re.DOTALL)


async def run(names: str, settings: str) -> dict[Setting, list[Row]]:
    faults = [fault for fault in FAULTS if names in fault.name]
    chosen = [setting for setting in SETTINGS if settings.lower() in setting.title.lower()]
    # Two at a time: mostly they wait, but four scenes starting at once make each other late.
    turn = asyncio.Semaphore(2)

    async def one(setting: Setting, directory: Path) -> list[Row]:
        async with turn:
            await asyncio.to_thread(directory.mkdir)
            return await run_setting(setting, directory, faults)

    with tempfile.TemporaryDirectory(prefix="epp-faults-") as directory:
        rows = await asyncio.gather(*(one(s, Path(directory) / str(n)) for n, s in enumerate(chosen)))
    return dict(zip(chosen, rows, strict=True))


def bare(text: str) -> dict[tuple[str, str], str]:
    """What clients saw, by heading and fault, without what differs from machine to machine: the seconds."""
    varying = {fault.name for fault in FAULTS if fault.varies}
    heading, seen = "", {}
    for line in text.splitlines():
        if line.startswith("### "):
            heading = line.removeprefix("### ")
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 6 and cells[1] not in varying:
            seen[heading, cells[1]] = re.sub(r", \d+ s late", "", " | ".join(cells[2:6]))
    return seen


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fault", default="", help="only faults whose name has this in it")
    parser.add_argument("--setting", default="", help="only settings whose title has this in it")
    parser.add_argument("--write", action="store_true", help=f"put the tables into {DOCUMENT.name}")
    args = parser.parse_args()
    found = asyncio.run(run(args.fault, args.setting))
    tables = "\n".join(table(setting, rows) for setting, rows in found.items())
    print(f"\n{tables}")
    text = DOCUMENT.read_text() if DOCUMENT.exists() else ""
    if args.write:
        DOCUMENT.write_text(MARKED.sub(lambda match: f"{match[1]}{tables}{match[2]}", text))
        return 0
    known = bare(text)
    new = {place: saw for place, saw in bare(tables).items() if known.get(place) != saw}
    for (heading, fault), saw in new.items():
        print(f"{DOCUMENT.name} says otherwise of {fault} ({heading}): {known.get((heading, fault))}, not {saw}")
    return 1 if new else 0


if __name__ == "__main__":
    sys.exit(main())
