"""What a plugin is: a plain class with keyword parameters and one method over columns.

A constructor's keyword arguments are the plugin's parameters in the configuration file, in camelCase there
(`prefixHitWeight` for `prefix_hit_weight`), and their defaults are the defaults. A parameter annotated
`random.Random` is not configuration: the loader hands in the process's generator, so that a seed makes a run repeatable.

The candidates are never empty. What a plugin raises, or an array of the wrong shape, is counted and logged, and the
pick goes on as if the plugin were not there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from epp.endpoint import BoolArray, Candidates, Endpoint, FloatArray, IntArray
from epp.request import Request

__all__ = [
    "BoolArray",
    "Candidates",
    "Endpoint",
    "Filter",
    "FloatArray",
    "IntArray",
    "Picker",
    "ProfileHandler",
    "Request",
    "Scorer",
    "WantsPicks",
    "WantsResponses",
]


@runtime_checkable
class Filter(Protocol):
    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        """n booleans: who stays. None staying means that no endpoint suits the request: it is refused with 429."""
        ...


@runtime_checkable
class Scorer(Protocol):
    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        """n values, higher is better; clamped to [0, 1], NaN counts as 0, then multiplied by the profile's weight."""
        ...


@runtime_checkable
class Picker(Protocol):
    def pick(self, request: Request, candidates: Candidates, scores: FloatArray) -> IntArray:
        """Indices into `candidates`, best first, at least one, none twice. `scores` are the n weighted sums."""
        ...


@runtime_checkable
class ProfileHandler(Protocol):
    def choose(self, request: Request, profiles: Sequence[str]) -> str:
        """The name, out of `profiles`, of the scheduling profile that this request runs through."""
        ...


@runtime_checkable
class WantsPicks(Protocol):
    def picked(self, request: Request, endpoint: Endpoint) -> None:
        """Optional hook: called once, in the same step as the pick, with the endpoint that was picked."""
        ...


@runtime_checkable
class WantsResponses(Protocol):
    def responded(self, request: Request, endpoint: Endpoint, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Optional hook at the response's headers (lower case): headers to add to what the client gets."""
        ...
