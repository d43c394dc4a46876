"""Who asks what and when, made from a seed: equal seeds give equal requests, whatever answers them."""

from __future__ import annotations

import random
from collections.abc import Sequence

import msgspec

_WORDS = (
    "account answer brief budget change check client code contract customer data delay deploy detail document error "
    "example field file filter finance fix flight invoice item language latency ledger letter limit list market memory "
    "message method model month number office order owner page partner payment plan policy price problem process product "
    "project query question reason record region release report request result review rule schedule section server "
    "service state status step storage summary support system table team test text ticket total update user value version"
)


class Turn(msgspec.Struct, frozen=True):
    """One request of a session, sent `pause_s` after the answer to the one before. `max_tokens` None leaves it open."""

    text: str
    max_tokens: int | None
    stream: bool
    pause_s: float


class Session(msgspec.Struct, frozen=True):
    """Requests that follow one another; the first leaves `at_s` after the start.

    A chat's `opening` is its system prompt, and each turn carries all turns and answers before it. A completion's `opening`
    stands before the text of its single turn. Sessions of one `tenant` share opening and model.
    """

    id: str
    tenant: str
    at_s: float
    chat: bool
    model: str
    opening: str
    turns: tuple[Turn, ...]


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What a workload is made of. Ranges are inclusive and drawn uniformly, shares are probabilities.

    Sessions arrive as a Poisson process of `sessions_per_s` until `duration_s`. Every tenant has one opening and one model,
    `adapter_share` of them an adapter. Some tenants are busier than others: the k-th has a weight of 1/sqrt(k).

    The defaults keep four servers of the `laptop` profile busy, and their caches short, for about 12 s.
    """

    duration_s: float = 9.0
    sessions_per_s: float = 8.0
    model: str = "base"
    adapters: tuple[str, ...] = ()
    adapter_share: float = 0.5
    tenants: int = 32
    opening_bytes: tuple[int, int] = (4_000, 8_000)
    turns: tuple[int, int] = (1, 4)
    turn_bytes: tuple[int, int] = (80, 400)
    answer_tokens: tuple[int, int] = (6, 20)
    pause_s: tuple[float, float] = (0.1, 0.4)
    completion_share: float = 0.2
    stream_share: float = 0.75


class _Tenant(msgspec.Struct, frozen=True):
    name: str
    model: str
    chat: bool
    opening: str


def sessions(mix: Mix, seed: int) -> tuple[Session, ...]:
    """The workload of this mix and seed, by time of arrival."""
    chance = random.Random(seed)
    tenants = [_tenant(mix, number, chance) for number in range(mix.tenants)]
    weights = [(number + 1) ** -0.5 for number in range(mix.tenants)]
    made: list[Session] = []
    at_s = chance.expovariate(mix.sessions_per_s)
    while at_s < mix.duration_s:
        (tenant,) = chance.choices(tenants, weights)
        made.append(_session(mix, f"{seed}-{len(made)}", tenant, at_s, chance))
        at_s += chance.expovariate(mix.sessions_per_s)
    return tuple(made)


def request_count(workload: Sequence[Session]) -> int:
    return sum(len(session.turns) for session in workload)


def text(size: int, chance: random.Random) -> str:
    """Words, `size` ASCII characters of them."""
    words = " ".join(chance.choices(_WORDS.split(), k=size // 3 + 1))
    return words[:size]


def _tenant(mix: Mix, number: int, chance: random.Random) -> _Tenant:
    # Shares are dealt out instead of drawn: with a few dozen tenants, chance would make one seed's mix unlike the next's.
    adapted = mix.adapters and _dealt(number, mix.adapter_share)
    model = mix.adapters[number % len(mix.adapters)] if adapted else mix.model
    opening = f"Tenant {number}. {text(chance.randint(*mix.opening_bytes), chance)}\n"
    return _Tenant(f"tenant-{number}", model, not _dealt(number + mix.tenants // 2, mix.completion_share), opening)


def _dealt(number: int, share: float) -> bool:
    return int((number + 1) * share) > int(number * share)


def _session(mix: Mix, id: str, tenant: _Tenant, at_s: float, chance: random.Random) -> Session:
    count = chance.randint(*mix.turns) if tenant.chat else 1
    turns = tuple(_turn(mix, chance) for _ in range(count))
    return Session(id, tenant.name, at_s, tenant.chat, tenant.model, tenant.opening, turns)


def _turn(mix: Mix, chance: random.Random) -> Turn:
    return Turn(
        text=text(chance.randint(*mix.turn_bytes), chance),
        max_tokens=chance.randint(*mix.answer_tokens),
        stream=chance.random() < mix.stream_share,
        pause_s=chance.uniform(*mix.pause_s),
    )
