"""How long one engine step takes: measured kernel times plus trained overheads of the software around them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import msgspec

KERNELS_PATH = Path(__file__).parent.parent / "profiles" / "kernels.json"

STEP_MS = 0.126024825
LAYER_MS = 0.03209546717
SEQUENCE_MS = 0.00441684444
"""Scheduler and launch cost of a step, of each layer in it, of each sequence in it (bench/profiles/README.md)."""

EAGER_LAYER_MS = 0.16
"""Launch cost of each layer in a step that prefills, which no whole CUDA graph covers. Fitted to one published figure, a mean time
to first token of 31 ms at 1 request a second; where that server saturates then comes out right without a fit (bench/lab/validation.py)."""

FRONTEND_S = 0.0155632
"""Parsing, validation and tokenising before the scheduler sees a request (bench/profiles/README.md)."""


class Kernels(msgspec.Struct, frozen=True):
    """One model on one kind of GPU, as bench/profiles/README.md describes it. Times are in milliseconds."""

    tensor_parallel: int
    layers: int
    kv_tokens: int
    prefill_tokens: tuple[int, ...]
    prefill_ms: tuple[float, ...]
    batch_sizes: tuple[int, ...]
    context_tokens: tuple[int, ...]
    decode_ms: tuple[tuple[float, ...], ...]


@cache
def measured_kernels() -> dict[str, Kernels]:
    """The measured profiles by name (`model@GPU`)."""
    return msgspec.json.decode(KERNELS_PATH.read_bytes(), type=dict[str, Kernels])


class Line:
    """Linear interpolation through points with rising x; flat below the first, the last slope beyond the last."""

    __slots__ = ("_slopes", "_xs", "_ys")

    def __init__(self, xs: Sequence[float], ys: Sequence[float]) -> None:
        self._xs = list(xs)
        self._ys = list(ys)
        rises = zip(xs, xs[1:], ys, ys[1:], strict=False)
        self._slopes = [(y1 - y0) / (x1 - x0) for x0, x1, y0, y1 in rises]

    def at(self, x: float) -> float:
        if x <= self._xs[0]:
            return self._ys[0]
        i = min(bisect_right(self._xs, x), len(self._slopes)) - 1
        return self._ys[i] + (x - self._xs[i]) * self._slopes[i]


class Latency:
    """Duration of a step of mixed prefill chunks and decodes.

    A prefill of n fresh tokens costs the measured P(n). Attention is the part of it that grows with n²: its coefficient q is
    the slope of P(n)/n over the prompts of 8,192 tokens and more. A chunk of n tokens behind s tokens already there costs
    P(n) - q·n² + q·((s + n)² - s²), so that a prompt costs about the same in one chunk or in many, and a cached
    prefix costs only being attended to.

    A mixed step reads the weights once: max(P(min), D(min)) + (P - P(min)) + (D - D(min)).

    `prefill_factor` multiplies prefill kernels: 1.0 reproduces a published 20,480 tokens/s of Qwen3-32B on two H100
    within 2 %, 1.28 the 15,928 tokens/s that the same servers reached through their whole path.
    """

    def __init__(self, kernels: Kernels, *, prefill_factor: float = 1.0) -> None:
        self._kernels = kernels
        self._factor = prefill_factor
        self._attention_ms = _slope([(n, ms / n) for n, ms in _fresh_prefills(kernels) if n >= 8192])
        linear = [ms - self._attention_ms * n * n for n, ms in _fresh_prefills(kernels)]
        self._linear = Line(kernels.prefill_tokens, linear)
        self._least_prefill_ms = kernels.prefill_ms[0]
        self._least_decode_ms = kernels.decode_ms[0][0]
        self._constant_ms = STEP_MS + LAYER_MS * kernels.layers
        self._eager_ms = EAGER_LAYER_MS * kernels.layers
        self._by_batch: dict[int, Line] = {}

    def step_s(self, prefill_tokens: int, attended: int, sequences: int, decodes: int, context_tokens: int) -> float:
        """Seconds of a step.

        `prefill_tokens` is the sum of all chunks, `attended` the sum of (s + n)² - s² over them, `sequences` all
        sequences in the step, `decodes` those that decode, and `context_tokens` the sum of their contexts.
        """
        overhead_ms = self._constant_ms + SEQUENCE_MS * sequences
        if not prefill_tokens:
            return (overhead_ms + self.decode_ms(decodes, context_tokens / decodes)) / 1000
        prefill_ms = self.prefill_ms(prefill_tokens, attended)
        overhead_ms += self._eager_ms
        if not decodes:
            return (overhead_ms + prefill_ms) / 1000
        decode_ms = self.decode_ms(decodes, context_tokens / decodes)
        more_prefill_ms = max(0.0, prefill_ms - self._least_prefill_ms)
        more_decode_ms = max(0.0, decode_ms - self._least_decode_ms)
        weights_ms = max(self._least_prefill_ms, self._least_decode_ms)
        return (overhead_ms + weights_ms + more_prefill_ms + more_decode_ms) / 1000

    def prefill_ms(self, tokens: int, attended: int) -> float:
        """Kernel time of chunks of `tokens` in all; `attended` as in `step_s` (tokens² for one fresh prompt)."""
        return self._factor * (self._linear.at(tokens) + self._attention_ms * attended)

    def decode_ms(self, batch: int, mean_context: float) -> float:
        """Kernel time of one decode step, bilinear in the measured grid."""
        line = self._by_batch.get(batch)
        if line is None:
            line = self._by_batch[batch] = self._decode_line(batch)
        return line.at(mean_context)

    def _decode_line(self, batch: int) -> Line:
        kernels = self._kernels
        return Line(kernels.context_tokens, [Line(kernels.batch_sizes, row).at(batch) for row in kernels.decode_ms])


def _fresh_prefills(kernels: Kernels) -> zip[tuple[int, float]]:
    return zip(kernels.prefill_tokens, kernels.prefill_ms, strict=True)


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Slope of the least-squares line."""
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
