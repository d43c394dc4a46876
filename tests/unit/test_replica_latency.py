"""Step durations against the measured table and against published end-to-end figures."""

from __future__ import annotations

import pytest

from bench.replica.engine import Engine, Work
from bench.replica.latency import LAYER_MS, SEQUENCE_MS, STEP_MS, Latency, Line, measured_kernels
from bench.replica.profiles import Profile, profile, profile_names

NAMES = sorted(measured_kernels())


@pytest.mark.parametrize("name", NAMES)
def test_every_measured_point_is_reproduced(name: str) -> None:
    kernels = measured_kernels()[name]
    latency = Latency(kernels)
    for tokens, ms in zip(kernels.prefill_tokens, kernels.prefill_ms, strict=True):
        assert latency.prefill_ms(tokens, tokens * tokens) == pytest.approx(ms)
    for context, row in zip(kernels.context_tokens, kernels.decode_ms, strict=True):
        for batch, ms in zip(kernels.batch_sizes, row, strict=True):
            assert latency.decode_ms(batch, context) == pytest.approx(ms)


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_costs_about_the_same_in_chunks(name: str) -> None:
    latency = Latency(measured_kernels()[name])
    whole = latency.prefill_ms(32768, 32768**2)
    chunks = sum(latency.prefill_ms(8192, (s + 8192) ** 2 - s**2) for s in range(0, 32768, 8192))
    assert chunks == pytest.approx(whole, rel=0.12)


def test_overheads_are_added_to_the_kernels() -> None:
    kernels = measured_kernels()["Llama-3.1-8B@H100"]
    step_s = Latency(kernels).step_s(0, 0, 4, 4, 4 * 2048)
    assert step_s * 1000 == pytest.approx(6.101 + STEP_MS + 32 * LAYER_MS + 4 * SEQUENCE_MS)


def test_a_mixed_step_reads_the_weights_once() -> None:
    latency = Latency(measured_kernels()["Llama-3.1-8B@H100"])
    prefill_s = latency.step_s(2048, 2048**2, 1, 0, 0)
    decode_s = latency.step_s(0, 0, 32, 32, 32 * 2048)
    mixed_s = latency.step_s(2048, 2048**2, 33, 32, 32 * 2048)
    assert max(prefill_s, decode_s) < mixed_s < prefill_s + decode_s - 0.005


def test_a_cached_prefix_costs_little() -> None:
    latency = Latency(measured_kernels()["Llama-3.1-8B@H100"])
    cold = latency.prefill_ms(8192, 8192**2)
    warm = latency.prefill_ms(512, 8192**2 - 7680**2)
    assert warm < cold / 10


def test_a_line_is_flat_before_its_first_point_and_goes_on_after_its_last() -> None:
    line = Line([1, 2, 4], [10.0, 20.0, 80.0])
    assert [line.at(x) for x in (0, 1, 1.5, 3, 4, 5)] == [10, 10, 15, 50, 80, 110]


def test_published_prefill_throughput_is_met() -> None:
    """20,480 tokens/s in chunks of 8,192: Qwen3-32B, two H100, tensor parallel (llm-d blog, 2026-08-17)."""
    latency = Latency(measured_kernels()["Qwen3-32B/tp2@H100"])
    assert 8192 / latency.step_s(8192, 8192**2, 1, 0, 0) == pytest.approx(20_480, rel=0.06)


def test_published_saturation_is_met() -> None:
    """Llama-3.1-8B on one H100, at most 128 sequences, 204 tokens in, 62 out: saturates at 103 requests/s (KubeCon NA'25)."""
    engine = Engine(
        Profile(name="", kernels=measured_kernels()["Llama-3.1-8B@H100"], num_blocks=27_774, max_num_seqs=128)
    )
    for i in range(1500):
        engine.submit(Work(str(i), 204, 62), 0.0)
    end_s = engine.advance(1e6)[-1].at_s
    assert 1500 / end_s == pytest.approx(103, rel=0.2)


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_loads(name: str) -> None:
    assert profile(name).longest >= 16_384


def test_an_unknown_profile_is_named_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no profile 'h100'; there are laptop, Llama"):
        profile("h100")
