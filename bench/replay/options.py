"""What `epp replay` and `epp tune` take alike from the command line, and what it comes to."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import reduce
from math import isfinite, nan
from operator import add
from pathlib import Path
from typing import Any

import click

from bench.replay import conditions, display
from bench.replay.conditions import Condition
from bench.replay.course import Candidate, Setting, jobs, run_all
from bench.replay.servers import SHORT, pool
from bench.replay.source import survey
from bench.replay.tally import Tally
from epp.configuration import load
from epp.configuration.notation import parse_duration

BUILT_IN = "default"
LEAST_INTERVAL_S = 0.05
FEW = 200
"""Requests below which hardly any difference is sure."""

_NOT_REPLAYED = ("quotas are not replayed: everybody may ask as much as in the log",)

REPLICAS = 8
"""Where the log does not say how many servers there were."""


class Conditions(click.ParamType[Any]):
    name = "CONDITION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Condition:
        try:
            return conditions.parse(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)


class _Interval(click.ParamType[Any]):
    name = "DURATION"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            interval_s = value if isinstance(value, float) else parse_duration(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if interval_s < LEAST_INTERVAL_S:
            self.fail(
                f"{value} is shorter than {LEAST_INTERVAL_S * 1000:g}ms, the least that epp run takes", param, ctx
            )
        return interval_s


class _Factor(click.ParamType[Any]):
    name = "X"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            factor = float(value)
        except ValueError:
            factor = nan
        if not (isfinite(factor) and factor > 0):
            self.fail(f"{value!r} is no number above 0, such as 1.5", param, ctx)
        return factor


class Written(click.ParamType[Any]):
    """A file to write when all is done. That it cannot be written is better known before."""

    name = "FILE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path = Path(value)
        if path.is_dir():
            self.fail(f"{path} is a directory; name a file in it", param, ctx)
        if not path.parent.is_dir():
            self.fail(f"there is no directory {path.parent}", param, ctx)
        if not os.access(path if path.exists() else path.parent, os.W_OK):
            self.fail(f"{path} may not be written", param, ctx)
        return path


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
        type=_Factor(),
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
        type=_Interval(),
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
        loaded = load(text, config)
        for warning in (*loaded.warnings, *_NOT_REPLAYED * (loaded.quota is not None)):
            click.echo(f"warning: {config}: {warning}", err=True)
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
    source = survey(logs, most=first, progress=display.progress)
    if source.count < FEW:
        click.echo(f"warning: so few requests ({source.count}) leave wide intervals", err=True)
    servers = pool(profile, replicas or source.servers or REPLICAS, lora_slots)
    return Setting(source=source, servers=servers, speed=speed, lean=lean, scrape_interval_s=interval_s)


def tallies_of(setting: Setting, candidates: Sequence[Candidate], seeds: int, processes: int | None) -> list[Tally]:
    """One tally for each candidate, all its seeds together. Raises TraceError, ReplayError."""
    todo = jobs(setting, candidates, seeds)
    with display.progress("replaying", len(todo) * setting.source.count) as tell:
        done = run_all(todo, tell, processes)
    return [reduce(add, done[at : at + seeds]) for at in range(0, len(done), seeds)]
