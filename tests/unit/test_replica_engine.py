"""The engine's schedule, its cache counters, and that no way of letting time pass changes what happens."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.replica.engine import Engine, Event, Finished, FirstToken, Work, _Step
from bench.replica.latency import measured_kernels
from bench.replica.profiles import Profile

PROFILE = Profile(
    name="test",
    kernels=measured_kernels()["Llama-3.1-8B@H100"],
    num_blocks=1000,
    max_model_len=16_000,
    frontend_s=0.0,
    max_loras=2,
)


def engine(**changes: object) -> Engine:
    return Engine(msgspec.structs.replace(PROFILE, **changes))


def chain(*labels: object) -> list[int]:
    """Block hashes: equal labels up to a place, equal hashes up to there."""
    return [hash(labels[: i + 1]) for i in range(len(labels))]


def finished(events: list[Event]) -> dict[str, Finished]:
    return {event.id: event for event in events if isinstance(event, Finished)}


def first_tokens(events: list[Event]) -> dict[str, FirstToken]:
    return {event.id: event for event in events if isinstance(event, FirstToken)}


# Prefix cache


def test_a_repeated_prompt_hits_all_full_blocks_but_the_one_of_its_last_token() -> None:
    server = engine()
    hashes = chain(*range(10))
    server.submit(Work("a", 160, 1, hashes), 0.0)
    server.advance(1.0)
    server.submit(Work("b", 160, 1, hashes), 1.0)
    events = server.advance(2.0)
    assert first_tokens(events)["b"].cached_tokens == 144
    stats = server.stats()
    assert (stats.queried_tokens, stats.hit_tokens) == (320, 144)


def test_a_longer_prompt_hits_the_whole_shorter_one_and_the_answer_to_it() -> None:
    server = engine()
    server.submit(Work("turn 1", 160, 32, chain(*range(12))), 0.0)
    server.advance(1.0)
    server.submit(Work("turn 2", 300, 1, chain(*range(18))), 1.0)
    events = server.advance(2.0)
    # The last token of an answer is never fed back, so the block that it would complete was never full.
    assert first_tokens(events)["turn 2"].cached_tokens == 160 + 16


def test_different_prompts_share_nothing() -> None:
    server = engine()
    server.submit(Work("a", 160, 1, chain("a", *range(9))), 0.0)
    server.submit(Work("b", 160, 1, chain("b", *range(9))), 0.0)
    server.advance(1.0)
    assert server.stats().hit_tokens == 0


def test_a_twin_in_the_same_step_already_hits() -> None:
    server = engine()
    for id in "ab":
        server.submit(Work(id, 160, 1, chain(*range(10))), 0.0)
    assert first_tokens(server.advance(1.0))["b"].cached_tokens == 144


def test_a_hit_is_faster() -> None:
    server = engine()
    hashes = chain(*range(500))
    server.submit(Work("cold", 8000, 1, hashes), 0.0)
    cold_s = finished(server.advance(1.0))["cold"].at_s
    server.submit(Work("warm", 8000, 1, hashes), 1.0)
    warm_s = finished(server.advance(2.0))["warm"].at_s - 1.0
    assert warm_s < cold_s / 5


def test_memory_pressure_evicts_what_was_used_longest_ago() -> None:
    server = engine(num_blocks=20)
    server.submit(Work("old", 160, 1, chain("old", *range(9))), 0.0)
    server.advance(1.0)
    server.submit(Work("new", 160, 1, chain("new", *range(9))), 1.0)
    server.advance(2.0)
    server.submit(Work("other", 160, 1, chain("other", *range(9))), 2.0)
    server.advance(3.0)
    server.submit(Work("new again", 160, 1, chain("new", *range(9))), 3.0)
    server.submit(Work("old again", 160, 1, chain("old", *range(9))), 3.0)
    hits = {event.id: event.cached_tokens for event in first_tokens(server.advance(4.0)).values()}
    assert hits["new again"] == 144
    assert hits["old again"] == 0


# Batching


def test_a_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    server = engine(max_num_batched_tokens=1000)
    server.submit(Work("long", 3500, 1), 0.0)
    server.advance(10.0)
    assert server.stats().steps == 4


def test_decodes_go_on_beside_the_chunks_of_a_long_prompt() -> None:
    server = engine(max_num_batched_tokens=512)
    server.submit(Work("answering", 100, 60), 0.0)
    server.advance(0.1)
    before = server.generated("answering")
    server.submit(Work("long", 5110, 1), 0.1)
    first = first_tokens(advance_to_event(server, "long"))["long"]
    assert first.at_s > 0.1
    # 10 chunks of 511 beside one decode each, and the step that was under way.
    assert server.generated("answering") - before == 11


def advance_to_event(server: Engine, id: str) -> list[Event]:
    while True:
        events = server.advance(server.next_s)
        if any(event.id == id for event in events):
            return events


def test_no_more_sequences_run_than_allowed() -> None:
    server = engine(max_num_seqs=3)
    for i in range(10):
        server.submit(Work(str(i), 100, 50), 0.0)
    server.advance(0.0)
    assert (server.stats().running, server.stats().waiting) == (3, 7)
    order = [event.id for event in server.advance(100.0) if isinstance(event, FirstToken)]
    assert order == [str(i) for i in range(10)]


def test_a_request_is_seen_only_after_the_frontend() -> None:
    server = engine(frontend_s=0.5)
    server.submit(Work("a", 100, 1), 0.0)
    assert server.next_s == 0.5
    server.advance(0.4)
    assert server.stats().running == server.stats().waiting == 0
    server.advance(0.5)
    assert server.stats().running == 1


def test_an_embedding_ends_with_its_prompt() -> None:
    server = engine()
    server.submit(Work("e", 100, 0), 0.0)
    (event,) = server.advance(1.0)
    assert isinstance(event, Finished)
    assert server.stats().prompt_tokens == 100
    assert server.stats().generated_tokens == 0


def test_counters_add_up() -> None:
    server = engine()
    server.submit(Work("a", 100, 7), 0.0)
    server.submit(Work("b", 50, 3), 0.0)
    server.advance(1.0)
    stats = server.stats()
    assert (stats.prompt_tokens, stats.generated_tokens, stats.finished) == (150, 10, 2)
    assert stats.kv_usage == 0.0
    assert server.next_s == math.inf


# Memory


def test_the_last_to_come_is_preempted_and_still_finishes() -> None:
    server = engine(num_blocks=12)
    server.submit(Work("first", 80, 80), 0.0)
    server.submit(Work("second", 80, 80), 0.0)
    events = server.advance(100.0)
    assert server.stats().preemptions >= 1
    ends = finished(events)
    assert ends["first"].at_s < ends["second"].at_s
    assert server.stats().generated_tokens == 160
    assert len(first_tokens(events)) == 2


def test_what_was_preempted_is_not_counted_as_a_query_again() -> None:
    server = engine(num_blocks=12)
    for id in ("first", "second"):
        server.submit(Work(id, 80, 80, chain(id, *range(9))), 0.0)
    server.advance(100.0)
    assert server.stats().preemptions >= 1
    assert server.stats().queried_tokens == 160
    assert server.stats().hit_tokens == 0


def test_the_queue_waits_for_memory() -> None:
    server = engine(num_blocks=10)
    server.submit(Work("a", 100, 20), 0.0)
    server.submit(Work("b", 100, 20), 0.0)
    server.advance(0.0)
    assert (server.stats().running, server.stats().waiting) == (1, 1)
    assert set(finished(server.advance(10.0))) == {"a", "b"}


@pytest.mark.parametrize(("prompt", "output"), [(16_000, 1), (0, 10)])
def test_what_can_never_fit_is_refused(prompt: int, output: int) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        engine().submit(Work("a", prompt, output), 0.0)


def test_time_does_not_go_back_and_ids_are_unique() -> None:
    server = engine()
    server.submit(Work("a", 10, 10), 1.0)
    with pytest.raises(ValueError, match="is in the engine"):
        server.submit(Work("a", 10, 10), 1.0)
    with pytest.raises(ValueError, match="submitted at"):
        server.submit(Work("b", 10, 10), 0.5)


def test_an_aborted_request_gives_back_its_memory_at_once() -> None:
    server = engine(frontend_s=0.001, max_num_seqs=1)
    for id, at_s in (("running", 0.0), ("waiting", 0.01), ("arriving", 0.02)):
        server.advance(at_s)
        server.submit(Work(id, 100, 1000), at_s)
    assert (server.stats().running, server.stats().waiting) == (1, 1)
    for id in ("running", "waiting", "arriving"):
        assert server.abort(id)
        assert not server.abort(id)
    assert server.stats().kv_usage == 0.0
    assert server.advance(10.0) == []
    assert server.stats().aborted == 3


def test_time_without_end_passes_until_nothing_is_left_to_do() -> None:
    server = engine(frontend_s=0.001)
    assert server.advance(math.inf) == []
    server.submit(Work("late", 100, 1000), 5.0)
    end_s = finished(server.advance(math.inf))["late"].at_s
    assert server.advance(math.inf) == []
    assert server.now_s == end_s > 5.0
    server.submit(Work("later", 100, 10), end_s)
    assert set(finished(server.advance(math.inf))) == {"later"}


# LoRA


def test_a_third_adapter_waits_for_a_slot_and_others_pass_by() -> None:
    server = engine()
    for id, adapter in (("1", "a"), ("2", "b"), ("3", "c"), ("4", "a"), ("5", None)):
        server.submit(Work(id, 10, 5, (), adapter), 0.0)
    server.advance(0.0)
    stats = server.stats()
    assert (stats.running_adapters, stats.waiting_adapters) == (("a", "b"), ("c",))
    assert (stats.running, stats.waiting) == (4, 1)
    order = [event.id for event in server.advance(10.0) if isinstance(event, Finished)]
    assert order[-1] == "3"


def test_who_was_passed_by_keeps_its_place() -> None:
    server = engine(max_loras=1)
    for id, adapter in (("1", "a"), ("2", "b"), ("3", "c"), ("4", "d")):
        server.submit(Work(id, 10, 5, (), adapter), 0.0)
    order = [event.id for event in server.advance(10.0) if isinstance(event, Finished)]
    assert order == ["1", "2", "3", "4"]


def first_token_s(server: Engine, id: str, adapter: str | None) -> float:
    start_s = server.now_s
    server.submit(Work(id, 10, 1, (), adapter), start_s)
    return server.advance(start_s + 10.0)[-1].at_s - start_s


def test_bringing_an_adapter_in_takes_time_once_until_it_is_replaced() -> None:
    server = engine(lora_load_s=0.4)
    without = first_token_s(server, "0", None)
    assert first_token_s(server, "1", "a") == pytest.approx(without + 0.4)
    assert first_token_s(server, "2", "a") == pytest.approx(without)
    assert first_token_s(server, "3", "b") == pytest.approx(without + 0.4)
    assert first_token_s(server, "4", "a") == pytest.approx(without)
    assert first_token_s(server, "5", "c") == pytest.approx(without + 0.4)
    assert first_token_s(server, "6", "a") == pytest.approx(without), "the least recently used one was replaced"
    assert first_token_s(server, "7", "b") == pytest.approx(without + 0.4)
    server.forget_adapter("a")
    assert first_token_s(server, "8", "a") == pytest.approx(without + 0.4)


# Time


class Stepwise(Engine):
    """The same engine, composing every single step."""

    def _coast(self, step: _Step, until_s: float) -> None:
        pass


Arrival = tuple[float, Work]


@st.composite
def tight_servers(draw: st.DrawFn) -> Profile:
    return msgspec.structs.replace(
        PROFILE,
        num_blocks=draw(st.integers(12, 40)),
        block_size=draw(st.sampled_from([1, 4, 16])),
        max_num_batched_tokens=draw(st.sampled_from([3, 40, 200])),
        max_num_seqs=draw(st.sampled_from([2, 4, 30])),
        max_loras=draw(st.sampled_from([1, 2])),
        frontend_s=draw(st.sampled_from([0.0, 0.0155])),
    )


def arrivals(profile: Profile, seed: int, count: int) -> Iterator[Arrival]:
    """Requests that share few distinct prefixes, so that hits, twins and evictions abound."""
    chance = random.Random(seed)
    now_s = 0.0
    for i in range(count):
        now_s += chance.choice([0.0, 0.001, 0.02, 0.3])
        total = chance.randint(1, profile.longest)
        output = chance.randint(0, total - 1)
        labels = [chance.choice("ab" if place < 2 else "a") for place in range(total // profile.block_size)]
        adapter = chance.choice([None, None, "x", "y"])
        yield now_s, Work(str(i), total - output, output, chain(adapter, *labels)[1:], adapter)


def play(
    server: Engine, schedule: list[Arrival], aborts: dict[int, str], ticks_s: float, *, drain: bool = True
) -> list[Event]:
    events: list[Event] = []
    for i, (at_s, work) in enumerate(schedule):
        while ticks_s and server.now_s + ticks_s < at_s:
            events += server.advance(server.now_s + ticks_s)
        events += server.advance(at_s)
        server.submit(work, at_s)
        if i in aborts:
            server.abort(aborts[i])
    while drain and server.next_s < math.inf:
        events += server.advance(server.next_s if ticks_s else 1e6)
    return events


@settings(max_examples=60)
@given(tight_servers(), st.integers(0, 2**32), st.integers(0, 25))
def test_a_copy_goes_on_as_the_original_does_and_leaves_it_alone(profile: Profile, seed: int, copied_at: int) -> None:
    schedule = list(arrivals(profile, seed, 25))
    server, lone = Engine(profile), Engine(profile)
    events, expected = play(server, schedule[:copied_at], {}, 0.0, drain=False), play(lone, schedule, {}, 0.0)
    twin = server.copy()
    assert twin.unanswered == server.unanswered
    of_twin = play(twin, schedule[copied_at:], {}, 0.0)
    assert events + of_twin == expected
    assert events + play(server, schedule[copied_at:], {}, 0.0) == expected
    assert server.stats() == twin.stats() == lone.stats()


@settings(max_examples=150, deadline=None)
@given(profile=tight_servers(), seed=st.integers(0, 2**32), count=st.integers(1, 14), data=st.data())
def test_jumping_over_steady_steps_changes_nothing(
    profile: Profile, seed: int, count: int, data: st.DataObject
) -> None:
    schedule = list(arrivals(profile, seed, count))
    aborts = {i: str(data.draw(st.integers(0, i))) for i in data.draw(st.sets(st.integers(0, count - 1), max_size=2))}
    jumping, stepwise, ticking = Engine(profile), Stepwise(profile), Engine(profile)
    reference = play(stepwise, schedule, aborts, 0.0)
    assert play(jumping, schedule, aborts, 0.0) == reference
    assert play(ticking, schedule, aborts, 0.005) == reference
    assert jumping.stats() == stepwise.stats() == ticking.stats()


@settings(max_examples=60, deadline=None)
@given(profile=tight_servers(), seed=st.integers(0, 2**32), count=st.integers(1, 14))
def test_everything_finishes_once_and_all_memory_comes_back(profile: Profile, seed: int, count: int) -> None:
    server = Engine(profile)
    schedule = list(arrivals(profile, seed, count))
    events = play(server, schedule, {}, 0.0)
    ends = [event.id for event in events if isinstance(event, Finished)]
    assert sorted(ends) == sorted(work.id for _, work in schedule)
    assert [event.at_s for event in events] == sorted(event.at_s for event in events)
    stats = server.stats()
    assert stats.kv_usage == 0.0
    assert stats.prompt_tokens == stats.queried_tokens == sum(work.prompt_tokens for _, work in schedule)
    assert stats.generated_tokens == sum(work.output_tokens for _, work in schedule)
