"""The search for better numbers: what each trial came to, and which of them nobody beats in both respects.

Two things are wanted, and one may cost the other: a low time to first token on the log as it was, and many tokens served a second
when there is more to do than the servers can. So each trial runs twice, at the log's speed and at `PRESSED` times that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from bench.replay.course import Candidate, Setting, jobs, run_all
from bench.replay.knobs import Knob, turned
from bench.replay.measures import MEASURES, Weighted
from bench.replay.tally import STRETCHES, Tally
from epp.configuration import ConfigurationError, load

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

PRESSED = 2.0

BATCH = 4
"""Trials that are asked for together and told together: as many whatever the machine, so that equal seeds find equal things."""

GIVEN_AWAY = 0.01
"""Throughput that a better time to first token may cost, in parts."""


class Trial(msgspec.Struct, frozen=True):
    """`values` by the names of knobs. The first trial is the file as it was."""

    values: dict[str, float]
    ttft_p90_s: float
    tokens_per_s: float


def search(
    setting: Setting,
    base: Candidate,
    known: Sequence[Knob],
    *,
    trials: int,
    seed: int,
    processes: int | None,
    tell: Callable[[int], None],
) -> list[Trial]:
    """All trials, the base first. `tell` hears how many requests are replayed. Raises TraceError, ReplayError."""
    # Late: it takes a second, and replay does not need it.
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    assert base.text is not None
    sampler = optuna.samplers.TPESampler(seed=seed)
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=sampler)
    study.enqueue_trial({knob.name: knob.value for knob in known})
    space = {knob.name: _distribution(knob) for knob in known}
    found: list[Trial] = []
    refused = 0
    done = 0
    while len(found) < trials and refused < trials:
        asked = [study.ask(space) for _ in range(min(BATCH, trials - len(found)))]
        texts = [turned(base.text, one.params, known) for one in asked]
        good = [(one, Candidate(base.name, text)) for one, text in zip(asked, texts, strict=True) if _loads(text)]
        for one, text in zip(asked, texts, strict=True):
            if not _loads(text):
                # Numbers that each are possible may contradict each other.
                study.tell(one, state=optuna.trial.TrialState.FAIL)
                refused += 1
        measured = measure(setting, [candidate for _, candidate in good], seed, processes, _after(tell, done))
        done += len(good) * 2 * setting.source.count
        for (one, _), (ttft_s, tokens_per_s) in zip(good, measured, strict=True):
            study.tell(one, [ttft_s, tokens_per_s])
            found.append(Trial(dict(one.params), ttft_s, tokens_per_s))
    return found


def measure(
    setting: Setting, candidates: Sequence[Candidate], seed: int, processes: int | None, tell: Callable[[int], None]
) -> list[tuple[float, float]]:
    """Time to first token and throughput of each. Raises TraceError, ReplayError."""
    if not candidates:
        return []
    pressed = msgspec.structs.replace(setting, speed=setting.speed * PRESSED)
    both = [*jobs(setting, candidates, 1), *jobs(pressed, candidates, 1)]
    tallies = run_all([msgspec.structs.replace(job, seed=seed) for job in both], tell, processes)
    calm, busy = tallies[: len(candidates)], tallies[len(candidates) :]
    return [(_ttft_p90_s(one), other.served_tokens / other.makespan_s) for one, other in zip(calm, busy, strict=True)]


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """Those that no other beats in both respects, by rising time to first token."""
    best = float("-inf")
    kept = []
    for one in sorted(trials, key=lambda trial: (trial.ttft_p90_s, -trial.tokens_per_s)):
        if one.tokens_per_s > best:
            best = one.tokens_per_s
            kept.append(one)
    return kept


def chosen(trials: Sequence[Trial]) -> Trial:
    """The lowest time to first token of those that serve as much as the first, or nearly."""
    least = trials[0].tokens_per_s * (1 - GIVEN_AWAY)
    return min((one for one in trials if one.tokens_per_s >= least), key=lambda one: one.ttft_p90_s)


def changes(known: Sequence[Knob], values: Mapping[str, float]) -> list[str]:
    """`name: was → is` of every number that is another as written."""
    return [
        f"{knob.name}: {knob.text(knob.value)} → {knob.text(values[knob.name])}"
        for knob in known
        if knob.text(knob.value) != knob.text(values[knob.name])
    ]


def _ttft_p90_s(tally: Tally) -> float:
    return float(MEASURES["ttft_p90"].of(Weighted(tally, np.ones((1, STRETCHES))))[0])


def _distribution(knob: Knob) -> BaseDistribution:
    from optuna.distributions import FloatDistribution, IntDistribution

    if knob.whole:
        return IntDistribution(round(knob.low), round(knob.high), log=knob.logarithmic)
    return FloatDistribution(knob.low, knob.high, log=knob.logarithmic)


def _loads(text: str) -> bool:
    try:
        load(text, "")
    except ConfigurationError:
        return False
    return True


def _after(tell: Callable[[int], None], before: int) -> Callable[[int], None]:
    return lambda done: tell(before + done)
