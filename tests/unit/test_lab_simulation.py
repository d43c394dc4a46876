"""The lab's simulation: every request has one end, at the time at which its engine says so, and a run is its seed's."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from math import inf, isnan

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.lab.baseline import baseline
from bench.lab.offered import Offered, block_hashes, chain, prompt_text
from bench.lab.picker import Picker, picker
from bench.lab.record import Outcome, Record
from bench.lab.router import NewRouter, Router, World
from bench.lab.scene import Loss, Scene, server
from bench.lab.simulation import EndlessCache, Simulation
from bench.policies import Asked, View
from bench.policies.simple import LeastRequest, RoundRobin
from bench.replica.engine import Engine, Work
from epp.configuration import load, load_default
from epp.settings import Settings

H100 = server("Llama-3.1-8B@H100")
TINY = msgspec.structs.replace(H100, num_blocks=600)
WAITS = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
featureGates: [flowControl]
plugins:
- {type: queue-scorer}
- {type: concurrency-detector, parameters: {maxConcurrency: 2}}
schedulingProfiles:
- {name: default, plugins: [{pluginRef: queue-scorer}]}
saturationDetector: {pluginRef: concurrency-detector}
"""


def offered(at_s: float, *blocks: int, prompt_tokens: int | None = None, output_tokens: int = 10) -> Offered:
    tokens = 512 * len(blocks) if prompt_tokens is None else prompt_tokens
    return Offered(at_s=at_s, prompt_tokens=tokens, output_tokens=output_tokens, blocks=blocks)


def some_trace(seed: int, count: int, every_s: float = 0.05) -> list[Offered]:
    rng = random.Random(seed)
    at_s = 0.0
    trace: list[Offered] = []
    for number in range(count):
        at_s += rng.expovariate(1 / every_s)
        group = rng.randrange(4)
        length = rng.randrange(1, 6)
        blocks = [group * 100 + i for i in range(length)] + [10_000 + number]
        tokens = 512 * length + rng.randrange(1, 513)
        trace.append(
            Offered(
                at_s=at_s,
                prompt_tokens=tokens,
                output_tokens=rng.randrange(1, 60),
                blocks=blocks,
                tenant=f"tenant-{group}",
            )
        )
    return trace


def run(trace: Sequence[Offered], scene: Scene, router: NewRouter) -> list[Record]:
    return list(Simulation(trace, scene, router).records())


class TestText:
    @given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.lists(st.integers(0, 3), min_size=1, max_size=5))
    def test_what_blocks_have_in_common_text_and_hashes_have(self, one: list[int], other: list[int]) -> None:
        common = next(
            (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
        )
        a, b = offered(0.0, *one), offered(0.0, *other)
        texts = prompt_text(a), prompt_text(b)
        assert texts[0][: common * 2048] == texts[1][: common * 2048]
        assert texts[0][common * 2048 : common * 2048 + 256] != texts[1][common * 2048 : common * 2048 + 256] or (
            common == len(one) == len(other)
        )
        hashes = block_hashes(a, chain(a)), block_hashes(b, chain(b))
        shared = sum(1 for x, y in zip(*hashes, strict=False) if x == y)
        assert shared == common * 8
        assert len(hashes[0]) == 8 * len(one) == len(set(hashes[0]))

    def test_text_ends_with_the_prompt_and_names_go_on_into_a_known_answer(self) -> None:
        one = Offered(at_s=0.0, prompt_tokens=100, output_tokens=100, blocks=[1, 2, 3, 4], block_tokens=64)
        assert len(prompt_text(one)) == 400
        assert len(block_hashes(one, chain(one))) == 1
        known = msgspec.structs.replace(one, known_tokens=200)
        assert prompt_text(known) == prompt_text(one)
        assert len(block_hashes(known, chain(known))) == 3

    def test_adapters_share_nothing(self) -> None:
        one = offered(0.0, 1, 2)
        other = msgspec.structs.replace(one, model="adapter")
        assert not set(chain(one)) & set(chain(other))


class TestTimes:
    def test_an_idle_server_answers_when_its_engine_alone_would(self) -> None:
        engine = Engine(H100)
        engine.submit(Work("x", 1024, 10), 5.0 + 0.25)
        first, last = engine.advance(100.0)
        scene = Scene(servers=(H100,), network_s=0.25)
        (record,) = run([offered(5.0, 1, 2)], scene, picker(load_default()))
        assert record.outcome is Outcome.DONE
        assert record.ttft_s == pytest.approx(first.at_s + 0.25 - 5.0)
        assert record.e2e_s == pytest.approx(last.at_s + 0.25 - 5.0)

    def test_a_page_is_as_old_as_it_is_said_to_be(self) -> None:
        heard: list[tuple[float, float]] = []

        class Listens(RoundRobin):
            def pick(self, request: Asked, view: View) -> int:
                heard.append((view.now_s, view.scraped(0).prompt_tokens_total))
                return super().pick(request, view)

        trace = [offered(0.1 * number, number, output_tokens=1) for number in range(100)]
        lag_s = {}
        for age_s in (0.0, 2.0):
            heard.clear()
            scene = Scene(servers=(H100,), scrape_interval_s=0.1, page_age_s=age_s)
            run(trace, scene, baseline(Listens))
            # At 10 requests of 512 tokens a second, tokens tell the time that the page shows.
            lag_s[age_s] = heard[-1][0] - heard[-1][1] / 5120
        assert lag_s[2.0] - lag_s[0.0] == pytest.approx(2.0, abs=0.11)

    def test_no_scrape_interval_means_no_scrapes(self) -> None:
        class Refuses(RoundRobin):
            def pick(self, request: Asked, view: View) -> int:
                assert view.scraped(0).reported_s == -inf
                return super().pick(request, view)

        run(some_trace(1, 30), Scene(servers=(H100,), scrape_interval_s=inf), baseline(Refuses))


class TestEnds:
    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(0, 10_000),
        st.booleans(),
        st.integers(1, 2),
        st.sampled_from([0.0, 1.0]),
        st.booleans(),
        st.sampled_from(["default", "waits"]),
    )
    def test_every_request_ends_once_and_nothing_stays_in_flight(
        self, seed: int, lean: bool, pickers: int, age_s: float, loses: bool, which: str
    ) -> None:
        routers: list[Picker] = []
        configuration = load_default() if which == "default" else load(WAITS, "waits")

        def new(world: World, scene: Scene, seed: int) -> Router:
            routers.append(Picker(configuration, Settings(), world, scene, seed))
            return routers[-1]

        losses = (Loss(1, 0.7, 1.5), Loss(0, 1.6)) if loses else ()
        scene = Scene(
            servers=(TINY, H100, TINY), lean=lean, pickers=pickers, page_age_s=age_s, losses=losses, seed=seed
        )
        trace = some_trace(seed, 60)
        records = run(trace, scene, new)
        assert sorted(record.at_s for record in records) == [one.at_s for one in trace]
        assert len({record.id for record in records}) == len(trace)
        for record in records:
            if record.outcome is Outcome.DONE:
                assert 0 < record.ttft_s <= record.e2e_s
                assert 0 <= record.cached_tokens < record.prompt_tokens
                assert record.cached_tokens <= record.available_tokens
            else:
                assert isnan(record.e2e_s)
        if not loses:
            assert all(record.outcome is Outcome.DONE for record in records)
        for router in routers:
            assert not router.endpoints.in_flight.any()
            assert not router.endpoints.in_flight_tokens.any()

    def test_a_lost_server_gets_nothing_and_comes_back_cold(self) -> None:
        trace = [offered(0.1 * number, 7, 8, output_tokens=2) for number in range(40)]
        scene = Scene(servers=(H100,) * 2, losses=(Loss(0, 1.05, 2.05),))
        records = run(trace, scene, baseline(RoundRobin))
        assert {record.server for record in records if 1.05 < record.at_s < 2.05} == {1}
        first_back = next(record for record in records if record.server == 0 and record.at_s > 2.05)
        assert first_back.cached_tokens == 0
        assert first_back.available_tokens == 1023
        assert Counter(record.outcome for record in records)[Outcome.LOST] == 0

    def test_requests_on_a_lost_server_are_lost(self) -> None:
        scene = Scene(servers=(H100,), losses=(Loss(0, 1.0, 2.0),))
        (record,) = run([offered(0.9, 1, output_tokens=1000)], scene, picker(load_default()))
        assert record.outcome is Outcome.LOST
        assert record.ttft_s < 0.1
        assert isnan(record.e2e_s)

    def test_a_scrape_that_a_loss_overtakes_is_not_told(self) -> None:
        trace = [offered(0.1 * number, number, output_tokens=1) for number in range(40)]
        scene = Scene(servers=(H100,) * 2, scrape_delay_s=0.9, losses=(Loss(0, 1.5, 2.2), Loss(1, 2.5, 3.3)))
        records = run(trace, scene, picker(load_default()))
        assert Counter(record.outcome for record in records)[Outcome.DONE] >= 38

    def test_without_servers_requests_are_refused(self) -> None:
        scene = Scene(servers=(H100,), losses=(Loss(0, 0.5),))
        for router in (picker(load_default()), baseline(RoundRobin)):
            assert [one.outcome for one in run([offered(0.6, 1)], scene, router)] == [Outcome.REFUSED]


class TestChance:
    def test_pickers_share_the_traffic_and_nothing_else(self) -> None:
        asked: list[list[str]] = []

        class Counts(RoundRobin):
            def __init__(self) -> None:
                super().__init__()
                asked.append([])
                self._mine = asked[-1]

            def pick(self, request: Asked, view: View) -> int:
                self._mine.append(request.id)
                return super().pick(request, view)

        run(some_trace(1, 60), Scene(servers=(H100,) * 2, pickers=2), baseline(Counts))
        one, other = asked
        assert min(len(one), len(other)) >= 15
        assert sorted(one + other) == sorted(f"r{number}" for number in range(60))

    def test_a_run_is_its_seeds(self) -> None:
        trace = some_trace(3, 80, every_s=0.01)

        def picks(seed: int) -> list[tuple[str, int, float]]:
            scene = Scene(servers=(H100,) * 4, lean=True, pickers=2, seed=seed)
            return [(one.id, one.server, one.ttft_s) for one in run(trace, scene, picker(load_default()))]

        assert picks(1) == picks(1)
        assert picks(1) != picks(2)

    @pytest.mark.parametrize("offset_s", [0.0, 50_000.0])
    def test_what_the_clock_shows_makes_no_difference(self, offset_s: float) -> None:
        trace = some_trace(4, 80, every_s=0.01)
        plain = run(trace, Scene(servers=(H100,) * 3, lean=True), picker(load_default()))
        shifted = run(trace, Scene(servers=(H100,) * 3, lean=True, clock_offset_s=offset_s), picker(load_default()))
        assert [one.server for one in shifted] == [one.server for one in plain]

    def test_in_lean_mode_a_policy_hears_of_an_answer_that_it_ended(self) -> None:
        heard: list[tuple[str, int]] = []

        class Listening(RoundRobin):
            def first_token(self, request: Asked, server: int, now_s: float) -> None:
                heard.append(("first", 0))

            def finished(self, request: Asked, server: int, output_tokens: int, now_s: float) -> None:
                heard.append(("end", output_tokens))

        for lean in (False, True):
            run([offered(0.0, 1)], Scene(servers=(H100,), lean=lean), baseline(Listening))
        first, whole, end = heard
        assert (first[0], whole[0], end) == ("first", "end", ("end", 0))
        assert whole[1] > 0


class TestWaiting:
    def test_a_picker_that_lets_wait_bounds_what_is_in_flight(self) -> None:
        """Also where answers are hidden, and with a clock that is fast."""
        trace = [offered(0.001 * number, number, output_tokens=50) for number in range(40)]
        scene = Scene(servers=(H100,) * 2, clock_rate=1.001, clock_offset_s=7.0)
        records = run(trace, scene, picker(load(WAITS, "waits")))
        moments = sorted([(one.picked_s, 1) for one in records] + [(one.at_s + one.e2e_s, -1) for one in records])
        in_flight = most = 0
        for _, step in moments:
            in_flight += step
            most = max(most, in_flight)
        assert most == 4
        assert max(one.picked_s - one.at_s for one in records) > 0.5

    def test_a_policy_that_holds_back_is_asked_again(self) -> None:
        class OneAtATime(LeastRequest):
            def __init__(self) -> None:
                super().__init__()
                self.line: list[Asked] = []

            def pick(self, request: Asked, view: View) -> int | None:  # type: ignore[override]
                self.line.append(request)
                return None

            def release(self, view: View) -> tuple[Asked, int] | None:
                free = [one for one in view.servers if not self._in_flight[one]]
                return (self.line.pop(0), free[0]) if free and self.line else None

        trace = [offered(0.001 * number, number) for number in range(20)]
        records = run(trace, Scene(servers=(H100,) * 2), baseline(OneAtATime))
        assert len(records) == 20
        for server_index in (0, 1):
            spans = sorted((one.picked_s, one.at_s + one.e2e_s) for one in records if one.server == server_index)
            assert len(spans) == 10
            assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))


class TestEndlessCache:
    def test_it_counts_what_came_before_from_the_beginning(self) -> None:
        cache = EndlessCache()
        assert cache.take([1, 2, 3]) == 0
        assert cache.take([1, 2, 4]) == 2
        assert cache.take([5, 2, 3]) == 0
        assert cache.take([1, 2, 4]) == 3

    def test_it_forgets_what_was_not_seen_for_longest(self) -> None:
        cache = EndlessCache(remembered=4)
        cache.take([1, 2])
        cache.take([3, 4])
        cache.take([1, 2])
        cache.take([5])
        assert cache.take([1, 2]) == 2
        assert cache.take([3]) == 0
