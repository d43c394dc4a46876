"""Rate limits by tenant: what is admitted, charged, settled, refused, told, and forgotten. Virtual time."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epp.drops import RETRY_AFTER_HEADER, Drop, Reason
from epp.quota.limits import Limit, Limits, Measure, Scope
from epp.quota.quota import Grant, Quota, duration
from epp.quota.store import EVERYBODY, Bucket, MemoryStore
from epp.quota.tenants import API_KEY, FAIRNESS_ID, Tenants, api_key
from epp.request import Request

SECRET = b"of this process"


def request(
    tenant: str = "a",
    model: str = "m",
    *,
    prompt_tokens: int = 10,
    max_tokens: int | None = 0,
    headers: Mapping[str, str] | None = None,
) -> Request:
    return Request(
        request_id="1",
        path="/v1/chat/completions",
        model=model,
        target_model=model,
        headers={":method": "POST"} if headers is None else headers,
        prompt_bytes=4 * prompt_tokens,
        prompt_tokens=prompt_tokens,
        max_tokens=max_tokens,
        fairness_id=tenant,
    )


class Desk:
    """A quota with what it works on in reach."""

    def __init__(
        self, *limits: Limit, source: str = FAIRNESS_ID, max_tenants: int = 100, answer_tokens: int = 100
    ) -> None:
        self.limits = Limits(limits)
        self.tenants = Tenants(source, SECRET)
        self.store = MemoryStore(max_tenants)
        self.refusals: Counter[tuple[str, str]] = Counter()
        self.quota = Quota(
            self.limits,
            self.tenants,
            self.store,
            answer_tokens=answer_tokens,
            rng=random.Random(1),
            refused=lambda measure, scope: self.refusals.update([(measure, scope)]),
        )

    def admit(self, now_s: float = 0.0, tenant: str = "a", model: str = "m", **more: Any) -> Grant:
        grant = self.quota.admit(request(tenant, model, **more), now_s)
        assert grant is not None
        return grant

    def refusal(self, now_s: float = 0.0, tenant: str = "a", model: str = "m", **more: Any) -> Drop:
        with pytest.raises(Drop) as caught:
            self.quota.admit(request(tenant, model, **more), now_s)
        return caught.value

    def level(self, now_s: float = 0.0, tenant: str = "a", number: int = 0) -> float:
        rule = self.limits.rules[number]
        whose = EVERYBODY if rule.shared else self.tenants.id(tenant)
        return self.store.level(whose, rule.bucket, now_s)


def requests(n: int, **more: Any) -> Limit:
    return Limit(requests_per_minute=n, **more)


def tokens(n: int, **more: Any) -> Limit:
    return Limit(tokens_per_minute=n, **more)


class TestRequests:
    def test_a_minutes_worth_at_once_and_then_one_by_one(self) -> None:
        desk = Desk(requests(6))
        for _ in range(6):
            desk.admit()
        desk.refusal(9.9)
        desk.admit(10.0)
        desk.refusal(10.1)

    def test_a_burst_can_be_less_or_more_than_a_minute(self) -> None:
        short = Desk(requests(60, burst_seconds=2.0))
        long = Desk(requests(60, burst_seconds=120.0))
        assert [sum(1 for _ in range(200) if admitted(desk)) for desk in (short, long)] == [2, 120]

    def test_a_bucket_holds_one_request_at_least(self) -> None:
        desk = Desk(requests(1, burst_seconds=1.0))
        desk.admit()
        refusal = desk.refusal(59.0)
        assert ("x-ratelimit-limit-requests", "1") in refusal.headers()
        desk.admit(60.0)

    def test_a_refusal_costs_nothing(self) -> None:
        desk = Desk(requests(1))
        desk.admit()
        for _ in range(100):
            desk.refusal(30.0)
        desk.admit(60.0)

    def test_tenants_do_not_pay_for_one_another(self) -> None:
        desk = Desk(requests(1))
        desk.admit()
        desk.refusal()
        desk.admit(tenant="b")

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    def test_looking_things_up_is_not_limited(self, method: str) -> None:
        desk = Desk(requests(1))
        for _ in range(5):
            assert desk.quota.admit(request(headers={":method": method}), 0.0) is None

    def test_what_was_not_served_is_given_back_once(self) -> None:
        desk = Desk(requests(2, tokens_per_minute=100))
        first = desk.admit()
        desk.admit()
        desk.quota.cancel(first, 0.0)
        desk.quota.cancel(first, 0.0)
        assert (desk.level(), desk.level(number=1)) == (1.0, 90.0)
        desk.admit()
        desk.refusal()


def admitted(desk: Desk) -> bool:
    try:
        desk.admit()
    except Drop:
        return False
    return True


class TestTokens:
    def test_the_estimate_is_charged_and_usage_settles_it(self) -> None:
        desk = Desk(tokens(1000), answer_tokens=100)
        grant = desk.admit(prompt_tokens=50, max_tokens=1000)
        assert grant.counts_tokens
        assert desk.level() == 850
        desk.quota.settle(grant, 70, 0.0)
        assert desk.level() == 930
        desk.quota.settle(grant, 500, 0.0)
        assert desk.level() == 930

    def test_an_answer_is_taken_for_no_longer_than_the_client_allows(self) -> None:
        desk = Desk(tokens(1000), answer_tokens=100)
        desk.admit(prompt_tokens=50, max_tokens=8)
        assert desk.level() == 942
        assert desk.quota.admit(request(prompt_tokens=50, max_tokens=None), 0.0) is not None
        assert desk.level() == 792

    def test_a_request_without_prompt_is_charged_by_its_usage(self) -> None:
        desk = Desk(tokens(1000))
        grant = desk.admit(prompt_tokens=0)
        assert desk.level() == 1000
        desk.quota.settle(grant, 300, 0.0)
        assert desk.level() == 700

    def test_without_usage_the_estimate_stands(self) -> None:
        desk = Desk(tokens(1000))
        desk.quota.settle(desk.admit(prompt_tokens=50), None, 0.0)
        assert desk.level() == 950

    def test_more_than_fits_is_admitted_only_by_a_full_bucket_and_then_owed(self) -> None:
        desk = Desk(tokens(600))
        desk.admit(prompt_tokens=1)
        desk.refusal(prompt_tokens=900)
        desk.admit(1.0, prompt_tokens=900)
        assert desk.level(1.0) == -300
        desk.refusal(30.9, prompt_tokens=1)
        desk.admit(31.2, prompt_tokens=1)

    def test_many_requests_that_cost_more_than_estimated_owe_no_more_than_one_of_them(self) -> None:
        desk = Desk(tokens(600))
        grants = [desk.admit(prompt_tokens=10) for _ in range(60)]
        for grant in grants:
            desk.quota.settle(grant, 200, 0.0)
        assert desk.level() == -200

    def test_a_debt_is_not_forgiven_by_a_smaller_request(self) -> None:
        desk = Desk(tokens(600))
        large, small = desk.admit(prompt_tokens=10), desk.admit(prompt_tokens=10)
        desk.quota.settle(large, 1000, 0.0)
        owed = desk.level()
        desk.quota.settle(small, 20, 0.0)
        assert desk.level() <= owed < -400

    def test_giving_back_never_overfills(self) -> None:
        desk = Desk(tokens(600))
        grant = desk.admit(prompt_tokens=500)
        desk.quota.settle(grant, 0, 59.0)
        assert desk.level(59.0) == 600

    def test_only_limits_of_tokens_need_to_see_the_answer(self) -> None:
        assert not Desk(requests(10)).admit().counts_tokens


class TestWhichLimitsHold:
    LIMITS = (
        requests(10),
        requests(3, model="big"),
        requests(50, tenants=("gold",)),
        requests(7, model="big", tenants=("gold", "silver")),
        requests(100, shared=True),
        requests(20, shared=True, model="big"),
    )

    @pytest.mark.parametrize(
        ("tenant", "model", "expected"),
        [
            ("x", "m", {(Scope.TENANT, 10), (Scope.ALL, 100)}),
            ("x", "big", {(Scope.TENANT, 10), (Scope.TENANT_MODEL, 3), (Scope.ALL, 100), (Scope.MODEL, 20)}),
            ("gold", "m", {(Scope.TENANT, 50), (Scope.ALL, 100)}),
            ("gold", "big", {(Scope.TENANT, 50), (Scope.TENANT_MODEL, 7), (Scope.ALL, 100), (Scope.MODEL, 20)}),
            ("silver", "big", {(Scope.TENANT, 10), (Scope.TENANT_MODEL, 7), (Scope.ALL, 100), (Scope.MODEL, 20)}),
            ("", "", {(Scope.TENANT, 10), (Scope.ALL, 100)}),
        ],
    )
    def test_the_named_before_each(self, tenant: str, model: str, expected: set[tuple[Scope, int]]) -> None:
        rules = Limits(self.LIMITS).applying(tenant, model)
        assert {(one.scope, one.per_minute) for one in rules} == expected
        assert len(rules) == len(expected)

    def test_all_of_them_must_hold_and_a_refusal_charges_none(self) -> None:
        desk = Desk(requests(10), requests(2, model="big"))
        desk.admit(model="big")
        desk.admit(model="big")
        desk.refusal(model="big")
        assert desk.level() == 8
        desk.admit(model="m")
        assert desk.refusals == {("requests", "tenant-model"): 1}

    def test_a_shared_limit_counts_all_tenants(self) -> None:
        desk = Desk(requests(2, shared=True), max_tenants=1)
        desk.admit(tenant="a")
        desk.admit(tenant="b")
        desk.refusal(tenant="c")
        assert desk.refusals == {("requests", "all"): 1}

    def test_where_no_limit_holds_nothing_is_done(self) -> None:
        desk = Desk(requests(1, model="big"))
        assert desk.quota.admit(request(model="m"), 0.0) is None
        assert len(desk.store) == 0

    @pytest.mark.parametrize(
        ("limits", "told"),
        [
            ((), "at least"),
            ((Limit(model="m"),), "neither"),
            ((requests(1, shared=True, tenants=("a",)),), "shared"),
            ((requests(1), tokens(1)), "a second limit for each tenant and all models"),
            ((requests(1, tenants=("a", "b")), tokens(1, tenants=("b",))), "a second limit for tenant 'b'"),
            ((requests(1, tenants=("a", "a")),), "a second limit for tenant 'a'"),
            ((requests(1, shared=True, model="m"), tokens(1, shared=True, model="m")), "model 'm'"),
        ],
    )
    def test_contradictions_are_refused(self, limits: Sequence[Limit], told: str) -> None:
        with pytest.raises(ValueError, match=told):
            Limits(limits)


class TestTenants:
    def test_a_key_is_found_where_clients_put_it(self) -> None:
        assert api_key({"authorization": "Bearer sk-1"}) == "sk-1"
        assert api_key({"authorization": "bearer  sk-1 "}) == "sk-1"
        assert api_key({"x-api-key": "sk-2"}) == "sk-2"
        assert api_key({"authorization": "Basic dTpw", "x-api-key": "sk-2"}) == "sk-2"
        assert api_key({"authorization": "Bearer ", "x-api-key": ""}) == ""
        assert api_key({}) == ""

    def test_a_keys_name_is_its_digest(self) -> None:
        tenants = Tenants(API_KEY, SECRET)
        named = tenants.name(request(headers={"authorization": "Bearer sk-1"}))
        assert named == hashlib.sha256(b"sk-1").hexdigest()
        assert tenants.name(request(headers={})) == ""

    def test_a_header_of_ones_own(self) -> None:
        tenants = Tenants("X-Team", SECRET)
        assert tenants.name(request(headers={"x-team": "blue"})) == "blue"
        assert tenants.name(request(headers={})) == ""

    def test_ids_tell_names_apart_and_tell_nothing_to_another_process(self) -> None:
        tenants = Tenants(FAIRNESS_ID, SECRET)
        assert tenants.id("a") == tenants.id("a") != tenants.id("b")
        assert tenants.id("a") != Tenants(FAIRNESS_ID, b"another").id("a")
        assert tenants.id("") != EVERYBODY

    def test_a_name_of_any_bytes_will_do(self) -> None:
        tenants = Tenants(API_KEY, SECRET)
        assert tenants.id("\udcff\x00é")
        assert tenants.name(request(headers={"x-api-key": "\udcffé"}))

    def test_a_limit_names_an_api_key_by_its_digest_and_no_key_is_kept(self) -> None:
        key = "sk-very-secret"
        digest = hashlib.sha256(key.encode()).hexdigest()
        desk = Desk(requests(1), requests(3, tenants=(digest,)), source=API_KEY)
        held = {":method": "POST", "authorization": f"Bearer {key}"}
        for _ in range(3):
            desk.quota.admit(request(headers=held), 0.0)
        with pytest.raises(Drop) as caught:
            desk.quota.admit(request(headers=held), 0.0)
        seen = repr([caught.value.message, caught.value.headers(), desk.quota.remaining(10, 0.0), desk.store.__dict__])
        assert key not in seen and digest not in seen

    def test_who_names_nobody_counts_together(self) -> None:
        desk = Desk(requests(1), source=API_KEY)
        desk.admit(tenant="a")
        desk.refusal(tenant="b")


class TestWhatTheClientIsTold:
    def test_a_refusal(self) -> None:
        desk = Desk(requests(10, tokens_per_minute=600))
        desk.admit(prompt_tokens=595)
        drop = desk.refusal(prompt_tokens=105)
        assert drop.reason is Reason.OVER_QUOTA and drop.status == 429
        headers = dict(drop.headers())
        assert headers.pop("content-type") == "application/json"
        assert headers.pop("x-llm-d-request-dropped-reason") == "rejected-over-quota"
        assert 10 <= int(headers.pop(RETRY_AFTER_HEADER)) <= 14
        assert headers == {
            "x-ratelimit-limit-requests": "10",
            "x-ratelimit-remaining-requests": "9",
            "x-ratelimit-reset-requests": "6s",
            "x-ratelimit-limit-tokens": "600",
            "x-ratelimit-remaining-tokens": "5",
            "x-ratelimit-reset-tokens": "59.5s",
        }
        for part in ("600 tokens a minute", "5 are left", "needs about 105", "Try again in", "shorter prompt"):
            assert part in drop.message

    def test_which_model_and_whose(self) -> None:
        desk = Desk(requests(1, shared=True, model="big"))
        desk.admit(model="big")
        message = desk.refusal(model="big").message
        assert "all clients together" in message and "'big'" in message and "prompt" not in message

    def test_who_comes_back_when_told_is_admitted(self) -> None:
        desk = Desk(requests(7, tokens_per_minute=70))
        now_s = 0.0
        for _ in range(40):
            while admitted_at(desk, now_s):
                pass
            now_s += int(dict(desk.refusal(now_s, prompt_tokens=9).headers())[RETRY_AFTER_HEADER])
            assert admitted_at(desk, now_s)

    def test_the_longest_wait_counts(self) -> None:
        desk = Desk(requests(60, tokens_per_minute=60, burst_seconds=10.0))
        desk.admit(prompt_tokens=300)
        assert desk.refusal(prompt_tokens=1).retry_after_s in range(291, 366)
        desk = Desk(requests(60, shared=True, burst_seconds=1.0), requests(1), tokens(60, shared=True, model="m"))
        desk.admit(prompt_tokens=70)
        drop = desk.refusal(prompt_tokens=1)
        assert drop.retry_after_s in range(60, 77)
        assert desk.refusals == {("requests", "tenant"): 1}

    def test_an_answer_is_told_the_bucket_nearest_to_empty(self) -> None:
        desk = Desk(requests(100), requests(5, model="m"))
        headers = desk.quota.headers(desk.admit(), 0.0)
        assert headers == {
            "x-ratelimit-limit-requests": "5",
            "x-ratelimit-remaining-requests": "4",
            "x-ratelimit-reset-requests": "12s",
        }

    def test_what_is_owed_is_shown_as_nothing_left(self) -> None:
        desk = Desk(tokens(60))
        headers = desk.quota.headers(desk.admit(prompt_tokens=120), 0.0)
        assert headers["x-ratelimit-remaining-tokens"] == "0"
        assert headers["x-ratelimit-reset-tokens"] == "2m0s"

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            *((0.0, "0ms"), (0.0101, "11ms"), (1.0, "1s"), (6.5, "6.5s"), (59.9991, "60s"), (60.0, "1m0s")),
            *((90.2, "1m31s"), (3599.5, "1h0m0s"), (7205.0, "2h0m5s")),
        ],
    )
    def test_durations(self, seconds: float, text: str) -> None:
        assert duration(seconds) == text


def admitted_at(desk: Desk, now_s: float) -> bool:
    try:
        desk.admit(now_s, prompt_tokens=9)
    except Drop:
        return False
    return True


class TestStore:
    BUCKET = Bucket(0, 10.0, 1.0)

    def test_the_longest_idle_is_forgotten(self) -> None:
        store = MemoryStore(2)
        for tenant in (b"a", b"b", b"a", b"c"):
            store.take(tenant, self.BUCKET, 1.0, 0.0, owing=0)
        assert len(store) == 2
        assert [store.level(tenant, self.BUCKET, 0.0) for tenant in (b"a", b"b", b"c")] == [8.0, 10.0, 9.0]

    def test_looking_creates_nothing(self) -> None:
        store = MemoryStore(2)
        assert store.level(b"a", self.BUCKET, 0.0) == 10.0
        assert len(store) == 0

    def test_a_clock_that_steps_back_takes_and_gives_nothing(self) -> None:
        store = MemoryStore(2)
        store.take(b"a", self.BUCKET, 10.0, 100.0, owing=0)
        assert store.level(b"a", self.BUCKET, 50.0) == 0.0
        store.take(b"a", self.BUCKET, 1.0, 50.0, owing=5.0)
        assert store.level(b"a", self.BUCKET, 100.0) == -1.0
        assert store.level(b"a", self.BUCKET, 104.0) == 3.0

    def test_the_debug_rows_are_bounded_lately_used_first_and_nameless(self) -> None:
        desk = Desk(requests(5), requests(50, shared=True))
        for tenant in ("a", "b", "c"):
            desk.admit(tenant=tenant)
        rows = desk.quota.remaining(3, 0.0)
        assert [(row.scope, row.remaining) for row in rows] == [("all", 47.0), ("tenant", 4.0), ("tenant", 4.0)]
        assert rows[1].tenant == desk.tenants.id("c").hex()
        assert rows[0].tenant == ""
        assert [row.remaining for row in desk.quota.remaining(9, 3600.0)] == [50.0, 5.0, 5.0, 5.0]


class Accounts(RuleBasedStateMachine):
    """Whatever is admitted, settled and given back, at whatever times: no bucket over its capacity, none owing more than one
    request's worth, everything settled once, and no more admitted over all the time than the limit allows."""

    CAPACITY = 300.0

    @initialize(max_tenants=st.integers(3, 5))
    def begin(self, max_tenants: int) -> None:
        self.desk = Desk(
            requests(30, tokens_per_minute=300), tokens(600, shared=True), max_tenants=max_tenants, answer_tokens=50
        )
        self.now_s = 0.0
        self.open: list[Grant] = []
        self.largest = 0
        self.admitted: Counter[str] = Counter()

    @rule(step_s=st.floats(-5.0, 40.0))
    def time_passes(self, step_s: float) -> None:
        self.now_s = max(0.0, self.now_s + step_s)

    @rule(
        tenant=st.sampled_from("abc"),
        prompt_tokens=st.integers(0, 400),
        max_tokens=st.none() | st.integers(0, 100),
    )
    def request_comes(self, tenant: str, prompt_tokens: int, max_tokens: int | None) -> None:
        before = [self.desk.level(self.now_s, tenant, number) for number in range(3)]
        try:
            grant = self.desk.quota.admit(
                request(tenant, prompt_tokens=prompt_tokens, max_tokens=max_tokens), self.now_s
            )
        except Drop as drop:
            assert drop.retry_after_s is not None and drop.retry_after_s >= 1
            assert [self.desk.level(self.now_s, tenant, number) for number in range(3)] == before
            return
        assert grant is not None
        wanted = grant.charged_tokens
        assert before[0] >= 1 - 1e-5
        assert before[1] >= min(wanted, 300) - 1e-5 and before[2] >= min(wanted, 600) - 1e-5
        self.largest = max(self.largest, wanted)
        self.open.append(grant)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 10**6), used=st.none() | st.integers(0, 900))
    def request_ends(self, which: int, used: int | None) -> None:
        grant = self.open.pop(which % len(self.open))
        self.largest = max(self.largest, used or 0)
        self.desk.quota.settle(grant, used, self.now_s)

    @precondition(lambda self: self.open)
    @rule(which=st.integers(0, 10**6))
    def request_is_not_served(self, which: int) -> None:
        grant = self.open.pop(which % len(self.open))
        self.desk.quota.cancel(grant, self.now_s)
        levels = self.levels()
        self.desk.quota.settle(grant, 900, self.now_s)
        assert self.levels() == levels

    def levels(self) -> list[float]:
        return [self.desk.level(self.now_s, tenant, number) for tenant in "abc" for number in range(3)]

    @invariant()
    def bounded(self) -> None:
        if not hasattr(self, "desk"):
            return
        for tenant in "abc":
            for number, rule_ in enumerate(self.desk.limits.rules):
                level = self.desk.level(self.now_s, tenant, number)
                assert level <= rule_.bucket.capacity
                assert level >= (-self.largest if rule_.measure is Measure.TOKENS else 0) - 1e-5


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@pytest.mark.parametrize("seed", range(5))
def test_over_an_hour_no_more_is_admitted_than_the_limits_say(seed: int) -> None:
    rng = random.Random(seed)
    desk = Desk(requests(30, tokens_per_minute=3000))
    now_s, count, spent = 0.0, 0, 0
    open_: list[tuple[Grant, int]] = []
    while now_s < 3600.0:
        now_s += rng.expovariate(2.0)
        asked = rng.randrange(1, 200)
        try:
            open_.append((desk.admit(now_s, prompt_tokens=asked), asked + rng.randrange(0, 20)))
            count += 1
        except Drop:
            pass
        if open_ and rng.random() < 0.5:
            grant, used = open_.pop(0)
            desk.quota.settle(grant, used, now_s)
            spent += used
    assert count <= 30 * 61
    assert count >= 0.9 * 30 * 60 or spent >= 0.9 * 3000 * 60
    assert spent <= 3000 * 61 + 250
