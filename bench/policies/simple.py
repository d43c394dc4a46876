"""What a router does that knows next to nothing of its servers."""

from __future__ import annotations

from collections import Counter

from bench.policies import Asked, View


class RoundRobin:
    """Each server in turn. Envoy's ROUND_ROBIN, and the default of nearly every proxy."""

    def __init__(self) -> None:
        self._next = 0

    def pick(self, request: Asked, view: View) -> int:
        server = view.servers[self._next % len(view.servers)]
        self._next += 1
        return server


class LeastRequest:
    """argmin of the requests in flight by our own count, ties by chance. Envoy's LEAST_REQUEST with every host looked at."""

    def __init__(self) -> None:
        self._in_flight: Counter[int] = Counter()

    def pick(self, request: Asked, view: View) -> int:
        fewest = min(self._in_flight[server] for server in view.servers)
        return view.rng.choice([server for server in view.servers if self._in_flight[server] == fewest])

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        self._in_flight[server] += 1

    def finished(self, request: Asked, server: int, output_tokens: int, now_s: float) -> None:
        self._in_flight[server] -= 1
