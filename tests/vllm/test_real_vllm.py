"""Two real vLLM servers on CPU behind a real Envoy and the picker, in lean mode with the default policy."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from bench.processes import ROOT, Process, Stand, StartError, answers, free_port
from tests.integration.conftest import Answer, ask

pytestmark = pytest.mark.vllm

HOME = ROOT / ".cache" / "vllm"
CONFIG = ROOT / "config" / "ranked.yaml"


class Server(msgspec.Struct):
    process: Process
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def is_up(self) -> bool:
        return answers(f"http://{self.address}/health")

    def counter(self, name: str) -> float:
        """Sum over the series of `name` on the server's own metrics page."""
        with urllib.request.urlopen(f"http://{self.address}/metrics", timeout=10) as page:
            text = page.read().decode()
        return sum(float(value) for value in re.findall(rf"^{re.escape(name)}{{[^}}]*}} (\S+)$", text, re.MULTILINE))


class World(msgspec.Struct):
    port: int
    metrics: int
    servers: list[Server]

    def ask(self, body: dict[str, object], path: str = "/v1/chat/completions") -> Answer:
        return ask(self.port, body, path=path, timeout_s=120)

    def picks(self, server: Server) -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics}/metrics", timeout=10) as page:
            text = page.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("llm_d_epp_scheduler_attempts_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if f'port="{server.port}"' in line)


def start_server(stand: Stand, model: Path, name: str) -> Server:
    port = free_port()
    process = stand.start(
        name,
        [
            *("env", "VLLM_CPU_KVCACHE_SPACE=1", "VLLM_CPU_OMP_THREADS_BIND=nobind", "OMP_NUM_THREADS=1"),
            *("VLLM_NO_USAGE_STATS=1", "DO_NOT_TRACK=1", "HF_HUB_OFFLINE=1", "CUDA_VISIBLE_DEVICES="),
            *(f"PATH={HOME}/bin:{os.environ['PATH']}", str(HOME / "bin" / "vllm"), "serve", str(model)),
            *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "base"),
            *("--load-format", "dummy", "--block-size", "32", "--enforce-eager", "--enable-prefix-caching"),
            *("--max-model-len", "16384", "--max-num-seqs", "16"),
            *("--enable-lora", "--max-loras", "2", "--max-lora-rank", "8"),
            *("--lora-modules", f"lora-a={model / 'lora-a'}", f"lora-b={model / 'lora-b'}"),
        ],
    )
    return Server(process, port)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    if not (HOME / "bin" / "vllm").exists():
        raise StartError("vLLM is not installed: run `make test-vllm`, which installs it")
    directory = tmp_path_factory.mktemp("vllm")
    model = directory / "model"
    with Stand(directory) as stand:
        maker = stand.start(
            "model", [str(HOME / "bin" / "python"), str(Path(__file__).with_name("make_model.py")), str(model)]
        )
        assert maker.child.wait(120) == 0, maker.output()
        servers = [start_server(stand, model, f"vllm-{number}") for number in range(2)]
        for server in servers:
            server.process.wait_until(server.is_up, 300)
        listen, metrics = stand.lean(
            [f"--config-file={CONFIG}", *(f"--endpoint={server.address}" for server in servers)]
        )
        yield World(listen, metrics, servers)


def chat(messages: list[dict[str, str]], **more: object) -> dict[str, object]:
    return {"model": "base", "messages": messages, "max_tokens": 16, "temperature": 0, **more}


def test_a_conversation_stays_where_its_prefix_is(world: World) -> None:
    before = [
        (s.counter("vllm:prefix_cache_hits_total"), s.counter("vllm:prefix_cache_queries_total")) for s in world.servers
    ]
    seconds: list[float] = []
    for number in range(4):
        messages = [{"role": "system", "content": f"Conversation {number}. " + "You are a careful assistant. " * 60}]
        for turn in range(5):
            messages.append({"role": "user", "content": f"Question {turn} of conversation {number}: " + "why? " * 40})
            began = time.monotonic()
            answer = world.ask(chat(messages))
            seconds.append(time.monotonic() - began)
            assert answer.status == 200, answer.body
            # The tiny model speaks bytes that are no text; an agreed answer keeps the turns alike on both sides.
            messages.append({"role": "assistant", "content": f"Answer {turn}."})
    after = [
        (s.counter("vllm:prefix_cache_hits_total"), s.counter("vllm:prefix_cache_queries_total")) for s in world.servers
    ]
    hits = sum(a[0] - b[0] for a, b in zip(after, before, strict=True))
    queries = sum(a[1] - b[1] for a, b in zip(after, before, strict=True))
    # Each turn adds about 280 of 2,000 to 3,200 bytes: a conversation that stays hits 4 turns of 5, four fifths of each.
    print(
        f"\n20 turns of 4 conversations: {hits:,.0f} of {queries:,.0f} prompt tokens from the cache ({hits / queries:.0%})"
    )
    print(
        f"first turns {1000 * sum(seconds[::5]) / 4:.0f} ms, later turns {1000 * (sum(seconds) - sum(seconds[::5])) / 16:.0f} ms"
    )
    assert hits / queries > 0.6
    shares = [a[1] - b[1] for a, b in zip(after, before, strict=True)]
    print(f"prompt tokens by server: {shares[0]:,.0f} and {shares[1]:,.0f}")


def test_adapters_are_served(world: World) -> None:
    for model in ("lora-a", "lora-b", "base"):
        answer = world.ask(chat([{"role": "user", "content": "hello"}], model=model))
        assert answer.status == 200, answer.body
        assert answer.json()["model"] == model


def test_an_adapter_returns_to_where_it_is_loaded(world: World) -> None:
    before = [world.picks(server) for server in world.servers]
    for number in range(6):
        assert world.ask(chat([{"role": "user", "content": f"{number} " * 20}], model="lora-a")).status == 200
        time.sleep(1.2)  # Until the next scrape has seen the adapter.
    picks = [world.picks(server) - then for server, then in zip(world.servers, before, strict=True)]
    print(f"\n6 requests for lora-a went {picks[0]:.0f} : {picks[1]:.0f}")
    assert sum(picks) == 6


def test_streams_arrive_whole(world: World) -> None:
    body = chat(
        [{"role": "user", "content": "count"}], stream=True, stream_options={"include_usage": True}, ignore_eos=True
    )
    answer = world.ask(body)
    assert answer.status == 200
    events = [line[6:] for line in answer.body.splitlines() if line.startswith(b"data: ")]
    assert events[-1] == b"[DONE]"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 16
    assert not answer.cut


def test_a_killed_server_stops_receiving(world: World) -> None:
    dead, alive = world.servers
    dead.process.kill()
    killed = time.monotonic()
    failures, last_pick_s, picks = 0, 0.0, world.picks(dead)
    while time.monotonic() - killed < 6:
        answer = world.ask(chat([{"role": "user", "content": f"after {time.monotonic()}"}]))
        failures += answer.status != 200
        if world.picks(dead) > picks:
            picks, last_pick_s = world.picks(dead), time.monotonic() - killed
    print(f"\nafter the kill: {failures} failed requests, the dead server was last picked after {last_pick_s:.2f} s")
    assert failures == 0
    settled = world.picks(dead)
    for number in range(10):
        assert world.ask(chat([{"role": "user", "content": f"later {number}"}])).status == 200
    assert world.picks(dead) == settled
    assert alive.process.running
