"""The best of several servers, ties by chance."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence


def least(servers: Sequence[int], cost: Callable[[int], float], rng: random.Random) -> int:
    costs = [cost(server) for server in servers]
    lowest = min(costs)
    return rng.choice([server for server, one in zip(servers, costs, strict=True) if one == lowest])
