"""What is required of the default policy, and whether the runs bear it out, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from bench.lab.cells import PLAIN, Cell
from bench.lab.contenders import DEFAULT
from bench.lab.outcome import Estimate, Standing, ratio

BLEND = "Go picker 3:2:2"
LEAST_REQUEST = "least request"
SHARING = frozenset({"toolagent", "groups", "agents", "sessions"})
"""Traces in which most of a prompt was seen before."""

_UNEQUAL = frozenset({"half speed", "mixed GPUs", "loss"})
"""Variations in which servers should not get the same."""

_FIT: Mapping[str, int] = {"groups": 8, "root": 4, "agents": 4, "adapters": 4}
"""The traces whose shared prefixes fit into the caches of so many servers, beside what is running."""

_EQUAL_HIT = 0.98

Contenders = Mapping[str, Standing]


class Check(msgspec.Struct, frozen=True):
    """A requirement in one cell: `value` against `bound`. With 95 % confidence the true value is within `half_width`, 0 where one seed
    says nothing of that."""

    cell: Cell
    value: float
    bound: float
    holds: bool
    half_width: float = 0.0

    @property
    def surely_missed(self) -> bool:
        return not self.holds and 0.0 < self.half_width < abs(self.value - self.bound)


class Verdict(msgspec.Struct, frozen=True):
    """A requirement over all cells that it speaks of; none where no cell was run."""

    requirement: str
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """Worst first."""
        missed = [one for one in self.checks if not one.holds]
        return tuple(sorted(missed, key=lambda one: -abs(one.value - one.bound) / max(one.bound, 1e-9)))


def verdicts(table: Mapping[Cell, Contenders], subject: str = DEFAULT) -> list[Verdict]:
    """Each requirement by what `subject` does in the cells of `table` in which it ran."""
    cells = {cell: contenders for cell, contenders in table.items() if subject in contenders}
    return [
        Verdict(requirement, tuple(one for cell in cells for one in check(cell, cells[cell], subject, cells)))
        for requirement, check in _REQUIREMENTS
    ]


def rivals(contenders: Contenders, subject: str) -> list[Standing]:
    return [one for name, one in contenders.items() if name != subject]


def best_rival(contenders: Contenders, subject: str = DEFAULT) -> Standing | None:
    """By p90 time to first token, of those that ran as many seeds; of all where none did, because nobody was close."""
    others = [one for one in rivals(contenders, subject) if "ttft_p90" in one.numbers]
    as_many = [one for one in others if one.seeds >= contenders[subject].seeds]
    return min(as_many or others, key=lambda one: one.mean("ttft_p90"), default=None)


def _against_best(cell: Cell, contenders: Contenders, subject: str, table: object) -> Iterator[Check]:
    best = best_rival(contenders, subject)
    if best is not None:
        yield _at_most(cell, ratio(contenders[subject], best, "ttft_p90"), 1.02)


def _against_blend(cell: Cell, contenders: Contenders, subject: str, table: object) -> Iterator[Check]:
    if BLEND in contenders and cell.trace in SHARING and cell.load >= 1.0 and cell.variation == PLAIN:
        yield _at_most(cell, ratio(contenders[subject], contenders[BLEND], "ttft_p90"), 0.7)


def _longest(cell: Cell, contenders: Contenders, subject: str, table: object) -> Iterator[Check]:
    """First come first served: least request, without a queue."""
    if LEAST_REQUEST in contenders:
        yield _at_most(cell, ratio(contenders[subject], contenders[LEAST_REQUEST], "longest_ttft_p99"), 1.1)


def _spread(cell: Cell, contenders: Contenders, subject: str, table: object) -> Iterator[Check]:
    """By work, because requests differ in length. At equal hit: where all who find as much in the caches are less even than 1.2, the most
    even of them is the bound; evenness alone is easily had by giving up prefixes."""
    if cell.variation in _UNEQUAL:
        return
    own = contenders[subject]
    as_many_hits = [
        one.mean("work_spread")
        for one in rivals(contenders, subject)
        if one.mean("hit") >= _EQUAL_HIT * own.mean("hit")
    ]
    yield _at_most(cell, own.numbers["work_spread"], max(1.2, min(as_many_hits, default=0.0)))


def _captured(cell: Cell, contenders: Contenders, subject: str, table: object) -> Iterator[Check]:
    if cell.trace in _FIT and cell.servers >= _FIT[cell.trace] and cell.variation in (PLAIN, "lean"):
        yield _at_least(cell, contenders[subject].numbers["captured"], 0.95)


def _half_speed(cell: Cell, contenders: Contenders, subject: str, table: Mapping[Cell, Contenders]) -> Iterator[Check]:
    """With one of n servers at half speed, a pool at load x is as loaded as a whole one at x · n / (n − 1/2); between measured loads
    latencies are compared by goodput, which must not fall by more than that share and 10 %."""
    plain = table.get(msgspec.structs.replace(cell, variation=PLAIN))
    if cell.variation == "half speed" and plain is not None and subject in plain:
        fair = (cell.servers - 0.5) / cell.servers
        yield _at_least(cell, ratio(contenders[subject], plain[subject], "goodput_rps"), 0.9 * fair)


def _lean(cell: Cell, contenders: Contenders, subject: str, table: Mapping[Cell, Contenders]) -> Iterator[Check]:
    plain = table.get(msgspec.structs.replace(cell, variation=PLAIN))
    if cell.variation == "lean" and plain is not None and subject in plain:
        yield _at_most(cell, ratio(contenders[subject], plain[subject], "ttft_p90"), 1.03)


def _at_most(cell: Cell, value: Estimate, bound: float) -> Check:
    return Check(cell, value.mean, bound, value.mean <= bound, value.half_width)


def _at_least(cell: Cell, value: Estimate, bound: float) -> Check:
    return Check(cell, value.mean, bound, value.mean >= bound, value.half_width)


_Requirement = Callable[[Cell, Contenders, str, Mapping[Cell, Contenders]], Iterator[Check]]
_REQUIREMENTS: Sequence[tuple[str, _Requirement]] = (
    ("p90 TTFT within 2 % of the best rival's, or better", _against_best),
    (
        "p90 TTFT at most 0.7 of the Go picker's blend at the knee and past it, where prefixes are shared",
        _against_blend,
    ),
    ("p99 TTFT of the longest tenth at most 1.1 of least request's", _longest),
    ("work of the busiest ÷ mean server at most 1.2, or as little as anybody's who finds as much cached", _spread),
    ("hit captured ÷ available at least 0.95 where the working set fits", _captured),
    ("one server at half speed costs at most 10 % of goodput beyond its share", _half_speed),
    ("p90 TTFT in lean mode within 3 % of full duplex", _lean),
)
