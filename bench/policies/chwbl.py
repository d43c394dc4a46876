"""Consistent hashing with bounded loads: KubeAI's `PrefixHash` (f442a2c of 2025-10-15), after Mirrokni, Thorup and Zadimoghaddam, 2018."""

from __future__ import annotations

from bisect import bisect_left

import xxhash

from bench.policies import Asked, View
from bench.policies.counting import Counting


class BoundedHash(Counting):
    """xxhash64 of adapter and prompt's beginning on a ring with `points` for each server; clockwise the first server with
    in flight ≤ (total + 1)/n · `load_factor`, the first of all where none has so few.

    It hashes the first 100 characters; the shortest beginning known here is the first block. A prompt without a full one is
    hashed by its length.
    """

    def __init__(self, *, load_factor: float = 1.25, points: int = 256) -> None:
        super().__init__()
        self._load_factor = load_factor
        self._points = points
        self._ring: list[tuple[int, int]] = []

    def pick(self, request: Asked, view: View) -> int:
        beginning = request.blocks[0] if request.blocks else request.prompt_tokens
        at = bisect_left(self._ring, (_point(f"{request.model}{beginning}"), -1))
        bound = (sum(self.requests[one] for one in view.servers) + 1) / len(view.servers) * self._load_factor
        order = dict.fromkeys(server for _, server in self._ring[at:] + self._ring[:at])
        return next((server for server in order if self.requests[server] <= bound), next(iter(order)))

    def joined(self, server: int, now_s: float) -> None:
        self._ring += [(_point(f"{server}-{point}"), server) for point in range(self._points)]
        self._ring.sort()

    def left(self, server: int, now_s: float) -> None:
        self._ring = [point for point in self._ring if point[1] != server]


def _point(text: str) -> int:
    return xxhash.xxh64_intdigest(text.encode())
