"""`epp tune` from its arguments to its file: search on the first part of a log, confirm on the last, write what held."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.table import Table

from bench.page import document, figure, table, text
from bench.replay import display, plots, wording
from bench.replay.comparison import Row, compare
from bench.replay.course import Candidate, ReplayError, Setting
from bench.replay.knobs import Knob, knobs, turned
from bench.replay.options import tallies_of
from bench.replay.report import answer, configuration, table_of, write
from bench.replay.search import PRESSED, Trial, changes, chosen, frontier, measure, search

SEARCHED = 0.7
"""The part of the log, from its beginning, that is searched on. The rest confirms."""

SEEDS = 3
FEWEST = 20
_MARK = "# Tuned by epp tune"
_SHOWN = ("ttft_p50", "ttft_p90", "ttft_p99", "ttft_long_p99", "e2e_p90", "hit", "attained")


class Tuning(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. `base` is the text of the file `config`."""

    base: Candidate
    config: Path
    output: Path
    trials: int
    seed: int
    report: Path | None


class Confirmation(msgspec.Struct, frozen=True):
    """The held-out part: `rows` of base and best side by side, and tokens served a second by each under pressure."""

    rows: tuple[Row, ...]
    tokens_per_s: tuple[float, float]

    @property
    def holds(self) -> bool:
        """Whether time to first token is surely lower."""
        found = _row(self.rows, "ttft_p90").cells[1].difference
        return found is not None and found.high < 0


def tuned(wish: Tuning, setting: Setting, processes: int | None) -> bool:
    """Whether something better was found, confirmed, and written. Raises TraceError, ReplayError."""
    _refuse_to_overwrite(wish.output)
    assert wish.base.text is not None
    known = knobs(wish.base.text)
    if not known:
        raise ReplayError(
            f"{wish.config} spells out no weight and no number among the parameters of its plugins: nothing to search. Write into "
            "it those that may change, as epp plugins TYPE lists them"
        )
    if setting.source.count < FEWEST:
        raise ReplayError(
            f"{setting.source.paths[0]}: {setting.source.count} requests are too few to search on and to confirm with; take thousands"
        )
    screen = display.console()
    about = [display.about_source(setting.source), *_about(setting, known)]
    for line in about:
        screen.print(line, highlight=False, markup=False)
    first = int(setting.source.count * SEARCHED)
    searched = _part(setting, 0, first)
    with display.progress("searching", 2 * first * wish.trials) as tell:
        trials = search(searched, wish.base, known, trials=wish.trials, seed=wish.seed, processes=processes, tell=tell)
    best = chosen(trials)
    screen.print()
    screen.print(_frontier_table(trials, best, known))
    screen.print()
    if best is trials[0]:
        if wish.report is not None:
            write(wish.report, _report(about, trials, best, known, wish.base, None))
            screen.print(f"wrote {wish.report}", highlight=False)
        screen.print("nothing better was found; the file stays as it is", highlight=False)
        return False
    changed = Candidate("tuned", turned(wish.base.text, best.values, known))
    confirmation = _confirm(_part(setting, first, setting.source.count - first), wish, changed, processes)
    screen.print("on the last part of the log, which was not searched:", highlight=False)
    display.show(screen, confirmation.rows, ["as it was", "tuned"], None)
    screen.print(_throughput(confirmation), highlight=False)
    screen.print()
    if wish.report is not None:
        write(wish.report, _report(about, trials, best, known, wish.base, (confirmation, changed)))
        screen.print(f"wrote {wish.report}", highlight=False)
    if not confirmation.holds:
        screen.print("the gain did not hold on the last part; nothing is written", highlight=False)
        return False
    write(wish.output, _evidence(wish, setting, best, trials, known, confirmation) + (changed.text or ""))
    screen.print(f"wrote {wish.output}", highlight=False)
    return True


def _part(setting: Setting, first: int, count: int) -> Setting:
    return msgspec.structs.replace(setting, source=setting.source.part(first, count))


def _confirm(setting: Setting, wish: Tuning, changed: Candidate, processes: int | None) -> Confirmation:
    pair = [wish.base, changed]
    tallies = tallies_of(setting, pair, SEEDS, processes)
    with display.progress("confirming", 4 * setting.source.count) as tell:
        (_, base_tokens), (_, tuned_tokens) = measure(setting, pair, wish.seed, processes, tell)
    return Confirmation(compare(tallies), (base_tokens, tuned_tokens))


def _about(setting: Setting, known: Sequence[Knob]) -> list[str]:
    return [
        f"searched on the first {100 * SEARCHED:g} %, confirmed on the rest; {display.about_servers(setting)}",
        "numbers to search: " + ", ".join(f"{knob.name} ({knob.text(knob.value)})" for knob in known),
    ]


def _frontier_table(trials: Sequence[Trial], best: Trial, known: Sequence[Knob]) -> Table:
    result = Table(box=None, pad_edge=False, header_style="bold", title="frontier", title_justify="left")
    result.add_column("ttft_p90", justify="right")
    result.add_column(f"tokens/s at {PRESSED:g}x", justify="right")
    result.add_column("changed")
    for one in _best_known(trials):
        told = "as it was" if one is trials[0] else "; ".join(changes(known, one.values))
        result.add_row(
            wording.seconds(one.ttft_p90_s), f"{one.tokens_per_s:,.0f}", told, style="green" if one is best else None
        )
    return result


def _best_known(trials: Sequence[Trial]) -> list[Trial]:
    """The file as it was, and the frontier."""
    return [trials[0], *(one for one in frontier(trials) if one is not trials[0])]


def _throughput(confirmation: Confirmation) -> str:
    before, after = confirmation.tokens_per_s
    return f"tokens served a second at {PRESSED:g} times the speed: {before:,.0f} as it was, {after:,.0f} tuned ({100 * after / before - 100:+.1f} %)"


def _evidence(
    wish: Tuning,
    setting: Setting,
    best: Trial,
    trials: Sequence[Trial],
    known: Sequence[Knob],
    confirmation: Confirmation,
) -> str:
    """Comment lines for the head of the file."""
    rows = [_row(confirmation.rows, name) for name in _SHOWN]
    lines = [
        f"{_MARK} from {wish.config}: {len(trials)} trials, seed {wish.seed}.",
        f"Log: {display.about_source(setting.source)}.",
        f"Servers: {display.about_servers(setting)}.",
        "Changed: " + "; ".join(changes(known, best.values)) + ".",
        f"On the last {100 - 100 * SEARCHED:g} % of the log, which was not searched (before, after, difference with its 95 % interval):",
        *(_line(row) for row in rows),
        f"  {_throughput(confirmation)}",
    ]
    return "".join(f"{line if line.startswith('#') else f'# {line}'}\n" for line in lines)


def _line(row: Row) -> str:
    first, second = row.cells
    assert second.difference is not None
    unit = row.measure.unit
    values = f"{wording.value(first.value, unit):>9} {wording.value(second.value, unit):>9}"
    return f"  {row.measure.name:<14}{values}  {wording.difference(second.difference, row.measure)}"


def _report(
    about: Sequence[str],
    trials: Sequence[Trial],
    best: Trial,
    known: Sequence[Knob],
    base: Candidate,
    confirmed: tuple[Confirmation, Candidate] | None,
) -> str:
    """`confirmed` is what the best trial came to on the last part, with its configuration; None where the file as it was is the best."""
    parts = [*answer([_outcome(trials, best, known, confirmed)])]
    if confirmed is not None:
        confirmation, _ = confirmed
        parts += [
            "<h2>On the part that was not searched</h2>",
            table_of(confirmation.rows, ["as it was", "tuned"]),
            f"<p>{text(_throughput(confirmation))}</p>",
        ]
    parts += [
        "<h2>What was tried</h2>",
        figure(
            plots.tradeoff(trials, best),
            "Every trial by time to first token and throughput",
            "On the part that was searched; each dot is one set of numbers. Better is lower and further right.",
        ),
        table(
            ["<th class=text>changed", "<th>ttft_p90", f"<th>tokens/s at {PRESSED:g}×"],
            (
                f'<tr><td class="text long">{text("; ".join(changes(known, one.values)) or "as it was")}</td>'
                f"<td>{wording.seconds(one.ttft_p90_s)}</td><td>{one.tokens_per_s:,.0f}</td></tr>"
                for one in _best_known(trials)
            ),
        ),
        *(f'<p class="small">{text(line)}</p>' for line in about),
        "<h2>Configurations</h2>",
        configuration(base),
        *([configuration(confirmed[1])] if confirmed is not None else []),
    ]
    return document(f"Tuning of {base.name}", parts)


def _outcome(
    trials: Sequence[Trial], best: Trial, known: Sequence[Knob], confirmed: tuple[Confirmation, Candidate] | None
) -> str:
    if confirmed is None:
        return f"Nothing better was found in {len(trials)} trials: the file stays as it is."
    cell = _row(confirmed[0].rows, "ttft_p90").cells[1]
    assert cell.difference is not None
    gain = wording.difference(cell.difference, _row(confirmed[0].rows, "ttft_p90").measure)
    if not confirmed[0].holds:
        return f"What was best where it was searched did not hold on the rest of the log (ttft_p90 {gain}): the file stays as it is."
    return (
        f"ttft_p90 changes by {gain} on traffic that was not searched, with {'; '.join(changes(known, best.values))}."
    )


def _row(rows: Sequence[Row], name: str) -> Row:
    return next(row for row in rows if row.measure.name == name)


def _refuse_to_overwrite(path: Path) -> None:
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(_MARK):
        raise ReplayError(f"{path} exists and is not of epp tune's making; name another with --output")
