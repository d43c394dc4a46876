"""Our decoder against the `hpack` library: the same fields from every block it reads, an error wherever it has one."""

from __future__ import annotations

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.extproc.hpack import REMEMBERED_FIELDS, HpackError, StatelessDecoder, TooLarge, unhuffman

LIMIT = 1 << 16
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b":path", b":method", b"accept", b"x-request-id", b"traceparent", b"te"])
        | st.binary(max_size=20),
        st.sampled_from([b"", b"POST", b"/", b"trailers"]) | st.binary(max_size=200),
    ),
    max_size=8,
)


def library() -> hpack.Decoder:
    decoder = hpack.Decoder(max_header_list_size=LIMIT)
    decoder.max_allowed_table_size = decoder.header_table_size = 0
    return decoder


@settings(max_examples=150, deadline=None)
@given(st.lists(FIELDS, max_size=4), st.booleans())
def test_what_an_encoder_says_is_read_back(lists: list[list[tuple[bytes, bytes]]], huffman: bool) -> None:
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    decoder = StatelessDecoder(LIMIT)
    for fields in lists * 2:
        assert decoder.decode(encoder.encode(fields, huffman=huffman)) == fields


@settings(max_examples=400, deadline=None)
@given(FIELDS, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3), st.integers(0, 10_000))
def test_damaged_blocks_fail_or_decode_as_in_the_library(
    fields: list[tuple[bytes, bytes]], damage: list[tuple[int, int]], cut: int
) -> None:
    encoder = hpack.Encoder()
    block = bytearray(encoder.encode(fields))
    for position, byte in damage:
        if block:
            block[position % len(block)] = byte
    if cut % 3 == 0 and block:
        del block[cut % len(block) :]
    try:
        wanted = [(bytes(name), bytes(value)) for name, value in library().decode(bytes(block), raw=True)]
    except hpack.HPACKError:
        with pytest.raises(HpackError):
            StatelessDecoder(LIMIT).decode(bytes(block))
        return
    assert StatelessDecoder(LIMIT).decode(bytes(block)) == wanted


def test_a_list_over_the_limit_is_told_apart() -> None:
    fields = [(b"a", b"b" * 10)] * 3
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    block = encoder.encode(fields)
    assert StatelessDecoder(3 * 43).decode(block) == fields
    with pytest.raises(TooLarge):
        StatelessDecoder(3 * 43 - 1).decode(block)


@pytest.mark.parametrize(
    "block", [b"\xff\xff\xff\xff\xff\xff\x01", b"\x80", b"\x3f\x01", b"\x82\x20", b"\xbe", b"\x40"]
)
def test_blocks_that_no_decoder_of_size_0_may_take(block: bytes) -> None:
    with pytest.raises(HpackError):
        StatelessDecoder(LIMIT).decode(block)


def test_remembered_fields_are_bounded() -> None:
    decoder = StatelessDecoder(LIMIT)
    encoder = hpack.Encoder()
    encoder.header_table_size = 0
    for number in range(3 * REMEMBERED_FIELDS):
        decoder.decode(encoder.encode([(b"x", b"%d" % number)]))
        assert len(decoder._remembered) <= REMEMBERED_FIELDS
    decoder.decode(encoder.encode([(b"x", b"v" * 1_000)]))
    assert all(len(encoded) < 200 for encoded in decoder._remembered)


def test_huffman_padding_is_checked() -> None:
    assert unhuffman(b"") == b""
    assert unhuffman(b"\x1f") == b"a"
    for wrong in (b"\x18", b"\x1f\xff", b"\xff\xff\xff\xff"):
        with pytest.raises(HpackError):
            unhuffman(wrong)
