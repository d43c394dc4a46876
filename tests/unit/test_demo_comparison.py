"""The comparison says what happened: gained, lost, neither, or not to be compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec

from bench.demo.comparison import Run, longest_conversation, path, rows, verdict
from bench.load.client import Result
from bench.load.summary import summarize

A, B = "127.0.0.1:8001", "127.0.0.1:8002"


def answer(id: str, *, sent_s: float = 0.0, ttft_s: float | None = 0.4, chat: bool = True, error: str = "") -> Result:
    return Result(
        id=id, tenant="tenant-1", model="base", chat=chat, stream=True, sent_s=sent_s, status=200, ttft_s=ttft_s, e2e_s=1.0,
        prompt_tokens=100, cached_tokens=80, error=error,
    )  # fmt: skip


def run(
    results: Sequence[Result],
    *,
    name: str = "x",
    hit_rate: float | None = 0.5,
    requests: Mapping[str, int] | None = None,
    adapters: Mapping[str, tuple[str, ...]] | None = None,
) -> Run:
    return Run(
        name=name, summary=summarize(results), hit_rate=hit_rate, requests=requests or {A: 1, B: 1},
        adapters=adapters or {A: (), B: ()}, results=results, number_of=lambda id: "1" if id.endswith("0") else "2",
    )  # fmt: skip


def test_a_gain_is_told_with_its_numbers() -> None:
    told = verdict(run([answer("1.0", ttft_s=0.4)]), run([answer("1.0", ttft_s=0.1)], hit_rate=0.8))
    assert "75% sooner" in told
    assert "400 ms to 100 ms on average" in told
    assert "50% to 80% of the prompt tokens" in told


def test_a_loss_and_a_tie_are_told_as_such() -> None:
    slow, fast, close = (run([answer("1.0", ttft_s=ttft_s)]) for ttft_s in (0.4, 0.2, 0.41))
    assert verdict(fast, slow).startswith("Routing gained nothing here: the first token came 100% later")
    assert verdict(slow, close).startswith("Routing gained nothing to speak of")
    assert verdict(close, slow).startswith("Routing gained nothing to speak of")


def test_failures_and_missing_streams_are_not_compared() -> None:
    good = run([answer("1.0")])
    assert verdict(good, run([answer("1.0", ttft_s=0.1, error="broke off")])).startswith("1 requests failed")
    assert verdict(good, run([answer("1.0", ttft_s=None)])).startswith("No stream was answered")


def test_spread_is_the_busiest_server_by_the_average() -> None:
    assert run([], requests={A: 3, B: 1}).spread == 1.5
    assert math.isnan(run([], requests={A: 0, B: 0}).spread)


def test_rows_show_both_runs_and_the_change() -> None:
    first = run([answer("1.0", ttft_s=0.4)], requests={A: 1, B: 1}, hit_rate=None)
    second = run([answer("1.0", ttft_s=0.3)], requests={A: 2, B: 0}, adapters={A: ("lora-a",), B: ()})
    table = {row[0]: row[1:] for row in rows(first, second)}
    assert table["time to first token, mean"] == ("400 ms", "300 ms", "-25%")
    assert table["prompt tokens found in a cache"] == ("–", "50%", "")
    assert table["requests per server"] == ("1/1", "2/0", "")
    assert table["busiest server ÷ average"] == ("1.00", "2.00", "")
    assert table["LoRA adapters per server"] == ("0/0", "1/0", "")
    assert table["errors"] == ("0", "0", "")


def test_without_adapters_there_is_no_row_for_them() -> None:
    assert not any("LoRA" in row[0] for row in rows(run([answer("1.0")]), run([answer("1.0")])))


def test_the_conversation_shown_is_the_longest_that_both_answered() -> None:
    short = [answer("5-1.0", sent_s=0.0), answer("5-1.1", sent_s=1.0)]
    long = [answer(f"5-2.{turn}", sent_s=2.0 + turn) for turn in range(3)]
    equal = [answer(f"5-3.{turn}", sent_s=9.0 + turn) for turn in range(3)]
    everything = [*equal, *long, *short]
    found = longest_conversation(run(everything), run(everything))
    assert found is not None
    assert [turn.id for turn in found[0]] == [turn.id for turn in found[1]] == ["5-2.0", "5-2.1", "5-2.2"]
    broken = [*short, *long[:2], msgspec.structs.replace(long[2], error="broke off"), *equal[:2]]
    found = longest_conversation(run(everything), run(broken))
    assert found is not None
    assert [turn.id for turn in found[0]] == ["5-1.0", "5-1.1"]


def test_without_conversations_none_is_shown() -> None:
    lone = [answer("5-1.0"), answer("5-2.0", chat=False), answer("5-2.1", chat=False)]
    assert longest_conversation(run(lone), run(lone)) is None


def test_a_path_names_servers_and_what_was_cached() -> None:
    turns = [answer("5-1.0"), msgspec.structs.replace(answer("5-1.1"), prompt_tokens=0)]
    assert path(run(turns), turns) == "server 1 (80%) → server 2"
