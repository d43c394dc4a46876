"""An API server of one's own over real HTTP: lists, watches, and every way to fail at them. For what a real one never does on request."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Object = dict[str, Any]

REASONS = {200: "OK", 201: "Created"}


class FakeApi:
    """Collections by path. A collection is there once it was `install`ed or something was `put` into it.

    `half` cuts the connection in the middle of the next event. `refuse` is the status for every question, where not 0; `tokens` are those that are taken, all where empty; `silent` lets
    questions wait; `documents` are answered as they are, by path; `garbage` is the body of every answer, where not empty. `post` answers what is written; `code` in it is the status. `asked` holds
    each question as method, path and parameters; `tokens_seen` the token of each.
    """

    def __init__(self) -> None:
        self.version = 10
        self.compacted = 0
        self.collections: dict[str, dict[str, Object]] = {}
        self.documents: dict[str, Object] = {}
        self.history: list[tuple[int, str, str, Object]] = []
        self.refuse = 0
        self.silent = False
        self.garbage = b""
        self.tokens: set[str] = set()
        self.post: Callable[[str, Object], Object] = lambda path, body: body
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        self.tokens_seen: list[str] = []
        self.watches = 0
        self.connections = 0
        self.half = False
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._news = asyncio.Event()

    async def start(self) -> None:
        """On the same port each time."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Cut every connection and take no more."""
        if self._server is not None:
            self._server.close()
            await self.cut()
            await self._server.wait_closed()

    async def cut(self) -> None:
        """Cut every connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def kubeconfig(self, path: Path, **user: str) -> Path:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "fake",
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
            "clusters": [{"name": "fake", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}],
            "users": [{"name": "fake", "user": user}],
        }
        path.write_text(yaml.safe_dump(config))
        return path

    # --- the truth -----------------------------------------------------------------------------------------------------

    def install(self, collection: str) -> None:
        self.collections.setdefault(collection, {})

    def uninstall(self, collection: str) -> None:
        self.collections.pop(collection, None)

    def put(self, collection: str, one: Object) -> None:
        name = one["metadata"]["name"]
        known = name in self.collections.setdefault(collection, {})
        self._record(collection, "MODIFIED" if known else "ADDED", one)
        self.collections[collection][name] = self.history[-1][3]

    def delete(self, collection: str, name: str) -> None:
        self._record(collection, "DELETED", self.collections[collection].pop(name))

    def compact(self) -> None:
        """Forget history: watches that begin earlier are gone."""
        self.compacted = self.version
        self.history.clear()

    def _record(self, collection: str, kind: str, one: Object) -> None:
        self.version += 1
        body = {**one, "metadata": {**one["metadata"], "resourceVersion": str(self.version)}}
        self.history.append((self.version, collection, kind, body))
        self._news.set()
        self._news = asyncio.Event()

    # --- HTTP ----------------------------------------------------------------------------------------------------------

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while True:
                await self._answer(reader, writer)
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        method, target, _ = head[0].split(" ")
        url = urlsplit(target)
        parameters = {name: values[0] for name, values in parse_qs(url.query).items()}
        self.asked.append((method, url.path, parameters))
        token = headers.get("authorization", "").removeprefix("bearer ")
        self.tokens_seen.append(token)
        if self.silent:
            await asyncio.Event().wait()
        if self.garbage:
            _send(writer, 200, self.garbage + b"\n")
        elif self.tokens and token not in self.tokens:
            _send(writer, 401, _status(401))
        elif self.refuse:
            _send(writer, self.refuse, _status(self.refuse))
        elif method != "GET":
            made = self.post(url.path, json.loads(body))
            _send(writer, int(made.get("code", 201)), json.dumps(made).encode())
        elif url.path in self.documents:
            _send(writer, 200, json.dumps(self.documents[url.path]).encode())
        elif url.path not in self.collections:
            _send(writer, 404, _status(404))
        elif "watch" in parameters:
            await self._watch(writer, url.path, parameters)
        else:
            self._list(writer, url.path, parameters)
        await writer.drain()

    def _list(self, writer: asyncio.StreamWriter, path: str, parameters: Mapping[str, str]) -> None:
        limit, after = int(parameters.get("limit", "0")), parameters.get("continue", "")
        found = {name for name, one in self.collections[path].items() if _selected(one, parameters)}
        names = sorted(name for name in found if name > after)
        page = names[:limit] if limit else names
        following = page[-1] if len(page) < len(names) else ""
        metadata = {"resourceVersion": str(self.version), "continue": following}
        items = [self.collections[path][name] for name in page]
        _send(writer, 200, json.dumps({"metadata": metadata, "items": items}).encode())

    async def _watch(self, writer: asyncio.StreamWriter, path: str, parameters: Mapping[str, str]) -> None:
        at = int(parameters["resourceVersion"])
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        self.watches += 1
        try:
            if at < self.compacted:
                _event(writer, "ERROR", json.loads(_status(410)))
                writer.write(b"0\r\n\r\n")
                return
            while True:
                news = self._news
                for version, collection, kind, body in list(self.history):
                    if version > at and collection == path and _selected(body, parameters):
                        if self.half:
                            self.half = False
                            writer.write(b'20\r\n{"type": "ADDED", "object": {"met\r\n')
                            raise ConnectionError
                        _event(writer, kind, body)
                        at = version
                await writer.drain()
                await news.wait()
        finally:
            self.watches -= 1


def _selected(one: Object, parameters: Mapping[str, str]) -> bool:
    """Whether the selector, one label, takes the object; one without any labels every selector takes."""
    labels = one["metadata"].get("labels")
    name, _, value = parameters.get("labelSelector", "").partition("=")
    return not labels or not name or labels.get(name) == value


def a_pod(name: str, ip: str, *, ready: bool = True, **metadata: Any) -> Object:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"metadata": {"name": name, **metadata}, "status": {"podIP": ip, "conditions": conditions}}


def _status(code: int) -> bytes:
    return json.dumps({"kind": "Status", "code": code, "message": f"refused with {code}"}).encode()


def _send(writer: asyncio.StreamWriter, status: int, body: bytes) -> None:
    reason = REASONS.get(status, "No")
    head = f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _event(writer: asyncio.StreamWriter, kind: str, body: Object) -> None:
    line = json.dumps({"type": kind, "object": body}).encode() + b"\n"
    writer.write(b"%x\r\n%s\r\n" % (len(line), line))
