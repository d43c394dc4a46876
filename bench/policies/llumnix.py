"""Llumnix v1's load-balance and KV-aware dispatch (8a693b4 of 2026-04-22)."""

from __future__ import annotations

from collections import OrderedDict, defaultdict

from bench.policies import Asked, View
from bench.policies.choosing import least
from bench.policies.counting import Counting


class MissesAndQueue(Counting):
    """argmin of prefix-miss tokens + prefill tokens sent and not computed, both plain tokens.

    Not computed are the uncached tokens of requests without a first token, less what the one in front is predicted to have behind
    it. The predictor is an online quadratic fit, seconds = a · tokens + b · tokens², over what each server took for the
    requests that were alone in front.
    """

    def __init__(self) -> None:
        super().__init__()
        self._lines: defaultdict[int, OrderedDict[str, int]] = defaultdict(OrderedDict)
        self._front_s: dict[int, float] = {}
        self._fit = QuadraticFit()

    def pick(self, request: Asked, view: View) -> int:
        misses = {server: request.prompt_tokens - view.cached_tokens(server, request) for server in view.servers}
        server = least(
            view.servers,
            lambda one: misses[one] + self.tokens[one] - self._computed_tokens(one, view.now_s),
            view.rng,
        )
        self.charge(request, misses[server])
        return server

    def _computed_tokens(self, server: int, now_s: float) -> float:
        line = self._lines[server]
        if not line:
            return 0.0
        front_tokens = next(iter(line.values()))
        takes_s = self._fit.seconds(front_tokens)
        if takes_s <= 0.0:
            return 0.0
        return front_tokens * min(1.0, (now_s - self._front_s[server]) / takes_s)

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        before = self.tokens[server]
        super().routed(request, server, now_s)
        line = self._lines[server]
        if not line:
            self._front_s[server] = now_s
        line[request.id] = self.tokens[server] - before

    def first_token(self, request: Asked, server: int, now_s: float) -> None:
        super().first_token(request, server, now_s)
        line = self._lines[server]
        tokens = line.get(request.id)
        if tokens is None:
            return
        if next(iter(line)) == request.id:
            self._fit.learn(tokens, now_s - self._front_s[server])
        del line[request.id]
        self._front_s[server] = now_s


class QuadraticFit:
    """Least squares of seconds = a · tokens + b · tokens² over all samples; 0 s before the second."""

    def __init__(self) -> None:
        self._samples = 0
        self._x2 = self._x3 = self._x4 = self._xy = self._x2y = 0.0

    def learn(self, tokens: int, seconds: float) -> None:
        x = float(tokens)
        self._samples += 1
        self._x2 += x**2
        self._x3 += x**3
        self._x4 += x**4
        self._xy += x * seconds
        self._x2y += x**2 * seconds

    def seconds(self, tokens: int) -> float:
        if self._samples < 2:
            return 0.0
        determinant = self._x2 * self._x4 - self._x3**2
        if determinant <= 1e-9 * self._x2 * self._x4:
            # Samples of one size tell one rate.
            return self._xy / self._x2 * tokens if self._x2 else 0.0
        linear = (self._xy * self._x4 - self._x2y * self._x3) / determinant
        square = (self._x2 * self._x2y - self._x3 * self._xy) / determinant
        return max(0.0, linear * tokens + square * tokens**2)
