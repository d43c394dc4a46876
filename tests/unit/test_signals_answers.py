"""The client's HTTP/1.1 parser: however the bytes are cut, the same answers come out."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.signals.answers import Answer, AnswerParser, Failure, ScrapeError

LIMIT = 4096


def outcome(pieces: list[bytes], *, closed: bool = False) -> list[Answer | Failure]:
    """All that a parser says to these pieces, up to its first complaint."""
    parser = AnswerParser(LIMIT)
    said: list[Answer | Failure] = []
    try:
        for piece in pieces:
            answer = parser.receive(piece)
            said += [] if answer is None else [answer]
        last = parser.end() if closed else None
        said += [] if last is None else [last]
    except ScrapeError as error:
        said.append(error.failure)
    return said


def head(*lines: str, status: str = "HTTP/1.1 200 OK") -> bytes:
    return "\r\n".join([status, *lines, "", ""]).encode()


WHOLE = {
    "content-length": (head("Content-Length: 5") + b"hello", Answer(200, b"hello", True)),
    "empty": (head("content-length:0"), Answer(200, b"", True)),
    "chunked": (
        head("transfer-encoding: Chunked") + b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\n\r\n",
        Answer(200, b"hello!", True),
    ),
    "trailers": (head("transfer-encoding: chunked") + b"0\r\na: b\r\nc: d\r\n\r\n", Answer(200, b"", True)),
    "crlf inside a chunk": (
        head("transfer-encoding: chunked") + b"A\r\n0\r\n\r\n5\r\n\r\n\r\n0\r\n\r\n",
        Answer(200, b"0\r\n\r\n5\r\n\r\n", True),
    ),
    "no content": (head(status="HTTP/1.1 204 No Content"), Answer(204, b"", True)),
    "continued": (head(status="HTTP/1.1 100 Continue") + head("content-length: 2") + b"ok", Answer(200, b"ok", True)),
    "to be closed": (head("content-length: 2", "Connection: keep-alive, Close") + b"ok", Answer(200, b"ok", False)),
    "old": (head("content-length: 2", status="HTTP/1.0 200 OK") + b"ok", Answer(200, b"ok", False)),
    "old, kept": (
        head("content-length: 2", "connection: Keep-Alive", status="HTTP/1.0 200 OK") + b"ok",
        Answer(200, b"ok", True),
    ),
    "refused": (head("content-length: 2", status="HTTP/1.1 404 Not Found") + b"no", Answer(404, b"no", True)),
    "no reason": (head("content-length: 2", status="HTTP/1.1 503") + b"no", Answer(503, b"no", True)),
    "both framings": (
        head("content-length: 99999", "transfer-encoding: chunked") + b"2\r\nok\r\n0\r\n\r\n",
        Failure.TOO_LARGE,
    ),
    "largest": (head(f"content-length: {LIMIT}") + b"x" * LIMIT, Answer(200, b"x" * LIMIT, True)),
    "one too large": (head(f"content-length: {LIMIT + 1}"), Failure.TOO_LARGE),
    "chunks too large": (
        head("transfer-encoding: chunked") + b"fff\r\n" + b"x" * 0xFFF + b"\r\n2\r\n",
        Failure.TOO_LARGE,
    ),
    "not http": (b"SSH-2.0-OpenSSH_9.9\r\n", Failure.MALFORMED),
    "http/2": (b"\x00\x00\x12\x04\x00", Failure.MALFORMED),
    "no status": (b"HTTP/1.1 OK\r\n\r\n", Failure.MALFORMED),
    "no header": (head("nothing"), Failure.MALFORMED),
    "negative length": (head("content-length: -1"), Failure.MALFORMED),
    "two lengths": (head("content-length: 1", "content-length: 2"), Failure.MALFORMED),
    "unknown coding": (head("transfer-encoding: gzip, chunked"), Failure.MALFORMED),
    "compressed": (head("content-encoding: gzip", "content-length: 3"), Failure.MALFORMED),
    "signed size": (head("transfer-encoding: chunked") + b"+5\r\n", Failure.MALFORMED),
    "long chunk": (head("transfer-encoding: chunked") + b"2\r\nabcd\r\n", Failure.MALFORMED),
    "endless size": (head("transfer-encoding: chunked") + b"1;" + b"x" * 2000, Failure.MALFORMED),
    "endless headers": (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20000, Failure.MALFORMED),
}


@pytest.mark.parametrize("name", WHOLE)
def test_whole_and_byte_for_byte(name: str) -> None:
    data, expected = WHOLE[name]
    assert outcome([data]) == [expected]
    assert outcome([data[at : at + 1] for at in range(len(data))]) == [expected]


@settings(max_examples=150)
@given(st.sampled_from(sorted(WHOLE)), st.lists(st.integers(0, 200), max_size=6))
def test_any_cut(name: str, cuts: list[int]) -> None:
    data, expected = WHOLE[name]
    at = [0, *sorted(cuts), len(data)]
    assert outcome([data[a:b] for a, b in itertools.pairwise(at)]) == [expected]


def test_answers_follow_one_another() -> None:
    one, two = WHOLE["chunked"][0], WHOLE["content-length"][0]
    assert outcome([one, two, one]) == [WHOLE["chunked"][1], WHOLE["content-length"][1], WHOLE["chunked"][1]]


def test_bytes_beyond_the_answer_end_the_reuse() -> None:
    assert outcome([WHOLE["content-length"][0] + b"HTTP/1.1 200"]) == [Answer(200, b"hello", False)]


def test_an_answer_that_runs_to_the_end() -> None:
    assert outcome([head(), b"hel", b"lo"], closed=True) == [Answer(200, b"hello", False)]
    assert outcome([head(), b"hel", b"lo"]) == []
    assert outcome([head(), b"x" * (LIMIT + 1)]) == [Failure.TOO_LARGE]


@pytest.mark.parametrize("name", ["content-length", "chunked", "trailers", "continued"])
def test_an_end_in_the_middle(name: str) -> None:
    data, _ = WHOLE[name]
    for at in range(1, len(data)):
        if data[:at] != head(status="HTTP/1.1 100 Continue"):
            assert outcome([data[:at]], closed=True) == [Failure.CLOSED]


def test_an_end_between_answers() -> None:
    assert outcome([], closed=True) == []
    parser = AnswerParser()
    assert parser.idle
    parser.receive(b"H")
    assert not parser.idle


@settings(max_examples=200)
@given(
    st.sampled_from([b"", head("transfer-encoding: chunked"), head("content-length: 9"), b"HTTP/1.1 "]),
    st.lists(st.binary(max_size=30) | st.sampled_from([b"\r\n", b"0", b"a\r\n", b"\r\n\r\n"]), max_size=8),
)
def test_any_bytes(start: bytes, pieces: list[bytes]) -> None:
    """Nothing but a ScrapeError comes out, and cutting changes nothing up to the first answer."""
    whole = outcome([start + b"".join(pieces)], closed=True)
    cut = outcome([start, *pieces], closed=True)
    if whole and isinstance(whole[0], Answer):
        assert isinstance(cut[0], Answer)
        assert (cut[0].status, cut[0].body) == (whole[0].status, whole[0].body)
