"""The Lease between several replicas whose clocks, writes and lives are anything."""

from __future__ import annotations

import datetime

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from epp.kubernetes.election import LEASE_S, Election, LeaseSpec

EPOCH = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def at(now_s: float) -> datetime.datetime:
    return EPOCH + datetime.timedelta(seconds=now_s)


def test_who_comes_first_leads_and_renews() -> None:
    one = Election("one")
    spec = one.wants(None, 0.0, at(0.0))
    assert spec == LeaseSpec("one", LEASE_S, "2026-01-01T00:00:00.000000Z", "2026-01-01T00:00:00.000000Z", 0)
    assert not one.leading
    one.wrote(spec, 0.0)
    assert one.leading
    renewed = one.wants(spec, 2.0, at(2.5))
    assert renewed == LeaseSpec("one", LEASE_S, spec.acquire_time, "2026-01-01T00:00:02.500000Z", 0)


def test_another_waits_for_as_long_as_the_holder_said_and_counts_from_when_it_saw_it() -> None:
    held = LeaseSpec("one", 40, "then", "then", 3)
    two = Election("two")
    assert two.wants(held, 100.0, at(0)) is None
    assert two.wants(held, 139.9, at(0)) is None
    taken = two.wants(held, 140.0, at(0))
    assert taken is not None
    assert (taken.holder_identity, taken.lease_transitions) == ("two", 4)


def test_a_renewal_starts_the_wait_anew() -> None:
    two = Election("two")
    assert two.wants(LeaseSpec("one", 15, "a", "a", 0), 0.0, at(0)) is None
    assert two.wants(LeaseSpec("one", 15, "a", "b", 0), 14.0, at(0)) is None
    assert two.wants(LeaseSpec("one", 15, "a", "b", 0), 28.0, at(0)) is None
    assert two.wants(LeaseSpec("one", 15, "a", "b", 0), 29.0, at(0)) is not None


def test_a_lease_that_was_released_is_free_at_once() -> None:
    one, two = Election("one"), Election("two")
    spec = one.wants(None, 0.0, at(0))
    assert spec is not None
    one.wrote(spec, 0.0)
    released = one.release(spec, at(1))
    assert released is not None
    assert not one.leading
    assert one.release(released, at(1)) is None
    assert two.wants(released, 1.0, at(1)) is not None
    assert two.release(spec, at(1)) is None
    assert two.release(None, at(1)) is None


def test_a_lease_that_was_taken_without_our_hearing_of_it_is_released() -> None:
    one = Election("one")
    spec = one.wants(None, 0.0, at(0))
    assert not one.leading
    released = one.release(spec, at(1))
    assert released is not None
    assert released.holder_identity == ""


def test_who_is_told_of_another_holder_leads_no_more() -> None:
    one = Election("one")
    spec = one.wants(None, 0.0, at(0))
    assert spec is not None
    one.wrote(spec, 0.0)
    assert one.wants(LeaseSpec("two", 15, "x", "x", 1), 60.0, at(60)) is None
    assert not one.leading


class Replicas(RuleBasedStateMachine):
    """Three replicas read and write one Lease in any order; a write counts only for the version that was read."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.elections = [Election(name) for name in ("a", "b", "c")]
        self.lease: LeaseSpec | None = None
        self.version = 0
        self.read: dict[int, tuple[int, LeaseSpec | None]] = {}
        # Until when each has the word that nobody else takes the Lease.
        self.promised_s: dict[int, float] = {}

    @rule(seconds=st.floats(0.0, 20.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(who=st.integers(0, 2))
    def look(self, who: int) -> None:
        one = self.elections[who]
        self.read[who] = self.version, one.wants(self.lease, self.now_s, at(self.now_s))
        assert one.leading == (self.lease is not None and self.lease.holder_identity == one.identity)

    @rule(who=st.integers(0, 2))
    def write(self, who: int) -> None:
        version, spec = self.read.pop(who, (-1, None))
        if spec is None or version != self.version:
            return
        before = self.lease.holder_identity if self.lease is not None else ""
        name = self.elections[who].identity
        if before and before != name:
            holder = next(number for number, one in enumerate(self.elections) if one.identity == before)
            assert self.now_s >= self.promised_s.get(holder, 0.0), "taken from one who had renewed in time"
        self.lease = spec
        self.version += 1
        self.elections[who].wrote(spec, self.now_s)
        # A write that was decided on earlier promises from when it was decided at the least.
        self.promised_s[who] = self.now_s

    @rule(who=st.integers(0, 2))
    def renew(self, who: int) -> None:
        """Look and write in one go, as a holder in good health does."""
        self.look(who)
        self.write(who)
        if self.elections[who].leading:
            self.promised_s[who] = self.now_s + LEASE_S

    @rule(who=st.integers(0, 2))
    def release(self, who: int) -> None:
        spec = self.elections[who].release(self.lease, at(self.now_s))
        if spec is not None:
            assert self.lease is not None
            assert self.lease.holder_identity == self.elections[who].identity
            self.lease = spec
            self.version += 1
            self.promised_s[who] = 0.0


TestReplicas = Replicas.TestCase
TestReplicas.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
