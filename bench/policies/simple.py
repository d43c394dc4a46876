"""What a router does that knows next to nothing of its servers."""

from __future__ import annotations

from collections import Counter

from bench.policies import Asked, View
from bench.policies.choosing import least


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
        return least(view.servers, self._in_flight.__getitem__, view.rng)

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        self._in_flight[server] += 1

    def finished(self, request: Asked, server: int, output_tokens: int, now_s: float) -> None:
        self._in_flight[server] -= 1


class Random:
    """Any server, with equal chances. Envoy's RANDOM."""

    def pick(self, request: Asked, view: View) -> int:
        return view.rng.choice(view.servers)


class PowerOfTwo(LeastRequest):
    """The one with fewer requests in flight of two different servers drawn by chance, the first drawn where they are equal.

    Envoy's LEAST_REQUEST with its default `choice_count: 2`, SGLang's `power_of_two`, Ray Serve's default.
    """

    def pick(self, request: Asked, view: View) -> int:
        drawn = view.rng.sample(view.servers, min(2, len(view.servers)))
        return min(drawn, key=self._in_flight.__getitem__)
