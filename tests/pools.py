"""Pools of endpoints in known or random states, for tests of whatever chooses among them."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from epp.endpoint import Adapters, Candidates, Endpoint, Endpoints, Holdings, IntArray, Report
from epp.request import Request

NOW_S = 100.0
ROLES = ("prefill", "decode", "both", "encode", None)
RANGES = ("0-2048", "2048-8192", "0-131072", "nonsense", None)


def a_request(
    *,
    headers: Mapping[str, str] | None = None,
    blocks: int = 10,
    prompt_tokens: int | None = None,
    model: str = "llama",
    request_id: str = "r",
) -> Request:
    return Request(
        request_id=request_id,
        path="/v1/chat/completions",
        model=model,
        target_model=model,
        headers=headers or {},
        prompt_tokens=blocks * 64 if prompt_tokens is None else prompt_tokens,
        fingerprints=np.arange(1, blocks + 1, dtype=np.uint64),
    )


def an_endpoint(number: int, labels: Mapping[str, str] | None = None) -> Endpoint:
    address = f"10.0.{number // 250}.{number % 250 + 1}"
    return Endpoint(name=f"pod-{number}", address=address, port=8000, labels=labels or {})


class Pool:
    """Endpoints with settable columns, each list in the order of the endpoints; what is not given stays unreported."""

    def __init__(self, n: int = 0, *, labels: Sequence[Mapping[str, str]] = ()) -> None:
        self.endpoints = Endpoints(capacity=16)
        members = [an_endpoint(number, one) for number, one in enumerate(labels or [{}] * n)]
        self.endpoints.replace(members)
        self.hits: NDArray[np.float64] = np.zeros(self.endpoints.capacity)
        self.churn: NDArray[np.float64] = np.zeros(self.endpoints.capacity)
        self.demand = 0.0
        self.endpoints.line_s[:] = NOW_S

    def report(self, index: int, report: Report, now_s: float = NOW_S) -> None:
        self.endpoints.report(int(self.endpoints.slots[index]), report, now_s)

    def reported(
        self,
        *,
        waiting: Sequence[float] = (),
        running: Sequence[float] = (),
        kv: Sequence[float] = (),
        custom: Mapping[str, Sequence[float]] | None = None,
        now_s: float = NOW_S,
    ) -> Pool:
        for index in range(len(self.endpoints)):
            self.report(
                index,
                Report(
                    waiting=waiting[index] if waiting else 0.0,
                    running=running[index] if running else 0.0,
                    kv_usage=kv[index] if kv else 0.0,
                    custom={key: values[index] for key, values in (custom or {}).items()},
                ),
                now_s,
            )
        return self

    def known(
        self,
        *,
        in_flight: Sequence[float] = (),
        prompts: Sequence[float] = (),
        tokens: Sequence[float] = (),
        hits: Sequence[int] = (),
        churn: Sequence[float] = (),
        demand: float = 0.0,
        shared: bool = False,
    ) -> Pool:
        slots = self.endpoints.slots
        if prompts:
            self.endpoints.in_flight_prompts[slots] = prompts
        if in_flight:
            self.endpoints.in_flight[slots] = in_flight
        if tokens:
            self.endpoints.in_flight_tokens[slots] = tokens
        waiting = np.maximum(self.endpoints.in_flight_prompts, 1.0)
        self.endpoints.line_prompt[:] = self.endpoints.in_flight_tokens / waiting
        if hits:
            self.hits[slots] = hits
        if churn:
            self.churn[slots] = churn
        self.demand = demand
        self.endpoints.shared = shared
        return self

    def candidates(self, order: Sequence[int] | None = None, now_s: float = NOW_S) -> Candidates:
        slots: IntArray | None = None if order is None else self.endpoints.slots[np.array(order, dtype=np.intp)]
        return self.endpoints.candidates(now_s, Holdings(self.hits, self.churn, self.demand), slots)


def random_pool(n: int, seed: int, *, silent: float = 0.0) -> Pool:
    """n endpoints in states drawn from `seed`; a share `silent` of them has never reported anything."""
    rng = random.Random(seed)
    labels = []
    for _ in range(n):
        role, span = rng.choice(ROLES), rng.choice(RANGES)
        chosen = {"llm-d.ai/role": role, "llm-d.ai/context-length-range": span, "zone": rng.choice("ab")}
        labels.append({key: value for key, value in chosen.items() if value is not None})
    pool = Pool(labels=labels)
    for index in range(n):
        if rng.random() >= silent:
            loaded = frozenset(rng.sample(["llama", "a", "b"], rng.randrange(3)))
            pool.report(
                index,
                Report(
                    waiting=rng.randrange(9),
                    running=rng.randrange(64),
                    kv_usage=rng.random(),
                    adapters=Adapters(loaded, frozenset({"c"}), 3),
                    custom={"metric": rng.random()} if rng.random() < 0.7 else {},
                ),
                NOW_S - rng.random() * 4,
            )
    return pool.known(
        in_flight=[float(rng.randrange(120)) for _ in range(n)],
        prompts=[float(rng.randrange(12)) for _ in range(n)],
        tokens=[rng.random() * 2e6 for _ in range(n)],
        hits=[rng.choice((0, 0, 3, 8, 10)) for _ in range(n)],
        churn=[rng.choice((0.0, 0.0, 0.2, 1.0)) for _ in range(n)],
        demand=rng.choice((0.0, 3.0, 900.0)),
        shared=rng.random() < 0.5,
    )
