"""The lab's bounds: who knows the future does no worse, and one server of all does the work of all."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence

import msgspec
import pytest

from bench.lab.baseline import baseline
from bench.lab.cells import standard
from bench.lab.fleet import Fleet
from bench.lab.offered import Offered
from bench.lab.oracle import CELLS, Greedy, pooled
from bench.lab.router import Flight
from bench.lab.scene import Scene, server
from bench.lab.simulation import Simulation
from bench.policies.simple import LeastRequest
from bench.replica.engine import Engine, FirstToken, Work

H100 = server("Llama-3.1-8B@H100")


class TestForetelling:
    def test_what_is_foretold_happens_where_nobody_else_comes(self) -> None:
        fleet = Fleet((H100,))
        for number in range(4):
            fleet.submit(0, Work(f"{number}", 20_000, 50), 0.0)
        told = list(fleet.advance(1.5))
        foretold = fleet.first_tokens(0, Work("new", 5_000, 1), 1.5)
        assert fleet.first_tokens(0, None, 1.5).keys() == foretold.keys() - {"new"}
        fleet.submit(0, Work("new", 5_000, 1), 1.5)
        told += fleet.advance(100.0)
        happened = {event.id: at_s for at_s, _, event in told if isinstance(event, FirstToken)}
        assert len(foretold) < len(happened) == 5
        assert foretold == {id: happened[id] for id in foretold}

    def test_a_lost_server_foretells_nothing(self) -> None:
        fleet = Fleet((H100,))
        fleet.lose(0)
        with pytest.raises(ValueError, match="gone"):
            fleet.first_tokens(0, None, 1.0)


class World:
    """Servers with the given waits: (by server) of those in line before, and after one more came, who waits last."""

    def __init__(self, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]) -> None:
        self.before, self.after = before, after
        self.sent: list[int] = []

    def first_tokens(self, server: int, flight: Flight | None, now_s: float) -> Mapping[str, float]:
        waits = (self.before if flight is None else self.after)[server]
        return {f"{server}-{n}": now_s + wait for n, wait in enumerate(waits)}

    def send(self, flight: Flight, server: int, now_s: float) -> None:
        self.sent.append(server)


@pytest.mark.parametrize(
    ("before", "after", "best"),
    [
        ([[], []], [[2.0], [1.0]], 1),
        # Soonest for itself on 0, but three others would wait a second longer.
        ([[1.0, 1.0, 1.0], []], [[2.0, 2.0, 2.0, 0.5], [3.0]], 1),
        ([[1.0, 1.0, 1.0], []], [[1.1, 1.1, 1.1, 0.5], [3.0]], 0),
    ],
)
def test_the_greedy_oracle_adds_least_to_all_waits(
    before: list[list[float]], after: list[list[float]], best: int
) -> None:
    world = World(before, after)
    oracle = Greedy(world, Scene(servers=(H100, H100)), 1)  # type: ignore[arg-type]
    oracle.members([0, 1], 5.0)
    oracle.arrive(Flight("new", None, (), 0, oracle), 5.0)  # type: ignore[arg-type]
    assert world.sent == [best]


def test_the_greedy_oracle_beats_least_request_where_prompts_differ() -> None:
    rng = random.Random(3)
    requests = [
        Offered(at_s=0.05 * n, prompt_tokens=rng.choice([200, 8_000]), output_tokens=20, blocks=[100 * n + i for i in range(32)])
        for n in range(150)
    ]  # fmt: skip
    scene = Scene(servers=(H100,) * 4)
    mean_s = [
        sum(one.ttft_s for one in Simulation(requests, scene, router).records()) / len(requests)
        for router in (Greedy, baseline(LeastRequest))
    ]
    assert mean_s[0] < 0.85 * mean_s[1]


class TestPooled:
    def test_it_does_the_work_of_eight_in_the_time_of_one(self) -> None:
        one, eight = H100, pooled(H100, 8)
        assert eight.kv_tokens == 8 * one.kv_tokens
        alone, together = one.latency(), eight.latency()
        for batch, context in ((8, 1000), (64, 4000)):
            of_one = alone.step_s(0, 0, batch, batch, batch * context)
            of_eight = together.step_s(0, 0, 8 * batch, 8 * batch, 8 * batch * context)
            assert of_eight == pytest.approx(of_one, rel=0.02)
        assert together.step_s(8 * 1024, 8 * 1024**2, 8, 0, 0) <= 1.01 * alone.step_s(1024, 1024**2, 1, 0, 0)

    def test_a_run_of_it_ends(self) -> None:
        engine = Engine(msgspec.structs.replace(pooled(H100, 4), frontend_s=0.0))
        for number in range(20):
            engine.submit(Work(f"{number}", 9_000, 30), 0.0)
        engine.advance(math.inf)
        assert engine.stats().finished == 20


def test_its_cells_are_of_the_standard_set() -> None:
    assert set(CELLS) <= set(standard())
