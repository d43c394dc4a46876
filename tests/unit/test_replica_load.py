"""The workload is the seed's alone, has what its mix says, and results are summed up rightly."""

from __future__ import annotations

import math

import msgspec
import pytest

from bench.load.client import Result
from bench.load.summary import quantiles, summarize, table
from bench.load.workload import Mix, Session, request_count, sessions

MIX = Mix(duration_s=60.0, adapters=("a", "b", "c"))


def test_equal_seeds_give_equal_requests_and_others_do_not() -> None:
    assert sessions(MIX, 1) == sessions(MIX, 1)
    assert sessions(MIX, 1) != sessions(MIX, 2)


def test_sessions_arrive_in_order_at_the_rate_asked_for() -> None:
    times = [session.at_s for session in sessions(MIX, 1)]
    assert times == sorted(times)
    assert times[0] > 0.0
    assert times[-1] < 60.0
    assert len(times) == pytest.approx(480, rel=0.2)


def test_ids_are_unique() -> None:
    workload = sessions(MIX, 1)
    assert len({session.id for session in workload}) == len(workload)


def by_tenant(workload: tuple[Session, ...]) -> dict[str, list[Session]]:
    found: dict[str, list[Session]] = {}
    for session in workload:
        found.setdefault(session.tenant, []).append(session)
    return found


def test_sessions_of_a_tenant_share_what_a_cache_can_find() -> None:
    tenants = by_tenant(sessions(MIX, 1))
    assert len(tenants) == MIX.tenants
    for members in tenants.values():
        assert len({(session.opening, session.model, session.chat) for session in members}) == 1
    openings = {members[0].opening[:100] for members in tenants.values()}
    assert len(openings) == MIX.tenants


def test_shares_are_dealt_out() -> None:
    tenants = [members[0] for members in by_tenant(sessions(MIX, 1)).values()]
    assert sum(session.model != "base" for session in tenants) == 16
    assert {session.model for session in tenants} == {"base", "a", "b", "c"}
    assert sum(not session.chat for session in tenants) == pytest.approx(32 * 0.2, abs=1)


def test_values_stay_within_their_ranges() -> None:
    workload = sessions(MIX, 1)
    turns = [turn for session in workload for turn in session.turns]
    assert len(turns) == request_count(workload)
    assert {len(session.turns) for session in workload if session.chat} == {1, 2, 3, 4}
    assert {len(session.turns) for session in workload if not session.chat} == {1}
    assert all(80 <= len(turn.text) <= 400 for turn in turns)
    assert all(turn.max_tokens is not None and 6 <= turn.max_tokens <= 20 for turn in turns)
    assert sum(turn.stream for turn in turns) == pytest.approx(0.75 * len(turns), rel=0.1)


def test_without_adapters_all_ask_the_base_model() -> None:
    assert {session.model for session in sessions(Mix(model="llama"), 1)} == {"llama"}


RESULT = Result(id="1", tenant="t", model="base", chat=True, stream=True, sent_s=1.0, status=200, e2e_s=2.0, ttft_s=0.5)


def test_a_summary_counts_what_came_and_what_failed() -> None:
    results = [
        msgspec.structs.replace(RESULT, prompt_tokens=100, cached_tokens=40, completion_tokens=5, replica="b"),
        msgspec.structs.replace(RESULT, sent_s=3.0, ttft_s=1.5, prompt_tokens=100, replica="a"),
        msgspec.structs.replace(RESULT, sent_s=4.0, ttft_s=None, status=503, error="busy", e2e_s=0.1, replica="a"),
        msgspec.structs.replace(RESULT, sent_s=4.0, ttft_s=None, status=0, error="refused", e2e_s=0.1),
    ]
    summary = summarize(results)
    assert (summary.requests, summary.failed) == (4, 2)
    assert summary.by_replica == {"a": 2, "b": 1}
    assert summary.by_status == {0: 1, 200: 2, 503: 1}
    assert summary.hit_rate == 0.2
    assert summary.duration_s == 4.0
    assert summary.ttft.p50_s == 1.0
    assert summary.e2e.mean_s == 2.0
    assert "20%" in table({"one": summary, "two": summary})


def test_quantiles_lie_between_ranks() -> None:
    found = quantiles([3.0, 1.0, 2.0, 4.0])
    assert (found.mean_s, found.p50_s) == (2.5, 2.5)
    assert found.p90_s == pytest.approx(3.7)
    assert quantiles([7.0]).p99_s == 7.0


def test_nothing_measured_is_no_number() -> None:
    summary = summarize([])
    assert math.isnan(summary.ttft.p50_s)
    assert (summary.hit_rate, summary.duration_s) == (0.0, 0.0)
    assert table({"none": summary})
