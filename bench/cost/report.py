"""The table, the JSON and the plot of what was measured."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from bench import ink
from bench.cost.rows import ROWS, Result
from bench.processes import ROOT

RESULTS = ROOT / "bench" / "results"


class Stored(msgspec.Struct, frozen=True):
    """One result with the machine it was measured on."""

    result: Result
    within: bool
    measured_at: str
    machine: dict[str, str | int | float]


def kept(results: Sequence[Result]) -> list[Stored]:
    """`results` as of now; for rows that are not among them what was stored before, in the order of the table."""
    path = RESULTS / "cost.json"
    stored = {one.result.row: one for one in _stored(path)} if path.exists() else {}
    facts, now = machine(), datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    stored |= {result.row: Stored(result, result.within, now, facts) for result in results}
    return [stored[row.name] for row in ROWS if row.name in stored]


def _stored(path: Path) -> Iterator[Stored]:
    """Those that an earlier form of a row has not made unreadable."""
    for one in msgspec.json.decode(path.read_bytes(), type=list[dict[str, object]]):
        with contextlib.suppress(msgspec.ValidationError):
            yield msgspec.convert(one, Stored)


def write(everything: Sequence[Stored]) -> None:
    encoded = msgspec.json.format(msgspec.json.encode(list(everything)), indent=1)
    (RESULTS / "cost.json").write_bytes(encoded + b"\n")


def machine() -> dict[str, str | int | float]:
    optimized = "--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or "")
    return {
        "processor": _processor(),
        "cores": os.cpu_count() or 0,
        "kernel": platform.release(),
        "python": platform.python_version() + (" (PGO)" if optimized else " (without PGO)"),
        "load_average": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    found = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


def show(results: Sequence[Result], console: Console) -> None:
    echoes = [result.echo_us for result in results if result.echo_us]
    if echoes:
        console.print(
            f"\none r is the CPU of a bare grpc.aio echo: {min(echoes):.0f} to {max(echoes):.0f} µs a request in this run\n"
        )
    table = Table(box=None, pad_edge=False)
    for column in (
        "work",
        "Go picker",
        "budget",
        "measured",
        "µs",
        "echo µs",
        "Envoy µs",
        "req/s",
        "added",
        "control",
        "",
    ):
        table.add_column(column, justify="left" if column == "work" else "right", no_wrap=True)
    for result in results:
        table.add_row(
            result.title,
            "–" if result.go_picker is None else _with_unit(result.go_picker, result),
            _with_unit(result.budget, result),
            _with_unit(result.value, result),
            _number(result.us),
            _number(result.echo_us),
            _number(result.envoy_us),
            "" if result.requests_per_s is None else f"{result.requests_per_s:,.0f}",
            _latency(result),
            "[green]within[/]" if result.within else "[red]over[/]",
        )
    console.print(table)


def _with_unit(value: float, result: Result) -> str:
    digits = f"{value:.0f}" if result.unit == "MB" else f"{value:.3f}".rstrip("0").rstrip(".")
    return digits if result.unit == "r" else f"{digits} {result.unit}"


def _latency(result: Result) -> str:
    if result.added_ms is None or result.control_ms is None:
        return ""
    return f"{result.added_ms:.2f} / {result.control_ms:.2f} ms"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}" if value >= 20 else f"{value:.1f}"


def plot(everything: Sequence[Stored]) -> None:
    """What every row costs in shares of its budget, beside the Go picker."""
    results = [stored.result for stored in everything if stored.result.budget > 0]
    places = list(range(len(results), 0, -1))
    figure, axes = ink.figure(9, 0.34 * len(results) + 1.4)
    shares = [max(result.value / result.budget, 0.02) for result in results]
    for within, colour, name in ((True, ink.RIVAL, "epp, within its budget"), (False, ink.OURS, "epp, over it")):
        kind = [n for n, result in enumerate(results) if result.within is within]
        if kind:
            axes.barh(
                [places[n] for n in kind], [shares[n] for n in kind], color=colour, height=0.62, zorder=2, label=name
            )
    theirs = [
        (result.go_picker / result.budget, place)
        for result, place in zip(results, places, strict=True)
        if result.go_picker
    ]
    if theirs:
        across, down = [share for share, _ in theirs], [place for _, place in theirs]
        axes.scatter(across, down, marker="D", s=24, color=ink.SERIES[0], zorder=3, label="Go picker v0.10")
    axes.axvline(1.0, color="black", linewidth=1, zorder=3)
    ink.ratio_axis(axes.xaxis, [*shares, *(share for share, _ in theirs)])
    axes.set_yticks(places, [result.title for result in results])
    axes.set_ylim(0.4, len(results) + 0.6)
    axes.set_xlabel("÷ the budget\n1 r: the CPU of a bare grpc.aio echo of the same request in the same run")
    axes.grid(visible=False, axis="y")
    for result, place in zip(results, places, strict=True):
        unit = " r" if result.unit == "r" else ""
        told = f"{_with_unit(result.value, result)} of {_with_unit(result.budget, result)}{unit}"
        axes.text(1.01, place, told, transform=axes.get_yaxis_transform(), va="center", fontsize=8.5)
    ink.legend_above(axes)
    figure.savefig(RESULTS / "cost.png", dpi=110)
