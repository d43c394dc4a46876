"""The decision log's lines, as they stand in the file: one JSON object each, told apart by `line`.

Every file begins with a `Run`, and so does what a later process appends. `Members` comes before the first decision that counts on
it. A `Decision` is written when a request was picked for or refused, an `Outcome` when its exchange is over; `request` ties them.
docs/replay.md is the same for people.
"""

from __future__ import annotations

import msgspec

VERSION = 1
PRINT_BYTES = 6
"""Bytes of a salted fingerprint. At 10 million blocks a run the chance of any two meeting by accident is one in six."""


class Run(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="run"):
    """Which process wrote what follows. `started` is the wall clock's time (RFC 3339) at 0.0 of every other time here.

    Fingerprints and tenants compare only within one `run`. A fingerprint stands for `block_bytes` of prompt text.
    """

    version: int = VERSION
    run: str
    started: str
    pool: str
    block_bytes: int
    fingerprint_bytes: int = PRINT_BYTES


class Members(msgspec.Struct, frozen=True, tag_field="line", tag="members"):
    """The pool from here on: `ip:port` by the number that decisions know an endpoint by."""

    endpoints: dict[int, str]


class Candidates(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The pool as the pick saw it, lists of one order. null: not known.

    `score` is the weighted sum, null where a filter left the endpoint out; empty where no profile ran. The rest is as
    `epp.endpoint.Candidates` has it. `left` counts candidates that are not listed.
    """

    endpoint: list[int]
    score: list[float | None] = []
    waiting: list[float | None]
    running: list[float | None]
    kv_usage: list[float | None]
    in_flight: list[float]
    in_flight_tokens: list[float]
    hit_blocks: list[float]
    left: int = 0


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="decision", omit_defaults=True):
    """One request and what was decided on it.

    `fingerprints` are `PRINT_BYTES` a block, each covering all before it: two requests share as many leading blocks as
    their fingerprints have equal beginnings. `tenant` is "" where the request names none. `picked` is a number of `Members`,
    null where the request was refused for the reason `refused`. `prompt_tokens` is an estimate.
    """

    request: int
    arrived_s: float
    decided_s: float
    model: str = ""
    target_model: str = ""
    tenant: str = ""
    priority: int = 0
    stream: bool = False
    prompt_bytes: int = 0
    prompt_tokens: int = 0
    max_tokens: int | None = None
    fingerprints: bytes = b""
    picked: int | None = None
    refused: str = ""
    profile: str = ""
    candidates: Candidates | None = None


class Outcome(msgspec.Struct, frozen=True, kw_only=True, tag_field="line", tag="outcome", omit_defaults=True):
    """How a request that was picked for ended. Token counts are the model server's, null where its answer was not seen.

    `status` is 0 where no answer came. `served` is who answered, where that was not the pick.
    """

    request: int
    ended_s: float
    status: int
    ttft_s: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    aborted: bool = False
    served: str = ""


Line = Run | Members | Decision | Outcome
