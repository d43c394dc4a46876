"""What the demo shows: a live table in a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from types import TracebackType

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from bench.demo.comparison import Run, longest_conversation, milliseconds, path, percent, rows, verdict
from bench.demo.tally import UNSEEN, Snapshot, Tally
from bench.load.client import Result

PLAIN_EVERY_S = 2.0


class Board:
    """Shows one run while it goes on. A context manager: what it showed last stays on the screen."""

    def __init__(self, console: Console, title: str, tally: Tally) -> None:
        self._console = console
        self._title = title
        self._tally = tally
        self._began_s = time.monotonic()
        self._plain_s = self._began_s
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        else:
            self._console.print(f"{self._title}: {self._tally.total} requests")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, snapshot: Snapshot, *, last: bool = False) -> None:
        """Show `snapshot`; of a run that is over only its figures, not its passing requests."""
        now_s = time.monotonic()
        if self._live is not None:
            self._live.update(board(self._title, self._tally, snapshot, now_s - self._began_s, last=last), refresh=True)
        elif last:
            self._console.print(servers_table(self._tally, snapshot))
        elif now_s - self._plain_s >= PLAIN_EVERY_S:
            self._plain_s = now_s
            self._console.print(plain(self._tally, snapshot, now_s - self._began_s), soft_wrap=True)


def board(title: str, tally: Tally, snapshot: Snapshot, elapsed_s: float, *, last: bool) -> RenderableType:
    parts: list[RenderableType] = [headline(title, tally, elapsed_s), servers_table(tally, snapshot)]
    if not last:
        parts += [recent(tally, result) for result in tally.recent]
    return Group(*parts)


def headline(title: str, tally: Tally, elapsed_s: float) -> Text:
    done = len(tally.results)
    text = Text.assemble((title, "bold"), f"   {done}/{tally.total} answered, ")
    text.append(errors(tally), style="red" if tally.errors else "")
    return text.append(f"   {elapsed_s:.0f} s   {first_tokens(tally)}")


def errors(tally: Tally) -> str:
    return "1 error" if tally.errors == 1 else f"{tally.errors} errors"


def first_tokens(tally: Tally) -> str:
    seen = tally.first_token()
    return f"first token p50 {milliseconds(seen.p50_s)}  p90 {milliseconds(seen.p90_s)}  p99 {milliseconds(seen.p99_s)}"


def servers_table(tally: Tally, snapshot: Snapshot) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("server", no_wrap=True)
    for name in ("requests", "in flight", "queue", "KV memory", "cache hits"):
        table.add_column(name, justify="right")
    table.add_column("adapters")
    requests, adapters = tally.requests(), tally.adapters()
    for number, server in enumerate(tally.servers, 1):
        seen = snapshot.get(server, UNSEEN)
        table.add_row(
            Text.assemble(f"{number}  {server}", ("" if seen.reachable else "  down", "red")),
            str(requests[server]),
            _count(seen.in_flight),
            _count(seen.waiting),
            percent(seen.kv_usage),
            percent(seen.cache.rate if seen.cache else None),
            Text(" ".join(adapters[server])),
        )
    return table


def recent(tally: Tally, result: Result) -> Text:
    what = f"{'chat' if result.chat else 'completion'}, {result.model}"
    line = f"  {result.id:>7}  {what:<20}  server {tally.number_of(result.id)}"
    if not result.ok:
        return Text(f"{line}  {result.error}", style="red", no_wrap=True, overflow="ellipsis")
    if result.prompt_tokens:
        line += f"  {result.cached_tokens:>5,} of {result.prompt_tokens:>5,} tokens cached"
    if result.ttft_s is not None:
        line += f"  first token {milliseconds(result.ttft_s):>9}"
    return Text(line, style="dim", no_wrap=True, overflow="ellipsis")


def plain(tally: Tally, snapshot: Snapshot, elapsed_s: float) -> str:
    seen = [snapshot.get(server, UNSEEN) for server in tally.servers]
    return (
        f"  {elapsed_s:3.0f} s  {len(tally.results)}/{tally.total} answered, {errors(tally)}; {first_tokens(tally)}; "
        f"requests {_slashed(map(str, tally.requests().values()))}, in flight {_slashed(_count(s.in_flight) for s in seen)}, "
        f"cache hits {_slashed(percent(s.cache.rate if s.cache else None) for s in seen)}"
    )


def comparison(first: Run, second: Run) -> RenderableType:
    """The last screen: both runs side by side, one conversation's way through both, one sentence."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("same requests, same order", no_wrap=True)
    table.add_column(first.name, justify="right")
    table.add_column(second.name, justify="right")
    table.add_column("change", justify="right")
    for row in rows(first, second):
        table.add_row(*row)
    return Group(table, *_sample(first, second), Text(verdict(first, second), style="bold"))


def _sample(first: Run, second: Run) -> list[RenderableType]:
    found = longest_conversation(first, second)
    if found is None:
        return []
    turns, others = found
    width = max(len(first.name), len(second.name))
    return [
        Text(
            f"Where the {len(turns)} turns of one conversation ({turns[0].tenant}, model {turns[0].model}) went, "
            "and how much was cached:"
        ),
        Text(f"  {first.name:<{width}}  {path(first, turns)}"),
        Text(f"  {second.name:<{width}}  {path(second, others)}\n"),
    ]


def _slashed(values: Iterable[str]) -> str:
    return "/".join(values)


def _count(value: float | None) -> str:
    return "–" if value is None or math.isnan(value) else f"{value:.0f}"
