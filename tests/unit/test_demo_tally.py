"""What the demo knows of a run follows from its events alone."""

from __future__ import annotations

import math

import pytest

from bench.demo.tally import RECENT, Cache, Tally
from bench.load.client import Result, Sent

A, B = "127.0.0.1:8001", "127.0.0.1:8002"


def sent(id: str, model: str = "base") -> Sent:
    return Sent(id, model, 0.0)


def result(
    id: str, *, model: str = "base", replica: str = "", status: int = 200, ttft_s: float | None = None
) -> Result:
    return Result(
        id=id, tenant="t", model=model, chat=True, stream=ttft_s is not None, sent_s=0.0, status=status, ttft_s=ttft_s,
        replica=replica, error="" if status == 200 else "broken",
    )  # fmt: skip


@pytest.fixture
def tally() -> Tally:
    return Tally((A, B), 10, "base")


def test_a_decision_places_a_request_and_its_answer_corrects_that(tally: Tally) -> None:
    tally.take(sent("1"))
    assert (tally.server_of("1"), tally.number_of("1")) == (None, "?")
    tally.decided("1", A)
    assert tally.requests() == {A: 1, B: 0}
    tally.take(result("1", replica=B))
    assert (tally.requests(), tally.number_of("1")) == ({A: 0, B: 1}, "2")


def test_a_decision_read_after_the_answer_changes_nothing(tally: Tally) -> None:
    tally.take(sent("1"))
    tally.take(result("1", replica=B))
    tally.decided("1", A)
    assert tally.server_of("1") == B


def test_an_answer_that_names_no_server_of_ours_leaves_the_decision(tally: Tally) -> None:
    tally.take(sent("1"))
    tally.decided("1", A)
    tally.take(result("1", replica="localhost:8002"))
    assert tally.server_of("1") == A


def test_what_others_send_is_not_counted(tally: Tally) -> None:
    tally.decided("a reader's own", A)
    tally.take(sent("1"))
    tally.decided("1", "10.0.0.1:80")
    assert tally.requests() == {A: 0, B: 0}


def test_adapters_are_those_asked_for_at_each_server(tally: Tally) -> None:
    for id, model, server in (("1", "lora-b", A), ("2", "lora-a", A), ("3", "lora-a", A), ("4", "base", B)):
        tally.take(sent(id, model))
        tally.decided(id, server)
    assert tally.adapters() == {A: ("lora-a", "lora-b"), B: ()}


def test_errors_and_first_tokens_are_counted(tally: Tally) -> None:
    assert math.isnan(tally.first_token().p50_s)
    for id, ttft_s in (("1", 0.1), ("2", 0.3), ("3", None)):
        tally.take(sent(id))
        tally.take(result(id, ttft_s=ttft_s))
    tally.take(sent("4"))
    tally.take(result("4", status=503))
    assert (len(tally.results), tally.errors) == (4, 1)
    assert tally.first_token().p50_s == pytest.approx(0.2)


def test_the_latest_answers_are_kept_in_order(tally: Tally) -> None:
    for number in range(10):
        tally.take(sent(str(number)))
        tally.take(result(str(number)))
    assert [one.id for one in tally.recent] == [str(number) for number in range(10 - RECENT, 10)]


def test_cache_counters_add_up_and_forget_the_past() -> None:
    assert Cache().rate is None
    assert (Cache(100.0, 50.0) + Cache(100.0, 0.0)).rate == 0.25
    assert Cache(300.0, 150.0).since(Cache(200.0, 60.0)).rate == 0.9
