"""What a plugin is: a plain class with keyword parameters and one method over columns.

A constructor's keyword arguments are the plugin's parameters in the configuration file, in camelCase there
(`prefixHitWeight` for `prefix_hit_weight`), and their defaults are the defaults. Their annotations say what is accepted: `str`,
`int`, `float`, `bool`, `Literal[...]`, tuples, string mappings, frozen `msgspec.Struct`s, and the words below. A parameter
annotated `random.Random` is not configuration: the loader hands in the process's generator, so that a seed makes a run
repeatable. A constructor may raise ValueError to refuse a combination; the message is shown beside the file and line.

The candidates are never empty. What a plugin raises, or an array of the wrong shape, is counted and logged, and the
pick goes on as if the plugin were not there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Annotated, Protocol, runtime_checkable

import msgspec

from epp.endpoint import (
    ADAPTER_RUNNING,
    ADAPTER_WAITING,
    BoolArray,
    Candidates,
    Endpoint,
    FloatArray,
    IntArray,
)
from epp.request import BLOCK_BYTES, Request

__all__ = [
    "ADAPTER_RUNNING",
    "ADAPTER_WAITING",
    "BLOCK_BYTES",
    "BYTES_PER_TOKEN",
    "BoolArray",
    "Candidates",
    "Count",
    "Endpoint",
    "Filter",
    "FloatArray",
    "IntArray",
    "NotNegative",
    "Notation",
    "Picker",
    "Positive",
    "PositiveSeconds",
    "ProfileHandler",
    "Quantity",
    "Request",
    "SaturationDetector",
    "Scorer",
    "Seconds",
    "Share",
    "WantsPicks",
    "WantsResponses",
]

BYTES_PER_TOKEN = 4
"""Of prompt text, on average in English with the usual tokenizers: what turns blocks of bytes into tokens."""


class Notation(enum.Enum):
    """How a number is written in a configuration file where it is not a plain number."""

    DURATION = "duration"
    QUANTITY = "quantity"


Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
"""[0, 1]."""
NotNegative = Annotated[float, msgspec.Meta(ge=0)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(ge=1)]
Seconds = Annotated[float, Notation.DURATION, msgspec.Meta(ge=0)]
"""Written `200ms` or `1m30s` in the file, seconds in the constructor."""
PositiveSeconds = Annotated[float, Notation.DURATION, msgspec.Meta(gt=0)]
Quantity = Annotated[int, Notation.QUANTITY, msgspec.Meta(ge=0)]
"""Written `10Gi`, `1k` or plain in the file, a whole number in the constructor."""


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
        """The name of the scheduling profile that this request runs through. One not in `profiles` is refused with 400."""
        ...


@runtime_checkable
class SaturationDetector(Protocol):
    def saturation(self, candidates: Candidates) -> float:
        """How full the pool is, ≥ 0; from 1 on it takes no more work that may be shed."""
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
