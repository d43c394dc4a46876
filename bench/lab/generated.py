"""Traces made from a seed, each endless and at a rate of its own: take as much as a run needs and stretch its time."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from bench.lab.offered import Offered
from bench.policies import BLOCK_TOKENS

_ROOM = 1 << 16
"""Block names that one session or group may use."""

_NINETIETH = 1.2816
"""Standard deviations from the median to the ninetieth percentile."""


def groups(seed: int) -> Iterator[Offered]:
    """Software sold to businesses: 150 customers with a system prompt of 6,016 tokens each, questions of 1,200, answers of 1,000.

    After llm-d-benchmark's shared-prefix workload. 10 requests a second, Poisson; five tenants.
    """
    rng = random.Random(seed)
    fresh = itertools.count(1 << 34)
    for at_s in _poisson(rng, 10.0):
        group = rng.randrange(150)
        blocks = [*_names(group, 94), *itertools.islice(fresh, 19)]
        yield _whole(at_s, 6016 + 1200, 1000, blocks, tenant=f"tenant-{group % 5}")


def root(seed: int) -> Iterator[Offered]:
    """Everybody behind one system prompt of 8,192 tokens; questions of 128 to 4,096 tokens, answers of 50 to 500.

    10 requests a second, Poisson. The longest prefix is everywhere as soon as everybody has served once.
    """
    rng = random.Random(seed)
    fresh = itertools.count(1 << 34)
    for at_s in _poisson(rng, 10.0):
        own = BLOCK_TOKENS * rng.randrange(2, 65)
        blocks = [*_names(0, 128), *itertools.islice(fresh, own // BLOCK_TOKENS)]
        yield _whole(at_s, 8192 + own, rng.randrange(50, 500), blocks)


def documents(seed: int) -> Iterator[Offered]:
    """Questions on documents: rules of 512 tokens, then 5 of 60 documents of 1,024 tokens in any order, a question of 256; answers of 100 to 400.

    Most of a prompt was seen before, little of it behind the same beginning, and only that can be found in a cache.
    10 requests a second, Poisson; documents are asked for by Zipf's law with exponent 1.
    """
    rng = random.Random(seed)
    fresh = itertools.count(1 << 34)
    weights = [1 / rank for rank in range(1, 61)]
    for at_s in _poisson(rng, 10.0):
        blocks = [*_names(0, 8)]
        for document in dict.fromkeys(rng.choices(range(1, 61), weights, k=5)):
            blocks += _names(document, 16)
        blocks += itertools.islice(fresh, 4)
        yield _whole(at_s, BLOCK_TOKENS * len(blocks), rng.randrange(100, 400), blocks)


def answers(seed: int) -> Iterator[Offered]:
    """Short prompts of 64 to 512 tokens and answers between a line and a long chain of thought: one in five has 2,000 to 8,000 tokens, the
    others 10 to 100. Nothing is shared; what a server has to do is nearly all decode. 10 requests a second, Poisson.
    """
    rng = random.Random(seed)
    fresh = itertools.count(1 << 34)
    for at_s in _poisson(rng, 10.0):
        tokens = rng.randrange(64, 512)
        answer = rng.randrange(2000, 8000) if rng.random() < 0.2 else rng.randrange(10, 100)
        yield _whole(at_s, tokens, answer, list(itertools.islice(fresh, 8)))


def adapters(seed: int) -> Iterator[Offered]:
    """64 LoRA adapters, one a tenant, asked for by Zipf's law with exponent 1; 512 tokens of prompt in common within a tenant.

    Prompts are log-normal with median 1,000 and ninetieth percentile 4,000, answers of 20 to 400. Each tenant is bursty by itself: gaps
    with a coefficient of variation of 2, as ServeGen finds between the median and the ninetieth percentile of clients. 10 requests a second.
    """
    rng = random.Random(seed)
    fresh = itertools.count(1 << 34)
    weights = [1 / rank for rank in range(1, 65)]

    def tenant(number: int, rate: float) -> Iterator[tuple[float, int]]:
        at_s = rng.random() / rate
        while True:
            yield at_s, number
            at_s += rng.gammavariate(0.25, 4 / rate)

    tenants = [tenant(number, 10.0 * weight / sum(weights)) for number, weight in enumerate(weights)]
    for at_s, number in heapq.merge(*tenants):
        tokens = 512 + int(min(16_000, rng.lognormvariate(math.log(1000), math.log(4) / _NINETIETH)))
        blocks = [*_names(number, 8), *itertools.islice(fresh, -(-(tokens - 512) // BLOCK_TOKENS))]
        name = f"adapter-{number}"
        yield _whole(at_s, tokens, rng.randrange(20, 400), blocks, model=name, tenant=name)


def sessions(seed: int) -> Iterator[Offered]:
    """Coding agents with long contexts and bursts of sub-agents; a new one every 20 s in the mean.

    After the corpus of Claude Code sessions in llm-d's post of July 2026: contexts from 50,000 to 450,000 tokens with a median of
    185,000, growing by 632 tokens a turn, answers of 317; gaps between turns of 2 s (median) and 24 s (p90), at most 11 min; more than
    half of the requests from sub-agents, 7 at a time in the median and 51 in the ninetieth percentile, who share 16,384 tokens of
    tools and task and bring 1,000 to 20,000 of their own. All share 12,032 tokens of tools and rules.
    """
    rng = random.Random(seed)
    fresh = itertools.count(1 << 34)
    # Half an hour before the first request that counts: by then as many sessions end as begin.
    begins = (at_s - 1800.0 for at_s in _poisson(rng, 1 / 20))
    live: list[tuple[float, int, Offered, Iterator[Offered]]] = []
    order = itertools.count()

    def go_on(session: Iterator[Offered]) -> None:
        one = next(session, None)
        if one is not None:
            heapq.heappush(live, (one.at_s, next(order), one, session))

    for number, begin_s in enumerate(begins, 1):
        while live and live[0][0] <= begin_s:
            at_s, _, one, session = heapq.heappop(live)
            go_on(session)
            if at_s >= 0:
                yield one
        go_on(_session(rng, begin_s, number, fresh))


def _session(rng: random.Random, begin_s: float, number: int, fresh: Iterator[int]) -> Iterator[Offered]:
    at_s = begin_s
    tenant = f"agent-{number % 8}"
    tokens = int(min(430_000, max(50_000, rng.lognormvariate(math.log(185_000), 0.6))))
    while tokens <= 450_000:
        answer = 1 + int(rng.expovariate(1 / 317))
        own = -(-(tokens + answer) // BLOCK_TOKENS) - 188
        yield Offered(
            at_s=at_s,
            prompt_tokens=tokens,
            output_tokens=answer,
            blocks=[*_names(0, 188), *_names(number, own)],
            block_tokens=BLOCK_TOKENS,
            known_tokens=tokens + answer,
            tenant=tenant,
        )
        if rng.random() < 1 / 12:
            yield from _sub_agents(rng, at_s + 2.0, fresh, tenant)
            at_s += 30.0
        if rng.random() < 1 / 40:
            return
        tokens += answer + int(rng.expovariate(1 / 315))
        # An answer of 317 tokens takes some 4 s itself.
        at_s += 4.0 + min(660.0, rng.lognormvariate(math.log(2), math.log(12) / _NINETIETH))


def _sub_agents(rng: random.Random, at_s: float, fresh: Iterator[int], tenant: str) -> Iterator[Offered]:
    """All within 2 s."""
    size = int(min(60, 1 + rng.lognormvariate(math.log(6), math.log(51 / 7) / _NINETIETH)))
    task = list(itertools.islice(fresh, 68))
    for moment_s in sorted(at_s + rng.uniform(0.0, 2.0) for _ in range(size)):
        tokens = 16_384 + rng.randrange(1_000, 20_000)
        own = itertools.islice(fresh, -(-tokens // BLOCK_TOKENS) - 256)
        yield _whole(moment_s, tokens, 1 + int(rng.expovariate(1 / 500)), [*_names(0, 188), *task, *own], tenant=tenant)


def copies(recorded: Iterable[Offered], seed: int) -> Iterator[Offered]:
    """Sessions (by tenant) like those recorded, a new one every 5 s in the mean, one of them chosen by chance each time.

    What several of the recorded sessions have in common all copies have in common; the rest is each copy's own.
    """
    rng = random.Random(seed)
    by_session: dict[str, list[Offered]] = {}
    for one in recorded:
        by_session.setdefault(one.tenant, []).append(one)
    holders: dict[int, set[str]] = {}
    for name, requests in by_session.items():
        for one in requests:
            for block in one.blocks:
                holders.setdefault(block, set()).add(name)
    shared = {block for block, names in holders.items() if len(names) > 1}
    originals = list(by_session.values())
    live: list[tuple[float, int, int, list[Offered], float, int]] = []
    order = itertools.count()
    for number, begin_s in enumerate(_poisson(rng, 1 / 5), 1):
        while live and live[0][0] <= begin_s:
            at_s, _, index, requests, zero_s, copy = heapq.heappop(live)
            one = requests[index]
            blocks = [block if block in shared else copy * _ROOM + block for block in one.blocks]
            yield msgspec.structs.replace(one, at_s=at_s, blocks=blocks, tenant="")
            if index + 1 < len(requests):
                next_s = zero_s + requests[index + 1].at_s
                heapq.heappush(live, (next_s, next(order), index + 1, requests, zero_s, copy))
        chosen = rng.choice(originals)
        heapq.heappush(live, (begin_s, next(order), 0, chosen, begin_s - chosen[0].at_s, number))


GENERATED: Mapping[str, Callable[[int], Iterator[Offered]]] = {
    "groups": groups,
    "root": root,
    "documents": documents,
    "answers": answers,
    "adapters": adapters,
    "sessions": sessions,
}


def _whole(
    at_s: float, prompt_tokens: int, output_tokens: int, blocks: Sequence[int], *, model: str = "", tenant: str = ""
) -> Offered:
    return Offered(
        at_s=at_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        blocks=blocks,
        block_tokens=BLOCK_TOKENS,
        model=model,
        tenant=tenant,
    )


def _names(group: int, count: int) -> range:
    return range(group * _ROOM, group * _ROOM + count)


def _poisson(rng: random.Random, rate: float) -> Iterator[float]:
    at_s = 0.0
    while True:
        at_s += rng.expovariate(rate)
        yield at_s
