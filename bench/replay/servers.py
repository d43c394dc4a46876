"""The simulated servers, by the names that a command line takes."""

from __future__ import annotations

from collections.abc import Mapping

from bench.lab.scene import server
from bench.replica.profiles import Profile
from epp.configuration.problems import suggestion

SHORT: Mapping[str, str] = {
    "h100-llama8b": "Llama-3.1-8B@H100",
    "h200-llama8b": "Llama-3.1-8B@H200",
    "a100-llama8b": "Llama-3.1-8B@A100-80",
    "h200-qwen32b": "Qwen2.5-32B@H200",
    "a100-qwen32b": "Qwen2.5-32B@A100-80",
    "2xh100-qwen32b": "Qwen3-32B/tp2@H100",
    "4xh100-llama70b": "Llama-3.1-70B/tp4@H100",
}
"""GPU and model of what bench/profiles has measured kernels of."""


def pool(names: str, replicas: int, adapter_slots: int = 0) -> tuple[Profile, ...]:
    """`replicas` servers, of several names separated by commas in turn. Raises ValueError."""
    kinds = [_one(name.strip(), adapter_slots) for name in names.split(",")]
    return tuple(kinds[number % len(kinds)] for number in range(replicas))


def _one(name: str, adapter_slots: int) -> Profile:
    full = SHORT.get(name.lower(), name)
    if full not in SHORT.values():
        raise ValueError(f"there is no profile {name!r}; {suggestion(name, SHORT)}")
    return server(full, adapter_slots=adapter_slots)
