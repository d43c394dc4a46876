"""A router's own account of what it sent where."""

from __future__ import annotations

from collections import Counter

from bench.policies import Asked


class Counting:
    """The hooks of a policy that counts by server: `requests` until their end, uncached prompt `tokens` until their first token.

    A policy says by `charge`, while it picks, how many tokens the request counts; without that all of its prompt.
    """

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.tokens: Counter[int] = Counter()
        self._charged: dict[str, int] = {}

    def charge(self, request: Asked, tokens: int) -> None:
        self._charged[request.id] = tokens

    def routed(self, request: Asked, server: int, now_s: float) -> None:
        self.requests[server] += 1
        self.tokens[server] += self._charged.setdefault(request.id, request.prompt_tokens)

    def first_token(self, request: Asked, server: int, now_s: float) -> None:
        self.tokens[server] -= self._charged.pop(request.id, 0)

    def finished(self, request: Asked, server: int, output_tokens: int, now_s: float) -> None:
        self.first_token(request, server, now_s)
        self.requests[server] -= 1
