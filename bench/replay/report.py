"""The comparison as one HTML file that needs nothing else: what came out first, then the table, the plots, and what was compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.page import document, figure, table, text
from bench.replay import plots
from bench.replay.comparison import Cell, Row
from bench.replay.course import Candidate, ReplayError
from bench.replay.measures import Measure
from bench.replay.tally import Tally
from bench.replay.wording import answers, difference, is_better, value
from epp.configuration.defaults import DEFAULT_TEXT


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
    several = len(names) > 1
    parts = [
        *answer(answers(rows, names)),
        *(f'<p class="{"bad" if failed else "good"}">{text(line)}</p>' for line, failed in verdicts),
        table_of(rows, names),
        *([_HOW_SURE] if several else []),
        *(f'<p class="small">{text(line)}</p>' for line in about),
        '<p class="small">Servers are simulated: trust differences more than values.</p>',
        "<h2>Time to first token</h2>",
        figure(
            plots.distribution(tallies, names),
            "Share of requests by time to first token",
            "How many requests have their first token by when: what is further left is faster, and the right end is the slowest few.",
        ),
        figure(
            plots.course(tallies, names, begin_s),
            "p90 time to first token along the trace",
            "The same as the trace goes on: nine in ten requests of each twenty-fifth of its time are faster than the line.",
        ),
    ]
    if several:
        parts += [
            "<h2>Differences</h2>",
            figure(
                plots.differences(rows, names),
                f"Differences from {names[0]} with their intervals",
                "Filled: surely another; hollow: may be chance. The arrow at a measure's name points to the better side.",
            ),
        ]
    parts += ["<h2>Configurations</h2>", *(configuration(one) for one in candidates)]
    return document(f"Replay: {_pairing(names)}", parts)


def _pairing(names: Sequence[str]) -> str:
    first, *others = names
    return f"{' and '.join(others)} against {first}" if others else first


_HOW_SURE = (
    '<p class="small">In brackets the bounds within which the difference stays in 95 of 100 traces made of this one\'s stretches. '
    "Where they hold 0 it may be chance: ≈.</p>"
)


def answer(lines: Sequence[str]) -> Iterator[str]:
    """What a reader came for, in words."""
    yield '<div class="answer">'
    for line in lines:
        yield f"<p>{text(line)}</p>"
    yield "</div>"


def write(path: Path, page: str) -> None:
    """Raises ReplayError."""
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise ReplayError(f"{path} cannot be written: {error.strerror}") from error


def table_of(rows: Sequence[Row], names: Sequence[str]) -> str:
    first, *others = (text(name) for name in names)
    head = ['<th class="text">measure', f"<th>{first}", *(f"<th>{name}<th>difference" for name in others)]
    return table(head, map(_row, rows))


def _row(row: Row) -> str:
    measure = row.measure
    cells = "".join(_cell(cell, measure) for cell in row.cells)
    return f'<tr><td class="text">{text(measure.text)} <code>{measure.name}</code></td>{cells}</tr>'


def _cell(cell: Cell, measure: Measure) -> str:
    shown = f"<td>{value(cell.value, measure.unit)}</td>"
    if cell.difference is None:
        return shown
    kind, word = _JUDGED[is_better(cell.difference, measure)]
    return f'{shown}<td class="{kind}">{difference(cell.difference, measure)} {word}</td>'


_JUDGED = {True: ("good", "better"), False: ("bad", "worse"), None: ("open", "≈")}


def configuration(candidate: Candidate) -> str:
    """Its whole text, folded."""
    built_in = " (built in)" if candidate.text is None else ""
    whole = candidate.text if candidate.text is not None else DEFAULT_TEXT
    return f"<details><summary>{text(candidate.name)}{built_in}</summary><pre>{text(whole)}</pre></details>"
