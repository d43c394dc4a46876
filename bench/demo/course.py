"""The demo's course: the same requests through two policies, each in a scene of its own, then the comparison."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import msgspec
from rich.console import Console

from bench.demo.comparison import Run
from bench.demo.scene import ADAPTERS, BASE, DEFAULT, REPLICAS, ROUND_ROBIN, Policy, Scene, choose_ports, start
from bench.demo.servers import Offer, ask
from bench.demo.tally import Cache, Snapshot, Tally
from bench.demo.view import Board, comparison
from bench.demo.watch import Decisions, caches, look, since
from bench.load.client import run
from bench.load.summary import summarize
from bench.load.workload import Mix, Session, request_count, sessions
from bench.processes import Stand

LOOK_EVERY_S = 0.4
ANSWER_TIMEOUT_S = 60.0
SIMULATED = Offer(BASE, ADAPTERS)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`port` 0 takes free ones. Without `servers` simulated ones are started."""

    servers: tuple[str, ...] = ()
    port: int = 8080
    seconds: float = 10.0
    rate: float = 8.0
    seed: int = 1


class Unanswered(Exception):
    """Requests failed. The message says how many and how."""


async def demo(options: Options, console: Console, directory: Path) -> None:
    """The whole of it. `directory` takes the logs. Nothing is left running, however this ends.

    Raises StartError for a part that does not come up or dies, Unusable for one of `options.servers`, Unanswered.
    """
    async with aiohttp.ClientSession() as client:
        offer = await ask(options.servers, client) if options.servers else SIMULATED
        choose_ports(options.port)  # a port in use is told before anything is started
        console.print(_introduction(options, offer), markup=False, soft_wrap=not console.is_terminal)
        course = _Course(options, offer, client, console, directory)
        runs = [await course.play(policy) for policy in (ROUND_ROBIN, DEFAULT)]
    console.print(comparison(*runs))
    _require_answers(runs)


def _introduction(options: Options, offer: Offer) -> str:
    what = (
        f"{len(options.servers)} servers, model {offer.model}, adapters: {', '.join(offer.adapters) or 'none'}"
        if options.servers
        else f"{REPLICAS} simulated vLLM servers (each a 32B model on an A100, three LoRA adapters)"
    )
    return (
        f"The same requests twice through Envoy and the picker to {what}: by round robin, then by epp's default policy."
    )


def _workload(options: Options, offer: Offer) -> tuple[Session, ...]:
    mix = Mix(duration_s=options.seconds, sessions_per_s=options.rate, model=offer.model, adapters=offer.adapters)
    if offer.max_model_len is not None:
        # A byte is a token at most, so half of the context is left for turns and answers.
        longest = min(mix.opening_bytes[1], offer.max_model_len // 2)
        mix = msgspec.structs.replace(mix, opening_bytes=(longest // 2, longest))
    workload = sessions(mix, options.seed)
    return salted(workload, secrets.token_hex(8)) if options.servers else workload


def salted(workload: Sequence[Session], salt: str) -> tuple[Session, ...]:
    """The same with other first bytes: servers that keep running find nothing of earlier runs in their caches."""
    return tuple(msgspec.structs.replace(session, opening=f"[{salt}] {session.opening}") for session in workload)


class _Course:
    """What both runs share."""

    def __init__(
        self,
        options: Options,
        offer: Offer,
        client: aiohttp.ClientSession,
        console: Console,
        directory: Path,
    ) -> None:
        self._options = options
        self._offer = offer
        self._client = client
        self._console = console
        self._directory = directory

    async def play(self, policy: Policy) -> Run:
        """One policy, from the start of its parts to their end."""
        self._console.rule(f"[bold]{policy.name}", align="left", style="dim")
        home = self._directory / policy.name.replace(" ", "-")
        home.mkdir()
        with Stand(home) as stand:
            scene = await self._scene(stand, policy)
            workload = _workload(self._options, self._offer)
            tally = Tally(scene.servers, request_count(workload), self._offer.model)
            with Board(self._console, policy.name, tally) as board:
                last = await self._traffic(scene, workload, tally, board)
            scene.require_alive()
        return _outcome(policy, tally, last)

    async def _scene(self, stand: Stand, policy: Policy) -> Scene:
        def announce(part: str, where: str) -> None:
            self._console.print(f"  ready  {part:<9} {where}", markup=False)

        options = self._options
        with self._console.status("starting"):
            return await start(stand, policy, options.port, options.servers, options.seed, self._client, announce)

    async def _traffic(self, scene: Scene, workload: Sequence[Session], tally: Tally, board: Board) -> Snapshot:
        """Send the workload and show it. Returns the servers as they were at the end."""
        before = caches(await look(scene, self._client))
        with contextlib.closing(Decisions(scene.picker_log)) as decisions:

            async def glance(*, last: bool = False) -> Snapshot:
                seen = since(await look(scene, self._client), before)
                for id, server in decisions.new():
                    tally.decided(id, server)
                board.show(seen, last=last)
                return seen

            async def follow() -> None:
                while True:
                    await glance()
                    await asyncio.sleep(LOOK_EVERY_S)

            async with asyncio.TaskGroup() as group:
                follower = group.create_task(follow())
                await run(workload, scene.url, watch=tally.take, timeout_s=ANSWER_TIMEOUT_S)
                follower.cancel()
            return await glance(last=True)


def _outcome(policy: Policy, tally: Tally, last: Snapshot) -> Run:
    return Run(
        name=policy.name,
        summary=summarize(tally.results),
        hit_rate=sum(caches(last).values(), Cache()).rate,
        requests=tally.requests(),
        adapters=tally.adapters(),
        results=tally.results,
        number_of=tally.number_of,
    )


def _require_answers(runs: Sequence[Run]) -> None:
    results = [result for run in runs for result in run.results]
    if not results:
        raise Unanswered("no request was sent: --seconds or --rate is too low")
    errors = Counter(result.error for result in results if not result.ok)
    if errors:
        shown = "; ".join(f"{count} × {error}" for error, count in errors.most_common(3))
        raise Unanswered(f"{errors.total()} of {len(results)} requests were not answered: {shown}")
