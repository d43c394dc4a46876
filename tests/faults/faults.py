"""What can go wrong, one function to bring it about and one to end it."""

from __future__ import annotations

import asyncio
import datetime
import resource
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec

from bench.processes import Process
from tests.certificates import Authority, store
from tests.faults.origin import FaultyOrigin
from tests.integration.conftest import Scene

YESTERDAY = datetime.timedelta(days=-1)
SLOW_S = 0.3
DRAIN_S = 2.0


class Bench:
    """One scene to break: a picker behind TLS that Envoy verifies, and three model servers."""

    def __init__(self, scene: Scene, origins: list[FaultyOrigin], authority: Authority, args: list[str]) -> None:
        self.scene = scene
        self.origins = origins
        self.victim = origins[0]
        self.slow = scene.stand.directory / "seconds"
        self.following: asyncio.Future[None] | None = None
        self._authority = authority
        self._serving = scene.stand.directory / "serving"
        self._args = [*args, "--secure-serving", f"--cert-path={self._serving}", "--enable-cert-reload"]

    @property
    def picker(self) -> Process:
        assert self.scene.picker is not None
        return self.scene.picker

    def certify(self, ends_in: datetime.timedelta = -5 * YESTERDAY) -> None:
        store(self._serving, self._authority.issue(["epp"], ends_in))

    async def start_picker(self) -> None:
        await asyncio.to_thread(self.scene.start_picker, *self._args, f"--drain-timeout={DRAIN_S}s")


Step = Callable[[Bench], Awaitable[None]]


class Fault(msgspec.Struct, frozen=True):
    """`heavy`: the requests that arrive during it have prompts of several megabytes. `varies`: what they see is not the same
    twice, and not held against the document."""

    name: str
    bring: Step
    end: Step
    heavy: bool = False
    varies: bool = False


async def nothing(bench: Bench) -> None:
    """It ends by itself."""


async def kill(bench: Bench) -> None:
    bench.picker.kill()


async def start(bench: Bench) -> None:
    await bench.start_picker()


async def stop(bench: Bench) -> None:
    bench.picker.signal(signal.SIGSTOP)


async def go_on(bench: Bench) -> None:
    bench.picker.signal(signal.SIGCONT)


async def slow_down(bench: Bench) -> None:
    bench.slow.write_text(str(SLOW_S))


async def speed_up(bench: Bench) -> None:
    bench.slow.unlink()


async def restart(bench: Bench) -> None:
    """As an orchestrator does: told to end, and a new one as soon as it has."""
    old = bench.picker
    old.signal(signal.SIGTERM)

    async def follow() -> None:
        await asyncio.to_thread(old.child.wait)
        await bench.start_picker()

    bench.following = asyncio.ensure_future(follow())


async def restarted(bench: Bench) -> None:
    assert bench.following is not None
    await bench.following


async def starve(bench: Bench) -> None:
    """Not a byte of address space more than it has: what Python's allocator holds free still serves small requests."""
    resource.prlimit(bench.picker.pid, resource.RLIMIT_AS, (address_space(bench.picker.pid), resource.RLIM_INFINITY))


def address_space(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()


async def feed(bench: Bench) -> None:
    if not bench.picker.running:
        await bench.start_picker()
    resource.prlimit(bench.picker.pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def expire(bench: Bench) -> None:
    """Connections that stand are not asked again: it shows at the next one, here after a restart."""
    bench.certify(YESTERDAY)
    bench.picker.kill()
    await bench.start_picker()


async def renew(bench: Bench) -> None:
    bench.certify()


async def all_down(bench: Bench) -> None:
    for origin in bench.origins:
        origin.die()


async def all_up(bench: Bench) -> None:
    for origin in bench.origins:
        origin.listen()


async def refuse(bench: Bench) -> None:
    bench.victim.refuse()


async def stall(bench: Bench) -> None:
    bench.victim.stall()


async def wake(bench: Bench) -> None:
    bench.victim.wake()


async def die(bench: Bench) -> None:
    bench.victim.die()


async def listen(bench: Bench) -> None:
    bench.victim.listen()


async def hide_metrics(bench: Bench) -> None:
    for origin in bench.origins:
        origin.reports = False


async def show_metrics(bench: Bench) -> None:
    for origin in bench.origins:
        origin.reports = True


FAULTS = (
    Fault("picker killed", kill, start),
    Fault("picker stopped (SIGSTOP)", stop, go_on),
    Fault(f"picker slow ({SLOW_S:g} s a pick)", slow_down, speed_up),
    Fault("picker restarted (SIGTERM)", restart, restarted),
    Fault("picker out of memory", starve, feed, heavy=True, varies=True),
    Fault("picker's certificate expired", expire, renew),
    Fault("all endpoints down", all_down, all_up),
    Fault("one endpoint refuses", refuse, listen),
    Fault("one endpoint stalls", stall, wake),
    Fault("one endpoint dies", die, listen),
    Fault("metrics down", hide_metrics, show_metrics),
)
