"""Whether the simulated engine is like the real one: published measurements beside what ours does.

Prefill, memory, saturation and time to first token are of vLLM on H100. One of them is no test of the engine, because a constant was fitted to it
(`Line.fitted`). A claim of the lab is worth as much as these lines.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import msgspec

from bench.lab.baseline import baseline
from bench.lab.offered import Offered
from bench.lab.record import Record
from bench.lab.scene import Scene
from bench.lab.simulation import Simulation
from bench.policies.simple import RoundRobin
from bench.replica.engine import Engine, Work
from bench.replica.profiles import Profile, profile

WITHIN = 0.15


class Line(msgspec.Struct, frozen=True):
    """One measurement of others and ours of the same thing."""

    what: str
    source: str
    unit: str
    theirs: float
    ours: float
    fitted: bool = False

    @property
    def error(self) -> float:
        return self.ours / self.theirs - 1.0


def lines() -> list[Line]:
    qwen, llama = profile("Qwen3-32B/tp2@H100"), profile("Llama-3.1-8B@H100")
    # The published server ran with 128 sequences at most.
    demo = msgspec.structs.replace(llama, max_num_seqs=128)
    kubecon = (
        "inference-perf at KubeCon NA 2025: Llama-3.1-8B, one H100, vLLM 0.11, 128 sequences, 204 tokens in, 62 out"
    )
    saturated = _poisson_run(demo, 200.0)
    return [
        Line(
            "prefill throughput, one chunk of 8,192 tokens",
            "llm-d blog, August 2026: Qwen3-32B on two H100",
            "tokens/s",
            20_480,
            8192 / _prefill_s(qwen, 8192),
        ),
        Line(
            "KV cache",
            "llm-d-kv-cache, guide on capacity: Qwen3-32B on two H100",
            "tokens",
            307_328,
            qwen.kv_tokens,
        ),
        Line(
            "KV cache",
            "vllm#19996: a model of 8B and its draft model on 80 GB (ours without the draft)",
            "tokens",
            410_128,
            llama.kv_tokens,
        ),
        Line("saturation, requests", kubecon, "requests/s", 103, _throughput(saturated)),
        Line(
            "saturation, time per token",
            f"{kubecon}: 128 sequences at 6,400 tokens a second",
            "ms",
            1000 * 128 / 6400,
            1000 * _per_token_s(saturated),
        ),
        Line(
            "mean TTFT at 1 request a second", kubecon, "ms", 31, 1000 * _ttft_s(_poisson_run(demo, 1.0)), fitted=True
        ),
        Line("mean TTFT at 61 requests a second", kubecon, "ms", 35, 1000 * _ttft_s(_poisson_run(demo, 61.0))),
    ]


def _prefill_s(server: Profile, tokens: int) -> float:
    engine = Engine(server)
    engine.submit(Work("one", tokens, 1), 0.0)
    return engine.advance(60.0)[0].at_s - server.frontend_s


def _poisson_run(server: Profile, rate: float) -> list[Record]:
    rng = random.Random(1)

    def offered() -> Iterator[Offered]:
        at_s = 0.0
        for number in range(3000):
            at_s += rng.expovariate(rate)
            yield Offered(at_s=at_s, prompt_tokens=204, output_tokens=62, blocks=[number], block_tokens=256)

    run = Simulation(offered(), Scene(servers=(server,), network_s=0.0), baseline(RoundRobin))
    return list(run.records())


def _throughput(records: list[Record]) -> float:
    """Ends a second, the first and the last tenth aside."""
    ends = sorted(one.at_s + one.e2e_s for one in records)
    first, last = len(ends) // 10, len(ends) * 9 // 10
    return (last - first) / (ends[last] - ends[first])


def _ttft_s(records: list[Record]) -> float:
    return sum(one.ttft_s for one in records) / len(records)


def _per_token_s(records: list[Record]) -> float:
    middle = records[len(records) // 10 : len(records) * 9 // 10]
    return sum((one.e2e_s - one.ttft_s) / (one.output_tokens - 1) for one in middle) / len(middle)
