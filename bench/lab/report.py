"""Everything that the lab found out, as JSON, pictures, and one page that needs nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import inf, log
from pathlib import Path
from typing import Any

import msgspec

from bench import ink
from bench.lab.cells import VARIATIONS, WORKLOADS, Cell
from bench.lab.contenders import DEFAULT
from bench.lab.outcome import Standing, by_cell, levels
from bench.lab.plots import WORST, Drawing, Rank, by_load, by_rank, by_variation, heat_map, ranking, ratios, told_ratio
from bench.lab.running import knee_key
from bench.lab.validation import WITHIN, Line
from bench.lab.verdict import BLEND, Verdict, verdicts
from bench.page import document, figure, text
from bench.page import table as table_of

_PICTURES: Mapping[str, Drawing] = {
    "lab-ranking.png": by_rank,
    "lab-load.png": by_load,
    "lab-variations.png": by_variation,
    "lab-cells.png": heat_map,
}
_CAPTIONS = {
    "lab-ranking.png": (
        "How far from the best",
        "The dot is the geometric mean over the cells, the line goes from the best cell to the worst. 1× is the best policy of each cell, which is not "
        "always the same.",
    ),
    "lab-load.png": (
        "Time to first token by load",
        "1 is the knee: there simple policies still serve nine requests in ten as they should. Times are logarithmic where policies are far apart.",
    ),
    "lab-variations.png": (
        "What old metrics, a slow server, or a second picker cost",
        "Further right is worse; 1× is no harm done.",
    ),
}
_AS_GOOD = 1.02
"""Ratio to the best up to which a policy counts as the best: less is chance."""

_DPI = 110
_COLUMNS = (
    ("TTFT p50, s", "ttft_p50", "s"),
    ("p90, s", "ttft_p90", "s"),
    ("p99, s", "ttft_p99", "s"),
    ("longest tenth p99, s", "longest_ttft_p99", "s"),
    ("whole answer p50, s", "e2e_p50", "s"),
    ("p90, s", "e2e_p90", "s"),
    ("per token, ms", "per_token_p50", "ms"),
    ("in SLO, %", "attained", "%"),
    ("in SLO a second", "goodput_rps", ""),
    ("hit, %", "hit", "%"),
    ("captured, %", "captured", "%"),
    ("requests, max ÷ mean", "request_spread", ""),
    ("tokens, max ÷ mean", "token_spread", ""),
    ("refused, %", "refused", "%"),
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
    drawn = {name: picture for name, draw in _PICTURES.items() if (picture := draw(table)) is not None}
    for name, picture in drawn.items():
        picture.savefig(directory / name, dpi=_DPI)
        written.append(directory / name)
    page = directory / "lab.html"
    page.write_text(document("The routing lab", _page(findings, table, drawn)), encoding="utf-8")
    return [*written, page]


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


def _page(findings: Findings, table: Mapping[Cell, Mapping[str, Standing]], drawn: Mapping[str, Any]) -> Iterator[str]:
    found = verdicts(table)
    yield from _answer(findings, table, found)
    yield from _pictures(drawn, ("lab-ranking.png",))
    yield from _verdicts(found)
    yield from _pictures(drawn, ("lab-load.png", "lab-variations.png"))
    yield from _every_policy(table)
    yield from _validation(findings.validation)
    yield from _how(findings)
    yield "<h2>Every cell in numbers</h2>"
    for cell in sorted(table):
        yield from _cell(cell, table[cell])


def _answer(
    findings: Findings, table: Mapping[Cell, Mapping[str, Standing]], found: Iterable[Verdict]
) -> Iterator[str]:
    """Where the default stands, in words, before any evidence."""
    ranks = ranking(table)
    asked = [one for one in found if one.checks]
    whole = sum(not one.failed for one in asked)
    checks = [check for one in asked for check in one.checks]
    yield '<div class="answer">'
    mine = [one for one in ranks if one.contender == DEFAULT]
    others = [one for one in ranks if one.contender != DEFAULT]
    if mine and others:
        near = {one.contender: sum(_near(table[cell], one.contender) for cell in table) for one in ranks}
        rival = max(others, key=lambda one: near[one.contender])
        shown = [others[0], *(one for one in others[1:] if one.contender == BLEND)]
        yield (
            f"<p><b>{DEFAULT}</b>, the picker with its default policy, has the shortest p90 time to first token, or is within 2 % of it, in "
            f"{near[DEFAULT]} of {mine[0].cells} cells; the next in that, {text(rival.contender)}, in {near[rival.contender]} of {rival.cells}. "
            f"In the mean {DEFAULT} needs {told_ratio(mine[0].mean)} times as long as the best of the cell, "
            f"{' and '.join(f'{text(one.contender)} {told_ratio(one.mean)} times' for one in shown)}{_partly([mine[0], *shown])}.</p>"
        )
    yield (
        f"<p>It passes {sum(check.holds for check in checks)} of {len(checks)} checks; of {len(asked)} requirements that these cells bear on it "
        f"meets {whole} in all of them.</p></div>"
    )
    runs = sum(one.seeds for one in findings.standings)
    alone = findings.seeds == 1
    yield (
        f'<p class="small">{len(table)} cells ({findings.cells}), {len(ranks)} policies, {"one seed" if alone else f"up to {findings.seeds} seeds"}: '
        f"{runs} runs under virtual time. The other policies are those of other systems, from their published formulas. "
        f"{'With one seed there are no intervals: a look, no proof.' if alone else 'Intervals are 95 % confidence over the seeds; who was far behind with the first ran no more.'}</p>"
    )


def _near(contenders: Mapping[str, Standing], name: str) -> bool:
    return ratios(contenders).get(name, inf) <= _AS_GOOD


def _partly(ranks: Sequence[Rank]) -> str:
    """Whom one compares may not have run in the same cells."""
    return ", each where it was run" if len({one.cells for one in ranks}) > 1 else ""


def _pictures(drawn: Mapping[str, Any], names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name in drawn:
            heading, caption = _CAPTIONS[name]
            picture = figure(ink.svg(drawn[name], name.partition(".")[0]), heading, caption)
            yield f"<h2>{text(heading)}</h2>{picture}"


def _verdicts(found: Iterable[Verdict]) -> Iterator[str]:
    yield "<h2>What is required of the default</h2>"
    head = ["<th class=text>requirement", "<th>cells", "<th>held", "<th class=text>worst miss"]
    yield table_of(head, map(_verdict, found))


def _verdict(one: Verdict) -> str:
    name = f'<tr><td class="text long">{text(one.requirement)}'
    if not one.checks:
        return f'{name}<td>0<td class="open">not run<td></tr>'
    held = len(one.checks) - len(one.failed)
    if not one.failed:
        return f'{name}<td>{len(one.checks)}<td class="good">✓ {held}<td></tr>'
    miss = one.failed[0]
    worst = f"{miss.value:.3g}, the bound is {miss.bound:.3g}: {miss.cell}"
    return f'{name}<td>{len(one.checks)}<td class="bad">✗ {held}<td class="text long">{text(worst)}</tr>'


def _every_policy(table: Mapping[Cell, Mapping[str, Standing]]) -> Iterator[str]:
    names = [one.contender for one in ranking(table)]
    if len(names) < 2:
        return
    yield (
        "<h2>Every policy in every cell</h2><p>p90 time to first token ÷ the best in the row, policies from best to worst in the geometric mean. "
        "The darker, the slower; –: not run.</p>"
    )
    head = ["<th class=text>cell", *(f"<th{_ours(name, 'turned')}>{text(name)}" for name in names)]
    rows = []
    for cell in sorted(table):
        known = ratios(table[cell])
        shown = "".join(_heat(name, known.get(name)) for name in names)
        rows.append(f'<tr><td class="text">{text(str(cell))}{shown}</tr>')
    yield table_of(head, rows, kind="heat")


def _heat(name: str, ratio: float | None) -> str:
    if ratio is None:
        return f"<td{_ours(name)}>–"
    # From white to a grey on which black text still has a contrast of 4.5.
    light = 255 - round(128 * min(1.0, log(ratio) / log(WORST)))
    return f'<td{_ours(name)} style="background:rgb({light},{light},{light})">{told_ratio(ratio)}'


def _ours(name: str, kind: str = "") -> str:
    kinds = " ".join(filter(None, (kind, "ours" if name == DEFAULT else "")))
    return f' class="{kinds}"' if kinds else ""


def _validation(lines: Iterable[Line]) -> Iterator[str]:
    yield (
        f"<h2>Is the simulated server like a real one?</h2><p>Published measurements, ours, and the error; within {WITHIN:.0%} is "
        "good enough to compare policies. A constant of the engine was fitted to the line so marked.</p>"
    )
    head = ["<th class=text>what", "<th>published", "<th>ours", "<th>error", "<th class=text>source"]
    rows = []
    for line in lines:
        kind, mark = ("good", "✓") if abs(line.error) <= WITHIN else ("bad", "✗")
        fitted = " (fitted)" if line.fitted else ""
        rows.append(
            f'<tr><td class="text long">{text(line.what)}{fitted}<td>{_quantity(line.theirs)} {text(line.unit)}'
            f'<td>{_quantity(line.ours)} {text(line.unit)}<td class="{kind}">{line.error:+.1%} {mark}'
            f'<td class="text long">{text(line.source)}</tr>'
        )
    yield table_of(head, rows)


def _quantity(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _how(findings: Findings) -> Iterator[str]:
    yield (
        "<h2>How</h2><p>Load is in parts of the knee: the highest speed of the trace at which least request or the Go picker's "
        "blend still serves 90 % of the requests within the SLO (first token within 1 s and three times what an idle server needs for the "
        "whole prompt; 50 ms a token, or four times what a server needs alone). The first fifth of each run is not counted.</p>"
    )
    yield table_of(
        ["<th class=text>trace and servers", "<th>speed at the knee, × the trace's own"],
        (f'<tr><td class="text">{text(name)}<td>{speed:.3g}</tr>' for name, speed in sorted(findings.knees.items())),
    )
    yield table_of(
        ["<th class=text>variation", "<th class=text>what differs"],
        (
            f'<tr><td class="text">{text(name)}<td class="text long">{text(what)}</tr>'
            for name, what in VARIATIONS.items()
        ),
    )


def _cell(cell: Cell, contenders: Mapping[str, Standing]) -> Iterator[str]:
    level = levels(contenders)
    ordered = sorted(contenders.values(), key=lambda one: level.get(one.contender, inf))
    head = ["<th class=text>policy", "<th>seeds", *(f"<th>{title}" for title, _, _ in _COLUMNS)]
    rows = (
        f'<tr{_ours(one.contender)}><td class="text">{text(one.contender)}<td>{one.seeds}'
        + "".join(f"<td>{_told(one, name, unit)}" for _, name, unit in _COLUMNS)
        + "</tr>"
        for one in ordered
    )
    summary = f"{cell} on {WORKLOADS[cell.trace].profile}: best {ordered[0].contender}"
    yield f"<details><summary>{text(summary)}</summary>{table_of(head, rows)}</details>"


def _told(standing: Standing, name: str, unit: str) -> str:
    estimate = standing.numbers.get(name)
    if estimate is None:
        return "–"
    factor = {"ms": 1000.0, "%": 100.0}.get(unit, 1.0)
    shown = f"{estimate.mean * factor:.3g}"
    return f"{shown} ± {estimate.half_width * factor:.2g}" if name == "ttft_p90" and standing.seeds > 1 else shown
