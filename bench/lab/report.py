"""Everything that the lab found out, as JSON, pictures, and one page that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from bench.lab import plots
from bench.lab.cells import VARIATIONS, WORKLOADS, Cell
from bench.lab.contenders import DEFAULT
from bench.lab.outcome import Standing, by_cell
from bench.lab.running import knee_key
from bench.lab.validation import WITHIN, Line
from bench.lab.verdict import Verdict, verdicts

_PICTURES = (
    ("lab-load.png", plots.by_load),
    ("lab-cells.png", plots.heat_map),
    ("lab-variations.png", plots.by_variation),
)
_COLUMNS = (
    ("TTFT p50", "ttft_p50", "s"),
    ("p90", "ttft_p90", "s"),
    ("p99", "ttft_p99", "s"),
    ("longest p99", "longest_ttft_p99", "s"),
    ("e2e p50", "e2e_p50", "s"),
    ("p90", "e2e_p90", "s"),
    ("per token", "per_token_p50", "ms"),
    ("in SLO", "attained", "%"),
    ("goodput", "goodput_rps", ""),
    ("hit", "hit", "%"),
    ("captured", "captured", "%"),
    ("requests max÷mean", "request_spread", ""),
    ("tokens max÷mean", "token_spread", ""),
    ("refused", "refused", "%"),
)


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """`knees` are speeds in multiples of each trace's own, by workload and size."""

    cells: str
    seeds: int
    standings: list[Standing]
    knees: dict[str, float]
    validation: list[Line]


def write(findings: Findings, directory: Path) -> list[Path]:
    """Write lab.json, the pictures and lab.html. Returns what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    table = by_cell(findings.standings)
    written = [directory / "lab.json"]
    written[0].write_bytes(msgspec.json.encode(findings) + b"\n")
    drawn = [directory / name for name, draw in _PICTURES if draw(table, directory / name)]
    page = directory / "lab.html"
    page.write_text("".join(_page(findings, table, drawn)), encoding="utf-8")
    return [*written, *drawn, page]


def joined(earlier: Findings, later: Findings) -> Findings:
    """`later`, and what only `earlier` has of the cells and contenders, as far as the two can stand beside each other: as many seeds, and
    the same knee."""
    if earlier.seeds != later.seeds:
        return later
    known = {(one.cell, one.contender) for one in later.standings}
    moved = {key for key, speed in later.knees.items() if earlier.knees.get(key, speed) != speed}
    kept = [
        one for one in earlier.standings if (one.cell, one.contender) not in known and knee_key(one.cell) not in moved
    ]
    return msgspec.structs.replace(
        later,
        standings=sorted([*kept, *later.standings], key=lambda one: (one.cell, one.contender)),
        knees={**earlier.knees, **later.knees},
    )


def read(path: Path) -> Findings:
    return msgspec.json.decode(path.read_bytes(), type=Findings)


_STYLE = """
body { font: 14px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222 }
h1, h2 { line-height: 1.2 } img { max-width: 100% } code { background: #f4f4f4 }
table { border-collapse: collapse; margin: .6em 0 1.6em } td, th { padding: .15em .6em; text-align: right; border-bottom: 1px solid #eee }
td:first-child, th:first-child { text-align: left } tr.default { background: #fdf0ee; font-weight: 600 }
.yes { color: #2a7f62 } .no { color: #c0392b } .scroll { overflow-x: auto } summary { cursor: pointer }
"""


def _page(findings: Findings, table: Mapping[Cell, Mapping[str, Standing]], drawn: Sequence[Path]) -> Iterator[str]:
    yield '<!doctype html><html lang="en"><meta charset="utf-8"><title>The routing lab</title>'
    yield f"<style>{_STYLE}</style><h1>The routing lab</h1>"
    contenders = len({one.contender for one in findings.standings})
    runs = sum(one.seeds for one in findings.standings)
    alone = findings.seeds == 1
    seeds = "one seed" if alone else f"{findings.seeds} seeds"
    sure = "With one seed there are no intervals." if alone else "Intervals are 95 % confidence over the seeds."
    yield (
        f"<p>{len(table)} cells ({findings.cells}), {contenders} policies, {seeds}: {runs} runs under virtual time. "
        f"<b>{DEFAULT}</b> is the picker itself with its default policy; the others are other systems' policies from their published "
        f"formulas. {sure}</p>"
    )
    yield from _verdicts(verdicts(table))
    for path in drawn:
        data = base64.b64encode(path.read_bytes()).decode()
        yield f'<p><img alt="{path.stem}" src="data:image/png;base64,{data}"></p>'
    yield from _validation(findings.validation)
    yield from _how(findings)
    yield "<h2>Every cell</h2>"
    for cell in sorted(table):
        yield from _cell(cell, table[cell])
    yield "</html>"


def _verdicts(found: Iterable[Verdict]) -> Iterator[str]:
    yield "<h2>What is required of the default</h2><table><tr><th>requirement<th>cells<th>held<th>worst</tr>"
    for one in found:
        if not one.checks:
            yield f"<tr><td>{_text(one.requirement)}<td>0<td>–<td></tr>"
            continue
        held = len(one.checks) - len(one.failed)
        worst = ""
        if one.failed:
            miss = one.failed[0]
            worst = f"{miss.value:.3g} where {miss.bound:.3g} is the bound: {miss.cell}"
        kind = "no" if one.failed else "yes"
        yield f'<tr><td>{_text(one.requirement)}<td>{len(one.checks)}<td class="{kind}">{held}<td>{_text(worst)}</tr>'
    yield "</table>"


def _validation(lines: Iterable[Line]) -> Iterator[str]:
    yield (
        f"<h2>Is the simulated server like a real one?</h2><p>Published measurements, ours, and the error; within {WITHIN:.0%} is "
        "good enough to compare policies. A constant of the engine was fitted to the line so marked.</p>"
        "<table><tr><th>what<th>published<th>ours<th>error<th>source</tr>"
    )
    for line in lines:
        kind = "yes" if abs(line.error) <= WITHIN else "no"
        fitted = " (fitted)" if line.fitted else ""
        yield (
            f"<tr><td>{_text(line.what)}{fitted}<td>{line.theirs:,.4g} {line.unit}<td>{line.ours:,.4g} {line.unit}"
            f'<td class="{kind}">{line.error:+.1%}<td>{_text(line.source)}</tr>'
        )
    yield "</table>"


def _how(findings: Findings) -> Iterator[str]:
    yield (
        "<h2>How</h2><p>Load is in parts of the knee: the highest speed of the trace at which least request or the Go picker's "
        "blend still serves 90 % of the requests within the SLO (first token within 1 s and three times what an idle server needs for the "
        "whole prompt; 50 ms a token, or four times what a server needs alone). The first fifth of each run is not counted.</p>"
        "<table><tr><th>trace and servers<th>speed at the knee</tr>"
    )
    for name, speed in sorted(findings.knees.items()):
        yield f"<tr><td>{_text(name)}<td>{speed:.3g} ×</tr>"
    yield "</table><table><tr><th>variation<th>what differs</tr>"
    for name, what in VARIATIONS.items():
        yield f"<tr><td>{_text(name)}<td>{_text(what)}</tr>"
    yield "</table>"


def _cell(cell: Cell, contenders: Mapping[str, Standing]) -> Iterator[str]:
    ordered = sorted(contenders.values(), key=lambda one: one.mean("ttft_p90") if "ttft_p90" in one.numbers else 1e9)
    first = ordered[0]
    yield (
        f'<details><summary>{_text(str(cell))} on {WORKLOADS[cell.trace].profile}: best {_text(first.contender)}</summary><div class="scroll">'
        "<table><tr><th>policy"
    )
    yield "".join(f"<th>{title}" for title, _, _ in _COLUMNS)
    yield "</tr>"
    for one in ordered:
        kind = ' class="default"' if one.contender == DEFAULT else ""
        yield f"<tr{kind}><td>{_text(one.contender)}"
        yield "".join(f"<td>{_told(one, name, unit)}" for _, name, unit in _COLUMNS)
        yield "</tr>"
    yield "</table></div></details>"


def _told(standing: Standing, name: str, unit: str) -> str:
    estimate = standing.numbers.get(name)
    if estimate is None:
        return "–"
    factor = {"ms": 1000.0, "%": 100.0}.get(unit, 1.0)
    shown = f"{estimate.mean * factor:.3g}"
    return f"{shown} ± {estimate.half_width * factor:.2g}" if name == "ttft_p90" and standing.seeds > 1 else shown


def _text(text: str) -> str:
    return html.escape(text)
