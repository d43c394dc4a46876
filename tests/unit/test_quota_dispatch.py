"""Quotas within the dispatcher: what a limited tenant's request is charged from its arrival to its answer's end."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from epp.drops import Drop, Reason
from epp.extproc.events import Arrival, Cause, Finished, Started
from epp.quota.limits import Limit, Limits
from epp.quota.quota import Grant, Quota
from epp.quota.store import MemoryStore
from epp.quota.tenants import FAIRNESS_ID, Tenants
from epp.request import Request
from tests.unit.test_dispatcher import NOW_S, Desk, chat

JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}
USAGE = json.dumps({"usage": {"prompt_tokens": 30, "completion_tokens": 12}}).encode()


class LimitedDesk(Desk):
    """`Desk` with a quota of 1000 tokens and 5 requests a minute for each tenant."""

    def __init__(self, *limits: Limit, endpoints: int = 4) -> None:
        super().__init__(endpoints)
        self.limits = Limits(limits or (Limit(requests_per_minute=5, tokens_per_minute=1000),))
        self.store = MemoryStore(100)
        self.tenants = Tenants(FAIRNESS_ID, b"secret")
        self.dispatcher._quota = Quota(
            self.limits,
            self.tenants,
            self.store,
            answer_tokens=100,
            rng=random.Random(1),
            refused=self.metrics.quota_refused,
        )

    def left(self, tenant: str = "default-flow") -> tuple[float, ...]:
        levels = [self.store.level(self.tenants.id(tenant), rule.bucket, NOW_S) for rule in self.limits.rules]
        return tuple(levels)

    def serve(self, arrival: Arrival, status: int = 200, headers: dict[str, str] = JSON, **finished: Any) -> None:
        _, account = self.route(arrival)
        self.dispatcher.started(account, Started(status, headers), NOW_S)
        self.dispatcher.finished(account, Finished(**{"cause": Cause.COMPLETE, **finished}), NOW_S)


def short(**more: Any) -> Arrival:
    return chat("hello", max_tokens=50, **more)


def test_usage_settles_what_the_estimate_charged() -> None:
    desk = LimitedDesk()
    _, account = desk.route(short())
    assert desk.left() == (4, 1000 - account.request.prompt_tokens - 50)
    desk.dispatcher.finished(account, Finished(Cause.COMPLETE, USAGE, len(USAGE)), NOW_S)
    # Usage counts only in an answer that says it is JSON, which the headers did not yet.
    assert desk.left()[1] == 1000 - account.request.prompt_tokens - 50
    desk = LimitedDesk()
    desk.serve(short(), tail=USAGE, body_bytes=len(USAGE))
    assert desk.left() == (4, 1000 - 42)


def test_a_stream_that_does_not_say_its_usage_is_counted_by_its_events() -> None:
    desk = LimitedDesk()
    event = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
    desk.serve(short(stream=True), headers=SSE, tail=event * 300, body_bytes=600 * len(event))
    _, account = LimitedDesk().route(short(stream=True))
    assert desk.left() == (4, 1000 - account.request.prompt_tokens - 600)


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_error_of_the_server_costs_no_tokens(status: int) -> None:
    desk = LimitedDesk()
    desk.serve(short(), status=status)
    assert desk.left() == (4, 1000)


def test_a_request_that_had_to_give_way_costs_nothing() -> None:
    desk = LimitedDesk()
    desk.serve(short(), cause=Cause.EVICTED, tail=USAGE, body_bytes=len(USAGE))
    assert desk.left() == (5, 1000)


def test_where_nobody_knows_the_estimate_stands() -> None:
    desk = LimitedDesk()
    desk.serve(short(), cause=Cause.ABORTED)
    assert desk.left()[1] < 1000 - 50


def test_a_request_that_no_endpoint_can_take_costs_nothing() -> None:
    desk = LimitedDesk(endpoints=0)
    assert desk.refusal(short()).reason is Reason.NO_ENDPOINTS
    assert desk.left() == (5, 1000)


def test_beyond_the_quota_is_429_with_the_headers_that_clients_read() -> None:
    desk = LimitedDesk()
    for _ in range(5):
        desk.route(short())
    drop = desk.refusal(short())
    assert drop.reason is Reason.OVER_QUOTA
    headers = dict(drop.headers())
    assert int(headers["retry-after"]) >= 12
    assert headers["x-ratelimit-remaining-requests"] == "0"
    assert headers["x-ratelimit-limit-tokens"] == "1000"
    assert desk.metrics.quota_refusals == {("requests", "tenant"): 1}
    assert desk.metrics.refusals == {Reason.OVER_QUOTA: 1}
    assert desk.errors() == {"QuotaExceeded": 1}
    desk.route(short(headers={"x-llm-d-inference-fairness-id": "another"}))


def test_an_answer_carries_them_too() -> None:
    desk = LimitedDesk()
    _, account = desk.route(short())
    added = desk.dispatcher.started(account, Started(200, JSON), NOW_S)
    assert added["x-ratelimit-remaining-requests"] == "4"
    assert added["x-ratelimit-reset-requests"] == "12s"
    assert set(added) == {
        f"x-ratelimit-{what}-{measure}"
        for what in ("limit", "remaining", "reset")
        for measure in ("requests", "tokens")
    }


def test_a_hidden_answer_of_a_tenant_with_a_token_limit_is_looked_at() -> None:
    hidden = {"sees_answer": False, "can_look": True}
    assert LimitedDesk().route(short(**hidden))[0].look
    assert not LimitedDesk(Limit(requests_per_minute=5)).route(short(**hidden))[0].look
    assert not LimitedDesk(Limit(tokens_per_minute=5, model="other")).route(short(**hidden))[0].look


class Broken(Quota):
    """Fails in every way it can."""

    def __init__(self) -> None:
        pass

    def admit(self, request: Request, now_s: float) -> Grant | None:
        raise ZeroDivisionError("admit")

    def headers(self, grant: Grant, now_s: float) -> dict[str, str]:
        raise ZeroDivisionError("headers")

    def settle(self, grant: Grant, tokens: int | None, now_s: float) -> None:
        raise ZeroDivisionError("settle")


def test_a_quota_that_fails_lets_pass() -> None:
    desk = LimitedDesk()
    _, account = desk.route(short())
    desk.dispatcher._quota = Broken()
    desk.route(short())
    assert desk.dispatcher.started(account, Started(200, JSON), NOW_S) == {}
    desk.dispatcher.finished(account, Finished(Cause.COMPLETE), NOW_S)
    assert [(kind, str(error)) for kind, error in desk.faults] == [
        ("quota", "admit"),
        ("quota", "headers"),
        ("quota", "settle"),
    ]
    assert desk.running() == 1


FULL = """
apiVersion: llm-d.ai/v1alpha1
kind: EndpointPickerConfig
plugins:
- {type: max-score-picker}
- {type: concurrency-detector, parameters: {maxConcurrency: 50}}
"""


def test_a_full_pool_says_when_there_is_room_by_what_got_through() -> None:
    desk = Desk(1, config=FULL)
    told: list[int] = []
    for number in range(80):
        try:
            desk.route(chat(f"{number}"), NOW_S + number)
        except Drop as drop:
            assert drop.reason is Reason.SATURATED
            told.append(int(dict(drop.headers())["retry-after"]))
    # One a second got through until the pool was full and nothing any more: the rate fades, those refused queue up.
    assert told[0] <= 4
    assert len(told) == 30 and min(told[20:]) > 40


def test_a_refusal_is_a_line_of_the_log(caplog: pytest.LogCaptureFixture) -> None:
    desk = LimitedDesk(Limit(requests_per_minute=1))
    desk.route(short())
    with caplog.at_level("INFO", "epp.refusal"):
        desk.refusal(short())
    (record,) = caplog.records
    assert vars(record)["reason"] == "rejected-over-quota"


def test_a_refusal_says_when_to_return() -> None:
    desk = Desk(0)
    for later_s, least, most in ((0.0, 1, 3), (20.0, 20, 27)):
        with pytest.raises(Drop) as caught:
            desk.route(chat(), NOW_S + later_s)
        seconds = int(dict(caught.value.headers())["retry-after"])
        assert least <= seconds <= most
