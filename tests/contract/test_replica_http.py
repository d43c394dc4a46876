"""The simulated server on a real socket, against what vLLM's clients expect."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from prometheus_client.parser import text_string_to_metric_families

from bench.load.client import Result, Sent, run
from bench.load.workload import Mix, Session, Turn, request_count, sessions
from bench.replica.http import Replica
from bench.replica.profiles import Profile, profile
from tests.waiting import PATIENCE_S, eventually

FAST: Profile = msgspec.structs.replace(profile("Llama-3.1-8B@H100"), num_blocks=2000, max_model_len=16_000)
SYSTEM = {"role": "system", "content": "You are a careful assistant. " * 40}


class Peer:
    """One replica and a client of it."""

    def __init__(self, replica: Replica, client: aiohttp.ClientSession) -> None:
        self.replica = replica
        self.client = client
        self.url = f"http://127.0.0.1:{replica.port}"

    async def post(self, path: str, body: Any) -> tuple[int, Any]:
        async with self.client.post(self.url + path, json=body) as response:
            text = await response.text()
            return response.status, json.loads(text) if text[:1] in "{[" else text

    async def stream(self, path: str, body: Any) -> str:
        async with self.client.post(self.url + path, json={"stream": True, **body}) as response:
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            return await response.text()

    async def metrics(self) -> dict[str, float]:
        async with self.client.get(self.url + "/metrics") as response:
            families = text_string_to_metric_families(await response.text())
            return {f"{s.name}{s.labels.get('finished_reason', '')}": s.value for f in families for s in f.samples}

    async def until(self, name: str, value: float) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while (await self.metrics())[name] != value:  # noqa: ASYNC110 - a page tells when it is asked
                await asyncio.sleep(0.01)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    replica = Replica(FAST, ["base", "lora-a", "lora-b"], time_scale=4.0)
    await replica.start()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE_S)) as client:
        yield Peer(replica, client)
    await replica.close()


def chat(*contents: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant") * len(contents)
    turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
    return {"model": "base", "messages": [SYSTEM, *turns], "max_tokens": 20, **fields}


def data_of(stream: str) -> list[str]:
    assert stream.endswith("\n\n")
    return [line.removeprefix("data: ") for line in stream.splitlines() if line.startswith("data: ")]


async def test_a_conversation_finds_its_own_prefix_and_answer(peer: Peer) -> None:
    _, first = await peer.post("/v1/chat/completions", chat("hello"))
    assert first["choices"][0]["finish_reason"] == "length"
    usage = first["usage"]
    assert usage["completion_tokens"] == 20
    assert usage["total_tokens"] == usage["prompt_tokens"] + 20
    assert usage["prompt_tokens_details"]["cached_tokens"] == 0
    answer = first["choices"][0]["message"]["content"]
    _, second = await peer.post("/v1/chat/completions", chat("hello", answer, "and now?"))
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert usage["prompt_tokens"] <= cached < second["usage"]["prompt_tokens"]
    assert cached % FAST.block_size == 0
    metrics = await peer.metrics()
    assert metrics["vllm:prefix_cache_hits_total"] == cached
    assert metrics["vllm:prefix_cache_queries_total"] == metrics["vllm:prompt_tokens_total"]
    assert metrics["vllm:request_success_totallength"] == 2
    assert metrics["vllm:time_to_first_token_seconds_count"] == 2


@pytest.mark.parametrize("other", [{"model": "lora-a"}, {"cache_salt": "tenant"}])
async def test_adapters_and_salts_share_no_cache(peer: Peer, other: dict[str, str]) -> None:
    await peer.post("/v1/chat/completions", chat("hello"))
    _, answer = await peer.post("/v1/chat/completions", chat("hello", **other))
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


async def test_a_stream_brings_the_same_answer_whole(peer: Peer) -> None:
    _, whole = await peer.post("/v1/chat/completions", chat("hello"))
    stream = await peer.stream("/v1/chat/completions", chat("hello", stream_options={"include_usage": True}))
    *chunks, usage, done = data_of(stream)
    assert done == "[DONE]"
    assert json.loads(usage)["choices"] == []
    assert json.loads(usage)["usage"]["completion_tokens"] == 20
    choices = [json.loads(chunk)["choices"][0] for chunk in chunks]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(choice["delta"]["content"] for choice in choices) == whole["choices"][0]["message"]["content"]
    assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["length"]
    assert len({json.loads(chunk)["id"] for chunk in chunks}) == 1


async def test_usage_comes_only_when_asked_for(peer: Peer) -> None:
    assert "usage" not in await peer.stream("/v1/chat/completions", chat("hello"))


async def test_completions_take_strings_lists_and_token_ids(peer: Peer) -> None:
    for prompt, choices in (("text", 1), (["one", "two"], 2), ([1, 2, 3], 1), ([[1], [2]], 2)):
        status, answer = await peer.post("/v1/completions", {"model": "base", "prompt": prompt, "max_tokens": 3})
        assert status == 200
        assert [choice["index"] for choice in answer["choices"]] == list(range(choices))
        assert all(len(choice["text"]) == 12 for choice in answer["choices"])
        assert answer["usage"]["completion_tokens"] == 3 * choices


async def test_a_stream_of_several_choices_is_whole(peer: Peer) -> None:
    body = {"model": "base", "prompt": ["one", "two"], "max_tokens": 4}
    _, whole = await peer.post("/v1/completions", body)
    texts = {0: "", 1: ""}
    *chunks, done = data_of(await peer.stream("/v1/completions", body))
    assert done == "[DONE]"
    for chunk in chunks:
        (choice,) = json.loads(chunk)["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == {choice["index"]: choice["text"] for choice in whole["choices"]}


async def test_without_a_limit_the_model_stops_by_itself(peer: Peer) -> None:
    _, answer = await peer.post("/v1/completions", {"model": "base", "prompt": "go on"})
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert 32 <= answer["usage"]["completion_tokens"] < 288


async def test_responses_whole_and_streamed(peer: Peer) -> None:
    body = {"model": "base", "input": "hello", "instructions": "be brief", "max_output_tokens": 5}
    _, whole = await peer.post("/v1/responses", body)
    assert whole["usage"]["output_tokens"] == 5
    assert whole["status"] == "incomplete"
    events = [json.loads(data) for data in data_of(await peer.stream("/v1/responses", body))]
    assert events[0]["type"] == "response.created"
    text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert text == whole["output"][0]["content"][0]["text"]
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


async def test_embeddings(peer: Peer) -> None:
    _, floats = await peer.post("/v1/embeddings", {"model": "base", "input": ["one", "two"]})
    assert [len(entry["embedding"]) for entry in floats["data"]] == [64, 64]
    assert floats["data"][0]["embedding"] != floats["data"][1]["embedding"]
    _, packed = await peer.post("/v1/embeddings", {"model": "base", "input": "one", "encoding_format": "base64"})
    assert len(base64.b64decode(packed["data"][0]["embedding"])) == 256
    assert packed["usage"] == {**packed["usage"], "prompt_tokens": 1, "completion_tokens": 0}


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/v1/chat/completions", {"model": "gone", "messages": [{}]}, 404, "The model `gone` does not exist."),
        ("/v1/chat/completions", {"model": "base", "messages": []}, 400, "messages"),
        ("/v1/completions", {"model": "base"}, 400, "prompt"),
        ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 0}, 400, "at least 1"),
        ("/v1/completions", {"model": "base", "prompt": "x" * 64_100}, 400, "maximum context length is 16000"),
        ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 16_000}, 400, "you requested 16000 output"),
        ("/v1/completions", [], 400, "Expected `object`"),
    ],
)
async def test_errors_have_vllms_shape(peer: Peer, path: str, body: Any, status: int, message: str) -> None:
    got, answer = await peer.post(path, body)
    assert got == status
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["code"] == status
    assert message in answer["error"]["message"]


async def test_every_answer_names_its_server(peer: Peer) -> None:
    for path, body in (
        ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 1}),
        ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": 1, "stream": True}),
        ("/v1/completions", {"model": "gone"}),
    ):
        async with peer.client.post(peer.url + path, json=body) as response:
            assert response.headers["x-replica"] == f"127.0.0.1:{peer.replica.port}"
            await response.read()


async def test_adapters_come_and_go(peer: Peer) -> None:
    ask = {"model": "lora-c", "prompt": "x", "max_tokens": 1}
    new = {"lora_name": "lora-c", "lora_path": "/adapters/c"}
    assert (await peer.post("/v1/completions", ask))[0] == 404
    assert (await peer.post("/v1/load_lora_adapter", {"lora_name": "lora-c"}))[0] == 400
    assert (await peer.post("/v1/load_lora_adapter", new))[0] == 200
    assert (await peer.post("/v1/load_lora_adapter", new))[0] == 400
    assert (await peer.post("/v1/completions", ask))[0] == 200
    async with peer.client.get(peer.url + "/v1/models") as response:
        models = {model["id"]: model["parent"] for model in (await response.json())["data"]}
    assert models == {"base": None, "lora-a": "base", "lora-b": "base", "lora-c": "base"}
    assert (await peer.post("/v1/unload_lora_adapter", {"lora_name": "lora-c"}))[0] == 200
    assert (await peer.post("/v1/unload_lora_adapter", {"lora_name": "lora-c"}))[0] == 404
    assert (await peer.post("/v1/completions", ask))[0] == 404


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_client_that_leaves_frees_its_memory(peer: Peer, streamed: bool) -> None:
    body = chat("hello", max_tokens=10_000, stream=streamed)
    request = asyncio.create_task(peer.post("/v1/chat/completions", body))
    await peer.until("vllm:num_requests_running", 1.0)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)
    await peer.until("vllm:num_requests_running", 0.0)
    metrics = await peer.metrics()
    assert metrics["vllm:kv_cache_usage_perc"] == 0
    assert metrics["vllm:request_success_totalabort"] == 1


async def test_health(peer: Peer) -> None:
    async with peer.client.get(peer.url + "/health") as response:
        assert response.status == 200


# Faults


async def test_a_stream_can_die_in_the_middle(peer: Peer) -> None:
    await peer.post("/faults", {"die_mid_stream": 3})
    received = b""
    with pytest.raises(aiohttp.ClientError):
        async with peer.client.post(f"{peer.url}/v1/chat/completions", json=chat("x", stream=True)) as response:
            async for piece in response.content.iter_any():
                received += piece
    assert 0 < received.count(b"data: ") <= 4
    assert b"[DONE]" not in received
    await peer.post("/faults", {"die_mid_stream": None})
    assert data_of(await peer.stream("/v1/chat/completions", chat("x")))[-1] == "[DONE]"


async def test_an_error_status_is_answered_to_generations_only(peer: Peer) -> None:
    await peer.post("/faults", {"error_status": 503})
    status, answer = await peer.post("/v1/chat/completions", chat("x"))
    assert (status, answer["error"]["code"]) == (503, 503)
    assert await peer.metrics()


async def test_a_stalled_server_takes_requests_and_goes_on_later(peer: Peer) -> None:
    await peer.post("/faults", {"stall": True})
    request = asyncio.create_task(peer.post("/v1/chat/completions", chat("x")))
    done, _ = await asyncio.wait([request], timeout=0.3)
    assert not done
    await peer.post("/faults", {"stall": False})
    assert (await request)[0] == 200


async def test_a_refusing_server_comes_back(peer: Peer) -> None:
    # A busy machine may come too late to see it away.
    for refuse_s in (0.3, 3.0, 30.0):
        await peer.post("/faults", {"refuse_s": refuse_s})
        refused = 0
        while True:
            try:
                async with peer.client.get(peer.url + "/faults") as response:
                    if (await response.json())["refuse_s"] == 0.0:
                        break
            except aiohttp.ClientError:
                refused += 1
            await asyncio.sleep(0.02)
        if refused:
            return
    raise AssertionError("it was never away")


async def test_metrics_can_be_slow(peer: Peer) -> None:
    await peer.post("/faults", {"slow_metrics_s": 5.0})
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(peer.metrics(), 0.2)


async def test_an_unknown_fault_is_named(peer: Peer) -> None:
    status, answer = await peer.post("/faults", {"explode": 1})
    assert status == 400
    assert "explode" in answer["error"]["message"]


# The load generator

MIX = Mix(duration_s=1.0, sessions_per_s=10.0, tenants=4, adapters=("lora-a", "lora-b"), pause_s=(0.0, 0.05))


async def test_a_workload_is_answered_and_measured(peer: Peer) -> None:
    workload = sessions(MIX, 3)
    seen: list[Sent | Result] = []
    results = await run(workload, peer.url, watch=seen.append)
    assert [result.error for result in results if not result.ok] == []
    assert len(results) == request_count(workload)
    assert {result.replica for result in results} == {peer.replica.name}
    assert all((result.ttft_s is not None) == result.stream for result in results)
    assert all(0 < (result.ttft_s or 0.001) <= result.e2e_s for result in results)
    assert [event for event in seen if isinstance(event, Result)] == results
    assert {event.id for event in seen if isinstance(event, Sent)} == {result.id for result in results}
    metrics = await peer.metrics()
    assert metrics["vllm:prompt_tokens_total"] == sum(result.prompt_tokens for result in results)
    assert metrics["vllm:prefix_cache_hits_total"] == sum(result.cached_tokens for result in results) > 0
    assert metrics["vllm:generation_tokens_total"] == sum(result.completion_tokens for result in results)


async def test_later_turns_carry_the_answers_before_them(peer: Peer) -> None:
    turns = tuple(Turn("go on", 12, stream, 0.0) for stream in (True, False, True))
    (first, second, third) = await run([Session("s", "t", 0.0, True, "base", "x" * 300, turns)], peer.url)
    for before, after in ((first, second), (second, third)):
        assert after.cached_tokens >= before.prompt_tokens // FAST.block_size * FAST.block_size
        assert after.prompt_tokens > before.prompt_tokens + before.completion_tokens


async def test_equal_workloads_are_equal_requests_whoever_answers(peer: Peer) -> None:
    workload = sessions(MIX, 4)
    once, again = [await run(workload, peer.url) for _ in range(2)]
    sizes = [{r.id: (r.prompt_tokens, r.completion_tokens, r.model) for r in results} for results in (once, again)]
    assert sizes[0] == sizes[1]


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("faults", "status", "error"),
    [
        ({"error_status": 503}, 503, "injected fault"),
        ({"die_mid_stream": 2}, 200, ""),
        ({"refuse_s": 30.0}, 0, ""),
    ],
)
async def test_what_fails_is_a_result_and_ends_its_session(
    peer: Peer, faults: dict[str, Any], status: int, error: str
) -> None:
    peer.replica.set_faults(**faults)
    if "refuse_s" in faults:
        await eventually(lambda: not listens(peer.replica.port))
    turn = Turn("hello", 10, True, 0.0)
    (result,) = await run([Session("s", "t", 0.0, True, "base", "x", (turn, turn))], peer.url)
    assert not result.ok
    assert result.status == status
    assert result.error and error in result.error


async def test_a_stream_that_just_ends_is_not_whole() -> None:
    async def half(request: web.Request) -> web.Response:
        chunk = b'data: {"choices": [{"delta": {"content": "hi"}}]}\n\n'
        return web.Response(body=chunk, content_type="text/event-stream")

    app = web.Application()
    app.router.add_post("/v1/chat/completions", half)
    async with TestServer(app, host="127.0.0.1") as server:
        turn = Turn("hello", 10, True, 0.0)
        session = Session("s", "t", 0.0, True, "base", "x", (turn,))
        (result,) = await run([session], f"http://127.0.0.1:{server.port}")
    assert result.ttft_s is not None
    assert result.error == "the stream ended without [DONE]"


async def test_a_cancelled_run_leaves_nothing_running(peer: Peer) -> None:
    peer.replica.set_faults(stall=True)
    task = asyncio.create_task(run(sessions(MIX, 3), peer.url))
    await eventually(lambda: peer.replica._live._generations)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    peer.replica.set_faults(stall=False)
    await peer.until("vllm:num_requests_running", 0.0)
    assert (await peer.metrics())["vllm:kv_cache_usage_perc"] == 0.0


# The process


async def test_the_command_says_where_it_listens_and_ends_cleanly() -> None:
    arguments = ["--port", "0", "--models", "base,lora-a", "--profile", "laptop", "--error-status", "500"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.replica", *arguments, stdout=-1, cwd=Path(__file__).parents[2]
    )
    assert process.stdout is not None
    line = (await process.stdout.readline()).decode()
    found = re.fullmatch(r"listening on (127\.0\.0\.1:\d+)\n", line)
    assert found
    async with aiohttp.ClientSession() as client, client.post(f"http://{found[1]}/v1/completions", json={}) as response:
        assert response.status == 500
    process.send_signal(signal.SIGTERM)
    assert await process.wait() == 0


async def test_the_load_command_prints_a_summary(peer: Peer) -> None:
    arguments = ["--url", peer.url, "--duration-s", "0.5", "--adapters", "lora-a,lora-b"]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.load", *arguments, stdout=-1, cwd=Path(__file__).parents[2]
    )
    output, _ = await process.communicate()
    assert process.returncode == 0
    assert re.search(r"cache hit rate +\d+%", output.decode())
