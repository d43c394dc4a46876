"""Every fault in every phase of a request, in one configuration of Envoy at a time; what clients saw, as a table."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from bench.processes import Stand
from tests.certificates import Authority
from tests.faults.client import Client, Outcome
from tests.faults.faults import FAULTS, Bench, Fault
from tests.faults.origin import FaultyOrigin
from tests.integration.conftest import FULL_DUPLEX, LEAN, Scene
from tests.integration.test_faults import failing
from tests.integration.test_tls import over_tls
from tests.waiting import wait_for

PATIENCE_S = 14.0
"""How long a client waits: more than full duplex Envoy waits for a picker (10 s)."""
FAST_S = 0.5
LOOK_S = 10.0
"""How long it is watched whether clients are answered again before the fault is ended."""
HEAVY_CHARACTERS = 8_000_000

CONFIG = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {{name: slow, type: "tests.faults.plugins:Slow", parameters: {{control: {control}}}}}
- {{type: prefix-cache-scorer}}
- {{type: queue-scorer}}
- {{type: kv-cache-utilization-scorer}}
- {{type: max-score-picker, parameters: {{maxNumOfEndpoints: {listed}}}}}
schedulingProfiles:
- name: default
  plugins:
  - {{pluginRef: slow, weight: 1}}
  - {{pluginRef: prefix-cache-scorer, weight: 3}}
  - {{pluginRef: queue-scorer, weight: 2}}
  - {{pluginRef: kv-cache-utilization-scorer, weight: 2}}
  - {{pluginRef: max-score-picker}}
"""


class Setting(msgspec.Struct, frozen=True):
    """One configuration of Envoy."""

    lean: bool
    allow: bool

    @property
    def title(self) -> str:
        return f"{'Lean' if self.lean else 'Full duplex'}, failure_mode_allow {'on' if self.allow else 'off'}"


SETTINGS = (Setting(True, True), Setting(True, False), Setting(False, True), Setting(False, False))


class Row(msgspec.Struct, frozen=True):
    """`phases` in words, in the order of `PHASES`; seconds are None where it did not happen in time."""

    fault: str
    phases: tuple[str, str, str, str]
    answered_s: float | None
    picked_s: float | None

    def cells(self) -> tuple[str, ...]:
        return self.fault, *self.phases, _seconds(self.answered_s), _seconds(self.picked_s)


PHASES = ("before headers", "during body", "after pick", "during response")
COLUMNS = ("fault", *PHASES, "answered again", "picked again, once ended")


def _seconds(value: float | None) -> str:
    if value is None:
        return "not before its end"
    return "at once" if value < FAST_S else f"{value:.0f} s" if value >= 1.5 else "1 s"


def word(outcome: Outcome, since_s: float) -> str:
    """What a client saw, in a word or two; `since_s` is how long it took from when all else was ready."""
    late = f", {since_s:.0f} s late" if since_s >= 1.0 else ""
    if outcome.ok:
        return f"whole{late}"
    if not outcome.whole and since_s >= PATIENCE_S - 2.0:
        return "waits"
    if outcome.status == 200:
        return "cut off"
    return f"{outcome.status}{late}" if outcome.status else "no answer"


@asynccontextmanager
async def bench(setting: Setting, directory: Path) -> AsyncIterator[Bench]:
    authority = Authority(directory / "ca.crt")
    # Each has a loop of its own, which is made where none runs.
    origins = await asyncio.gather(*(asyncio.to_thread(FaultyOrigin, f"origin-{number}") for number in range(3)))
    with Stand(directory) as stand:
        scene = Scene(stand, origins)
        config = CONFIG.format(control=directory / "seconds", listed=3 if setting.lean else 1)
        # Four times the default: on a busy machine only the fault that is meant shall make the loop late.
        args = [f"--config-text={config}", "--look-share=0", "--max-loop-lag=200ms"]
        yield Bench(scene, origins, authority, args)
    for origin in origins:
        origin.close()


async def begin(bench: Bench, setting: Setting) -> None:
    def edit(config: dict[str, Any]) -> None:
        over_tls(authority)(config)
        failing(setting.allow)(config)

    authority = bench.scene.stand.directory / "ca.crt"
    bench.certify()
    await bench.start_picker()
    await asyncio.to_thread(bench.scene.start_envoy, LEAN if setting.lean else FULL_DUPLEX, edit)
    await picked_again(bench)


async def run_setting(
    setting: Setting, directory: Path, faults: Iterable[Fault] = FAULTS, say: Callable[[str], None] = print
) -> list[Row]:
    async with bench(setting, directory) as scene:
        await begin(scene, setting)
        rows = []
        for number, fault in enumerate(faults):
            rows.append(await run_fault(scene, fault, f"{number} {fault.name} " + "once upon a time " * 200))
            say(f"{setting.title}: {' | '.join(rows[-1].cells())}")
        return rows


async def run_fault(bench: Bench, fault: Fault, prompt: str) -> Row:
    port = bench.scene.port
    for origin in bench.origins:
        origin.hold()
    # Its prefix draws every further request with this prompt to one server.
    primed = [await Client(port, prompt=prompt).run() for _ in range(2)]
    bench.victim = next(origin for origin in bench.origins if origin.name == primed[-1].server)
    heavy = prompt + "x" * HEAVY_CHARACTERS * fault.heavy
    half_sent = Client(port, prompt=heavy, pauses=True)
    unanswered = Client(port, prompt=prompt, how="late")
    half_answered = Client(port, prompt=prompt, how="hold:3", stream=True)
    clients = (half_sent, unanswered, half_answered)
    running = [asyncio.ensure_future(timed(client)) for client in clients]
    await half_answered.begun.wait()
    await half_sent.sent.wait()
    await asyncio.to_thread(wait_for, lambda: bench.scene.metric("llm_d_epp_request_running") == 2)
    # Just after a scrape, so that what the picker learns from the next comes after what the clients do.
    seen = bench.victim.scrapes
    await asyncio.to_thread(wait_for, lambda: bench.victim.scrapes > seen)

    await fault.bring(bench)
    began_s = time.monotonic()
    early = asyncio.ensure_future(timed(Client(port, prompt=heavy)))
    answered = asyncio.ensure_future(answered_again(port, prompt, began_s))
    await asyncio.sleep(0.3)
    half_sent.go_on()
    for origin in bench.origins:
        origin.release()
    ready_s = time.monotonic()
    first, first_s = await early
    words = [word(first, first_s - began_s)]
    for task in running:
        outcome, over_s = await task
        words.append(word(outcome, over_s - ready_s))
    answered_s = await answered

    await fault.end(bench)
    picked_s = await picked_again(bench)
    await asyncio.to_thread(wait_for, lambda: bench.scene.metric("epp_pressure_step") == 0)
    before, during, after, response = words
    return Row(fault.name, (before, during, after, response), answered_s, picked_s)


async def timed(client: Client) -> tuple[Outcome, float]:
    """The outcome, and when it was there."""
    return await client.run(PATIENCE_S), time.monotonic()


async def answered_again(port: int, prompt: str, began_s: float) -> float | None:
    """Seconds from `began_s` until three requests in a row are answered in time; None where that was not within `LOOK_S`."""
    good, since_s = 0, 0.0
    while time.monotonic() - began_s < LOOK_S:
        sent_s = time.monotonic()
        outcome = await Client(port, prompt=prompt).run(FAST_S)
        if outcome.ok:
            since_s = since_s if good else sent_s - began_s
            good += 1
        else:
            good = 0
        if good == 3:
            return since_s
        await asyncio.sleep(0.05)
    return None


async def picked_again(bench: Bench) -> float | None:
    """Seconds from now until a request is answered in time with a destination of the picker's choice."""
    began_s = time.monotonic()
    while time.monotonic() - began_s < 30.0:
        sent_s = time.monotonic()
        outcome = await Client(bench.scene.port, prompt="Say hello.").run(FAST_S)
        if outcome.ok and chosen(bench, outcome):
            return sent_s - began_s
        await asyncio.sleep(0.1)
    return None


def chosen(bench: Bench, outcome: Outcome) -> bool:
    """Whether the server that answered was told that it had been picked."""
    origin = next(origin for origin in bench.origins if origin.name == outcome.server)
    return "x-gateway-destination-endpoint" in origin.last.headers


def table(setting: Setting, rows: Iterable[Row]) -> str:
    lines = [f"### {setting.title}", "", _line(COLUMNS), _line("---" for _ in COLUMNS)]
    return "\n".join([*lines, *(_line(row.cells()) for row in rows), ""])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
