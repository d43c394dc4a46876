"""`epp replay`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import click

from bench.lab.offered import TraceError
from bench.replay import conditions, display
from bench.replay.comparison import compare
from bench.replay.conditions import Condition
from bench.replay.course import Candidate, ReplayError, Setting, counted_from_s, jobs, run_all
from bench.replay.report import render
from bench.replay.servers import SHORT, pool
from bench.replay.source import Source, survey
from bench.replay.tally import Tally
from epp.configuration import ConfigurationError, load
from epp.configuration.notation import parse_duration

BUILT_IN = "default"
REPLICAS = 8
"""Where the log does not say how many servers there were."""

BROKEN = 2
"""Exit status where the question could not be asked: wrong usage, a log or a configuration that cannot be read."""


class _Conditions(click.ParamType[Any]):
    name = "CONDITION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Condition:
        try:
            return conditions.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Duration(click.ParamType[Any]):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            return value if isinstance(value, float) else parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 100}

LOGS = click.argument("logs", nargs=-1, required=True, metavar="LOG...", type=click.Path(path_type=Path))
POOL = (
    click.option(
        "--replicas", type=click.IntRange(1, 1000), metavar="N", help="Servers. As many as wrote the log, else 8."
    ),
    click.option(
        "--profile",
        default="h100-llama8b",
        show_default=True,
        metavar="NAME,...",
        help=f"What each server is, several in turn: {', '.join(SHORT)}.",
    ),
    click.option(
        "--lora-slots",
        default=0,
        metavar="N",
        type=click.IntRange(0),
        help="LoRA adapters that a server can hold; without, adapters are not told apart.",
    ),
    click.option(
        "--speed",
        default=1.0,
        show_default=True,
        type=click.FloatRange(0, min_open=True),
        metavar="X",
        help="Let requests come so many times as fast.",
    ),
    click.option("--first", type=click.IntRange(1), metavar="N", help="Take only the first N requests."),
    click.option("--lean", is_flag=True, help="Let the picker see what it sees in lean mode."),
    click.option(
        "--refresh-metrics-interval",
        "interval_s",
        default="1s",
        show_default=True,
        type=_Duration(),
        help="How often servers are scraped.",
    ),
    click.option(
        "--processes",
        type=click.IntRange(1),
        metavar="N",
        help="Runs at once; by default as many as there are processors.",
    ),
)


def with_pool(command: Any) -> Any:
    """The options that say what is simulated."""
    for option in reversed(POOL):
        command = option(command)
    return command


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
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write an HTML page with plots."
)
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    type=_Conditions(),
    help="Exit with 1 if this holds of a configuration, such as 'ttft_p90 > +5%' (than the first), 'hit < -2%' or 'refused > 0'. Repeat it.",
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
    JSON lines of OpenAI requests; which, is told by its content. Names ending in .gz and .xz are unpacked.

    The picker is the real one, under virtual time, and the servers are models of vLLM on measured GPUs: trust differences more
    than values. A difference comes with the interval that it stays within in 95 of 100 like traces.

    Exits with 1 where a --fail-if holds, with 2 where something cannot be read.
    """
    if len(configs) == 1 and any(one.is_difference for one in fail_if):
        raise click.UsageError("--fail-if with a difference (+ or -) needs a second --config to differ from the first")
    try:
        candidates = candidates_of(configs)
        setting = setting_of(logs, **around)
        failed = _compare(setting, candidates, seeds, report, fail_if, processes)
    except (TraceError, ReplayError, ConfigurationError) as error:
        click.echo(f"Error: {error}", err=True)
        sys.exit(BROKEN)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(130)
    sys.exit(1 if failed else 0)


def candidates_of(configs: Sequence[str]) -> list[Candidate]:
    """Raises ConfigurationError, UsageError."""
    names = [Path(one).stem for one in configs]
    candidates = []
    for config, stem in zip(configs, names, strict=True):
        if config == BUILT_IN and not Path(config).exists():
            candidates.append(Candidate(BUILT_IN, None))
            continue
        try:
            text = Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise click.UsageError(
                f"--config {config} cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None
        for warning in load(text, config).warnings:
            click.echo(f"warning: {warning}", err=True)
        candidates.append(Candidate(config if names.count(stem) > 1 else stem, text))
    if len({one.name for one in candidates}) < len(candidates):
        raise click.UsageError("a --config is given twice")
    return candidates


def setting_of(
    logs: Sequence[Path],
    *,
    replicas: int | None,
    profile: str,
    lora_slots: int,
    speed: float,
    first: int | None,
    lean: bool,
    interval_s: float,
) -> Setting:
    """Look through the log. Raises TraceError, UsageError."""
    try:
        pool(profile, 1, lora_slots)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--profile") from None
    with display.progress("reading", None) as tell:
        source: Source = survey(logs, most=first, tell=tell)
    servers = pool(profile, replicas or source.servers or REPLICAS, lora_slots)
    return Setting(source=source, servers=servers, speed=speed, lean=lean, scrape_interval_s=interval_s)


def tallies_of(setting: Setting, candidates: Sequence[Candidate], seeds: int, processes: int | None) -> list[Tally]:
    """One tally for each candidate, all its seeds together. Raises TraceError, ReplayError."""
    todo = jobs(setting, candidates, seeds)
    with display.progress("replaying", len(todo) * setting.source.count) as tell:
        done = run_all(todo, tell, processes)
    return [reduce(add, done[at : at + seeds]) for at in range(0, len(done), seeds)]


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
    screen.print(display.table(rows, names, setting.source.recorded))
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
        _write(report, text)
        screen.print(f"wrote {report}", highlight=False)
    return any(failed for _, failed in verdicts)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ReplayError(f"{path} cannot be written: {error.strerror}") from error
