"""One choice: filters leave candidates out, scorers judge the rest, a picker takes the best.

Σ weight · score over the profile's scorers, each score clamped to [0, 1], NaN as 0. A plugin is foreign code: one that
raises, or returns something else than it should, is reported to `Faults` and left out of that pick, and a picker that fails
is replaced by the endpoint with the fewest requests in flight. So a pick fails only where filters leave nobody.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import msgspec
import numpy as np

from epp.drops import Drop, Reason
from epp.endpoint import Candidates, Endpoint, FloatArray, IntArray
from epp.request import Request
from epp.scoring import Filter, Picker, ProfileHandler, SaturationDetector, Scorer, WantsPicks, WantsResponses

LOG_INTERVAL_S = 60.0

# Arrays without dimensions: 0.2 µs less for a ufunc than with a Python number.
_ZERO: FloatArray = np.array(0.0)
_ONE: FloatArray = np.array(1.0)
_FLOAT = np.dtype(np.float64)


class WrongResult(ValueError):
    """A plugin returned, but not what its protocol asks for."""


class Faults(Protocol):
    def plugin_failed(self, name: str, error: Exception, now_s: float) -> None:
        """The plugin called `name` was left out of a pick at `now_s` because of `error`."""
        ...


class PluginFaults:
    """Counts failures by (plugin name, what it did wrong), and logs a plugin's at most once in `LOG_INTERVAL_S`.

    `count` gets each failure, `log` a line with the place of the latest and how many went unsaid before it.
    """

    def __init__(self, log: Callable[[str], None], count: Callable[[str, str], None] = lambda name, kind: None) -> None:
        self.counts: Counter[tuple[str, str]] = Counter()
        self._log = log
        self._count = count
        self._logged_s: dict[str, float] = {}
        self._unsaid: Counter[str] = Counter()

    def plugin_failed(self, name: str, error: Exception, now_s: float) -> None:
        kind = "wrong-result" if isinstance(error, WrongResult) else "raised"
        self.counts[name, kind] += 1
        self._count(name, kind)
        if now_s - self._logged_s.get(name, -np.inf) < LOG_INTERVAL_S:
            self._unsaid[name] += 1
            return
        self._logged_s[name] = now_s
        unsaid = self._unsaid.pop(name, 0)
        more = f"; {unsaid} more since the last such line" if unsaid else ""
        self._log(f"plugin {name!r} was left out of a pick: {_describe(error)}{more}")


def _describe(error: Exception) -> str:
    if isinstance(error, WrongResult):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


class Profile:
    """A named way to choose: filters in order, scorers with their weights, one picker, each under its configured name."""

    def __init__(
        self,
        name: str,
        *,
        filters: Iterable[tuple[str, Filter]] = (),
        scorers: Iterable[tuple[str, Scorer, float]] = (),
        picker: tuple[str, Picker],
    ) -> None:
        self.name = name
        self.filters = tuple(filters)
        weighted = tuple(scorers)
        self.scorers = tuple((name, scorer) for name, scorer, _ in weighted)
        self.weights: FloatArray = np.array([weight for _, _, weight in weighted], dtype=np.float64)
        self.weight_column: FloatArray = self.weights.reshape(-1, 1)
        self.picker = picker

    def __repr__(self) -> str:
        scorers = " + ".join(
            f"{weight:g}·{name}" for (name, _), weight in zip(self.scorers, self.weights.tolist(), strict=True)
        )
        return f"<Profile {self.name}: {' | '.join((*(name for name, _ in self.filters), scorers, self.picker[0]))}>"


class ScoreShare(msgspec.Struct, frozen=True):
    """One scorer's part in a candidate's total: `share` = `weight` · `score` clamped. `score` is NaN where it gave none."""

    scorer: str
    score: float
    weight: float
    share: float


class Considered(msgspec.Struct, frozen=True):
    """A candidate that was scored."""

    endpoint: str
    destination: str
    total: float
    shares: tuple[ScoreShare, ...]


class LeftOut(msgspec.Struct, frozen=True):
    """An endpoint (`namespace/name`) that a filter took out."""

    endpoint: str
    filter: str


class Explanation(msgspec.Struct, frozen=True):
    """Why a pick is what it is: `picked` best first, `considered` by falling total."""

    profile: str
    picked: tuple[str, ...]
    considered: tuple[Considered, ...]
    left_out: tuple[LeftOut, ...]


class Pick(msgspec.Struct, frozen=True, eq=False):
    """The chosen endpoints, best first, and what it takes to explain them later, whatever becomes of the pool.

    `totals` and the columns of `raw` (one row a scorer) belong to `considered`, the slots that passed the filters. `stages`
    are (filter, slots that reached it) for the filters that took something out.
    """

    slots: tuple[int, ...]
    endpoints: tuple[Endpoint, ...]
    profile: str
    considered: IntArray
    totals: FloatArray
    raw: FloatArray
    shares: FloatArray
    stages: tuple[tuple[str, IntArray], ...]
    scorers: tuple[tuple[str, Scorer], ...]
    weights: FloatArray
    population: tuple[IntArray, tuple[Endpoint, ...]]

    def scores_by_destination(self) -> dict[str, float]:
        """`ip:port` to total, of every candidate that was scored."""
        endpoint_of = self._endpoints()
        slots = self.considered.tolist()
        return {endpoint_of[slot].destination: total for slot, total in zip(slots, self.totals.tolist(), strict=True)}

    def explain(self) -> Explanation:
        endpoint_of = self._endpoints()
        names = [name for name, _ in self.scorers]
        weights = self.weights.tolist()
        rows = zip(
            self.considered.tolist(), self.totals.tolist(), self.raw.T.tolist(), self.shares.T.tolist(), strict=True
        )
        considered = [
            Considered(
                endpoint_of[slot].key,
                endpoint_of[slot].destination,
                total,
                tuple(map(ScoreShare, names, raw, weights, shares)),
            )
            for slot, total, raw, shares in rows
        ]
        considered.sort(key=lambda candidate: -candidate.total)
        return Explanation(
            self.profile,
            tuple(endpoint.key for endpoint in self.endpoints),
            tuple(considered),
            tuple(self._left_out(endpoint_of)),
        )

    def _endpoints(self) -> dict[int, Endpoint]:
        slots, endpoints = self.population
        return dict(zip(slots.tolist(), endpoints, strict=True))

    def _left_out(self, endpoint_of: Mapping[int, Endpoint]) -> Iterable[LeftOut]:
        after = [reached for _, reached in self.stages[1:]] + [self.considered]
        for (name, reached), left in zip(self.stages, after, strict=False):
            for slot in np.setdiff1d(reached, left).tolist():
                yield LeftOut(endpoint_of[slot].key, name)


def least_in_flight(candidates: Candidates) -> Pick:
    """The candidate with the fewest requests of ours, for when choosing itself failed."""
    return unjudged(candidates, int(candidates.in_flight.argmin()))


def unjudged(candidates: Candidates, index: int) -> Pick:
    """The pick of no profile: the candidate at `index`, whatever it is worth."""
    return Pick(
        slots=(int(candidates.slots[index]),),
        endpoints=(candidates[index],),
        profile="",
        considered=candidates.slots[:0],
        totals=np.empty(0),
        raw=np.empty((0, 0)),
        shares=np.empty((0, 0)),
        stages=(),
        scorers=(),
        weights=np.empty(0),
        population=candidates.population,
    )


class Pipeline:
    """All profiles of a pool, and the hooks of all its plugins.

    `plugins` are those not in any profile whose hooks shall run as well, by name.
    """

    def __init__(
        self,
        profiles: Sequence[Profile],
        *,
        handler: tuple[str, ProfileHandler],
        faults: Faults,
        plugins: Mapping[str, object] | None = None,
        detector: tuple[str, SaturationDetector] | None = None,
    ) -> None:
        self._profiles = {profile.name: profile for profile in profiles}
        self._names = tuple(self._profiles)
        self._only = profiles[0] if len(profiles) == 1 else None
        self._handler = handler
        self._faults = faults
        self._detector = detector
        everything = dict(plugins or {})
        for profile in profiles:
            everything.update(profile.filters)
            everything.update(profile.scorers)
            everything.update([profile.picker])
        # A plugin may be known by several names; its hooks run once.
        unique = {id(plugin): (name, plugin) for name, plugin in everything.items()}.values()
        self._on_pick = [(name, plugin) for name, plugin in unique if isinstance(plugin, WantsPicks)]
        self._on_response = [(name, plugin) for name, plugin in unique if isinstance(plugin, WantsResponses)]

    @property
    def profiles(self) -> tuple[Profile, ...]:
        return tuple(self._profiles.values())

    def pick(self, request: Request, candidates: Candidates) -> Pick:
        """Choose among `candidates`, which are not empty, and tell the plugins that asked for it.

        Raises Drop: SATURATED where filters leave nobody, BAD_REQUEST where the request asks for a profile there is none of.
        """
        profile = self._only or self._choose(request, candidates.now_s)
        population = candidates.population
        stages: tuple[tuple[str, IntArray], ...] = ()
        if profile.filters:
            candidates, stages = self._filter(profile, request, candidates)
        raw = self._score(profile, request, candidates)
        # `argmin` and `argmax` find a NaN first, and cost a quarter of what clamping does.
        if raw.size and raw.item(raw.argmin()) >= 0.0 and raw.item(raw.argmax()) <= 1.0:
            shares = raw * profile.weight_column
        else:
            shares = np.fmax(raw, _ZERO)
            np.fmin(shares, _ONE, out=shares)
            np.multiply(shares, profile.weight_column, out=shares)
        # Row by row, not as a matrix product: BLAS may round equal columns differently, and ties would no longer be ties.
        totals: FloatArray = shares[0] if len(shares) == 1 else np.add.reduce(shares, axis=0)
        chosen = self._take(profile, request, candidates, totals)
        slots = candidates.slots
        if len(chosen) == 1:
            # The usual case without two comprehensions, which cost as much as calls do.
            chosen_slots: tuple[int, ...] = (slots.item(chosen[0]),)
            endpoints: tuple[Endpoint, ...] = (candidates[chosen[0]],)
        else:
            chosen_slots = tuple([slots.item(index) for index in chosen])
            endpoints = tuple([candidates[index] for index in chosen])
        for name, plugin in self._on_pick:
            try:
                plugin.picked(request, endpoints[0])
            except Exception as error:
                self._faults.plugin_failed(name, error, candidates.now_s)
        return Pick(
            chosen_slots,
            endpoints,
            profile.name,
            slots,
            totals,
            raw,
            shares,
            stages,
            profile.scorers,
            profile.weights,
            population,
        )

    def responded(
        self, request: Request, endpoint: Endpoint, headers: Mapping[str, str], now_s: float
    ) -> Mapping[str, str]:
        """Headers that plugins add to the answer of `endpoint`, whose own are `headers` (lower case)."""
        if not self._on_response:
            return {}
        added: dict[str, str] = {}
        for name, plugin in self._on_response:
            try:
                added.update(plugin.responded(request, endpoint, headers))
            except Exception as error:
                self._faults.plugin_failed(name, error, now_s)
        return added

    def saturation(self, candidates: Candidates) -> float:
        """How full the pool is; from 1 on it takes no more work that may be shed. 0 without a working detector."""
        if self._detector is None:
            return 0.0
        name, detector = self._detector
        try:
            return float(detector.saturation(candidates))
        except Exception as error:
            self._faults.plugin_failed(name, error, candidates.now_s)
            return 0.0

    def _choose(self, request: Request, now_s: float) -> Profile:
        name, handler = self._handler
        try:
            wanted = handler.choose(request, self._names)
        except Exception as error:
            self._faults.plugin_failed(name, error, now_s)
            return self._profiles[self._names[0]]
        profile = self._profiles.get(wanted)
        if profile is None:
            known = ", ".join(self._names)
            raise Drop(Reason.BAD_REQUEST, f"there is no scheduling profile {wanted!r}; there are: {known}")
        return profile

    def _filter(
        self, profile: Profile, request: Request, candidates: Candidates
    ) -> tuple[Candidates, tuple[tuple[str, IntArray], ...]]:
        stages: tuple[tuple[str, IntArray], ...] = ()
        for name, plugin in profile.filters:
            try:
                kept = plugin.filter(request, candidates)
                _expect(kept, "b", len(candidates))
            except Exception as error:
                self._faults.plugin_failed(name, error, candidates.now_s)
                continue
            if kept.all():
                continue
            stages += ((name, candidates.slots),)
            candidates = candidates.keep(kept)
            if not len(candidates):
                reached = len(stages[-1][1])
                message = f"no endpoint can take this request now: {name} left none of {reached}; try again later"
                raise Drop(Reason.SATURATED, message)
        return candidates, stages

    def _score(self, profile: Profile, request: Request, candidates: Candidates) -> FloatArray:
        shape = candidates.slots.shape
        n = shape[0]
        if not profile.scorers:
            return np.empty((0, n))
        columns: list[FloatArray] = []
        for name, plugin in profile.scorers:
            try:
                scores = plugin.score(request, candidates)
                # The usual case without a call: an array of n floats.
                if type(scores) is not np.ndarray or scores.dtype is not _FLOAT or scores.shape != shape:
                    _expect(scores, "fiub", n)
                columns.append(scores)
            except Exception as error:
                columns.append(np.full(n, np.nan))
                self._faults.plugin_failed(name, error, candidates.now_s)
        return np.array(columns, dtype=np.float64)

    def _take(self, profile: Profile, request: Request, candidates: Candidates, totals: FloatArray) -> list[int]:
        name, picker = profile.picker
        try:
            chosen = picker.pick(request, candidates, totals)
            return _indices(chosen, len(totals))
        except Exception as error:
            self._faults.plugin_failed(name, error, candidates.now_s)
            return [int(candidates.in_flight.argmin())]


def _expect(result: object, kinds: str, n: int) -> None:
    """Raises WrongResult unless `result` is an array of n values of one of the dtype `kinds`."""
    if not isinstance(result, np.ndarray):
        raise WrongResult(f"returned {type(result).__name__}, not a numpy array of {n} values")
    if result.shape != (n,) or result.dtype.kind not in kinds:
        raise WrongResult(f"returned {result.dtype} of shape {result.shape}, not {n} values")


def _indices(chosen: object, n: int) -> list[int]:
    """Raises WrongResult unless `chosen` is an array of at least one index below n, none twice."""
    if not isinstance(chosen, np.ndarray) or chosen.ndim != 1 or chosen.dtype.kind not in "iu":
        raise WrongResult("returned no array of indices")
    indices: list[int] = chosen.tolist()
    if len(indices) == 1 and 0 <= indices[0] < n:
        return indices
    if not indices or min(indices) < 0 or max(indices) >= n or len(set(indices)) < len(indices):
        raise WrongResult(f"returned indices {indices[:5]} for {n} candidates")
    return indices
