"""`epp replay` and `epp tune`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from bench.lab.offered import TraceError
from bench.replay import display
from bench.replay.comparison import compare
from bench.replay.conditions import Condition
from bench.replay.course import Candidate, ReplayError, Setting, counted_from_s
from bench.replay.measures import MEASURES
from bench.replay.options import (
    BUILT_IN,
    CONTEXT,
    LOGS,
    Conditions,
    Written,
    candidates_of,
    setting_of,
    tallies_of,
    with_pool,
)
from bench.replay.report import render, write
from bench.replay.tuning import Tuning, tuned
from epp.configuration import ConfigurationError

BROKEN = 2
"""Exit status where the question could not be asked: wrong usage, a log or a configuration that cannot be read."""


@click.command(context_settings=CONTEXT)
@LOGS
@click.option(
    "--config",
    "configs",
    multiple=True,
    default=(BUILT_IN,),
    metavar="FILE",
    help="An EndpointPickerConfig, or default for the one built in. Repeat it: the others are compared with the first.",
)
@with_pool
@click.option(
    "--seeds",
    default=3,
    show_default=True,
    type=click.IntRange(1, 100),
    metavar="N",
    help="Runs of each configuration, alike but for chance.",
)
@click.option("--report", type=Written(), metavar="FILE", help="Write an HTML page with plots.")
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    type=Conditions(),
    help="Exit with 1 if this holds of a configuration, such as 'ttft_p90 > +5%' (than the first), 'hit < -2%' or 'refused > 0'. Repeat it. "
    f"Measures: {', '.join(MEASURES)}.",
)
def replay(
    logs: tuple[Path, ...],
    configs: tuple[str, ...],
    seeds: int,
    report: Path | None,
    fail_if: tuple[Condition, ...],
    processes: int | None,
    **around: Any,
) -> None:
    """Replay a log of real traffic against simulated servers, once under each configuration, and compare.

    LOG is the picker's own decision log (epp run --decision-log; older parts first), a trace in Mooncake's format, Azure's CSV, or
    JSON lines of OpenAI requests; which, is told by its content, and so is whether gzip or xz packed it.

    The picker is the real one, under virtual time, and the servers are models of vLLM on measured GPUs: trust differences more
    than values. A difference comes with the interval that it stays within in 95 of 100 like traces.

    Exits with 1 where a --fail-if holds, with 2 where something cannot be read.
    """
    if len(configs) == 1 and any(one.is_difference for one in fail_if):
        raise click.UsageError("--fail-if with a difference (+ or -) needs a second --config to differ from the first")

    def work() -> bool:
        candidates = candidates_of(configs)
        return _compare(setting_of(logs, **around), candidates, seeds, report, fail_if, processes)

    sys.exit(1 if _guarded(work) else 0)


@click.command(context_settings=CONTEXT)
@LOGS
@click.option(
    "--config",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="The EndpointPickerConfig to start from. Its weights, and the plain numbers among the parameters of its filters, scorers "
    "and detectors, are searched; what it does not spell out stays.",
)
@click.option(
    "--output",
    type=Written(),
    metavar="FILE",
    help="Where the best configuration goes. By default the name of --config with .tuned.yaml at its end, here.",
)
@click.option(
    "--trials",
    default=40,
    show_default=True,
    type=click.IntRange(2, 10_000),
    metavar="N",
    help="Sets of numbers to try.",
)
@click.option("--seed", default=0, show_default=True, metavar="N", help="Equal seeds find equal things.")
@with_pool
@click.option("--report", type=Written(), metavar="FILE", help="Write an HTML page.")
def tune(
    logs: tuple[Path, ...],
    config: Path,
    output: Path | None,
    trials: int,
    seed: int,
    report: Path | None,
    processes: int | None,
    **around: Any,
) -> None:
    """Search the numbers of a configuration on a log of real traffic.

    The first 70 % of the log is searched, by a known optimiser (Optuna's tree of Parzen estimators): each trial is replayed at the log's speed
    for its time to first token, and at twice that for the tokens that the servers get done a second. Of those that lose no more than a hundredth in
    the second, the best in the first is replayed on the last 30 % beside the file as it was. If it is surely better there, it is written,
    with the evidence in its comments.

    Exits with 1 where nothing better held, with 2 where something cannot be read.
    """
    target = output if output is not None else Path(f"{config.stem}.tuned.yaml")

    def work() -> bool:
        (base,) = candidates_of([str(config)])
        wish = Tuning(base=base, config=config, output=target, trials=trials, seed=seed, report=report)
        return tuned(wish, setting_of(logs, **around), processes)

    sys.exit(0 if _guarded(work) else 1)


def _guarded(work: Callable[[], bool]) -> bool:
    """What `work` says. Ends the process where it cannot say anything."""
    try:
        return work()
    except (TraceError, ReplayError, ConfigurationError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(BROKEN)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)


def _compare(
    setting: Setting,
    candidates: Sequence[Candidate],
    seeds: int,
    report: Path | None,
    fail_if: Sequence[Condition],
    processes: int | None,
) -> bool:
    """Whether a condition held."""
    screen = display.console()
    about = [display.about_source(setting.source), display.about_setting(setting, seeds)]
    for line in about:
        screen.print(line, highlight=False, markup=False)
    screen.print()
    tallies = tallies_of(setting, candidates, seeds, processes)
    rows = compare(tallies)
    names = [one.name for one in candidates]
    display.show(screen, rows, names, setting.source.recorded)
    verdicts = []
    for condition in fail_if:
        for index in range(0 if len(names) == 1 else 1, len(names)):
            verdict = display.verdict(condition, rows, index, names[index])
            screen.print(verdict, highlight=False)
            verdicts.append((verdict.plain, condition.holds(rows, index)))
    if report is not None:
        text = render(
            about=about,
            rows=rows,
            tallies=tallies,
            candidates=candidates,
            verdicts=verdicts,
            begin_s=counted_from_s(setting),
        )
        write(report, text)
        screen.print(f"wrote {report}", highlight=False)
    return any(failed for _, failed in verdicts)
