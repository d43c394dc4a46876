"""Sends a workload over HTTP and measures what a client sees."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import aiohttp
import msgspec

from bench.load.workload import Session, Turn

REPLICA_HEADER = "x-replica"


class Sent(msgspec.Struct, frozen=True):
    """A request has left. Times are seconds since the run began."""

    id: str
    model: str
    at_s: float


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One request, answered or failed.

    `ttft_s` is None where no token was seen to come first: no stream, or no answer. `status` is 0 when there was no HTTP
    answer, and `error` is then, or when a stream broke off, what went wrong. `replica` is the response header `x-replica`.
    Token counts are the server's `usage`, 0 where it reported none.
    """

    id: str
    tenant: str
    model: str
    chat: bool
    stream: bool
    sent_s: float
    status: int = 0
    ttft_s: float | None = None
    e2e_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    replica: str = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        """The answer came whole."""
        return self.status == 200 and not self.error


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0
    prompt_tokens_details: _Details | None = None


class _Text(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Text | None = None
    message: _Text | None = None

    @property
    def written(self) -> str:
        part = self.delta or self.message
        return (part.content if part else self.text) or ""


class _Answer(msgspec.Struct):
    """A whole answer or one chunk of a stream."""

    choices: list[_Choice] = []
    usage: _Usage | None = None


_decoder = msgspec.json.Decoder(_Answer)


class _Exchange:
    """One request under way, filled in as its answer comes."""

    def __init__(self) -> None:
        self.status = 0
        self.replica = ""
        self.error = ""
        self.first_s: float | None = None
        self.written: list[str] = []
        self.usage = _Usage()

    def take(self, data: bytes) -> bool:
        """Take in JSON of the answer. Whether it brought text. Raises msgspec.DecodeError."""
        answer = _decoder.decode(data)
        if answer.usage is not None:
            self.usage = answer.usage
        came = "".join(choice.written for choice in answer.choices)
        self.written.append(came)
        return bool(came)


Watch = Callable[[Sent | Result], None]
Target = Callable[[Session, Turn], str]


async def run(
    workload: Sequence[Session],
    url: str | Target,
    *,
    watch: Watch | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 120.0,
) -> list[Result]:
    """Send every session at its time, whether or not earlier ones are answered. Returns when the last answer is there.

    `url` is `http://host:port`, or says it for each request. A session whose request fails sends no more. `watch` is
    called on this loop with every request sent and every result. Cancelling this ends all requests and closes all connections.
    """
    target: Target = (lambda session, turn: url) if isinstance(url, str) else url
    timeout = aiohttp.ClientTimeout(total=timeout_s)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector, headers=headers) as client:
        running = _Run(client, target, watch or (lambda _: None))
        async with asyncio.TaskGroup() as group:
            for session in workload:
                group.create_task(running.play(session))
    return running.results


class _Run:
    def __init__(self, client: aiohttp.ClientSession, target: Target, watch: Watch) -> None:
        self.results: list[Result] = []
        self._client = client
        self._target = target
        self._watch = watch
        self._loop = asyncio.get_running_loop()
        self._zero_s = self._loop.time()

    async def play(self, session: Session) -> None:
        """One session, from its arrival to its last answer."""
        await asyncio.sleep(session.at_s - self._now_s())
        messages = [{"role": "system", "content": session.opening}]
        for number, turn in enumerate(session.turns):
            if number:
                await asyncio.sleep(turn.pause_s)
            messages.append({"role": "user", "content": turn.text})
            result, answer = await self._request(session, turn, f"{session.id}.{number}", messages)
            self.results.append(result)
            self._watch(result)
            if not result.ok:
                return
            messages.append({"role": "assistant", "content": answer})

    async def _request(
        self, session: Session, turn: Turn, id: str, messages: list[dict[str, str]]
    ) -> tuple[Result, str]:
        path, body = _body(session, turn, messages)
        sent_s = self._now_s()
        self._watch(Sent(id, session.model, sent_s))
        exchange = _Exchange()
        try:
            await self._exchange(exchange, self._target(session, turn) + path, body, id)
        except (aiohttp.ClientError, OSError, TimeoutError, msgspec.DecodeError) as error:
            exchange.error = f"{type(error).__name__}: {error}"
        details = exchange.usage.prompt_tokens_details
        result = Result(
            id=id,
            tenant=session.tenant,
            model=session.model,
            chat=session.chat,
            stream=turn.stream,
            sent_s=sent_s,
            status=exchange.status,
            ttft_s=None if exchange.first_s is None else exchange.first_s - sent_s,
            e2e_s=self._now_s() - sent_s,
            prompt_tokens=exchange.usage.prompt_tokens,
            cached_tokens=(details.cached_tokens or 0) if details else 0,
            completion_tokens=exchange.usage.completion_tokens or 0,
            replica=exchange.replica,
            error=exchange.error,
        )
        return result, "".join(exchange.written)

    async def _exchange(self, exchange: _Exchange, url: str, body: bytes, id: str) -> None:
        headers = {"content-type": "application/json", "x-request-id": id}
        async with self._client.post(url, data=body, headers=headers) as response:
            exchange.status = response.status
            exchange.replica = response.headers.get(REPLICA_HEADER, "")
            if response.status != 200:
                exchange.error = (await response.text())[:500] or "no body"
            elif response.content_type == "text/event-stream":
                await self._read_stream(exchange, response)
            else:
                exchange.take(await response.read())

    async def _read_stream(self, exchange: _Exchange, response: aiohttp.ClientResponse) -> None:
        async for line in response.content:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            if exchange.take(data) and exchange.first_s is None:
                exchange.first_s = self._now_s()
        exchange.error = "the stream ended without [DONE]"

    def _now_s(self) -> float:
        return self._loop.time() - self._zero_s


def _body(session: Session, turn: Turn, messages: list[dict[str, str]]) -> tuple[str, bytes]:
    """(path, JSON) of a request."""
    body: dict[str, Any] = {"model": session.model}
    if session.chat:
        body["messages"] = messages
    else:
        body["prompt"] = session.opening + turn.text
    if turn.max_tokens is not None:
        body["max_tokens"] = turn.max_tokens
    if turn.stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    return "/v1/chat/completions" if session.chat else "/v1/completions", msgspec.json.encode(body)
