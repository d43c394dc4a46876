"""Routing policies of other systems, written from their published formulas, behind one small view.

A policy is a plain object with one method, `pick`. What it wants to remember it remembers itself: the optional hooks below tell
it what became of its requests. The lab (`bench.lab`) finds the hooks that a policy has when a run starts.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

from epp.endpoint import Adapters

BLOCK_TOKENS = 64
"""Tokens behind one value of `Asked.blocks`."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """One request as a router sees it when it comes. `id` is unique within a run.

    `blocks` has one value for each full block of `BLOCK_TOKENS` prompt tokens, each covering everything before it and the
    model: two requests share a beginning of so many blocks as have equal values. `output_limit` is what the client allows of
    answer tokens, None where it does not say. `model` is the adapter's name where one is asked for.
    """

    id: str
    arrived_s: float
    prompt_tokens: int
    blocks: Sequence[int]
    model: str = ""
    tenant: str = ""
    priority: int = 0
    output_limit: int | None = None


class Scraped(msgspec.Struct, frozen=True, kw_only=True):
    """What a server's metrics page said last. Before the first scrape: all zero, `reported_s` -inf.

    `kv_tokens` is the capacity of its KV cache, `kv_usage` the share of it in use, [0, 1]. `prompt_tokens_total` and
    `cached_tokens_total` count since the server started.
    """

    reported_s: float = float("-inf")
    waiting: float = 0.0
    running: float = 0.0
    kv_usage: float = 0.0
    kv_tokens: int = 0
    prompt_tokens_total: float = 0.0
    cached_tokens_total: float = 0.0
    adapters: Adapters = Adapters(frozenset(), frozenset(), 0)


class View(Protocol):
    """What a policy may look at. Servers are known by an index that stays theirs for the whole run."""

    @property
    def now_s(self) -> float: ...

    @property
    def rng(self) -> random.Random:
        """All chance of a policy comes from here."""
        ...

    @property
    def servers(self) -> Sequence[int]:
        """Indices of the servers that can be picked now, never empty, rising."""
        ...

    def scraped(self, server: int) -> Scraped: ...

    def cached_tokens(self, server: int, request: Asked) -> int:
        """Prompt tokens that the server really has in its prefix cache now: what KV events would tell without delay."""
        ...


class Policy(Protocol):
    def pick(self, request: Asked, view: View) -> int | None:
        """The index of one of `view.servers`; None where the policy holds the request back (it must be `Holds` then)."""
        ...


@runtime_checkable
class Holds(Protocol):
    def release(self, view: View) -> tuple[Asked, int] | None:
        """A request that was held back and the server it goes to now; None for nobody.

        Called after anything changed and at least every 5 ms while requests are held, again and again until it says None.
        """
        ...


@runtime_checkable
class SeesRouted(Protocol):
    def routed(self, request: Asked, server: int, now_s: float) -> None:
        """Called in the same step as the pick, whoever made it."""
        ...


@runtime_checkable
class SeesFirstToken(Protocol):
    """Nobody sees a first token in lean mode."""

    def first_token(self, request: Asked, server: int, now_s: float) -> None: ...


@runtime_checkable
class SeesEnd(Protocol):
    def finished(self, request: Asked, server: int, output_tokens: int, now_s: float) -> None:
        """The answer's end, or that of its server; 0 tokens then, and in lean mode. Called exactly once for every routed request."""
        ...


@runtime_checkable
class SeesServers(Protocol):
    """Called before the first request with every server, and when one is lost or comes back (cold)."""

    def joined(self, server: int, now_s: float) -> None: ...

    def left(self, server: int, now_s: float) -> None: ...
