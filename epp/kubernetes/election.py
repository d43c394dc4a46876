"""Which of several replicas leads, by a Lease: a state machine after client-go's leader election. No clock, no I/O.

A replica may take the Lease when nobody holds it, or when its holder has not renewed it for as long as it said that it would.
How old a renewal is, is told by our own clock since we first saw it: no two machines need to agree on the time.

In one thing it differs. A leader that cannot reach the API server goes on leading until it sees that another holds the Lease:
where nobody can write, nobody can take over, and two pickers at once do no harm, while none at all is an outage.
"""

from __future__ import annotations

import datetime

import msgspec

LEASE_S = 15
RETRY_S = 2.0
"""How often the Lease is looked at and, by its holder, renewed."""


class LeaseSpec(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """Of coordination.k8s.io/v1."""

    holder_identity: str | None = None
    lease_duration_seconds: int | None = None
    acquire_time: str | None = None
    renew_time: str | None = None
    lease_transitions: int | None = None


class Election:
    """`leading` is whether we hold the Lease, as far as we were told."""

    def __init__(self, identity: str) -> None:
        self.identity = identity
        self.leading = False
        self._seen: LeaseSpec | None = None
        self._seen_s = 0.0

    def wants(self, spec: LeaseSpec | None, now_s: float, time: datetime.datetime) -> LeaseSpec | None:
        """What to write, where the Lease says `spec` (None: there is no Lease); None is nothing. `time` is what the clock on the wall says."""
        if spec is None:
            return LeaseSpec(self.identity, LEASE_S, _micro(time), _micro(time), 0)
        if spec != self._seen:
            self._seen, self._seen_s = spec, now_s
        holder = spec.holder_identity or ""
        self.leading = holder == self.identity
        if self.leading:
            return msgspec.structs.replace(spec, lease_duration_seconds=LEASE_S, renew_time=_micro(time))
        if holder and now_s < self._seen_s + (spec.lease_duration_seconds or LEASE_S):
            return None
        transitions = (spec.lease_transitions or 0) + 1
        return LeaseSpec(self.identity, LEASE_S, _micro(time), _micro(time), transitions)

    def wrote(self, spec: LeaseSpec, now_s: float) -> None:
        """The API server took what `wants` or `release` said."""
        self._seen, self._seen_s = spec, now_s
        self.leading = spec.holder_identity == self.identity

    def release(self, spec: LeaseSpec | None, time: datetime.datetime) -> LeaseSpec | None:
        """What to write so that another need not wait, where the Lease says `spec`; None where it is not ours. We lead no more.

        What the Lease says counts, and not `leading`: a write may have been taken whose answer we did not wait for.
        """
        self.leading = False
        if spec is None or spec.holder_identity != self.identity:
            return None
        return LeaseSpec("", 1, _micro(time), _micro(time), spec.lease_transitions)


def _micro(time: datetime.datetime) -> str:
    """As MicroTime is written."""
    return time.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
