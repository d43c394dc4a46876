"""The comparison as one HTML file that needs nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from bench.replay import plots
from bench.replay.comparison import Cell, Row
from bench.replay.course import Candidate, ReplayError
from bench.replay.measures import Measure
from bench.replay.tally import Tally
from bench.replay.wording import difference, is_better, value

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } th, td { padding: .25rem .8rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; } code { color: #666; } svg { max-width: 100%; height: auto; }
.better { color: #17722f; } .worse { color: #b3261e; } .unsure { color: #888; } .failed { color: #b3261e; font-weight: 600; }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }
"""


def render(
    *,
    about: Sequence[str],
    rows: Sequence[Row],
    tallies: Sequence[Tally],
    candidates: Sequence[Candidate],
    verdicts: Sequence[tuple[str, bool]],
    begin_s: float,
) -> str:
    """`about` says what was replayed on what; `verdicts` are lines with whether they failed."""
    names = [one.name for one in candidates]
    parts = [
        *(f"<p>{escape(line)}</p>" for line in about),
        *(f'<p class="{"failed" if failed else ""}">{escape(line)}</p>' for line, failed in verdicts),
        table_of(rows, names),
        "<p>In brackets the bounds within which the difference stays in 95 of 100 traces made of this one's stretches; grey where it may "
        "be chance. Servers are simulated: compare columns, and take a column's own numbers for what such servers would do.</p>",
        "<h2>Time to first token</h2>",
        plots.distribution(tallies, names),
        plots.course(tallies, names, begin_s),
    ]
    if len(names) > 1:
        parts += ["<h2>Differences</h2>", plots.differences(rows, names)]
    parts += ["<h2>Configurations</h2>", *(configuration(one) for one in candidates)]
    return page("Replay", parts)


def page(title: str, parts: Sequence[str]) -> str:
    """A whole document."""
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style><h1>{title}</h1>"
    return "\n".join([head, *parts, "</html>\n"])


def write(path: Path, text: str) -> None:
    """Raises ReplayError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReplayError(f"{path} cannot be written: {error.strerror}") from error


def table_of(rows: Sequence[Row], names: Sequence[str]) -> str:
    first, *others = (escape(name) for name in names)
    head = f"<th></th><th>{first}</th>" + "".join(f"<th>{name}</th><th>difference</th>" for name in others)
    return f"<table><tr>{head}</tr>{''.join(map(_row, rows))}</table>"


def _row(row: Row) -> str:
    measure = row.measure
    cells = f"<td>{measure.text} <code>{measure.name}</code></td>"
    return f"<tr>{cells}{''.join(_cell(cell, measure) for cell in row.cells)}</tr>"


def _cell(cell: Cell, measure: Measure) -> str:
    shown = f"<td>{value(cell.value, measure.unit)}</td>"
    if cell.difference is None:
        return shown
    kind = {True: "better", False: "worse", None: "unsure"}[is_better(cell.difference, measure)]
    return f'{shown}<td class="{kind}">{difference(cell.difference, measure)}</td>'


def configuration(candidate: Candidate) -> str:
    text = candidate.text if candidate.text is not None else "# built in"
    return f"<h3>{escape(candidate.name)}</h3><pre>{escape(text)}</pre>"
