"""Who asks what and when: the same requests for equal seeds, whatever answers them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import msgspec

from bench.load.workload import Session, Turn

PRIORITIES = {"gold": 100, "silver": 10, "bronze": 0, "batch": -1}
"""Objectives, each with a quarter of the load."""

TENANTS = ("long", "a", "b", "c", "d")
"""Of each objective: one sends prompts four times as long as the others', as often as they do."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of all flows together arrive as a Poisson process. Prompts are in tokens of four bytes, give or take half."""

    duration_s: float = 45.0
    requests_per_s: float = 25.0
    prompt_tokens: int = 1100
    long_factor: int = 4
    answer_tokens: int = 8

    @property
    def tokens_per_s(self) -> float:
        mean = self.prompt_tokens * (self.long_factor + len(TENANTS) - 1) / len(TENANTS)
        return mean * self.requests_per_s


Flow = tuple[str, str]
"""Objective and tenant."""


def requests(offer: Offer, seed: int) -> Mapping[Flow, Sequence[Session]]:
    rng = random.Random(seed)
    flows = {(objective, tenant): list[Session]() for objective in PRIORITIES for tenant in TENANTS}
    names = list(flows)
    at_s, number = 0.0, 0
    while (at_s := at_s + rng.expovariate(offer.requests_per_s)) < offer.duration_s:
        objective, tenant = flow = rng.choice(names)
        tokens = offer.prompt_tokens * (offer.long_factor if tenant == "long" else 1) * rng.uniform(0.5, 1.5)
        # No two prompts share a beginning: caches are another matter.
        prompt = rng.randbytes(round(2 * tokens)).hex()
        turn = Turn(text=prompt, max_tokens=offer.answer_tokens, stream=True, pause_s=0.0)
        name = f"{objective}-{tenant}"
        session = Session(f"{number}", name, at_s, chat=False, model="base", opening="", turns=(turn,))
        flows[flow].append(session)
        number += 1
    return flows
