"""The overload that flow control is measured under: the same for equal seeds, and counted right."""

from __future__ import annotations

from pathlib import Path

from bench.load.client import Result
from bench.pressure.report import Report, seen, write
from bench.pressure.workload import PRIORITIES, TENANTS, Offer, requests


def result(status: int, ttft_s: float | None = None, error: str = "") -> Result:
    return Result(
        id="1",
        tenant="gold-a",
        model="base",
        chat=False,
        stream=True,
        sent_s=1.0,
        status=status,
        ttft_s=ttft_s,
        error=error,
    )


def test_equal_seeds_send_equal_requests_and_prompts_are_as_long_as_told() -> None:
    offer = Offer(duration_s=60.0)
    flows = requests(offer, 7)
    assert flows == requests(offer, 7) != requests(offer, 8)
    assert set(flows) == {(objective, tenant) for objective in PRIORITIES for tenant in TENANTS}
    sent = [session for sessions in flows.values() for session in sessions]
    assert 0.8 < len(sent) / (60.0 * offer.requests_per_s) < 1.2
    prompt_bytes = sum(len(session.turns[0].text) for session in sent)
    assert 0.8 < prompt_bytes / 4 / 60.0 / offer.tokens_per_s < 1.2
    assert all(0.0 <= session.at_s < 60.0 for session in sent)


def test_what_clients_saw_is_counted_by_kind(tmp_path: Path) -> None:
    results = [
        result(200, 0.5),
        result(200, 2.5),
        result(429, error="later"),
        result(200, 9.0, "cut"),
        result(0, error="x"),
    ]
    row = seen(("gold", "a"), results)
    assert (row.requests, row.answered, row.refused, row.failed) == (5, 2, 1, 2)
    assert (row.ttft_p50_s, row.ttft_p90_s) == (2.5, 2.5)
    assert seen(("gold", "a"), []).ttft_p50_s is None
    report = Report(
        offer=Offer(), seed=1, measured_at="", machine={}, offered_tokens_per_s=1.0, served_tokens_per_s={"one": 1.0},
        runs={"one": (row,), "two": (seen(("batch", "d"), results[2:]),)},
    )  # fmt: skip
    write(report, tmp_path)
    assert (tmp_path / "pressure.png").read_bytes().startswith(b"\x89PNG")
    assert b'"answered": 2' in (tmp_path / "pressure.json").read_bytes()
