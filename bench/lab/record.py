"""What became of one request."""

from __future__ import annotations

import enum
from math import nan

import msgspec


class Outcome(enum.Enum):
    DONE = "done"
    REFUSED = "refused"
    LOST = "lost"
    """Its server went away under it."""
    TOO_LONG = "too-long"
    """No server takes a prompt and an answer so long."""


class Record(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Times are the client's, in seconds from the trace's beginning; latencies count from `at_s`, NaN where there was none.

    `cached_tokens` of the prompt were found in the server's prefix cache, `available_tokens` would have been found in an
    endless cache that all servers share. `server` is -1 where the request never went to one.
    """

    id: str
    at_s: float
    prompt_tokens: int
    output_tokens: int
    model: str
    tenant: str
    outcome: Outcome
    server: int = -1
    picked_s: float = nan
    ttft_s: float = nan
    e2e_s: float = nan
    cached_tokens: int = 0
    available_tokens: int = 0
