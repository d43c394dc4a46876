"""What is drawn, in a terminal of 100 × 30 and without one."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench.demo import view
from bench.demo.comparison import Run
from bench.demo.tally import Cache, Seen, Tally
from bench.load.client import Result, Sent
from bench.load.summary import summarize

SERVERS = tuple(f"127.0.0.1:{port}" for port in (23001, 23002, 23003, 23004))
ADAPTERS = ("lora-a", "lora-b", "lora-c")


def result(id: str, model: str, replica: str, sent_s: float) -> Result:
    return Result(
        id=id, tenant="tenant-3", model=model, chat=True, stream=True, sent_s=sent_s, status=200, ttft_s=0.4, e2e_s=1.0,
        prompt_tokens=2000, cached_tokens=1500, replica=replica,
    )  # fmt: skip


def filled() -> Tally:
    tally = Tally(SERVERS, 240, "base")
    for number in range(48):
        id, model = f"1-{number // 4}.{number % 4}", (*ADAPTERS, "base")[number // 4 % 4]
        tally.take(Sent(id, model, 0.1 * number))
        tally.take(result(id, model, SERVERS[number * 7 % 4], 0.1 * number))
    return tally


SNAPSHOT = {
    server: Seen(in_flight=3.0, waiting=1.0, kv_usage=0.25, cache=Cache(1000.0, 640.0)) for server in SERVERS[:3]
}


def drawn(*, terminal: bool, width: int = 100) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=30, color_system=None, highlight=False
    )


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_terminal_shows_servers_requests_and_first_tokens() -> None:
    console = drawn(terminal=True)
    with view.Board(console, "round robin", filled()) as board:
        board.show(SNAPSHOT)
    shown = text(console)
    assert "48/240 answered, 0 errors" in shown
    assert "p50 400 ms" in shown
    row = next(line for line in shown.splitlines() if line.startswith(" 1  127.0.0.1:23001"))
    assert row.split() == ["1", SERVERS[0], "12", "3", "1", "25%", "64%", *ADAPTERS]
    unknown = next(line for line in shown.splitlines() if line.startswith(" 4  127.0.0.1:23004"))
    assert unknown.split()[:7] == ["4", SERVERS[3], "12", "–", "–", "–", "–"]
    assert "server 4  1,500 of 2,000 tokens cached" in shown


def test_elsewhere_a_plain_line_comes_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("bench.demo.view.time.monotonic", lambda: now_s)
    console = drawn(terminal=False)
    with view.Board(console, "round robin", filled()) as board:
        for _ in range(25):
            board.show(SNAPSHOT)
            now_s += view.PLAIN_EVERY_S / 10
        board.show(SNAPSHOT, last=True)
    lines = text(console).splitlines()
    assert lines[0] == "round robin: 240 requests"
    plain = [line for line in lines if "answered" in line]
    assert len(plain) == 2
    assert "requests 12/12/12/12, in flight 3/3/3/–, cache hits 64%/64%/64%/–" in plain[0]
    assert "\x1b" not in text(console)
    assert sum("127.0.0.1:2300" in line for line in lines) == 4


def run(name: str) -> Run:
    tally = filled()
    return Run(
        name=name, summary=summarize(tally.results), hit_rate=0.75, requests=tally.requests(), adapters=tally.adapters(),
        results=tally.results, number_of=tally.number_of,
    )  # fmt: skip


def test_the_last_screen_fits_a_small_terminal() -> None:
    console = drawn(terminal=False)
    console.print(view.comparison(run("round robin"), run("epp default")))
    lines = text(console).splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= 100
    assert "Where the 4 turns of one conversation (tenant-3, model lora-a) went" in text(console)
    assert "round robin  server 1 (75%) → server 4 (75%) → server 3 (75%) → server 2 (75%)" in text(console)


def test_a_server_that_is_down_and_a_failed_request_are_seen() -> None:
    servers = ("a:1", "[fd00::5]:23002")
    tally = Tally(servers, 1, "base")
    tally.take(Sent("1-0.0", "base", 0.0))
    tally.take(Result(id="1-0.0", tenant="t", model="base", chat=False, stream=False, sent_s=0.0, error="[reset]"))
    console = drawn(terminal=True)
    with view.Board(console, "x", tally) as board:
        board.show({servers[1]: Seen(reachable=False)})
    shown = text(console)
    assert "1 error " in shown
    assert "2  [fd00::5]:23002  down" in shown
    assert "completion, base      server ?  [reset]" in shown
