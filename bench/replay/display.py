"""What a person sees in the terminal while it runs and when it is done."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import isfinite

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from bench.replay.comparison import Cell, Row
from bench.replay.conditions import Condition
from bench.replay.course import Setting
from bench.replay.measures import Measure
from bench.replay.source import Recorded, Source
from bench.replay.wording import difference, is_better, seconds, span, value

PLAIN_WIDTH = 120
"""Columns where the output is no terminal."""

MUCH = 20_000
"""Requests that take long enough for somebody to wonder."""


def console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=PLAIN_WIDTH)


@contextmanager
def progress(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A bar on standard error where that is a terminal, else a line now and then where there is much to do. Gives what to tell the
    number of requests done."""
    screen = Console(stderr=True)
    if not screen.is_terminal:
        yield _Lines(text, total).tell
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("requests,"),
        TimeRemainingColumn(),
        TextColumn("left"),
    )
    with Progress(*columns, console=screen, transient=True) as bars:
        bar = bars.add_task(text, total=total)
        yield lambda done: bars.update(bar, completed=done)


class _Lines:
    """How far it is, for a pipeline's log."""

    def __init__(self, text: str, total: int | None) -> None:
        self._text = text
        self._total = total
        self._step = max(MUCH, (total or 0) // 10)
        self._next = self._step

    def tell(self, done: int) -> None:
        if done < self._next:
            return
        self._next = done - done % self._step + self._step
        of = f" of {self._total:,}" if self._total is not None else ""
        print(f"{self._text}: {done:,}{of} requests", file=sys.stderr, flush=True)


def about_source(source: Source) -> str:
    names = ", ".join(str(path) for path in source.paths)
    over = (
        f"over {span(source.span_s)} ({source.count / source.span_s:.3g} a second)" if source.span_s else "all at once"
    )
    return (
        f"{names}: {source.kind} of {source.count:,} request{'s' if source.count != 1 else ''} {over}; "
        f"mean prompt {source.prompt_tokens / source.count:,.0f} tokens, answer {source.output_tokens / source.count:,.0f}"
    )


def about_setting(setting: Setting, seeds: int) -> str:
    times = "once" if seeds == 1 else f"{seeds} times with different chance"
    return (
        f"on {about_servers(setting)}; each configuration {times}; the first fifth fills the caches and is not counted"
    )


def about_servers(setting: Setting) -> str:
    kinds = dict.fromkeys(one.name for one in setting.servers)
    each = " + ".join(f"{sum(one.name == kind for one in setting.servers)} × {kind}" for kind in kinds)
    mode = "lean mode" if setting.lean else "full duplex"
    speed = "" if setting.speed == 1 else f", at {setting.speed:g} times the recorded speed"
    return f"{each}, {mode}, metrics every {seconds(setting.scrape_interval_s)}{speed}"


def show(screen: Console, rows: Sequence[Row], names: Sequence[str], recorded: Recorded | None) -> None:
    """Side by side: values, and of every configuration but the first the difference from it with its 95 % interval.

    Measures have their description where there is room for it; where there is not room for all configurations, each but the first has a table
    of its own beside the first.
    """
    everybody = range(1, len(names))
    for wordy in (True, False) if len(names) < 3 else (False,):
        whole = _table(rows, names, recorded, everybody, wordy)
        if _width(screen, whole) <= screen.width:
            screen.print(whole)
            return
    for index in everybody or (0,):
        pair = _table(rows, names, recorded, [index] if index else [], False)
        # A terminal may fold what is wider than itself; digits that are cut off are lost.
        screen.width = max(screen.width, _width(screen, pair))
        screen.print(pair)
        screen.print()


def _width(screen: Console, table: Table) -> int:
    return Measurement.get(screen, screen.options.update(max_width=10_000), table).maximum


def _table(
    rows: Sequence[Row], names: Sequence[str], recorded: Recorded | None, others: Sequence[int], wordy: bool
) -> Table:
    """The first configuration and the `others`, by index."""
    result = Table(box=None, pad_edge=False, header_style="bold")
    if wordy:
        result.add_column("", no_wrap=True)
    result.add_column("", style="cyan", no_wrap=True)
    if recorded is not None:
        result.add_column("as recorded", justify="right", style="dim", no_wrap=True)
    result.add_column(names[0], justify="right", no_wrap=True)
    for index in others:
        result.add_column(names[index], justify="right", no_wrap=True)
        result.add_column("difference", no_wrap=True)
    for row in rows:
        cells: list[str | Text] = [row.measure.text, row.measure.name] if wordy else [row.measure.name]
        if recorded is not None:
            cells.append(_as_recorded(recorded, row.measure))
        cells.append(value(row.cells[0].value, row.measure.unit))
        for cell in (row.cells[index] for index in others):
            cells += [value(cell.value, row.measure.unit), _difference(cell, row.measure)]
        result.add_row(*cells)
    return result


def _difference(cell: Cell, measure: Measure) -> Text:
    assert cell.difference is not None
    better = is_better(cell.difference, measure)
    return Text(difference(cell.difference, measure), style={True: "green", False: "red", None: "dim"}[better])


def _as_recorded(recorded: Recorded, measure: Measure) -> str:
    of = {
        **dict(zip(("ttft_p50", "ttft_p90", "ttft_p99"), recorded.ttft_s, strict=True)),
        **dict(zip(("e2e_p50", "e2e_p90", "e2e_p99"), recorded.e2e_s, strict=True)),
        "hit": recorded.hit,
    }
    return value(of[measure.name], measure.unit) if measure.name in of else ""


def verdict(condition: Condition, rows: Sequence[Row], index: int, name: str) -> Text:
    """One line for one condition and configuration."""
    row = next(row for row in rows if row.measure.name == condition.measure)
    cell = row.cells[index]
    failed = condition.holds(rows, index)
    says = value(cell.value, row.measure.unit)
    if cell.difference is not None and isfinite(cell.difference.value):
        says += f", {difference(cell.difference, row.measure)}"
    line = Text("FAILED " if failed else "ok     ", style="bold red" if failed else "green")
    return line.append(f"{condition.text}  {name}: {says}", style="default")
