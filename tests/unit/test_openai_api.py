"""Which path speaks which API."""

from __future__ import annotations

import pytest

from epp.openai.api import Kind, kind_of

PATHS = {
    "/v1/chat/completions": Kind.CHAT,
    "/v1/chat/completions/": Kind.CHAT,
    "/v1/chat/completions?api-version=2024-10-21": Kind.CHAT,
    "/team-a/llama/v1/chat/completions": Kind.CHAT,
    "/openai/deployments/gpt/chat/completions": Kind.CHAT,
    "/chat/completions": Kind.CHAT,
    "/v1/completions": Kind.COMPLETIONS,
    "/v1/responses": Kind.RESPONSES,
    "/anthropic/v1/messages": Kind.MESSAGES,
    "/v1/messages?beta=true": Kind.MESSAGES,
    "/v1/messages/count_tokens": Kind.COUNT_TOKENS,
    "/v1/embeddings": Kind.EMBEDDINGS,
    "/pooling": Kind.POOLING,
    "/classify": Kind.POOLING,
    "/rerank": Kind.RERANK,
    "/v2/rerank": Kind.RERANK,
    "/v1/score": Kind.RERANK,
    "/tokenize": Kind.TOKENIZE,
    "/detokenize": Kind.TOKENIZE,
    "/v1/chat/completions/render": Kind.RENDER,
    "/v1/completions/render": Kind.RENDER,
    "/v1/conversations": Kind.CONVERSATIONS,
    "/v1/images/generations": Kind.IMAGES,
    "/inference/v1/generate": Kind.GENERATE,
    "/generate": Kind.GENERATE,
    "/" + "x" * 70_000 + "/v1/chat/completions?" + "y" * 1_000: Kind.CHAT,
    "/": Kind.OPAQUE,
    "/v1/models": Kind.OPAQUE,
    "/health": Kind.OPAQUE,
    "/v1/audio/transcriptions": Kind.OPAQUE,
    "/v1/responses/resp_123": Kind.OPAQUE,
    "/v1/threads/thread_1/messages": Kind.OPAQUE,
    "/v1/xcompletions": Kind.OPAQUE,
    "/completions/v1": Kind.OPAQUE,
    "/v1/CHAT/COMPLETIONS": Kind.OPAQUE,
}


@pytest.mark.parametrize(("path", "kind"), PATHS.items(), ids=[path[-40:] for path in PATHS])
def test_path_decides(path: str, kind: Kind) -> None:
    assert kind_of({":path": path}) is kind


def test_first_path_header_present_decides() -> None:
    assert kind_of({"x-original-path": "/v1/embeddings", "x-forwarded-path": "/v1/completions"}) is Kind.EMBEDDINGS
    assert kind_of({"x-forwarded-path": "/v1/completions"}) is Kind.COMPLETIONS
    assert kind_of({":path": "/v1/models", "x-original-path": "/v1/embeddings"}) is Kind.OPAQUE


def test_no_path_is_not_an_unknown_path() -> None:
    assert kind_of({}) is None
    assert kind_of({":path": ""}) is None
