"""Pools that come and go while requests wait, run and end, in any order: nothing is lost, and nothing is counted twice."""

from __future__ import annotations

import asyncio

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from epp.app import Picker
from epp.assembly import read_configuration
from epp.endpoint import Endpoint
from epp.pool import Pool
from epp.resources.document import read_manifest
from epp.resources.store import Source
from epp.settings import Settings
from tests.unit.test_pools import NO_SCRAPING, Call, pool

NAMES = ("a", "b", "c")
SERVED = st.frozensets(st.sampled_from(NAMES))


class PoolsMachine(RuleBasedStateMachine):
    """A picker for the Service epp, whose pools are those of the manifests in force."""

    @initialize(served=SERVED)
    def start(self, served: frozenset[str]) -> None:
        self.runner = asyncio.Runner()
        self.whole = self.runner.run(_made())
        self.known: dict[str, Pool] = {}
        self.open: list[tuple[Pool, Call]] = []
        self.serve(served)

    @rule(served=SERVED)
    def serve(self, served: frozenset[str]) -> None:
        text = "".join(pool(name, "epp") for name in sorted(served))
        objects = read_manifest(text.encode(), "f.yaml", "default").objects

        async def change() -> None:
            self.whole._resources_changed(Source.DIRECTORY, objects)
            for name in served:
                if name not in self.known:
                    self.whole.pools.replace(name, [Endpoint(name="e", address=f"10.0.0.{NAMES.index(name)}", port=1)])

        self.runner.run(change())
        self.known = {one.name: one for one in self.whole.pools}
        assert set(self.known) == served

    @rule(name=st.sampled_from(NAMES), count=st.integers(0, 3))
    def members(self, name: str, count: int) -> None:
        wanted = [Endpoint(name=f"e{n}", address=f"10.0.{n}.{NAMES.index(name)}", port=1) for n in range(count)]

        async def change() -> None:
            self.whole.pools.replace(name, wanted)

        self.runner.run(change())

    @rule(name=st.sampled_from(NAMES))
    def ask(self, name: str) -> None:
        async def call() -> Call:
            return Call(self.whole, metadata={b"x-gateway-inference-pool": name.encode()})

        made = self.runner.run(call())
        target = self.whole.pools.named(name) or self.whole.pools.first
        if target is None or not len(target.endpoints):
            assert made.status == 503
        else:
            assert made.picked in {one.destination for one in target.endpoints.members}
            self.open.append((target, made))

    @rule(which=st.integers(0, 20), clean=st.booleans())
    def end(self, which: int, clean: bool) -> None:
        if self.open:
            _, call = self.open.pop(which % len(self.open))
            self.runner.run(_closed(call, clean))

    @invariant()
    def every_request_is_in_flight_where_it_was_sent(self) -> None:
        if not hasattr(self, "known"):
            return
        for one in self.known.values():
            # What was sent to a member that left went with it.
            assert one.endpoints.in_flight.sum() <= sum(target is one for target, _ in self.open)
        assert sum(series.running for series in self.whole.metrics.series.values()) == len(self.open)

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        for _, call in self.open:
            self.runner.run(_closed(call, True))
        self.open.clear()
        for one in self.known.values():
            assert not one.endpoints.in_flight.any()
        self.runner.run(self.whole.pools.close())
        self.runner.close()


async def _made() -> Picker:
    # The endpoint is never looked for: members are handed over as Kubernetes would.
    chosen = Settings(picker_service="epp", endpoints=("a=10.0.0.1:1",), secure_serving=False, config_text=NO_SCRAPING)
    return Picker(chosen, read_configuration(chosen))


async def _closed(call: Call, clean: bool) -> None:
    call.session.closed(clean)


PoolsMachine.TestCase.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    # A picker is made for every example: to look for the smallest one takes minutes.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
)
TestPools = PoolsMachine.TestCase
