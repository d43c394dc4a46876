"""The model's name in the answer: turned back at any cut, and no other byte touched."""

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.openai.turnback import TurnBack

SERVER = "llama-3/8b-instruct"
CLIENT = "chat"

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)


def turn(pieces: list[bytes], server: str = SERVER, client: str = CLIENT) -> bytes:
    turner = TurnBack(server, client)
    return b"".join([*(turner.feed(piece) for piece in pieces), turner.flush()])


@st.composite
def cut(draw: st.DrawFn, text: bytes) -> list[bytes]:
    places = sorted(draw(st.lists(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@pytest.mark.parametrize(
    "member",
    [
        b'"model":"llama-3/8b-instruct"',
        b'"model": "llama-3/8b-instruct"',
        b'"model" :\n\t"llama-3/8b-instruct"',
        b'"model":"llama-3\\/8b-instruct"',
        b'"model":"\\u006clama-3/8b-instruct"',
    ],
)
def test_every_spelling_is_turned(member: bytes) -> None:
    before = member[: member.rindex(b'"', 0, -1) + 1]
    for size in (1, 2, 3, 7, 1000):
        text = b'{"id":"x",' + member + b',"choices":[]}'
        pieces = [text[i : i + size] for i in range(0, len(text), size)]
        assert turn(pieces) == b'{"id":"x",' + before + b'chat","choices":[]}'


@pytest.mark.parametrize(
    "text",
    [
        b'{"model":"llama-3/8b"}',
        b'{"model":"llama-3/8b-instruct-2"}',
        b'{"model_name":"llama-3/8b-instruct"}',
        b'{"content":"\\"model\\":\\"llama-3/8b-instruct\\""}',
        b'{"content":"model\\"model":"llama-3/8b-instruct"}',
        b'{"model":["llama-3/8b-instruct"]}',
        b'{"model":"\\ud800"}',
        b'{"model":"\xff\\n"}',
        b'{"model":"',
        b'"model',
        b'"',
        b"",
    ],
)
def test_all_else_passes_byte_for_byte(text: bytes) -> None:
    assert turn([text]) == text
    assert turn([text[i : i + 1] for i in range(len(text))]) == text


@given(st.data(), names, names)
def test_any_cut_gives_the_same_bytes(data: st.DataObject, server: str, client: str) -> None:
    ascii_only = data.draw(st.booleans())
    events: list[dict[str, Any]] = [
        {"id": "1", "model": server, "choices": [{"delta": {"content": data.draw(names)}}]},
        {"response": {"model": server}, "model": client},
        {"model": server, "usage": {"note": json.dumps({"model": server})}},
    ]
    text = b"".join(b"data: " + json.dumps(event, ensure_ascii=ascii_only).encode() + b"\n\n" for event in events)
    turned = turn(data.draw(cut(text)), server, client)
    assert turned == turn([text], server, client)
    lines = [json.loads(line.removeprefix(b"data: ")) for line in turned.split(b"\n\n") if line]
    assert [lines[0]["model"], lines[1]["response"]["model"], lines[2]["model"]] == [client] * 3
    assert lines[0]["choices"] == events[0]["choices"]
    assert lines[2]["usage"] == events[2]["usage"]


@given(st.data())
def test_fragments_of_members_in_any_order_lose_no_byte(data: st.DataObject) -> None:
    fragments = [b'"model"', b'"', b"model", b":", b" ", SERVER.encode(), b"\\", b"{", b"\n", b"llama", b'"m']
    text = b"".join(data.draw(st.lists(st.sampled_from(fragments), max_size=30)))
    # The client's name is the server's: whatever is replaced, the bytes must come out as they went in.
    assert turn(data.draw(cut(text)), SERVER, SERVER) == text
    whole = re.sub(rb'((?<!\\)"model"\s{0,16}:\s{0,16}")' + re.escape(SERVER.encode()) + b'(?=")', rb"\1chat", text)
    assert turn(data.draw(cut(text))) == turn([text])
    if b"\\" not in text:
        assert turn([text]) == whole


@given(st.data())
def test_what_is_held_back_is_bounded(data: st.DataObject) -> None:
    text = b'{"model":"' + b"a" * data.draw(st.integers(0, 500))
    turner = TurnBack(SERVER, CLIENT)
    fed = out = 0
    for piece in data.draw(cut(text)):
        fed += len(piece)
        out += len(turner.feed(piece))
        assert fed - out <= turner.max_held_bytes


def test_an_ordinary_chunk_is_not_held_back() -> None:
    turner = TurnBack(SERVER, CLIENT)
    chunk = b'data: {"choices":[{"delta":{"content":"hi"}}]}\n\n'
    assert turner.feed(chunk) == chunk
