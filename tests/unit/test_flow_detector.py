"""How full a pool is by the wait for prefill that its endpoints were seen to need."""

from __future__ import annotations

import random
from math import nan

import numpy as np
import pytest

from epp.endpoint import Endpoints
from epp.ledger import Ledger
from scorers.prefill_wait_detector import PrefillWaitDetector
from tests.pools import Pool, a_request
from tests.unit.test_dispatcher import members


def pool(rates: list[float], tokens: list[float], in_flight: list[float]) -> Pool:
    made = Pool(len(rates)).known(tokens=tokens, in_flight=in_flight)
    made.endpoints.prefill_rate[made.endpoints.slots] = rates
    return made


def test_the_wait_is_tokens_by_the_rate_that_was_seen() -> None:
    detector = PrefillWaitDetector(target_wait=2.0, max_concurrency=100)
    halves = pool([1000.0, 4000.0], [1000.0, 4000.0], [1.0, 1.0])
    assert detector.saturation(halves.candidates()) == pytest.approx(0.5)
    assert detector.saturation(pool([1000.0] * 2, [4000.0, 0.0], [1.0, 50.0]).candidates()) == pytest.approx(0.75)


def test_a_pool_is_full_when_every_endpoint_is() -> None:
    detector = PrefillWaitDetector(target_wait=1.0, max_concurrency=10)
    one_left = pool([1000.0] * 3, [9e9, 9e9, 900.0], [1.0] * 3)
    assert detector.saturation(one_left.candidates()) < 1.0
    assert detector.filter(a_request(), one_left.candidates()).tolist() == [False, False, True]
    full = pool([1000.0] * 3, [1000.0, 2000.0, 0.0], [1.0, 1.0, 10.0])
    assert detector.saturation(full.candidates()) == 1.0
    assert detector.filter(a_request(), full.candidates()).all()


def test_a_rate_that_was_never_seen_is_no_reason_to_wait() -> None:
    detector = PrefillWaitDetector(max_concurrency=4)
    unknown = pool([nan, nan], [9e9, 9e9], [1.0, 1.0])
    assert detector.saturation(unknown.candidates()) == 0.25


def test_the_ledger_tells_the_rate_that_it_saw_and_forgets_it_with_the_endpoint() -> None:
    endpoints = Endpoints(capacity=2)
    endpoints.replace(members(2))
    ledger = Ledger(endpoints)
    assert np.isnan(endpoints.prefill_rate).all()
    entry = ledger.take(0, 4000, 10.0, sees_body=True)
    ledger.first_token(entry, 12.0)
    slot = int(endpoints.slots[0])
    assert endpoints.prefill_rate[slot] == ledger.prefill_rate(slot) < 10_000
    endpoints.replace(members(20))
    assert endpoints.prefill_rate[slot] == ledger.prefill_rate(slot)
    endpoints.replace(members(20)[1:])
    assert np.isnan(endpoints.prefill_rate).all()


def test_it_costs_no_more_than_a_look_at_three_columns() -> None:
    rng = random.Random(3)
    many = pool([rng.random() * 1e4 + 100 for _ in range(1000)], [1e3] * 1000, [1.0] * 1000)
    candidates = many.candidates()
    assert 0.0 <= PrefillWaitDetector().saturation(candidates) <= 1.0
    assert set(candidates._cache) == {"in_flight", "in_flight_tokens", "prefill_rate"}
