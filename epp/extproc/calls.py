"""What a request's HTTP/2 header fields say about a gRPC call."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import msgspec
from hpack import Decoder, HPACKError, OversizedHeaderListError

from epp.extproc.hpack import Field, HpackError, StatelessDecoder, TooLarge

_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_BAD_VALUE = re.compile(rb"[\x00\r\n]|^[ \t]|[ \t]$")
_TIMEOUT = re.compile(r"([0-9]{1,8})([HMSmun])")
_TIMEOUT_UNIT_S = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_GRPC = re.compile(r"application/grpc(\+.*|;.*|)", re.IGNORECASE)
_REQUEST_PSEUDO = frozenset((b":method", b":scheme", b":authority", b":path"))
_OF_ONE_CONNECTION = frozenset((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"))


class Malformed(Exception):
    """Header fields that RFC 9113, section 8.2 and 8.3, forbids."""


class Call(msgspec.Struct, frozen=True):
    """A call as its header block announces it.

    `timeout_s` is the client's deadline, None without one. `encoding` is that of compressed messages. `body_bytes` is the
    content-length, None where not said. `metadata` are all fields but the pseudo ones, and `:authority`. `http_status` is 200 for gRPC, else what to answer instead (415), `bodiless` tells
    that such an answer has no body (HEAD).
    """

    path: str
    timeout_s: float | None = None
    encoding: str = "identity"
    body_bytes: int | None = None
    http_status: int = 200
    bodiless: bool = False
    metadata: Mapping[bytes, bytes] = {}


def read_call(fields: Iterable[Field]) -> Call:
    """Raises Malformed."""
    pseudo: dict[bytes, bytes] = {}
    plain: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[:1] == b":":
            if plain or name in pseudo or name not in _REQUEST_PSEUDO:
                raise Malformed(name)
            pseudo[name] = value
        else:
            _check(name, value)
            plain.setdefault(name, value)
    if not pseudo.get(b":path") or b":method" not in pseudo or b":scheme" not in pseudo:
        raise Malformed("missing pseudo header")
    method = pseudo[b":method"]
    if b":authority" in pseudo:
        plain[b":authority"] = pseudo[b":authority"]
    grpc = method == b"POST" and _GRPC.fullmatch(plain.get(b"content-type", b"").decode("latin-1"))
    return Call(
        path=pseudo[b":path"].decode("latin-1"),
        timeout_s=_timeout_s(plain.get(b"grpc-timeout")),
        encoding=plain.get(b"grpc-encoding", b"identity").decode("latin-1"),
        body_bytes=_content_length(plain.get(b"content-length")),
        http_status=200 if grpc else 415,
        bodiless=method == b"HEAD",
        metadata=plain,
    )


def read_trailers(fields: Iterable[Field]) -> None:
    """Trailers of a request say nothing that gRPC uses; they still have to be well formed. Raises Malformed."""
    for name, value in fields:
        _check(name, value)


def _check(name: bytes, value: bytes) -> None:
    if not _TOKEN.fullmatch(name) or name in _OF_ONE_CONNECTION or _BAD_VALUE.search(value):
        raise Malformed(name)
    if name == b"te" and value != b"trailers":
        raise Malformed(name)


def _timeout_s(value: bytes | None) -> float | None:
    if value is None:
        return None
    match = _TIMEOUT.fullmatch(value.decode("latin-1"))
    if match is None:
        raise Malformed("grpc-timeout")
    return int(match[1]) * _TIMEOUT_UNIT_S[match[2]]


def _content_length(value: bytes | None) -> int | None:
    if value is None:
        return None
    if not re.fullmatch(rb"[0-9]{1,18}", value):
        raise Malformed("content-length")
    return int(value)


class CallReader:
    """Reads the header blocks of one connection, in the order they came, each of them once.

    `table_bytes` is the announced size of the client's dynamic table, in force from `acknowledged` on. While that table is
    empty (`stateless`) a block's meaning depends on its bytes alone, and the last `remembered_blocks` distinct calls are looked up.
    """

    def __init__(
        self, table_bytes: int, max_list_bytes: int, remembered_blocks: int, remembered_block_bytes: int
    ) -> None:
        self._table_bytes = table_bytes
        self._max_list_bytes = max_list_bytes
        self._remembered_blocks = remembered_blocks
        self._remembered_block_bytes = remembered_block_bytes
        self._stateful_decoder = Decoder(max_header_list_size=max_list_bytes)
        self._stateless_decoder = StatelessDecoder(max_list_bytes)
        self.stateless = False
        self.remembered: dict[bytes, Call] = {}

    def acknowledged(self) -> None:
        """The client has taken our settings."""
        # A client that shrinks its table without saying so is harmless as long as it does not refer to it.
        decoder = self._stateful_decoder
        decoder.max_allowed_table_size = self._table_bytes
        decoder.header_table_size = min(decoder.header_table_size, self._table_bytes)
        self.stateless = decoder.header_table_size == 0

    def call(self, block: bytes) -> Call:
        """Raises Malformed, or HpackError."""
        call = self.remembered.get(block) if self.stateless else None
        if call is None:
            was_stateless = self.stateless
            call = read_call(self.fields(block))
            # A block that was read while the client's table had room may depend on that table, or have changed it.
            if was_stateless and self.stateless:
                self._remember(block, call)
        return call

    def fields(self, block: bytes) -> Iterable[Field]:
        """Raises HpackError, TooLarge among them."""
        if self.stateless and not self._table_bytes:
            return self._stateless_decoder.decode(block)
        try:
            fields = self._stateful_decoder.decode(block, raw=True)
        except OversizedHeaderListError:
            raise TooLarge(f"header list larger than {self._max_list_bytes} bytes") from None
        except HPACKError:
            # Not the library's words: they go to the peer, and may hold addresses of our memory.
            raise HpackError("header block cannot be decoded") from None
        self.stateless = self._stateful_decoder.header_table_size == 0
        return fields

    def _remember(self, block: bytes, call: Call) -> None:
        if len(block) > self._remembered_block_bytes:
            return
        if len(self.remembered) >= self._remembered_blocks:
            del self.remembered[next(iter(self.remembered))]
        self.remembered[block] = call
