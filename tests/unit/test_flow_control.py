"""Flow control by its promises, under random arrivals, sizes, cancellations and clock jumps."""

from __future__ import annotations

import random
from collections import Counter
from math import inf
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epp.drops import Reason
from epp.flow.control import IDLE_S, FlowControl
from epp.flow.limits import new_ceilings
from epp.flow.lines import ShortestFirst
from epp.flow.settings import BandSettings, Fairness, FlowSettings, Holdback, Ordering, Policies, Reflective, Static
from epp.flow.ticket import REASONS, Ending, Settled, Ticket
from epp.flow.turns import Flow, WeightedTokens

TENANTS = ("a", "b", "c")
WEIGHTS = {"a": 2.0}
MULTIPLE = 3.0
BANDS: dict[int, tuple[Fairness, Ordering]] = {
    30: ("program-aware", "edf"),
    20: ("weighted-tokens", "shortest-prompt"),
    10: ("weighted-tokens", "fcfs"),
    5: ("round-robin", "edf"),
    0: ("global-strict", "shortest-prompt"),
    -1: ("round-robin", "slo-deadline"),
    -5: ("global-strict", "fcfs"),
}
SETTINGS = FlowSettings(
    bands={
        priority: BandSettings(
            max_requests=12,
            max_bytes=600,
            ttl_s=7.0 if priority == 5 else None,
            policies=Policies(fairness=fairness, ordering=ordering, wait_multiple=MULTIPLE, weights=WEIGHTS),
        )
        for priority, (fairness, ordering) in BANDS.items()
    },
    max_requests=40,
    max_bytes=2000,
    ttl_s=30.0,
    empty_ttl_s=100.0,
)

Plain = Ticket[int]


class Machine(RuleBasedStateMachine):
    """The model: who waits, in plain lists, and what was served in between."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 100.0
        self.flow: FlowControl[int] = FlowControl(SETTINGS, self.now_s)
        self.waiting: list[Plain] = []
        self.endings: dict[Plain, Ending] = {}
        self.submitted: list[Plain] = []
        self.found: dict[Plain, int] = {}
        self.served_since: dict[Plain, int] = {}
        self.promised_s: dict[Plain, float] = {}
        self.empty = False
        # Seconds that each has waited with and without endpoints.
        self.spent_s: dict[Plain, list[float]] = {}
        self.draining = False
        # Per band and pair of flows: how many more tokens by weight one got while both wait without a break.
        self.together: dict[tuple[int, str, str], float] = {}

    # --- what is done ------------------------------------------------------------------------------------------------

    @rule(
        priority=st.sampled_from(sorted(BANDS)),
        burst=st.lists(
            st.tuples(
                st.sampled_from(TENANTS),
                st.integers(1, 1000),
                st.integers(0, 150),
                st.sampled_from([inf, inf, inf, 3.0, 0.0]),
                st.sampled_from([inf, 1.0, 5.0]),
            ),
            min_size=1,
            max_size=8,
        ),
    )
    def arrive(self, priority: int, burst: list[tuple[str, int, int, float, float]]) -> None:
        for tenant, tokens, size, max_wait_s, slo_s in burst:
            self._submit(priority, tenant, tokens, size, max_wait_s, slo_s)

    def _submit(self, priority: int, tenant: str, tokens: int, size: int, max_wait_s: float, slo_s: float) -> None:
        ticket = Ticket(
            len(self.submitted),
            priority=priority,
            fairness_id=tenant,
            tokens=tokens,
            held_bytes=size,
            max_wait_s=max_wait_s,
            slo_deadline_s=self.now_s + slo_s,
        )
        self.submitted.append(ticket)
        before = list(self.waiting)
        settled = self.flow.submit(ticket, self.now_s)
        if not any(one.ticket is ticket for one in settled):
            self.waiting.append(ticket)
            line = [other for other in self.waiting if self._line(other) == self._line(ticket)]
            self.found[ticket] = sum(other.tokens for other in line)
            self.served_since[ticket] = 0
            self.spent_s[ticket] = [0.0, 0.0]
            self.promised_s[ticket] = self._deadline_s(ticket)
        self._take_in(settled)
        self._check_refusal(ticket, settled, before)

    @rule(priority=st.sampled_from(sorted(BANDS)), saturation=st.floats(0, 2))
    def ask(self, priority: int, saturation: float) -> None:
        passes = self.flow.passes(priority, saturation, self.now_s)
        outranked = any(ticket.priority >= priority for ticket in self.waiting)
        assert passes == (not self.empty and not outranked and saturation < 1.0)

    @rule(turns=st.integers(1, 12), saturation=st.sampled_from([0.0, 0.99, 1.0, 3.0]))
    def dispatch(self, turns: int, saturation: float) -> None:
        self._take_in(self.flow.expire(self.now_s))
        for _ in range(turns):
            settled = self.flow.next(saturation, self.now_s)
            if self.empty or saturation >= 1.0 or not self.waiting:
                assert settled is None
                return
            assert settled is not None and settled.ending is Ending.DISPATCHED
            self._check_turn(settled.ticket)
            self._take_in([settled])
            self._account(settled.ticket)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.submitted))
        settled = self.flow.cancel(ticket, self.now_s)
        assert (settled is None) == (ticket in self.endings)
        if settled is not None:
            assert settled.ending is Ending.EVICTED_CANCELLED
            self._take_in([settled])

    @rule(priority=st.sampled_from(sorted(BANDS)), tenant=st.sampled_from(TENANTS), tokens=st.integers(0, 2000))
    def serve(self, priority: int, tenant: str, tokens: int) -> None:
        self.flow.served(priority, tenant, tokens, self.now_s)

    # Exact in binary: what is due in the very moment is told apart from what is not.
    @rule(seconds=st.sampled_from([2.0**-10, 1.0, 5.0, 20.0, 90.0]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        for ticket in self.waiting:
            self.spent_s[ticket][self.empty] += seconds
        due = {ticket for ticket in self.waiting if self._deadline_s(ticket) <= self.now_s}
        assert self.flow.next_deadline_s <= min(map(self._deadline_s, self.waiting), default=inf)
        expired = self.flow.expire(self.now_s)
        assert {one.ticket for one in expired} == due
        ending = Ending.EVICTED_NO_ENDPOINTS if self.empty else Ending.EVICTED_TTL
        assert {one.ending for one in expired} <= {ending}
        self._take_in(expired)

    @rule(empty=st.booleans())
    def pool(self, empty: bool) -> None:
        self.empty = empty
        self.flow.pool_changed(empty, self.now_s)

    @precondition(lambda self: len(self.submitted) > 60)
    @rule()
    def drain(self) -> None:
        self.draining = True
        drained = self.flow.drain(self.now_s)
        assert {one.ticket for one in drained} == set(self.waiting)
        self._take_in(drained)
        assert not self.waiting

    # --- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def conserved(self) -> None:
        assert set(self.submitted) == set(self.waiting) | set(self.endings)
        assert self.flow.requests == len(self.waiting)
        assert self.flow.bytes == sum(ticket.held_bytes for ticket in self.waiting)
        assert all(ticket.waiting for ticket in self.waiting)
        assert not any(ticket.waiting for ticket in self.endings)

    @invariant()
    def within_capacity(self) -> None:
        state = self.flow.state()
        assert state.requests <= state.max_requests and state.bytes <= state.max_bytes
        for band in state.bands:
            mine = [ticket for ticket in self.waiting if ticket.priority == band.priority]
            assert band.requests == len(mine) <= band.max_requests
            assert band.bytes == sum(ticket.held_bytes for ticket in mine) <= band.max_bytes
            assert {(flow.fairness_id, flow.requests, flow.bytes) for flow in band.flows} == {
                (tenant, len(own), sum(ticket.held_bytes for ticket in own))
                for tenant in TENANTS
                if (own := [ticket for ticket in mine if ticket.fairness_id == tenant])
            }

    def teardown(self) -> None:
        self._take_in(self.flow.drain(self.now_s))
        assert set(self.endings) == set(self.submitted)

    # --- the model ---------------------------------------------------------------------------------------------------

    @staticmethod
    def _line(ticket: Plain) -> tuple[int, str]:
        shared = BANDS[ticket.priority][0] == "global-strict"
        return ticket.priority, "" if shared else ticket.fairness_id

    def _deadline_s(self, ticket: Plain) -> float:
        ttl_s = 100.0 if self.empty else 7.0 if ticket.priority == 5 else 30.0
        left_s = ttl_s - self.spent_s[ticket][self.empty]
        return min(self.now_s + left_s, ticket.enqueued_s + ticket.max_wait_s)

    def _take_in(self, settled: list[Settled[int]]) -> None:
        for one in settled:
            assert one.ticket not in self.endings, "a second ending"
            assert one.waited_s >= 0.0
            self.endings[one.ticket] = one.ending
            if one.ticket in self.waiting:
                self.waiting.remove(one.ticket)
        self._part()

    def _check_refusal(self, ticket: Plain, settled: list[Settled[int]], before: list[Plain]) -> None:
        endings = {one.ticket: one.ending for one in settled}
        own = endings.pop(ticket, None)
        assert set(endings.values()) <= {Ending.EVICTED_PRESSURE}
        below = [victim for victim in endings if victim.priority < ticket.priority]
        beside = [victim for victim in endings if victim.priority == ticket.priority]
        assert len(below) + len(beside) == len(endings)
        for victim in below:
            assert not any(other.priority < victim.priority for other in self.waiting), "a lower one stayed"
            newer = [other for other in self.waiting if other.priority == victim.priority]
            assert all(other.payload < victim.payload for other in newer), "a newer one stayed"
        mine = [other for other in before if other.priority == ticket.priority]
        others = [other for other in before if other.priority >= ticket.priority]
        full = len(mine) >= 12 or _bytes(mine) + ticket.held_bytes > 600
        crowded = len(others) >= 40 or _bytes(others) + ticket.held_bytes > 2000
        if self.draining:
            assert own is Ending.REJECTED_SHUTTING_DOWN
        elif ticket.max_wait_s == 0.0:
            assert own in (Ending.EVICTED_TTL, Ending.EVICTED_NO_ENDPOINTS)
        elif not full and not crowded:
            assert own is None and not beside
        elif own is None:
            self._check_hoarder(ticket, beside)
        else:
            assert own is (Ending.REJECTED_NO_ENDPOINTS if self.empty else Ending.REJECTED_CAPACITY)
            if BANDS[ticket.priority][0] != "global-strict":
                self._check_that_nobody_hoards(ticket, mine)
        if own is not None:
            assert not endings

    def _check_hoarder(self, ticket: Plain, victims: list[Plain]) -> None:
        """One flow made room, and no more of it than is fair."""
        assert BANDS[ticket.priority][0] != "global-strict"
        [tenant] = {victim.fairness_id for victim in victims}
        assert tenant != ticket.fairness_id
        line = [other for other in self.waiting if other.priority == ticket.priority]
        theirs = [other for other in line if other.fairness_id == tenant]
        ours = [other for other in line if other.fairness_id == ticket.fairness_id]
        assert all(other.payload < victim.payload for victim in victims for other in theirs), "a newer one stayed"
        assert len(theirs) >= len(ours) or _bytes(theirs) >= _bytes(ours)

    def _check_that_nobody_hoards(self, ticket: Plain, mine: list[Plain]) -> None:
        """Of flows one is asked that holds about the most, to a power of two, in what there is too much of."""
        ours = [other for other in mine if other.fairness_id == ticket.fairness_id]
        for tenant in set(TENANTS) - {ticket.fairness_id}:
            theirs = [other for other in mine if other.fairness_id == tenant]
            slack = 2 * (_bytes(ours) + 2 * ticket.held_bytes + 150)
            assert len(theirs) < 2 * len(ours) + 4 or _bytes(theirs) < slack

    def _check_turn(self, ticket: Plain) -> None:
        assert ticket.priority == max(other.priority for other in self.waiting), "a lower priority first"
        line = [other for other in self.waiting if self._line(other) == self._line(ticket)]
        match BANDS[ticket.priority][1]:
            case "fcfs":
                assert ticket is line[0]
            case "edf":
                # The deadline as it was when each came, whatever the pool has been through since.
                assert self.promised_s[ticket] == min(self.promised_s[other] for other in line)
            case "slo-deadline":
                assert ticket.slo_deadline_s == min(other.slo_deadline_s for other in line)
            case "shortest-prompt":
                # The shortest, or else the oldest.
                assert ticket.tokens == min(other.tokens for other in line) or ticket is line[0]
                assert self.served_since[ticket] <= MULTIPLE * self.found[ticket], "waited too long"

    def _account(self, ticket: Plain) -> None:
        for other in self.waiting:
            if self._line(other) == self._line(ticket):
                self.served_since[other] += ticket.tokens
        if BANDS[ticket.priority][0] != "weighted-tokens":
            return
        for (priority, one, two), apart in self.together.items():
            if priority == ticket.priority and ticket.fairness_id in (one, two):
                share = ticket.tokens / WEIGHTS.get(ticket.fairness_id, 1.0)
                apart += share if ticket.fairness_id == one else -share
                self.together[priority, one, two] = apart
                longest = self._longest(priority, one) + self._longest(priority, two)
                assert abs(apart) <= longest + 1e-6, "more than one request of each apart"

    def _longest(self, priority: int, tenant: str) -> float:
        theirs = [one.tokens for one in self.submitted if (one.priority, one.fairness_id) == (priority, tenant)]
        return max(theirs) / WEIGHTS.get(tenant, 1.0)

    def _part(self) -> None:
        """Forget pairs of which one has nothing in line; begin anew with pairs that both have."""
        for priority, (fairness, _) in BANDS.items():
            if fairness != "weighted-tokens":
                continue
            here = {ticket.fairness_id for ticket in self.waiting if ticket.priority == priority}
            for one, two in (("a", "b"), ("a", "c"), ("b", "c")):
                key = (priority, one, two)
                if {one, two} <= here:
                    self.together.setdefault(key, 0.0)
                else:
                    self.together.pop(key, None)


def _bytes(tickets: list[Plain]) -> int:
    return sum(ticket.held_bytes for ticket in tickets)


TestMachine = Machine.TestCase
TestMachine.settings = hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None)


# --- one promise at a time -------------------------------------------------------------------------------------------


def control(*, ordering: Ordering = "fcfs", fairness: Fairness = "global-strict", **more: object) -> FlowControl[str]:
    policies = Policies(ordering=ordering, fairness=fairness, weights={"heavy": 3.0})
    band = BandSettings(policies=policies)
    return FlowControl(msgspec.structs.replace(FlowSettings(default=band, negative=band), **more), 0.0)


def names(flow: FlowControl[str], saturation: float = 0.0) -> list[str]:
    """Everybody who goes, in order."""
    gone = []
    while (settled := flow.next(saturation, 0.0)) is not None:
        gone.append(settled.ticket.payload)
    return gone


def test_every_ending_but_the_good_one_has_a_reason() -> None:
    assert set(REASONS) == set(Ending) - {Ending.DISPATCHED}


def test_a_pool_that_ran_empty_and_one_that_was_full_are_told_apart() -> None:
    assert REASONS[Ending.EVICTED_TTL] is Reason.TTL_EXPIRED
    assert REASONS[Ending.EVICTED_NO_ENDPOINTS] is Reason.TTL_EXPIRED_NO_ENDPOINTS


def test_a_request_of_a_higher_priority_overtakes_those_that_wait() -> None:
    flow = control()
    flow.submit(Ticket("low", priority=0), 0.0)
    assert flow.passes(1, 0.9, 0.0)
    assert not flow.passes(0, 0.9, 0.0)
    assert not flow.passes(-1, 0.9, 0.0)


def test_nobody_goes_while_the_pool_is_full() -> None:
    flow = control()
    flow.submit(Ticket("one"), 0.0)
    assert flow.next(1.0, 0.0) is None
    assert flow.blocked == (0, 1.0)
    assert names(flow, 0.999) == ["one"]
    assert flow.blocked is None


def test_the_shortest_prompt_goes_first_and_a_long_one_still_goes() -> None:
    flow = control(ordering="shortest-prompt")
    flow.submit(Ticket("long", tokens=100), 0.0)
    gone = []
    for number in range(60):
        flow.submit(Ticket(f"short {number}", tokens=10), 0.0)
        settled = flow.next(0.0, 0.0)
        assert settled is not None
        gone.append(settled.ticket.payload)
    # Alone in line when it came, it is late at once, and goes when others had twice its tokens.
    assert gone.index("long") == 20


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=30, max_size=200), st.sampled_from([2.0, 3.0, 5.0])
)
def test_nobody_waits_for_more_than_a_multiple_of_its_fair_wait(steps: list[tuple[bool, int]], multiple: float) -> None:
    line: ShortestFirst[None] = ShortestFirst(multiple)
    bounds: dict[Ticket[None], float] = {}
    first = Ticket(None, tokens=1000)
    for comes, tokens in [(True, 0), *steps]:
        if comes or len(bounds) == 0:
            ticket = Ticket(None, tokens=tokens) if tokens else first
            line.add(ticket)
            bounds[ticket] = multiple * (sum(other.tokens for other in bounds) + ticket.tokens)
        # Two short ones for each that comes: whoever is long is never the shortest.
        for _ in range(2):
            short: Ticket[None] = Ticket(None, tokens=1 + tokens % 3)
            line.add(short)
            bounds[short] = multiple * (sum(other.tokens for other in bounds) + short.tokens)
            gone = line.first()
            line.take(gone)
            assert bounds.pop(gone) >= 0.0
            for other in bounds:
                bounds[other] -= gone.tokens


def test_who_is_late_by_order_of_arrival_gets_its_share() -> None:
    line: ShortestFirst[None] = ShortestFirst(4.0)
    before = [Ticket(None, tokens=50) for _ in range(4)]
    long: Ticket[None] = Ticket(None, tokens=100)
    for ticket in (*before, long):
        line.add(ticket)
    served = 0
    while long.place is not None:
        line.add(Ticket(None, tokens=10))
        gone = line.first()
        line.take(gone)
        served += gone.tokens
    assert 300 < served - 100 <= 4 * 300


def test_turns_go_round_the_flows() -> None:
    flow = control(fairness="round-robin")
    for name, tenant in (("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("b2", "b")):
        flow.submit(Ticket(name, fairness_id=tenant), 0.0)
    assert names(flow) == ["a1", "b1", "c1", "a2", "b2", "a3"]


def test_tokens_are_shared_by_weight() -> None:
    flow = control(fairness="weighted-tokens")
    for _ in range(40):
        flow.submit(Ticket("heavy", fairness_id="heavy", tokens=10), 0.0)
        flow.submit(Ticket("light", fairness_id="light", tokens=10), 0.0)
    assert 29 <= names(flow)[:40].count("heavy") <= 31


@given(
    st.lists(st.floats(0.1, 10.0), min_size=2, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.integers(1, 5000), st.booleans()), min_size=20, max_size=150),
    st.sampled_from(get_args(Ordering)),
)
def test_who_waits_all_the_while_is_within_two_requests_of_its_ideal_share(
    weights: list[float], arrivals: list[tuple[int, int, bool]], ordering: Ordering
) -> None:
    """The ideal is a server that gives each flow that waits its part of every token."""
    shares = {str(number): weight for number, weight in enumerate(weights)}
    policies = Policies(fairness="weighted-tokens", ordering=ordering, weights=shares)
    flow: FlowControl[None] = FlowControl(FlowSettings(default=BandSettings(policies=policies)), 0.0)
    got = dict.fromkeys(shares, 0)
    longest = dict.fromkeys(shares, 0)
    waiting: dict[str, list[Ticket[None]]] = {name: [] for name in shares}

    def submit(name: str, tokens: int) -> None:
        ticket: Ticket[None] = Ticket(None, fairness_id=name, tokens=tokens)
        flow.submit(ticket, 0.0)
        waiting[name].append(ticket)
        longest[name] = max(longest[name], tokens)

    for name in shares:
        submit(name, 100)
    for number, tokens, leaves in arrivals:
        name = str(number % len(shares))
        submit(name, tokens)
        if leaves and len(waiting[name]) > 2:
            flow.cancel(waiting[name].pop(), 0.0)
        settled = flow.next(0.0, 0.0)
        assert settled is not None
        gone = settled.ticket
        waiting[gone.fairness_id].remove(gone)
        got[gone.fairness_id] += gone.tokens
        if not waiting[gone.fairness_id]:
            submit(gone.fairness_id, tokens)
        ideal = sum(got.values()) / sum(shares.values())
        request = max(longest[one] / shares[one] for one in shares)
        for one, weight in shares.items():
            assert abs(got[one] / weight - ideal) <= longest[one] / weight + request + 1e-6


def test_leaving_does_not_forgive_what_a_flow_had() -> None:
    flow = control(fairness="weighted-tokens")
    flow.submit(Ticket("greedy", fairness_id="greedy", tokens=1000), 0.0)
    for _ in range(20):
        flow.submit(Ticket("modest", fairness_id="modest", tokens=10), 0.0)
    assert flow.next(0.0, 0.0) is not None
    flow.submit(Ticket("greedy again", fairness_id="greedy", tokens=1000), 0.0)
    assert names(flow)[-1] == "greedy again"


def test_nobody_saves_up_turns_by_coming_late() -> None:
    flow = control(fairness="weighted-tokens")
    for _ in range(50):
        flow.submit(Ticket("early", fairness_id="early", tokens=10), 0.0)
    for _ in range(30):
        assert flow.next(0.0, 0.0) is not None
    for _ in range(30):
        flow.submit(Ticket("late", fairness_id="late", tokens=10), 0.0)
    assert 9 <= names(flow)[:20].count("late") <= 11


def test_debts_of_flows_that_left_are_bounded() -> None:
    turns: WeightedTokens[str] = WeightedTokens(Policies(fairness="weighted-tokens"))
    flow: Flow[str]
    for number in range(20_000):
        flow = turns.open(f"flow {number}")
        turns.took(flow, 1 + number)
        turns.close(flow)
    assert len(turns._debts) <= 4096


def test_a_scaled_down_pool_gives_its_own_time_and_what_was_left_when_it_is_back() -> None:
    flow = control(ttl_s=10.0, empty_ttl_s=300.0)
    flow.submit(Ticket("patient"), 0.0)
    flow.submit(Ticket("hasty", max_wait_s=12.0), 0.0)
    flow.pool_changed(True, 9.0)
    assert flow.next(0.0, 9.0) is None
    assert not flow.passes(5, 0.0, 9.0)
    assert [one.ticket.payload for one in flow.expire(299.0)] == ["hasty"]
    flow.pool_changed(False, 300.0)
    assert not flow.expire(300.9)
    assert [one.ending for one in flow.expire(301.0)] == [Ending.EVICTED_TTL]


def test_a_pool_that_comes_and_goes_lets_nobody_wait_for_longer_than_both_times() -> None:
    flow = control(ttl_s=10.0, empty_ttl_s=30.0)
    now_s = 0.0
    flow.submit(Ticket("early"), now_s)
    ended: dict[str, tuple[float, Ending]] = {}
    for turn in range(40):
        for empty, seconds in ((False, 1), (True, 2)):
            flow.pool_changed(empty, now_s)
            if turn == 3 and empty:
                flow.submit(Ticket("late"), now_s)
            now_s += seconds
            ended |= {one.ticket.payload: (one.waited_s, one.ending) for one in flow.expire(now_s)}
    # One second with endpoints, two without, and so on: the ten are over first.
    assert ended == {"early": (28.0, Ending.EVICTED_TTL), "late": (30.0, Ending.EVICTED_TTL)}


@pytest.mark.parametrize("empty", [True, False])
def test_a_pool_that_flickers_prolongs_nothing(empty: bool) -> None:
    flow = control(ttl_s=10.0, empty_ttl_s=10.0)
    flow.submit(Ticket("one"), 0.0)
    flow.pool_changed(empty, 0.0)
    for tenths in range(1, 100):
        flow.pool_changed(not empty, tenths / 10)
        flow.pool_changed(empty, tenths / 10)
        assert not flow.expire(tenths / 10)
    [one] = flow.expire(10.0 + 1e-9)
    assert one.ending is (Ending.EVICTED_NO_ENDPOINTS if empty else Ending.EVICTED_TTL)


def test_no_time_to_live_waits_for_ever() -> None:
    flow = control(ttl_s=inf, empty_ttl_s=inf)
    flow.submit(Ticket("one"), 0.0)
    assert flow.next_deadline_s == inf
    assert not flow.expire(1e9)


def test_a_full_queue_refuses_rather_than_evict_in_vain() -> None:
    flow = control(max_requests=3, max_bytes=100)
    for name, size in (("old", 10), ("new", 10)):
        flow.submit(Ticket(name, priority=-1, held_bytes=size), 0.0)
    flow.submit(Ticket("equal", priority=1, held_bytes=50), 0.0)
    assert [one.ending for one in flow.submit(Ticket("big", priority=1, held_bytes=60), 0.0)] == [
        Ending.REJECTED_CAPACITY
    ]
    assert [one.ticket.payload for one in flow.submit(Ticket("small", priority=1, held_bytes=1), 0.0)] == ["new"]
    assert [one.ending for one in flow.submit(Ticket("lowest", priority=-1), 0.0)] == [Ending.REJECTED_CAPACITY]


@pytest.mark.parametrize("bound", ["band", "all"])
@pytest.mark.parametrize("fairness", sorted(set(get_args(Fairness)) - {"global-strict"}))
def test_who_fills_the_queue_shuts_out_no_other_flow(fairness: Fairness, bound: str) -> None:
    band = BandSettings(max_requests=100 if bound == "band" else 1000, policies=Policies(fairness=fairness))
    flow: FlowControl[str] = FlowControl(FlowSettings(default=band, max_requests=100), 0.0)
    for number in range(150):
        flow.submit(Ticket(str(number), fairness_id="greedy"), 0.0)
    gone = [flow.submit(Ticket("modest", fairness_id="modest"), 0.0) for _ in range(60)]
    endings = [(one.ticket.payload, one.ending) for each in gone for one in each]
    # To the half, the newest first; then who comes is one too many.
    given = [(str(number), Ending.EVICTED_PRESSURE) for number in range(99, 49, -1)]
    assert endings == given + 10 * [("modest", Ending.REJECTED_CAPACITY)]
    assert {(one.fairness_id, one.requests) for one in flow.state().bands[0].flows} == {("greedy", 50), ("modest", 50)}


def test_who_fills_the_queue_with_bodies_shuts_out_no_other_flow() -> None:
    flow = control(fairness="round-robin", max_bytes=1000)
    for number in range(10):
        flow.submit(Ticket(f"large {number}", fairness_id="greedy", held_bytes=100), 0.0)
    for number in range(20):
        flow.submit(Ticket(f"empty {number}", fairness_id="idle"), 0.0)
    gone = [flow.submit(Ticket("small", fairness_id="modest", held_bytes=30), 0.0) for _ in range(20)]
    assert [one.ticket.payload for each in gone for one in each] == [
        *[f"large {number}" for number in (9, 8, 7, 6, 5)],
        *["small"] * 4,
    ]


def test_one_giant_body_does_not_shield_who_fills_the_queue_with_many_requests() -> None:
    band = BandSettings(max_requests=101, max_bytes=1_000, policies=Policies(fairness="round-robin"))
    flow: FlowControl[str] = FlowControl(FlowSettings(default=band), 0.0)
    flow.submit(Ticket("giant", fairness_id="giant", held_bytes=600), 0.0)
    for number in range(100):
        flow.submit(Ticket(str(number), fairness_id="greedy", held_bytes=4), 0.0)
    gone = flow.submit(Ticket("modest", fairness_id="modest", held_bytes=4), 0.0)
    assert [one.ticket.payload for one in gone] == ["99"]


@pytest.mark.parametrize("fairness", sorted(set(get_args(Fairness)) - {"global-strict"}))
def test_who_asks_for_less_than_its_share_is_never_refused_however_much_another_asks_for(fairness: Fairness) -> None:
    band = BandSettings(max_requests=20, policies=Policies(fairness=fairness))
    flow: FlowControl[str] = FlowControl(FlowSettings(default=band), 0.0)
    rng = random.Random(3)
    lost: Counter[str] = Counter()
    for step in range(2000):
        # Of each turn greedy asks for three, modest for a third.
        for name in [*["greedy"] * 3, *["modest"] * (rng.random() < 0.35)]:
            ticket = Ticket(name, fairness_id=name, tokens=rng.randrange(50, 150))
            lost.update(one.ticket.payload for one in flow.submit(ticket, step))
        settled = flow.next(0.0, step)
        assert settled is not None
        flow.served(0, settled.ticket.payload, settled.ticket.tokens, step)
    assert lost["modest"] == 0
    assert lost["greedy"] > 4000


def test_what_one_flow_gives_no_lower_one_has_to_give_too() -> None:
    band = BandSettings(max_requests=4, policies=Policies(fairness="round-robin"))
    flow: FlowControl[str] = FlowControl(FlowSettings(default=band, negative=band, max_requests=5), 0.0)
    flow.submit(Ticket("low", priority=-1), 0.0)
    for number in range(4):
        flow.submit(Ticket(f"greedy {number}", fairness_id="greedy"), 0.0)
    gone = flow.submit(Ticket("modest", fairness_id="modest"), 0.0)
    assert [one.ticket.payload for one in gone] == ["greedy 3"]


def test_where_flows_are_one_line_who_came_first_has_the_room() -> None:
    flow = control(max_requests=2)
    for _ in range(2):
        flow.submit(Ticket("greedy", fairness_id="greedy"), 0.0)
    [one] = flow.submit(Ticket("modest", fairness_id="modest"), 0.0)
    assert one.ending is Ending.REJECTED_CAPACITY


def test_no_more_give_way_than_must() -> None:
    flow = control(max_bytes=100)
    for name in ("oldest", "older", "newer", "newest"):
        flow.submit(Ticket(name, priority=-1, held_bytes=25), 0.0)
    gone = flow.submit(Ticket("high", priority=1, held_bytes=40), 0.0)
    assert [one.ticket.payload for one in gone] == ["newest", "newer"]


def test_bodies_fill_a_band_too() -> None:
    flow = control(bands={0: BandSettings(max_bytes=100)})
    assert not flow.submit(Ticket("one", held_bytes=60), 0.0)
    assert [one.ending for one in flow.submit(Ticket("two", held_bytes=41), 0.0)] == [Ending.REJECTED_CAPACITY]
    assert not flow.submit(Ticket("three", held_bytes=40), 0.0)


def test_after_draining_only_who_need_not_wait_is_served() -> None:
    flow = control()
    flow.submit(Ticket("one"), 0.0)
    assert [one.ending for one in flow.drain(0.0)] == [Ending.EVICTED_SHUTTING_DOWN]
    assert flow.passes(0, 0.5, 0.0)
    assert [one.ending for one in flow.submit(Ticket("two"), 0.0)] == [Ending.REJECTED_SHUTTING_DOWN]


def test_bands_made_on_demand_go_when_idle_and_configured_ones_stay() -> None:
    flow = control(bands={7: BandSettings()})
    flow.passes(3, 0.0, 0.0)
    flow.submit(Ticket("waits", priority=4), 0.0)
    flow.collect(IDLE_S - 1)
    assert [band.priority for band in flow.state().bands] == [7, 4, 3]
    flow.collect(IDLE_S)
    assert [band.priority for band in flow.state().bands] == [7, 4]


class Counted(int):
    """A priority that counts how often it is compared."""

    compared = 0

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return int(self) == other

    def __lt__(self, other: int) -> bool:
        Counted.compared += 1
        return int(self) < other

    __hash__ = int.__hash__


def collecting(levels: int) -> int:
    """Comparisons of priorities to collect every other of so many levels."""
    flow = control()
    for level in range(levels):
        flow.passes(Counted(level), 0.0, 0.0)
    for level in range(0, levels, 2):
        flow.submit(Ticket("waits", priority=Counted(level)), 0.0)
    Counted.compared = 0
    flow.collect(IDLE_S)
    compared = Counted.compared
    assert [band.priority for band in flow.state().bands] == [
        level for level in reversed(range(levels)) if level % 2 == 0
    ]
    return compared


def test_collecting_is_linear_in_the_levels() -> None:
    assert collecting(1000) <= 4 * 1000


def test_memory_does_not_grow_with_those_who_left() -> None:
    for fairness in get_args(Fairness):
        for ordering in get_args(Ordering):
            flow = control(fairness=fairness, ordering=ordering)
            for number in range(5000):
                ticket = Ticket("x", fairness_id=f"flow {number}", tokens=1 + number % 7)
                flow.submit(ticket, 0.0)
                if number % 50:
                    flow.cancel(ticket, 0.0)
            assert flow.requests == 100
            assert len(flow._deadlines._entries) <= 2 * 100 + 34
            band = flow._bands[0]
            assert len(band.flows) == len(band.tickets) == 100


# --- ceilings --------------------------------------------------------------------------------------------------------


def test_one_ceiling_for_all() -> None:
    assert new_ceilings(Static(0.8)).of(0.5, [9, 0, -1]) == [0.8, 0.8, 0.8]


def test_ceilings_fall_by_rank_or_by_value() -> None:
    by_rank = new_ceilings(Holdback(min_ceiling=0.4, max_ceiling=1.0))
    assert by_rank.of(0.5, [100, 10, 0]) == pytest.approx([1.0, 0.7, 0.4])
    assert by_rank.of(0.5, [100]) == [1.0]
    by_value = new_ceilings(Holdback(min_ceiling=0.4, max_ceiling=1.0, domain="value"))
    assert by_value.of(0.5, [100, 10, 0]) == pytest.approx([1.0, 0.46, 0.4])


def test_lower_bands_pause_more_often_as_the_pool_fills() -> None:
    ceilings = new_ceilings(Reflective())
    assert ceilings.of(0.4, [2, 1, 0]) == [1.0, 1.0, 1.0]

    def shares(saturation: float) -> list[float]:
        asked = [ceilings.of(saturation, [2, 1, 0]) for _ in range(1000)]
        return [sum(saturation < each[rank] for each in asked) / 1000 for rank in range(3)]

    assert shares(0.65) == pytest.approx([1.0, 1.0, 0.5], abs=0.01)
    assert shares(0.9) == pytest.approx([1.0, 1 / 9, 1 / 9], abs=0.01)
    assert shares(1.0) == [0.0, 0.0, 0.0]


def test_room_is_kept_for_higher_bands() -> None:
    flow = control(bands={1: BandSettings(), 0: BandSettings()}, limit=Holdback(min_ceiling=0.5))
    assert flow.passes(1, 0.7, 0.0)
    assert not flow.passes(0, 0.7, 0.0)
    flow.submit(Ticket("low", priority=0), 0.0)
    flow.submit(Ticket("high", priority=1), 0.0)
    assert names(flow, 0.7) == ["high"]


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        Policies(wait_multiple=1.5)
    with pytest.raises(ValueError, match="weight of 'a'"):
        Policies(weights={"a": 0.0})
    with pytest.raises(ValueError, match="weight of 'a'"):
        Policies(weights={"a": 1e-300})
    with pytest.raises(ValueError, match="above maxCeiling"):
        Holdback(min_ceiling=0.9, max_ceiling=0.5)
