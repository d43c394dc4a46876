"""What the OpenAI endpoints ask and answer, as vLLM speaks them: bodies in, JSON and SSE out. No sockets, no clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import xxhash

from bench.replica.text import chat_prompt


class Part(msgspec.Struct):
    """One part of a message. What is no text (an image, audio) counts as 256 tokens that depend on its bytes."""

    type: str = "text"
    text: str = ""
    image_url: msgspec.Raw = msgspec.Raw(b"")
    input_audio: msgspec.Raw = msgspec.Raw(b"")

    def data(self) -> bytes:
        media = bytes(self.image_url) + bytes(self.input_audio)
        return xxhash.xxh3_128_digest(media) * 64 if media else self.text.encode()


class Message(msgspec.Struct):
    role: str = "user"
    content: str | list[Part] | None = None

    def data(self) -> bytes:
        if isinstance(self.content, list):
            return b"".join(part.data() for part in self.content)
        return (self.content or "").encode()


class StreamOptions(msgspec.Struct):
    include_usage: bool = False


class Ask(msgspec.Struct):
    """The fields that a simulation looks at, of every endpoint's body. The others are not judged."""

    model: str = ""
    messages: list[Message] | None = None
    prompt: str | list[str | int | list[int]] | None = None
    input: str | list[str | int | list[int] | Message] | None = None
    instructions: str | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = 1
    cache_salt: str | None = None
    encoding_format: str | None = "float"
    tools: msgspec.Raw = msgspec.Raw(b"")

    @property
    def limit(self) -> int | None:
        """The client's limit on the answer, in tokens."""
        for limit in (self.max_completion_tokens, self.max_output_tokens, self.max_tokens):
            if limit is not None:
                return limit
        return None


class Refusal(Exception):
    """An answer in vLLM's error shape."""

    def __init__(self, status: int, type: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self._error = {"message": message, "type": type, "param": param, "code": status}

    def body(self) -> bytes:
        return msgspec.json.encode({"error": self._error})


def bad_request(message: str, param: str | None = None) -> Refusal:
    return Refusal(400, "BadRequestError", message, param)


def unknown_model(model: str) -> Refusal:
    return Refusal(404, "NotFoundError", f"The model `{model}` does not exist.", "model")


def parse(body: bytes) -> Ask:
    """Raises Refusal (400) when the body is no JSON or a field has the wrong type."""
    try:
        return msgspec.json.decode(body, type=Ask)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise bad_request(str(error)) from error


class Usage(msgspec.Struct, frozen=True):
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int

    def chat(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "completion_tokens": self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }

    def responses(self) -> dict[str, Any]:
        return {
            "input_tokens": self.prompt_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }


class Stamp(msgspec.Struct, frozen=True):
    """What every piece of one answer repeats."""

    id: str
    model: str
    created_s: int


class Answer(msgspec.Struct, frozen=True):
    """One choice, whole. `reason` is `stop` or `length`."""

    text: str
    reason: str


class Dialect(Protocol):
    """How one endpoint is asked and answers. Texts are ASCII that needs no escaping in JSON."""

    def prompts(self, ask: Ask) -> list[bytes]:
        """The prompts as the model reads them. Raises Refusal (400) when there is none."""
        ...

    def whole(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]: ...

    def opening(self, stamp: Stamp, choice: int) -> bytes:
        """SSE bytes before the first piece."""
        ...

    def piece(self, stamp: Stamp, choice: int) -> tuple[bytes, bytes]:
        """SSE bytes before and after each piece of text: made once an answer, so that a piece costs a concatenation."""
        ...

    def closing(self, stamp: Stamp, choice: int, reason: str) -> bytes: ...

    def ending(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage, include_usage: bool) -> bytes:
        """SSE bytes after the last choice."""
        ...


def event(data: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event."""
    return (b"event: %s\n" % name.encode() if name else b"") + b"data: " + msgspec.json.encode(data) + b"\n\n"


_PLACE = "\x00"


def _around(data: bytes) -> tuple[bytes, bytes]:
    """What stands before and after the place of the text."""
    before, after = data.split(b"\\u0000")
    return before, after


class Chat:
    """`/v1/chat/completions`."""

    def prompts(self, ask: Ask) -> list[bytes]:
        if not ask.messages:
            raise bad_request("Field required: messages", "messages")
        return [chat_prompt(((m.role, m.data()) for m in ask.messages), bytes(ask.tools))]

    def whole(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        choices: list[dict[str, Any]] = [
            {
                "index": i,
                "message": {"role": "assistant", "content": answer.text, "refusal": None, "tool_calls": []},
                "logprobs": None,
                "finish_reason": answer.reason,
                "stop_reason": None,
            }
            for i, answer in enumerate(answers)
        ]
        return {**self._head(stamp, "chat.completion"), "choices": choices, "usage": usage.chat()}

    def opening(self, stamp: Stamp, choice: int) -> bytes:
        return event(self._chunk(stamp, choice, {"role": "assistant", "content": ""}, None))

    def piece(self, stamp: Stamp, choice: int) -> tuple[bytes, bytes]:
        return _around(event(self._chunk(stamp, choice, {"content": _PLACE}, None)))

    def closing(self, stamp: Stamp, choice: int, reason: str) -> bytes:
        return event(self._chunk(stamp, choice, {"content": ""}, reason))

    def ending(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage, include_usage: bool) -> bytes:
        head = self._head(stamp, "chat.completion.chunk")
        return (event({**head, "choices": [], "usage": usage.chat()}) if include_usage else b"") + b"data: [DONE]\n\n"

    def _chunk(self, stamp: Stamp, choice: int, delta: dict[str, str], reason: str | None) -> dict[str, Any]:
        entry = {"index": choice, "delta": delta, "logprobs": None, "finish_reason": reason}
        return {**self._head(stamp, "chat.completion.chunk"), "choices": [entry]}

    def _head(self, stamp: Stamp, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{stamp.id}", "object": kind, "created": stamp.created_s, "model": stamp.model}


class Completion:
    """`/v1/completions`."""

    def prompts(self, ask: Ask) -> list[bytes]:
        return plain_prompts(ask.prompt, "prompt")

    def whole(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        choices = [self._choice(i, answer.text, answer.reason) for i, answer in enumerate(answers)]
        return {**self._head(stamp), "choices": choices, "usage": usage.chat()}

    def opening(self, stamp: Stamp, choice: int) -> bytes:
        return b""

    def piece(self, stamp: Stamp, choice: int) -> tuple[bytes, bytes]:
        return _around(event({**self._head(stamp), "choices": [self._choice(choice, _PLACE, None)]}))

    def closing(self, stamp: Stamp, choice: int, reason: str) -> bytes:
        return event({**self._head(stamp), "choices": [self._choice(choice, "", reason)]})

    def ending(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage, include_usage: bool) -> bytes:
        last = event({**self._head(stamp), "choices": [], "usage": usage.chat()}) if include_usage else b""
        return last + b"data: [DONE]\n\n"

    def _choice(self, index: int, text: str, reason: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": reason, "stop_reason": None}

    def _head(self, stamp: Stamp) -> dict[str, Any]:
        created = {"created": stamp.created_s, "model": stamp.model}
        return {"id": f"cmpl-{stamp.id}", "object": "text_completion", **created}


class Responses:
    """`/v1/responses`: text in, one message out."""

    def prompts(self, ask: Ask) -> list[bytes]:
        messages = [("system", ask.instructions.encode())] if ask.instructions else []
        if isinstance(ask.input, str):
            messages.append(("user", ask.input.encode()))
        else:
            messages += [(m.role, m.data()) for m in ask.input or () if isinstance(m, Message)]
        if not ask.input:
            raise bad_request("Field required: input", "input")
        return [chat_prompt(messages, bytes(ask.tools))]

    def whole(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage) -> dict[str, Any]:
        content = [{"type": "output_text", "text": answers[0].text, "annotations": []}]
        message = {"id": f"msg_{stamp.id}", "type": "message", "role": "assistant", "status": "completed"}
        status = "incomplete" if answers[0].reason == "length" else "completed"
        return {**self._head(stamp, status), "output": [{**message, "content": content}], "usage": usage.responses()}

    def opening(self, stamp: Stamp, choice: int) -> bytes:
        data = {"type": "response.created", "response": {**self._head(stamp, "in_progress"), "output": []}}
        return event(data, "response.created")

    def piece(self, stamp: Stamp, choice: int) -> tuple[bytes, bytes]:
        name = "response.output_text.delta"
        place = {"item_id": f"msg_{stamp.id}", "output_index": 0, "content_index": 0}
        return _around(event({"type": name, **place, "delta": _PLACE}, name))

    def closing(self, stamp: Stamp, choice: int, reason: str) -> bytes:
        return b""

    def ending(self, stamp: Stamp, answers: Sequence[Answer], usage: Usage, include_usage: bool) -> bytes:
        whole = self.whole(stamp, answers, usage)
        name = f"response.{whole['status']}"
        return event({"type": name, "response": whole}, name)

    def _head(self, stamp: Stamp, status: str) -> dict[str, Any]:
        created = {"created_at": stamp.created_s, "model": stamp.model}
        return {"id": f"resp_{stamp.id}", "object": "response", **created, "status": status}


def plain_prompts(given: str | Sequence[str | int | list[int] | Message] | None, field: str) -> list[bytes]:
    """One prompt for a string or a list of token ids, several for a list of either.

    Raises Refusal (400) when there is none.
    """
    if isinstance(given, str):
        return [given.encode()]
    if not given:
        raise bad_request(f"Field required: {field}", field)
    ids = [entry for entry in given if isinstance(entry, int)]
    if len(ids) == len(given):
        return [_token_bytes(ids)]
    texts = [entry.encode() for entry in given if isinstance(entry, str)]
    lists = [_token_bytes(entry) for entry in given if isinstance(entry, list)]
    if len(given) not in (len(texts), len(lists)):
        raise bad_request(f"{field} mixes strings and token ids", field)
    return texts or lists


def _token_bytes(ids: Sequence[int]) -> bytes:
    try:
        return b"".join(id.to_bytes(4, "little") for id in ids)
    except OverflowError as error:
        raise bad_request(f"a token id is out of range: {error}") from error


DIALECTS: dict[str, Dialect] = {
    "/v1/chat/completions": Chat(),
    "/v1/completions": Completion(),
    "/v1/responses": Responses(),
}
