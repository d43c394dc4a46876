"""Named model servers: which measured kernels, how much KV memory, which limits."""

from __future__ import annotations

import msgspec

from bench.replica.latency import FRONTEND_S, Kernels, Latency, measured_kernels


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """One simulated server. Defaults are vLLM's.

    `frontend_s` passes between a request's arrival and the scheduler's first sight of it; `lora_load_s` is what
    bringing an adapter to the GPU holds up the step that needs it; `prefill_factor` as in `Latency`.
    """

    name: str
    kernels: Kernels
    num_blocks: int
    block_size: int = 16
    max_num_batched_tokens: int = 8192
    max_num_seqs: int = 256
    max_model_len: int = 131_072
    max_loras: int = 4
    lora_load_s: float = 0.25
    frontend_s: float = FRONTEND_S
    prefill_factor: float = 1.0

    @property
    def kv_tokens(self) -> int:
        return self.num_blocks * self.block_size

    @property
    def longest(self) -> int:
        """Tokens, prompt and answer together, of the longest request that this server takes."""
        return min(self.max_model_len, self.kv_tokens)

    def latency(self) -> Latency:
        return Latency(self.kernels, prefill_factor=self.prefill_factor)


LAPTOP = "laptop"
"""A 32B model on one A100: 5,000 prompt tokens and, alone, 20 answer tokens a second. So slow that a laptop can stand in for
four of them, so measured that its TTFT means something. 32,768 tokens of KV hold a dozen conversations: what routing decides
shows within seconds."""


def profile(name: str) -> Profile:
    """`laptop`, or any `model@GPU` of bench/profiles/kernels.json with all the KV memory that fits.

    Raises ValueError that lists the names when there is no such profile.
    """
    kernels = measured_kernels()
    if name == LAPTOP:
        return Profile(name=name, kernels=kernels["Qwen2.5-32B@A100-80"], num_blocks=2048, max_model_len=16_384)
    if name not in kernels:
        raise ValueError(f"no profile {name!r}; there are {', '.join(profile_names())}")
    return Profile(name=name, kernels=kernels[name], num_blocks=kernels[name].kv_tokens // 16)


def profile_names() -> tuple[str, ...]:
    return (LAPTOP, *measured_kernels())
