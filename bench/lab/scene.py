"""What surrounds a policy in a run: the servers, what is seen of them, and what happens to them."""

from __future__ import annotations

from math import inf

import msgspec

from bench.policies import BLOCK_TOKENS
from bench.replica.latency import Kernels
from bench.replica.profiles import Profile, profile


class Loss(msgspec.Struct, frozen=True):
    """A server is gone with all its requests from `at_s` on, and back with a cold cache at `back_s` (inf: never)."""

    server: int
    at_s: float
    back_s: float = inf


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a run but the trace and the policy.

    `network_s` passes between picker and server, each way. Servers are scraped every `scrape_interval_s` (inf: never); an
    answer takes `scrape_delay_s` and describes the server as it was `page_age_s` before that. In `lean` mode the picker
    sees an answer's end and, of a share of answers, its body. The picker's clock shows `clock_offset_s` more than ours at first and
    runs `clock_rate` times as fast. `pickers` share the traffic by chance and nothing else.
    """

    servers: tuple[Profile, ...]
    network_s: float = 0.0005
    scrape_interval_s: float = 1.0
    scrape_delay_s: float = 0.005
    page_age_s: float = 0.0
    lean: bool = False
    clock_offset_s: float = 1000.0
    clock_rate: float = 1.0
    pickers: int = 1
    losses: tuple[Loss, ...] = ()
    seed: int = 0


def server(name: str, *, adapter_slots: int = 0, slowdown: float = 1.0) -> Profile:
    """A measured `model@GPU`, as the lab has it: KV blocks of `BLOCK_TOKENS`, as coarse as what policies see of a prompt,
    and prompts as long as fit.

    `slowdown` stretches all its kernels.
    """
    base = profile(name)
    return msgspec.structs.replace(
        base,
        name=name if slowdown == 1.0 else f"{name}÷{slowdown:g}",
        num_blocks=base.kv_tokens // BLOCK_TOKENS,
        block_size=BLOCK_TOKENS,
        max_model_len=base.kv_tokens,
        max_loras=adapter_slots,
        kernels=_stretched(base.kernels, slowdown),
    )


def _stretched(kernels: Kernels, factor: float) -> Kernels:
    return msgspec.structs.replace(
        kernels,
        prefill_ms=tuple(factor * ms for ms in kernels.prefill_ms),
        decode_ms=tuple(tuple(factor * ms for ms in row) for row in kernels.decode_ms),
    )
