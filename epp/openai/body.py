"""What a request body says that matters for routing: read once, nothing else judged."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import msgspec
from msgspec import Raw, Struct

from epp.drops import Drop, Reason
from epp.openai.api import COMPUTES_NOTHING, NAMES_MODEL, Kind, kind_of
from epp.openai.canonical import NOTHING, UNREADABLE, Message, conversation, flat, given, string, texts
from epp.openai.scan import mend

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_LIST_OF_OBJECTS = re.compile(rb"\[\s*\{")


class Parsed(Struct, frozen=True, gc=False):
    """A request body as routing sees it.

    `model` is "" where the body names none. `prompts` are canonical prompt bytes (`epp.openai.canonical`), one for each
    prompt of the request; empty where a request has none, or costs a server nothing. `prompt_bytes` is their length
    together. `max_tokens` is the client's limit on the answer. `cache_salt` is "" where there is none.
    """

    kind: Kind
    model: str = ""
    stream: bool = False
    max_tokens: int | None = None
    cache_salt: str = ""
    prompts: tuple[bytes, ...] = ()
    prompt_bytes: int = 0


OPAQUE = Parsed(Kind.OPAQUE)
"""A request of which nothing is known: routed by load, never refused."""


class _Body(Struct, gc=False):
    """Every field is raw, so that no value of it, however odd, fails to decode."""

    model: Raw = NOTHING
    stream: Raw = NOTHING
    cache_salt: Raw = NOTHING


class _Chat(_Body, gc=False):
    messages: list[Message] | None = None
    tools: Raw = NOTHING
    documents: Raw = NOTHING
    max_tokens: Raw = NOTHING
    max_completion_tokens: Raw = NOTHING


class _Messages(_Body, gc=False):
    messages: list[Message] | None = None
    tools: Raw = NOTHING
    system: Raw = NOTHING
    max_tokens: Raw = NOTHING


class _Completions(_Body, gc=False):
    prompt: Raw = NOTHING
    max_tokens: Raw = NOTHING


class _Responses(_Body, gc=False):
    input: list[Message] | str | None = None
    tools: Raw = NOTHING
    instructions: Raw = NOTHING
    max_output_tokens: Raw = NOTHING


class _Embeddings(_Body, gc=False):
    input: Raw = NOTHING
    messages: list[Message] | None = None


class _Rerank(_Body, gc=False):
    query: Raw = NOTHING
    queries: Raw = NOTHING
    text_1: Raw = NOTHING
    items: Raw = NOTHING
    documents: Raw = NOTHING
    texts: Raw = NOTHING
    text_2: Raw = NOTHING


class _Generate(_Body, gc=False):
    token_ids: Raw = NOTHING
    input_ids: Raw = NOTHING
    text: Raw = NOTHING
    prompt: Raw = NOTHING
    sampling_params: Raw = NOTHING


class _Sampling(Struct, gc=False):
    max_tokens: Raw = NOTHING
    max_new_tokens: Raw = NOTHING


class _Shape(_Body, gc=False):
    """The fields that tell one API from another where there is no path."""

    messages: Raw = NOTHING
    system: Raw = NOTHING
    prompt: Raw = NOTHING
    input: Raw = NOTHING
    query: Raw = NOTHING
    token_ids: Raw = NOTHING
    input_ids: Raw = NOTHING


_Read = tuple[_Body, tuple[bytes, ...], int | None]
"""The fields of a body, its prompts, and the limit on its answer."""

_decode_body = msgspec.json.Decoder(_Body).decode
_decode_chat = msgspec.json.Decoder(_Chat).decode
_decode_messages = msgspec.json.Decoder(_Messages).decode
_decode_completions = msgspec.json.Decoder(_Completions).decode
_decode_responses = msgspec.json.Decoder(_Responses).decode
_decode_embeddings = msgspec.json.Decoder(_Embeddings).decode
_decode_rerank = msgspec.json.Decoder(_Rerank).decode
_decode_generate = msgspec.json.Decoder(_Generate).decode
_decode_sampling = msgspec.json.Decoder(_Sampling).decode
_decode_shape = msgspec.json.Decoder(_Shape).decode


MAX_VALUES = 100_000
"""Lists and objects of a body that are looked into, and half the strings. One with more is its own prompt, as the bytes stand: 14 MB
of tiny messages would hold up the loop for 2 s and take 300 MB, where 100,000 lists and objects take 0.2 s at most."""


ALWAYS_READ_BYTES = 1_000_000
"""A body up to this long is not counted through, which takes 1 ms per MB: reading it can take 0.2 s at the very worst."""


def parse(headers: Mapping[str, str], body: bytes, *, truncated: bool = False) -> Parsed:
    """Read `body` as the API named by the path (or by the body's own shape where no header has a path) has it.

    `headers` are lower case. `truncated` says that `body` is only the beginning: then what it has is taken and nothing
    is refused. Raises Drop (bad request) where a kind that names a model has no JSON object, no model, or no messages.
    """
    kind = kind_of(headers)
    if kind is Kind.OPAQUE or _is_unreadable(headers):
        return OPAQUE
    body = body.removeprefix(BYTE_ORDER_MARK)
    if truncated:
        body = mend(body)
    if kind is None:
        kind = _kind_by_shape(body)
        if kind is Kind.OPAQUE:
            return OPAQUE
    try:
        parsed = _read(kind, body)
    except UNREADABLE as error:
        if truncated or kind not in NAMES_MODEL:
            return Parsed(kind)
        raise _bad_request(_not_json(body, error)) from None
    if not (parsed.model and parsed.prompts) and kind in NAMES_MODEL and not truncated:
        _check(parsed, body)
    return parsed


def _is_unreadable(headers: Mapping[str, str]) -> bool:
    """Whether the body is not JSON text as it stands: no body by its method, compressed, or multipart."""
    if headers.get(":method", "POST") != "POST":
        return True
    encoding = headers.get("content-encoding")
    if encoding is not None and encoding.strip().lower() not in ("", "identity"):
        return True
    content_type = headers.get("content-type")
    return (
        content_type is not None
        and content_type != "application/json"
        and content_type.lower().startswith("multipart/")
    )


def _read(kind: Kind, body: bytes) -> Parsed:
    try:
        fields, prompts, max_tokens = (
            READERS[kind](body)
            if len(body) <= ALWAYS_READ_BYTES or READERS[kind] is _free or not _is_crowded(body)
            else _as_text(body)
        )
    except msgspec.ValidationError:
        # A prompt in a form that no server knows: still routed by its model.
        fields, prompts, max_tokens = _free(body)
    return Parsed(
        kind,
        string(fields.model) or "",
        fields.stream is not NOTHING and bytes(fields.stream) == b"true",
        max_tokens,
        "" if fields.cache_salt is NOTHING else string(fields.cache_salt) or "",
        prompts,
        len(prompts[0]) if len(prompts) == 1 else sum(map(len, prompts)),
    )


def _is_crowded(body: bytes) -> bool:
    """Whether there is more in it than `MAX_VALUES`, also by what stands within strings."""
    return body.count(b"{") + body.count(b"[") > MAX_VALUES or body.count(b'"') > 4 * MAX_VALUES


def _kind_by_shape(body: bytes) -> Kind:
    try:
        shape = _decode_shape(body)
    except UNREADABLE:
        return Kind.OPAQUE
    if shape.token_ids is not NOTHING or shape.input_ids is not NOTHING:
        return Kind.GENERATE
    if shape.query is not NOTHING:
        return Kind.RERANK
    if shape.model is NOTHING:
        return Kind.OPAQUE
    if shape.messages is not NOTHING:
        return Kind.CHAT if shape.system is NOTHING else Kind.MESSAGES
    if shape.prompt is not NOTHING:
        return Kind.COMPLETIONS
    if shape.input is not NOTHING:
        return Kind.RESPONSES if _LIST_OF_OBJECTS.match(shape.input) else Kind.EMBEDDINGS
    return Kind.OPAQUE


# --- One reader for each kind ----------------------------------------------------------------------------------------


def _chat(body: bytes) -> _Read:
    fields = _decode_chat(body)
    limit = _limit(fields.max_tokens, fields.max_completion_tokens)
    if not fields.messages:
        return fields, (), limit
    return fields, (conversation((fields.tools, fields.documents), NOTHING, fields.messages),), limit


def _messages(body: bytes) -> _Read:
    fields = _decode_messages(body)
    limit = _limit(fields.max_tokens)
    if not fields.messages:
        return fields, (), limit
    return fields, (conversation((fields.tools,), fields.system, fields.messages),), limit


def _completions(body: bytes) -> _Read:
    fields = _decode_completions(body)
    return fields, texts(given(fields.prompt)), _limit(fields.max_tokens)


def _responses(body: bytes) -> _Read:
    fields = _decode_responses(body)
    items = fields.input
    if isinstance(items, str):
        items = [Message(role=_USER, content=Raw(msgspec.json.encode(items)))]
    prompt = conversation((fields.tools,), fields.instructions, items or [])
    return fields, (prompt,) if prompt else (), _limit(fields.max_output_tokens)


def _embeddings(body: bytes) -> _Read:
    fields = _decode_embeddings(body)
    if fields.messages:
        return fields, (conversation((), NOTHING, fields.messages),), None
    return fields, texts(given(fields.input)), None


def _rerank(body: bytes) -> _Read:
    """Query and documents as one prompt: a reranker caches no prefixes, so only the size matters."""
    fields = _decode_rerank(body)
    asked = (fields.query, fields.queries, fields.text_1)
    prompt = flat((*asked, fields.items, fields.documents, fields.texts, fields.text_2))
    return fields, (prompt,) if prompt else (), None


def _generate(body: bytes) -> _Read:
    fields = _decode_generate(body)
    raw = given(fields.token_ids) or given(fields.input_ids) or given(fields.text) or given(fields.prompt)
    return fields, texts(raw), _sampling_limit(given(fields.sampling_params))


def _as_text(body: bytes) -> _Read:
    return _decode_body(body), (body,), None


def _free(body: bytes) -> _Read:
    return _decode_body(body), (), None


READERS: dict[Kind, Callable[[bytes], _Read]] = {
    Kind.CHAT: _chat,
    Kind.MESSAGES: _messages,
    Kind.COMPLETIONS: _completions,
    Kind.RESPONSES: _responses,
    Kind.EMBEDDINGS: _embeddings,
    Kind.POOLING: _embeddings,
    Kind.RERANK: _rerank,
    Kind.GENERATE: _generate,
    Kind.IMAGES: _completions,
    **dict.fromkeys(COMPUTES_NOTHING, _free),
}

_USER = Raw(b'"user"')


def _limit(*raws: Raw) -> int | None:
    """The last of `raws` that is a whole number, not negative; a number in a string counts as one."""
    for raw in reversed(raws):
        if raw is not NOTHING:
            text = bytes(raw)
            if not text.isdigit():
                text = text.strip(b'"').removesuffix(b".0")
            if text.isdigit() and len(text) < 19:
                return int(text)
    return None


def _sampling_limit(raw: bytes) -> int | None:
    try:
        sampling = _decode_sampling(raw)
    except UNREADABLE:
        return None
    return _limit(sampling.max_tokens, sampling.max_new_tokens)


# --- Refusals --------------------------------------------------------------------------------------------------------


def _check(parsed: Parsed, body: bytes) -> None:
    """Raises Drop where the body lacks what its kind has to have."""
    if not parsed.model:
        raise _bad_request(_no_model(given(_decode_body(body).model)))
    if not parsed.prompts and parsed.kind in (Kind.CHAT, Kind.MESSAGES):
        raise _bad_request('"messages" must be a list with at least one message object. Add the messages to answer.')


def _no_model(raw: bytes) -> str:
    if not raw:
        return 'The request names no model. Add "model" with the name of a served model.'
    return (
        f'"model" must be the name of a served model as a non-empty string, not {raw[:40].decode("utf-8", "replace")}.'
    )


def _not_json(body: bytes, error: Exception) -> str:
    if not body.strip():
        return "The request body is empty. Send a JSON object with the model and the prompt."
    if isinstance(error, RecursionError):
        return "The request body is nested too deeply. Send JSON with fewer levels of lists and objects."
    if isinstance(error, msgspec.ValidationError):
        return "The request body is JSON, but not an object. Send one JSON object with the model and the prompt."
    detail = str(error).removeprefix("JSON is malformed: ").replace("Input data was truncated", "it ends too early")
    return (
        f"The request body is not valid JSON ({detail}). Send one JSON object in UTF-8 with the model and the prompt."
    )


def _bad_request(message: str) -> Drop:
    return Drop(Reason.BAD_REQUEST, message)
