"""What an operator may set about flow control, as frozen values."""

from __future__ import annotations

from math import inf
from typing import Literal

import msgspec

Ordering = Literal["fcfs", "edf", "slo-deadline", "shortest-prompt"]
"""Within a flow: first come first served; who would be given up first; whose wanted time to first token passes first; the
shortest uncached prompt, with ageing."""

Fairness = Literal["global-strict", "round-robin", "weighted-tokens", "program-aware"]
"""Between the flows of a band: one line for all; turns; whoever was given the fewest tokens for its weight; whoever was served
least and waits longest."""

LEAST_WAIT_MULTIPLE = 2.0
LEAST_WEIGHT, MOST_WEIGHT = 1e-6, 1e6
"""Far beyond these a float would lose count of a flow's tokens."""

BAND_BYTES = 1_000_000_000
"""What a band may hold where nobody says: as the Go picker's."""

ALL_BYTES = 512 * 1024 * 1024
"""What all bands together may hold where nobody says: as much as may be arriving besides. The Go picker has no bound there, which
is a process that runs out of memory, and everybody's wait with it.
"""


class Programs(msgspec.Struct, frozen=True, kw_only=True):
    """How program-aware fairness weighs. Service halves every `half_life_s`, 0: never. A program that was served nothing for
    `remembered_s` and has no request is forgotten at a sweep, one in `sweep_s`.
    """

    service_weight: float = 0.8
    head_wait_weight: float = 0.2
    half_life_s: float = 60.0
    remembered_s: float = 3600.0
    sweep_s: float = 300.0


class Policies(msgspec.Struct, frozen=True, kw_only=True):
    """How a band chooses. `wait_multiple` belongs to shortest-prompt, `weights` (by fairness id, 1.0 if absent) to weighted-tokens,
    `programs` to program-aware.

    Raises ValueError for a multiple below `LEAST_WAIT_MULTIPLE` and for weights out of their bounds.
    """

    fairness: Fairness = "global-strict"
    ordering: Ordering = "fcfs"
    wait_multiple: float = 4.0
    weights: dict[str, float] = {}
    programs: Programs = Programs()

    def __post_init__(self) -> None:
        if not self.wait_multiple >= LEAST_WAIT_MULTIPLE:
            raise ValueError(f"a wait multiple is at least {LEAST_WAIT_MULTIPLE:g}, not {self.wait_multiple:g}")
        for fairness_id, weight in self.weights.items():
            if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
                raise ValueError(
                    f"the weight of {fairness_id!r} must be from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, not {weight:g}"
                )


class BandSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One priority level: how much may wait, how long (None: as everywhere), and who goes first."""

    max_requests: int = 5000
    max_bytes: int = BAND_BYTES
    ttl_s: float | None = None
    policies: Policies = Policies()


class Static(msgspec.Struct, frozen=True):
    """One ceiling of saturation for every priority."""

    threshold: float = 1.0


class Holdback(msgspec.Struct, frozen=True):
    """Ceilings fall in a line from the highest priority's to the lowest's, by rank or by the priority's value.

    Raises ValueError where they would rise: those above would make room for those below.
    """

    min_ceiling: float
    max_ceiling: float = 1.0
    domain: Literal["rank", "value"] = "rank"

    def __post_init__(self) -> None:
        if self.min_ceiling > self.max_ceiling:
            raise ValueError(
                f"minCeiling {self.min_ceiling:g} is above maxCeiling {self.max_ceiling:g}: the highest priority would wait first"
            )


class Reflective(msgspec.Struct, frozen=True):
    """Lower priorities pause in more and more of the decisions as the pool fills; the highest never does."""


Limit = Static | Holdback | Reflective


class FlowSettings(msgspec.Struct, frozen=True, kw_only=True):
    """All of flow control.

    `ttl_s` bounds how long a request waits in all while the pool has endpoints, `empty_ttl_s` how long while it has none; inf: no
    bound. `max_requests` and `max_bytes` bound what waits in all bands together. `default` and `negative` are for priorities not in
    `bands`. `evicts_running`: requests below priority 0 that run give way to those who wait above them.
    """

    bands: dict[int, BandSettings] = {}
    default: BandSettings = BandSettings()
    negative: BandSettings = BandSettings()
    max_requests: float = inf
    max_bytes: float = ALL_BYTES
    ttl_s: float = 60.0
    empty_ttl_s: float = 60.0
    limit: Limit = Static()
    evicts_running: bool = False

    def band(self, priority: int) -> BandSettings:
        known = self.bands.get(priority)
        if known is not None:
            return known
        return self.negative if priority < 0 else self.default
