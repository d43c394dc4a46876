"""Which API a request speaks, told by the end of its path."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from functools import lru_cache


class Kind(enum.Enum):
    """What a request asks of a model server. The value is a name for logs and metric labels."""

    CHAT = "chat_completions"
    COMPLETIONS = "completions"
    RESPONSES = "responses"
    MESSAGES = "messages"
    EMBEDDINGS = "embeddings"
    POOLING = "pooling"
    RERANK = "rerank"
    GENERATE = "generate"
    IMAGES = "images"
    COUNT_TOKENS = "count_tokens"
    TOKENIZE = "tokenize"
    RENDER = "render"
    CONVERSATIONS = "conversations"
    OPAQUE = "opaque"

    # Members are keys on the request path: by identity it is a C call, by name, as enums have it, a Python function.
    __hash__ = object.__hash__


SUFFIXES: dict[str, Kind] = {
    "chat/completions": Kind.CHAT,
    "completions": Kind.COMPLETIONS,
    "responses": Kind.RESPONSES,
    "messages": Kind.MESSAGES,
    "messages/count_tokens": Kind.COUNT_TOKENS,
    "embeddings": Kind.EMBEDDINGS,
    "pooling": Kind.POOLING,
    "classify": Kind.POOLING,
    "rerank": Kind.RERANK,
    "score": Kind.RERANK,
    "generate": Kind.GENERATE,
    "inference/v1/generate": Kind.GENERATE,
    "images/generations": Kind.IMAGES,
    "tokenize": Kind.TOKENIZE,
    "detokenize": Kind.TOKENIZE,
    "chat/completions/render": Kind.RENDER,
    "completions/render": Kind.RENDER,
    "conversations": Kind.CONVERSATIONS,
}
"""Ends of paths, whole segments; what stands before them (`/v1`, a gateway's prefix) does not matter. Longest wins."""

NAMES_MODEL = frozenset({Kind.CHAT, Kind.COMPLETIONS, Kind.RESPONSES, Kind.MESSAGES, Kind.EMBEDDINGS})
"""Kinds whose body must name a model. The other kinds have servers that serve one model and let it be left out."""

COMPUTES_NOTHING = frozenset({Kind.COUNT_TOKENS, Kind.TOKENIZE, Kind.RENDER, Kind.CONVERSATIONS})
"""Kinds that a server answers without its accelerator: they carry text, but no prompt that costs or fills a cache."""

_END_CHARS = 200
"""How much of a path is looked at, without its query. A path no longer than that is remembered with its kind."""

PATH_HEADERS = (":path", "x-original-path", "x-forwarded-path")


def kind_of(headers: Mapping[str, str]) -> Kind | None:
    """The kind by the first path header present; `Kind.OPAQUE` for a path that is not known, None for no path at all.

    `headers` are lower case. The query and trailing slashes do not count.
    """
    for name in PATH_HEADERS:
        path = headers.get(name)
        if path:
            return _remembered(path) if len(path) <= _END_CHARS else _by_path(path)
    return None


def _by_path(path: str) -> Kind:
    path = path.partition("?")[0][-_END_CHARS:]
    segments = [segment for segment in path.split("/") if segment]
    # OpenAI's Assistants API ends in "messages" as well, without a model: /v1/threads/{id}/messages.
    if "threads" in segments:
        return Kind.OPAQUE
    for length in (3, 2, 1):
        kind = SUFFIXES.get("/".join(segments[-length:]))
        if kind is not None:
            return kind
    return Kind.OPAQUE


_remembered = lru_cache(maxsize=1024)(_by_path)
