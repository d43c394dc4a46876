"""The client's half of HTTP/1.1 for one job: the answers to `GET /metrics` on a connection kept alive. No I/O here."""

from __future__ import annotations

import enum
import re

import msgspec

MAX_HEAD_BYTES = 64 << 10
_MAX_LINE_BYTES = 1024
_MAX_CHUNKS = 1 << 16
_HEX = re.compile(rb"[0-9A-Fa-f]{1,8}")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: |$)")
_BODILESS = frozenset({204, 304})


class Failure(enum.Enum):
    """Why a scrape brought nothing. The value is the metric label and the log field."""

    CONNECT = "connect"
    TLS = "tls"
    TIMEOUT = "timeout"
    CLOSED = "closed"
    MALFORMED = "malformed"
    TOO_LARGE = "too-large"
    REDIRECT = "redirect"
    STATUS = "status"
    EMPTY = "no-known-metrics"


class ScrapeError(Exception):
    """A scrape that failed; `str()` says what the server did."""

    def __init__(self, failure: Failure, message: str) -> None:
        super().__init__(message)
        self.failure = failure


class Answer(msgspec.Struct, frozen=True):
    """`reusable`: whether the connection may carry another request."""

    status: int
    body: bytes
    reusable: bool


class _Framing(enum.Enum):
    HEAD = 1
    LENGTH = 2
    CHUNKED = 3
    TRAILERS = 4
    TO_THE_END = 5


class AnswerParser:
    """One answer after another from the bytes of one connection, however they are cut.

    `receive` and `end` raise ScrapeError where the bytes are no answer or too many; the parser is of no use then.
    """

    def __init__(self, max_body_bytes: int = 8 << 20) -> None:
        self._max_body_bytes = max_body_bytes
        self._unread = bytearray()
        self._begin()

    def _begin(self) -> None:
        self._framing = _Framing.HEAD
        self._status = 0
        self._keeps_alive = False
        self._length = 0
        self._chunks: list[bytes] = []
        self._chunk_left = -1

    @property
    def idle(self) -> bool:
        """Whether no byte of the next answer has come."""
        return self._framing is _Framing.HEAD and not self._unread

    def receive(self, data: bytes) -> Answer | None:
        """Take in bytes. Returns the answer that they complete.

        One request is outstanding at a time, so bytes beyond the answer make the connection not reusable.
        """
        self._unread += data
        if self._framing is _Framing.HEAD and not self._head():
            return None
        if self._framing is _Framing.LENGTH:
            return self._whole() if len(self._unread) >= self._length else None
        if self._framing is _Framing.TO_THE_END:
            self._limit(len(self._unread))
            return None
        if self._framing is _Framing.CHUNKED and not self._dechunk():
            return None
        return self._trailers()

    def end(self) -> Answer | None:
        """The server closed its side. Returns the answer that this completes; None where none was begun."""
        if self._framing is _Framing.TO_THE_END:
            return self._done(bytes(self._unread), len(self._unread))
        if self.idle:
            return None
        raise ScrapeError(Failure.CLOSED, "the server closed the connection in the middle of its answer")

    def _limit(self, body_bytes: int) -> None:
        if body_bytes > self._max_body_bytes:
            raise ScrapeError(Failure.TOO_LARGE, f"the answer is larger than {self._max_body_bytes} bytes")

    def _head(self) -> bool:
        while True:
            end = self._unread.find(b"\r\n\r\n")
            if end > MAX_HEAD_BYTES or (end < 0 and len(self._unread) > MAX_HEAD_BYTES):
                raise ScrapeError(Failure.MALFORMED, f"the answer's headers are longer than {MAX_HEAD_BYTES} bytes")
            if end < 0:
                self._refuse_other_protocols()
                return False
            head = bytes(self._unread[:end])
            del self._unread[: end + 4]
            self._read_head(head)
            if self._status >= 200:
                return True

    def _refuse_other_protocols(self) -> None:
        start = bytes(self._unread[:7])
        if start != b"HTTP/1."[: len(start)]:
            raise ScrapeError(
                Failure.MALFORMED, f"the answer is not HTTP/1: it begins with {bytes(self._unread[:16])!r}"
            )

    def _read_head(self, head: bytes) -> None:
        lines = head.split(b"\r\n")
        match = _STATUS_LINE.match(lines[0])
        if match is None:
            raise ScrapeError(Failure.MALFORMED, f"no HTTP/1 status line: {lines[0][:80]!r}")
        self._status = int(match[2])
        self._keeps_alive = match[1] == b"1"
        self._framing = _Framing.TO_THE_END
        for line in lines[1:]:
            name, colon, value = line.partition(b":")
            if not colon:
                raise ScrapeError(Failure.MALFORMED, f"not a header: {line[:80]!r}")
            self._header(name.lower(), value.strip().lower())
        if self._status < 200:
            self._begin()
        elif self._status in _BODILESS:
            self._framing, self._length = _Framing.LENGTH, 0

    def _header(self, name: bytes, value: bytes) -> None:
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18:
                raise ScrapeError(Failure.MALFORMED, f"content-length is {value[:40]!r}")
            if self._framing is _Framing.TO_THE_END:
                self._framing, self._length = _Framing.LENGTH, int(value)
                self._limit(self._length)
            elif self._framing is _Framing.LENGTH and self._length != int(value):
                raise ScrapeError(Failure.MALFORMED, "two values of content-length")
        elif name == b"transfer-encoding":
            if value != b"chunked":
                raise ScrapeError(Failure.MALFORMED, f"transfer-encoding is {value[:40]!r}")
            self._framing = _Framing.CHUNKED
        elif name == b"connection":
            tokens = value.replace(b" ", b"").split(b",")
            self._keeps_alive = b"close" not in tokens and (self._keeps_alive or b"keep-alive" in tokens)
        elif name == b"content-encoding" and value not in (b"", b"identity"):
            raise ScrapeError(Failure.MALFORMED, f"content-encoding is {value[:40]!r}, which was not asked for")

    def _whole(self) -> Answer:
        with memoryview(self._unread) as view:
            body = bytes(view[: self._length])
        return self._done(body, self._length)

    def _dechunk(self) -> bool:
        """Take what chunks there are; True when the last one has come."""
        at = 0
        unread = self._unread
        try:
            while True:
                if self._chunk_left < 0:
                    size, after = self._chunk_size(at)
                    if size < 0:
                        return False
                    at = after
                    if size == 0:
                        self._framing = _Framing.TRAILERS
                        return True
                    self._chunk_left = size
                    self._length += size
                    self._limit(self._length)
                if len(unread) - at < self._chunk_left + 2:
                    return False
                end = at + self._chunk_left
                if unread[end : end + 2] != b"\r\n":
                    raise ScrapeError(Failure.MALFORMED, "a chunk is longer than its size says")
                self._chunks.append(bytes(memoryview(unread)[at:end]))
                if len(self._chunks) > _MAX_CHUNKS:
                    raise ScrapeError(Failure.MALFORMED, f"the answer comes in more than {_MAX_CHUNKS} chunks")
                self._chunk_left = -1
                at = end + 2
        finally:
            del unread[:at]

    def _chunk_size(self, at: int) -> tuple[int, int]:
        """(size, where its data begins), size -1 where the line is not complete."""
        end = self._unread.find(b"\r\n", at, at + _MAX_LINE_BYTES)
        if end < 0:
            if len(self._unread) - at >= _MAX_LINE_BYTES:
                raise ScrapeError(Failure.MALFORMED, "a chunk's size line has no end")
            return -1, at
        digits = bytes(self._unread[at:end]).partition(b";")[0].strip()
        if not _HEX.fullmatch(digits):
            raise ScrapeError(Failure.MALFORMED, f"a chunk's size is {digits[:40]!r}")
        return int(digits, 16), end + 2

    def _trailers(self) -> Answer | None:
        while True:
            end = self._unread.find(b"\r\n", 0, MAX_HEAD_BYTES)
            if end < 0:
                if len(self._unread) >= MAX_HEAD_BYTES:
                    raise ScrapeError(Failure.MALFORMED, "the answer's trailers have no end")
                return None
            del self._unread[: end + 2]
            if end == 0:
                return self._done(self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks), 0)

    def _done(self, body: bytes, consumed: int) -> Answer:
        del self._unread[:consumed]
        to_the_end = self._framing is _Framing.TO_THE_END
        answer = Answer(self._status, body, self._keeps_alive and not self._unread and not to_the_end)
        self._begin()
        return answer
