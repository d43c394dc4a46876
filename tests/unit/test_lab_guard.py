"""The default policy keeps what it had, and a mistake in it does not go unnoticed.

A mistake planted below must make at least one case worse than `guard.json` allows; which one is named, so that a case that no
longer tells anything is found out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
import xxhash
from numpy.typing import NDArray

from bench.lab.guard import CASES, Case, kept, lost, measure
from epp.configuration import load_default
from epp.endpoint import Endpoints, Report
from epp.ledger import Entry, Ledger
from epp.pipeline import Pipeline
from epp.prefix.index import PrefixIndex
from epp.request import BLOCK_BYTES

KEPT = kept()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_default_keeps_what_it_had(case: Case) -> None:
    worse = lost(measure(case), KEPT[str(case)])
    assert not worse, f"{case}: {'; '.join(worse)}. If that is meant, run python -m bench.lab.guard"


def ledger_off(patch: pytest.MonkeyPatch) -> None:
    take = Ledger.take

    def forgets(self: Ledger, slot: int, tokens: int, now_s: float, **more: Any) -> Entry:
        entry = take(self, slot, tokens, now_s, **more)
        self.release(entry, now_s)
        return entry

    patch.setattr(Ledger, "take", forgets)


def first_of_equals(patch: pytest.MonkeyPatch) -> None:
    def first(self: Pipeline, profile: object, request: object, candidates: object, totals: Any) -> list[int]:
        return [int(totals.argmax())]

    patch.setattr(Pipeline, "_take", first)


def blocks_in_any_order(patch: pytest.MonkeyPatch) -> None:
    def unchained(prompts: tuple[bytes, ...], seed: int, max_blocks: int) -> NDArray[np.uint64]:
        (text,) = prompts
        starts = range(0, len(text), BLOCK_BYTES)
        return np.array([xxhash.xxh3_64_intdigest(text[at : at + BLOCK_BYTES]) for at in starts], dtype=np.uint64)

    def match(self: PrefixIndex, fingerprints: NDArray[np.uint64]) -> tuple[NDArray[np.float64], int]:
        hits = np.zeros(16)
        for slot, held in holds.setdefault(id(self), {}).items():
            hits[slot] = sum(value in held for value in fingerprints.tolist())
        return hits, int(hits.max())

    def record(self: PrefixIndex, slot: int, fingerprints: NDArray[np.uint64]) -> None:
        holds.setdefault(id(self), {}).setdefault(slot, set()).update(fingerprints.tolist())

    holds: dict[int, dict[int, set[int]]] = {}
    patch.setattr("epp.dispatcher.fingerprints", unchained)
    patch.setattr(PrefixIndex, "_match", match)
    patch.setattr(PrefixIndex, "record", record)


def decode_ignored(patch: pytest.MonkeyPatch) -> None:
    first_token, report = Ledger.first_token, Endpoints.report

    def ends_there(self: Ledger, entry: Entry, now_s: float) -> None:
        first_token(self, entry, now_s)
        self.release(entry, now_s)

    def hides(self: Endpoints, slot: int, told: Report, now_s: float) -> None:
        report(self, slot, msgspec.structs.replace(told, running=0.0, kv_usage=0.0), now_s)

    patch.setattr(Ledger, "first_token", ends_there)
    patch.setattr(Endpoints, "report", hides)


def nothing_is_pushed_out(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PrefixIndex, "_look_at_churn", lambda self: None)


def demand_unheard(patch: pytest.MonkeyPatch) -> None:
    holdings = PrefixIndex.holdings
    patch.setattr(PrefixIndex, "holdings", lambda self, prompt: holdings(self, prompt)._replace(demand=0.0))


def others_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Endpoints, "_compare", lambda self, slot, told: None)


def turned(number: int) -> Callable[[pytest.MonkeyPatch], None]:
    def plant(patch: pytest.MonkeyPatch) -> None:
        score = Pipeline._score

        def turns(self: Pipeline, *given: Any) -> NDArray[np.float64]:
            raw = score(self, *given)
            raw[number] = 1.0 - raw[number]
            return raw

        patch.setattr(Pipeline, "_score", turns)

    return plant


(PROFILE,) = load_default().profiles

MISTAKES: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Sequence[str]]] = {
    "the ledger is off": (ledger_off, ("root", "conversation", "documents")),
    "the first of equals is taken": (first_of_equals, ("root", "adapters", "conversation")),
    "hits count in any order": (blocks_in_any_order, ("documents", "conversation")),
    "decode counts for nothing": (decode_ignored, ("root", "adapters", "answers")),
    "what is pushed out counts for nothing": (nothing_is_pushed_out, ("sessions",)),
    "nobody hears what is in demand": (demand_unheard, ("root",)),
    "other pickers are not seen": (others_unseen, ("groups",)),
    **{
        f"{name} is turned round": (turned(number), ("groups", "adapters", "answers"))
        for number, (name, _) in enumerate(PROFILE.scorers)
    },
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_noticed(mistake: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, traces = MISTAKES[mistake]
    plant(monkeypatch)
    cases = [case for case in CASES if case.trace in traces]
    assert any(lost(measure(case), KEPT[str(case)]) for case in cases), f"{mistake}, and no case became worse"
