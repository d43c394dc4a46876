"""Every page that the project makes, as a browser shows it on a desk and on a phone."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from bench.lab.report import read, write
from bench.processes import ROOT
from bench.replay import commands
from tests.browser import Browser
from tests.unit.test_replay import mooncake
from tests.unit.test_tune import BAD, long_prefixes

DESK, PHONE = 1400, 400
SCREEN = 900
"""Pixels from the top that a reader sees without scrolling."""

SERVERS = ("--replicas", "2", "--processes", "1")


def lab(directory: Path) -> Path:
    findings = read(ROOT / "bench" / "results" / "lab.json")
    few = [one for one in findings.standings if one.cell.trace == "toolagent"]
    return write(msgspec.structs.replace(findings, standings=few), directory)[-1]


def kept_lab(directory: Path) -> Path:
    return Path(shutil.copy(ROOT / "bench" / "results" / "lab.html", directory))


def replay(directory: Path) -> Path:
    page = directory / "replay.html"
    configs = [f"--config={ROOT}/config/{name}.yaml" for name in ("go-picker", "sticky", "least-loaded")]
    log = mooncake(directory / "log.jsonl")
    _run(commands.replay, log, *configs, *SERVERS, "--seeds=1", "--fail-if=refused > 0", f"--report={page}")
    return page


def tune(directory: Path) -> Path:
    page, config = directory / "tune.html", directory / "bad.yaml"
    config.write_text(BAD)
    log = long_prefixes(directory / "log.jsonl")
    output = f"--output={directory}/good.yaml"
    _run(commands.tune, log, f"--config={config}", *SERVERS, "--trials=4", output, f"--report={page}")
    return page


def _run(command: object, *arguments: object) -> None:
    assert isinstance(command, type(commands.replay))
    result = CliRunner().invoke(command, [str(one) for one in arguments])
    assert result.exit_code in (0, 1), result.output


@pytest.mark.parametrize(
    "make, heading, says, plots",
    [
        (lab, "The routing lab", "epp, the picker with its default policy, has the shortest", 2),
        (kept_lab, "The routing lab", "epp, the picker with its default policy, has the shortest", 2),
        (
            replay,
            "Replay: sticky and least-loaded against go-picker",
            "sticky against go-picker: the first token's p90",
            3,
        ),
        (tune, "Tuning of bad", "ttft_p90", 1),
    ],
)
async def test_a_page_says_its_answer_first_and_shows_its_plots(
    browser: Browser, tmp_path: Path, make: Callable[[Path], Path], heading: str, says: str, plots: int
) -> None:
    page = make(tmp_path)
    for width in (DESK, PHONE):
        seen = await browser.look(page, width=width)
        assert seen.complaints == [] and seen.requests == []
        assert (seen.title, seen.heading) == (heading, heading)
        assert says in seen.answer
        assert seen.answer_bottom is not None and seen.answer_bottom <= SCREEN
        # Plots and tables that are wider than the window scroll by themselves, not the page with them.
        assert seen.content == seen.width == width
        assert seen.clipped == 0
        assert len(seen.plots) >= plots and all(rows > 1 for rows in seen.tables)
        for plot in seen.plots:
            assert plot.label and plot.caption
            # Its text has 10 of 720 points in width and must be readable without magnifying.
            assert plot.width >= 400 and plot.height >= 100
        assert len(set(seen.ids)) == len(seen.ids)


async def test_what_is_wrong_with_a_page_is_seen(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<!doctype html><meta name=viewport content='width=device-width'><h1>Bad</h1><p class=answer>so</p>"
        "<script>nonsense()</script><img src='http://127.0.0.1:9/gone.png'><div style='width: 2000px'>-</div>"
        "<p style='width: 50px; overflow: hidden; white-space: nowrap'>words that nobody can read</p>"
    )
    seen = await browser.look(page, width=PHONE)
    assert any("nonsense" in one for one in seen.complaints)
    assert seen.requests == ["http://127.0.0.1:9/gone.png"]
    assert seen.content > PHONE and seen.clipped == 1
