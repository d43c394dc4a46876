"""A request as policy sees it: parsed once at the edge, frozen, the same for every plugin."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

BLOCK_BYTES = 256
"""Bytes of canonical prompt text behind one prefix fingerprint (64 tokens at 4 bytes a token)."""

NO_FINGERPRINTS: NDArray[np.uint64] = np.empty(0, dtype=np.uint64)


class TokenCounts(Protocol):
    """The server's own account of one answer; None where it said nothing."""

    @property
    def prompt_tokens(self) -> int | None: ...
    @property
    def completion_tokens(self) -> int | None: ...
    @property
    def cached_tokens(self) -> int | None: ...


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One inference request.

    `model` is the name the client sent ("" where the body names none), `target_model` the name the server will
    see. `headers` are lower case. `fingerprints` has one value per started block of `BLOCK_BYTES` of prompt text, each
    covering everything before it, seeded with target model and cache salt; empty where there is no prompt.
    `prompt_tokens` is an estimate (bytes, corrected by what `usage` reported for the model). `max_tokens` is the
    client's limit on the answer or None.
    """

    request_id: str
    path: str
    model: str
    target_model: str
    headers: Mapping[str, str]
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    fingerprints: NDArray[np.uint64] = NO_FINGERPRINTS
    max_tokens: int | None = None
    stream: bool = False
    priority: int = 0
    fairness_id: str = "default-flow"
    body_bytes: int = 0


def first_of(headers: Mapping[str, str], names: tuple[str, ...]) -> str | None:
    """The value of the first of `names` that is there and not empty."""
    for name in names:
        value = headers.get(name)
        if value:
            return value
    return None
