"""The simulated server's face: OpenAI endpoints, vLLM's `/metrics`, adapter loading, and faults on demand."""

from __future__ import annotations

import asyncio
import base64
import random
import struct
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import msgspec
import xxhash
from aiohttp import web

from bench.replica.dialects import (
    DIALECTS,
    Ask,
    Dialect,
    Refusal,
    Stamp,
    bad_request,
    parse,
    plain_prompts,
    unknown_model,
)
from bench.replica.live import Generation, LiveEngine
from bench.replica.page import Page
from bench.replica.profiles import Profile
from bench.replica.sse import answers, events, usage
from bench.replica.text import token_count

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]

MAX_BODY_BYTES = 64 * 1024 * 1024
EMBEDDING_DIMENSIONS = 64
REPLICA_HEADER = "x-replica"


class Faults(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is wrong with the server. `POST /faults` with some of these fields changes them and leaves the others.

    `refuse_s`: connections are refused, and open ones broken, for so long from now. `stall`: requests are taken, and no token
    comes. `die_mid_stream`: the connection breaks after so many chunks of a stream. `error_status`: generations
    are answered with this status. `slow_metrics_s`: `/metrics` takes so much longer.
    """

    refuse_s: float = 0.0
    stall: bool = False
    die_mid_stream: int | None = None
    error_status: int | None = None
    slow_metrics_s: float = 0.0


NO_FAULTS = Faults()


class LoraAdapter(msgspec.Struct):
    """Body of the adapter endpoints."""

    lora_name: str = ""
    lora_path: str = ""


class Replica:
    """One simulated server on 127.0.0.1. `models` are the base model and the adapters it starts with.

    `stream_interval` is how many tokens a chunk of a stream has, as vLLM's setting of that name. `name` is what the
    response header `x-replica` says, by default `127.0.0.1:port`. Make it on a running loop; `start` before use, `close` after.
    """

    def __init__(
        self,
        profile: Profile,
        models: Sequence[str] = ("base",),
        *,
        name: str = "",
        time_scale: float = 1.0,
        stream_interval: int = 1,
        real_size_page: bool = False,
        faults: Faults = NO_FAULTS,
    ) -> None:
        self.name = name
        self.faults = faults
        self.port = 0
        self._live = LiveEngine(profile, time_scale)
        self._profile = profile
        self._base, *adapters = models
        self._adapters = dict.fromkeys(adapters)
        self._stream_interval = stream_interval
        self._started_unix_s = time.time()
        self._page = Page(
            profile,
            self._base,
            lora=profile.max_loras > 0,
            real_size=real_size_page,
            started_unix_s=self._started_unix_s,
        )
        self._runner = web.AppRunner(self._application(), handler_cancellation=True, access_log=None)
        self._listener: asyncio.Server | None = None
        self._comeback: asyncio.Task[None] | None = None

    async def start(self, port: int = 0) -> int:
        """Listen. Returns the port. Raises OSError when it is in use."""
        await self._runner.setup()
        self.port = port
        await self._listen()
        self.name = self.name or f"127.0.0.1:{self.port}"
        self._apply(self.faults)
        return self.port

    async def close(self) -> None:
        """Stop listening and break what is open."""
        if self._comeback is not None:
            self._comeback.cancel()
        self._vanish()
        await self._runner.cleanup()
        self._live.close()

    # Faults

    def set_faults(self, **changes: object) -> None:
        """Change some faults at once. Raises msgspec.ValidationError for an unknown field or a wrong type."""
        self._apply(msgspec.convert({**msgspec.structs.asdict(self.faults), **changes}, Faults))

    def _apply(self, faults: Faults) -> None:
        self.faults = faults
        if faults.stall:
            self._live.stall()
        else:
            self._live.resume()
        if faults.refuse_s > 0 and self._comeback is None:
            self._comeback = asyncio.get_running_loop().create_task(self._refuse(faults.refuse_s))

    async def _refuse(self, seconds: float) -> None:
        # The answer to the request that asked for this leaves first.
        await asyncio.sleep(0.02)
        self._vanish()
        await asyncio.sleep(seconds)
        await self._listen()
        self.faults = msgspec.structs.replace(self.faults, refuse_s=0.0)
        self._comeback = None

    async def _listen(self) -> None:
        server = self._runner.server
        assert server is not None
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(server, "127.0.0.1", self.port, backlog=1024)
        self.port = self._listener.sockets[0].getsockname()[1]

    def _vanish(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        server = self._runner.server
        for connection in list(server.connections) if server is not None else ():
            _abort(connection.transport)

    async def _show_faults(self, request: web.Request) -> web.Response:
        return _json(msgspec.structs.asdict(self.faults))

    async def _change_faults(self, request: web.Request) -> web.Response:
        try:
            self.set_faults(**msgspec.json.decode(await request.read(), type=dict[str, Any]))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise bad_request(str(error)) from error
        return await self._show_faults(request)

    # Generation

    def _application(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[self._sign])
        app.add_routes([web.post(path, self._generator(dialect)) for path, dialect in DIALECTS.items()])
        app.add_routes(
            [
                web.post("/v1/embeddings", self._embeddings),
                web.get("/v1/models", self._models),
                web.post("/v1/load_lora_adapter", self._load_adapter),
                web.post("/v1/unload_lora_adapter", self._unload_adapter),
                web.get("/metrics", self._metrics),
                web.get("/health", self._health),
                web.get("/faults", self._show_faults),
                web.post("/faults", self._change_faults),
            ]
        )
        return app

    @web.middleware
    async def _sign(self, request: web.Request, handler: Respond) -> web.StreamResponse:
        """Name the server in the answer, and turn refusals into answers."""
        try:
            response = await handler(request)
        except Refusal as refusal:
            response = web.Response(status=refusal.status, body=refusal.body(), content_type="application/json")
        if not response.prepared:
            response.headers[REPLICA_HEADER] = self.name
        return response

    def _generator(self, dialect: Dialect) -> Respond:
        async def generate(request: web.Request) -> web.StreamResponse:
            ask = await self._ask(request)
            generations = self._start(ask, dialect.prompts(ask) * max(1, ask.n or 1))
            stamp = Stamp(uuid.uuid4().hex, ask.model, int(time.time()))
            try:
                if ask.stream:
                    return await self._stream(request, ask, dialect, stamp, generations)
                for generation in generations:
                    await generation.reach(generation.output_tokens)
                return _json(dialect.whole(stamp, answers(generations), usage(generations)))
            finally:
                self._give_up(generations)

        return generate

    async def _ask(self, request: web.Request) -> Ask:
        body = await request.read()
        if self.faults.error_status is not None:
            raise Refusal(self.faults.error_status, "InternalServerError", "injected fault")
        ask = parse(body)
        if ask.model != self._base and ask.model not in self._adapters:
            raise unknown_model(ask.model)
        if ask.limit is not None and ask.limit < 1:
            raise bad_request(f"max_tokens must be at least 1, got {ask.limit}.", "max_tokens")
        return ask

    def _start(self, ask: Ask, prompts: Sequence[bytes], *, embed: bool = False) -> list[Generation]:
        """Raises Refusal (400), and starts nothing, when one of the prompts is too long."""
        longest = self._profile.longest
        least = 0 if embed else ask.limit or 1
        for prompt in prompts:
            if token_count(prompt) + least > longest:
                message = f"This model's maximum context length is {longest} tokens. However, you requested {least} "
                raise bad_request(
                    f"{message}output tokens and your prompt contains {token_count(prompt)} input tokens."
                )
        adapter = ask.model if ask.model in self._adapters else None
        salt = ask.cache_salt or ""
        return [self._live.generate(prompt, ask.limit, adapter=adapter, salt=salt, embed=embed) for prompt in prompts]

    def _give_up(self, generations: Iterable[Generation]) -> None:
        for generation in generations:
            self._live.give_up(generation)

    async def _stream(
        self, request: web.Request, ask: Ask, dialect: Dialect, stamp: Stamp, generations: Sequence[Generation]
    ) -> web.StreamResponse:
        headers = {"content-type": "text/event-stream; charset=utf-8", REPLICA_HEADER: self.name}
        response = web.StreamResponse(headers=headers)
        # The headers leave once the frontend is through with the request, long before the first token.
        await asyncio.sleep(self._live.frontend_s)
        await response.prepare(request)
        include_usage = ask.stream_options is not None and ask.stream_options.include_usage
        chunks = 0
        async for chunk in events(dialect, stamp, generations, self._stream_interval, include_usage):
            await response.write(chunk)
            chunks += 1
            if chunks == self.faults.die_mid_stream:
                _abort(request.transport)
        await response.write_eof()
        return response

    async def _embeddings(self, request: web.Request) -> web.Response:
        ask = await self._ask(request)
        prompts = plain_prompts(ask.input, "input")
        generations = self._start(ask, prompts, embed=True)
        try:
            for generation in generations:
                await generation.reach(0)
        finally:
            self._give_up(generations)
        base64_wanted = ask.encoding_format == "base64"
        data = [
            {"index": i, "object": "embedding", "embedding": _embedding(prompt, base64_wanted)}
            for i, prompt in enumerate(prompts)
        ]
        return _json({"object": "list", "model": ask.model, "data": data, "usage": usage(generations).chat()})

    # Models, metrics, health

    async def _models(self, request: web.Request) -> web.Response:
        created = {"object": "model", "created": int(self._started_unix_s), "owned_by": "vllm"}
        data = [{"id": self._base, **created, "root": self._base, "parent": None}]
        data += [{"id": name, **created, "root": name, "parent": self._base} for name in self._adapters]
        return _json({"object": "list", "data": data})

    async def _load_adapter(self, request: web.Request) -> web.Response:
        asked = await _adapter(request)
        if not asked.lora_name or not asked.lora_path:
            raise bad_request("Both 'lora_name' and 'lora_path' must be provided.")
        if asked.lora_name in self._adapters:
            raise bad_request(f"The lora adapter '{asked.lora_name}' has already been loaded.")
        self._adapters[asked.lora_name] = None
        return web.Response(text=f"Success: LoRA adapter '{asked.lora_name}' added successfully.")

    async def _unload_adapter(self, request: web.Request) -> web.Response:
        asked = await _adapter(request)
        if asked.lora_name not in self._adapters:
            raise Refusal(404, "NotFoundError", f"The lora adapter '{asked.lora_name}' cannot be found.")
        del self._adapters[asked.lora_name]
        self._live.forget_adapter(asked.lora_name)
        return web.Response(text=f"Success: LoRA adapter '{asked.lora_name}' removed successfully.")

    async def _metrics(self, request: web.Request) -> web.Response:
        if self.faults.slow_metrics_s:
            await asyncio.sleep(self.faults.slow_metrics_s)
        page = self._page.render(self._live.stats(), self._live.observed, time.time())
        headers = {"content-type": "text/plain; version=0.0.4; charset=utf-8"}
        return web.Response(body=page, headers=headers)

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response()


async def _adapter(request: web.Request) -> LoraAdapter:
    try:
        return msgspec.json.decode(await request.read(), type=LoraAdapter)
    except msgspec.DecodeError as error:
        raise bad_request(str(error)) from error


def _json(data: dict[str, Any]) -> web.Response:
    return web.Response(body=msgspec.json.encode(data), content_type="application/json")


def _abort(transport: asyncio.BaseTransport | None) -> None:
    """Break a connection with a reset instead of an orderly end."""
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()


def _embedding(prompt: bytes, base64_wanted: bool) -> list[float] | str:
    chance = random.Random(xxhash.xxh3_64_intdigest(prompt))
    vector = [chance.gauss(0.0, EMBEDDING_DIMENSIONS**-0.5) for _ in range(EMBEDDING_DIMENSIONS)]
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() if base64_wanted else vector
