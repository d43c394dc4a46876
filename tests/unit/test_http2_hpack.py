"""Our decoder against the `hpack` library: the same fields from every block it reads, an error wherever it has one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterable, Sequence

import hpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.extproc.calls import Call, CallReader, Malformed, read_call
from epp.extproc.hpack import TABLE_BYTES, Decoder, Field, HpackError, TooLarge, _remembered, unhuffman
from epp.extproc.http2 import Limits

LIMIT = 1 << 16
CALL: list[Field] = [
    (b":method", b"POST"),
    (b":scheme", b"http"),
    (b":path", b"/test.Echo/Process"),
    (b":authority", b"epp"),
    (b"content-type", b"application/grpc"),
]
FIELDS = st.lists(
    st.tuples(
        st.sampled_from([b":path", b":method", b"accept", b"x-request-id", b"traceparent", b"te"])
        | st.binary(max_size=20),
        st.sampled_from([b"", b"POST", b"/", b"trailers"]) | st.binary(max_size=200),
    ),
    max_size=8,
)


def by_library(decoder: hpack.Decoder, block: bytes) -> list[Field] | None:
    """None where it is an error."""
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except hpack.HPACKError:
        return None


def by_ours(decoder: Decoder, block: bytes) -> list[Field] | None:
    try:
        return decoder.decode(block)
    except HpackError:
        return None


def counted(fields: Iterable[Field]) -> int:
    return sum(len(name) + len(value) + 32 for name, value in fields)


def in_the_table(decoder: Decoder) -> int:
    return counted(decoder._table)


def number(value: int, bits: int, first: int) -> bytes:
    """An integer whose prefix has `bits`, below the bits of `first` (RFC 7541, section 5.1)."""
    most = (1 << bits) - 1
    if value < most:
        return bytes((first | value,))
    out = bytearray((first | most,))
    value -= most
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def text(value: bytes) -> bytes:
    return number(len(value), 7, 0) + value


class Client:
    """Writes the blocks of one connection by hand, so that every form is written, and few strings, so that much is said twice.

    It knows how full the table is, so that most of what it refers to is there.
    """

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.table = hpack.Decoder()
        self.said: list[bytes] = []

    def index(self) -> int:
        """Of content-type, which is static, or of what the table holds; once in a while of what it does not."""
        there = len(self.table.header_table.dynamic_entries)
        index: int = self.draw(st.sampled_from([31, *range(62, 62 + there)] * 5 + [62 + there, 400]))
        return index

    def field(self) -> bytes:
        draw = self.draw
        name = text(draw(st.sampled_from([b"a", b"x-b", b"traceparent"])))
        value = text(draw(st.sampled_from([b"", b"1", b"2", b"v" * 70, b"w" * 1_500, b"z" * 5_000])))
        match draw(st.integers(0, 6)):
            case 0:
                return number(self.index(), 6, 0x40) + value
            case 1:
                return b"\x40" + name + value
            case 2:
                return number(self.index(), 4, draw(st.sampled_from([0x00, 0x10]))) + value
            case 3:
                return b"\x00" + name + value
            case _:
                return number(self.index(), 7, 0x80)

    def new_block(self) -> bytes:
        update = number(self.draw(st.sampled_from([0, 40, 100, 4_095, 4_096, 4_097])), 5, 0x20)
        start: bytes = self.draw(st.sampled_from([b""] * 8 + [update, b"\x20" + update]))
        return start + b"\x83\x86\x84" + b"".join(self.field() for _ in range(self.draw(st.integers(0, 3))))

    def block(self) -> bytes:
        """A call, with whatever else; or again what was said before."""
        again: bool = self.draw(st.booleans())
        block: bytes = self.draw(st.sampled_from(self.said)) if again and self.said else self.new_block()
        self.said.append(block)
        by_library(self.table, block)
        return block


@st.composite
def connections(draw: st.DrawFn) -> list[bytes]:
    client = Client(draw)
    return [client.block() for _ in range(draw(st.integers(1, 15)))]


def read(reader: CallReader, block: bytes) -> Call | None:
    """As `Connection` reads; None for a call that is malformed."""
    known = reader.remembered.get(block)
    try:
        return known or reader.call(block)
    except Malformed:
        return None


@settings(max_examples=600, deadline=None)
@given(connections(), st.integers(1, 3))
def test_what_is_remembered_is_what_would_be_read(blocks: Sequence[bytes], remembered_blocks: int) -> None:
    """Any blocks in any order, over and over: a reader that remembers says what the library says, which reads every one."""
    reader = CallReader(LIMIT, remembered_blocks, 1024)
    library = hpack.Decoder(max_header_list_size=LIMIT)
    for block in blocks:
        fields = by_library(library, block)
        if fields is None:
            with pytest.raises(HpackError):
                read(reader, block)
            return
        try:
            wanted = read_call(fields, counted(fields))
        except Malformed:
            wanted = None
        assert read(reader, block) == wanted
        assert list(reader._decoder._table) == list(library.header_table.dynamic_entries)
        assert in_the_table(reader._decoder) <= TABLE_BYTES
        assert len(reader.remembered) <= remembered_blocks


def test_a_table_that_shrinks_takes_along_what_was_remembered_and_shrinks_again() -> None:
    call = b"\x83\x86\x84"
    filling, referring, emptying, widening = (
        call + b"\x40" + text(b"a") + text(b"1"),
        call + b"\xbe",
        b"\x20" + call,
        b"\x3f\xe1\x1f" + call,
    )
    for blocks in (
        (filling, referring, emptying, referring),
        (emptying, widening, filling, emptying, widening, referring),
    ):
        reader = CallReader(LIMIT, 16, 1024)
        for block in blocks[:-1]:
            assert read(reader, block) is not None
        with pytest.raises(HpackError):
            read(reader, blocks[-1])


@settings(max_examples=150, deadline=None)
@given(st.lists(FIELDS, max_size=4), st.lists(st.integers(0, 4_096), max_size=2), st.booleans())
def test_what_an_encoder_says_is_read_back(lists: list[list[Field]], sizes: list[int], huffman: bool) -> None:
    encoder = hpack.Encoder()
    decoder = Decoder(LIMIT)
    for size in (None, *sizes):
        if size is not None:
            encoder.header_table_size = size
        for fields in lists * 2:
            assert decoder.decode(encoder.encode(fields, huffman=huffman)) == fields


@settings(max_examples=400, deadline=None)
@given(FIELDS, st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=3), st.integers(0, 10_000))
def test_damaged_blocks_fail_or_decode_as_in_the_library(
    fields: list[Field], damage: list[tuple[int, int]], cut: int
) -> None:
    encoder = hpack.Encoder()
    before = encoder.encode(CALL)
    block = bytearray(encoder.encode([*CALL, *fields]))
    for position, byte in damage:
        block[position % len(block)] = byte
    if cut % 3 == 0:
        del block[cut % len(block) :]
    library, ours = hpack.Decoder(max_header_list_size=LIMIT), Decoder(LIMIT)
    assert by_ours(ours, before) == by_library(library, before)
    assert by_ours(ours, bytes(block)) == by_library(library, bytes(block))


def test_a_list_over_the_limit_is_told_apart() -> None:
    fields = [(b"a", b"b" * 10)] * 3
    block = hpack.Encoder().encode(fields)
    assert Decoder(3 * 43).decode(block) == fields
    with pytest.raises(TooLarge):
        Decoder(3 * 43 - 1).decode(block)


def test_a_small_block_that_stands_for_a_large_list_is_cut_off() -> None:
    """One field of 4,000 bytes, then 60,000 single bytes that each mean it again: what is held is the field and the list's limit."""
    decoder = Decoder(LIMIT)
    decoder.decode(b"\x40" + text(b"x") + text(b"v" * 4_000))
    block = b"\xbe" * 60_000
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            decoder.decode(block)
        _, held_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held_bytes < 10_000
    assert len(Decoder(LIMIT).decode(b"\x90" * 1_092)) == 1_092
    with pytest.raises(TooLarge):
        Decoder(LIMIT).decode(b"\x90" * 1_093)


def test_a_full_table_of_the_smallest_fields_holds_what_it_may() -> None:
    decoder = Decoder(LIMIT)
    tracemalloc.start()
    try:
        for count in range(5_000):
            decoder.decode(b"\x40\x02%c%c\x00" % (count % 256, count // 256))
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert in_the_table(decoder) == 120 * 34
    assert held_bytes < 20_000


def test_a_field_larger_than_the_table_empties_it() -> None:
    decoder = Decoder(LIMIT)
    decoder.decode(b"\x40\x01a\x01b")
    assert decoder.decode(b"\xbe") == [(b"a", b"b")]
    decoder.decode(b"\x7e" + text(b"v" * 4_096))
    with pytest.raises(HpackError):
        decoder.decode(b"\xbe")


@pytest.mark.parametrize("first", [b"\x3f", b"\xff", b"\x7f", b"\x0f", b"\x40\x7f"], ids=bytes.hex)
@pytest.mark.parametrize("last", [b"\x00", b"\x01", b"\x7f"], ids=bytes.hex)
def test_numbers_in_more_octets_than_they_need_are_those_of_the_library(first: bytes, last: bytes) -> None:
    for octets in range(8):
        for each in (b"\x80", b"\xff"):
            block = first + each * octets + last + text(b"v" * 200)
            assert by_ours(Decoder(LIMIT), block) == by_library(hpack.Decoder(max_header_list_size=LIMIT), block)


@pytest.mark.parametrize(
    "block",
    [
        b"\xff\xff\xff\xff\xff\xff\x01",
        b"\x80",
        b"\x3f\xe2\x1f",
        b"\x82\x20",
        b"\xbe",
        b"\x40",
        b"\x7e\x00",
        b"\x20" * 65,
        b"\x20" * 60_000,
    ],
    ids=lambda block: block[:8].hex(),
)
def test_blocks_that_no_decoder_may_take(block: bytes) -> None:
    with pytest.raises(HpackError):
        Decoder(LIMIT).decode(block)


MANY_NAMES = [b"%03d" % count for count in range(160)]


@pytest.mark.parametrize("by_reference", [True, False])
def test_a_reader_holds_little_of_a_client_that_says_much(by_reference: bool) -> None:
    """Calls that all differ, with as many fields as blocks that are remembered may have: all names of a full table, or new ones."""
    limits = Limits()
    reader = CallReader(limits.max_header_list_bytes, limits.remembered_blocks, limits.remembered_block_bytes)
    many = b"".join(b"\x00" + text(name) + b"\x00" for name in MANY_NAMES)
    if by_reference:
        reader.fields(b"".join(b"\x40" + text(name) + b"\x00" for name in MANY_NAMES))
        many = b"".join(number(62 + count, 7, 0x80) for count in range(len(reader._decoder._table)))
    tracemalloc.start()
    try:
        for count in range(200):
            block = b"\x83\x86\x84" + many + b"\x00" + text(b"y") + text(b"%d" % count)
            assert reader.call(block) is reader.remembered[block]
        held_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(reader.remembered) == limits.remembered_blocks
    assert held_bytes < 350_000


def test_long_strings_are_not_remembered() -> None:
    """What all connections share is bounded in bytes, not only in number."""
    before = _remembered.cache_info().currsize
    fields = [(b"x-long", b"v" * 1_000)]
    assert Decoder(LIMIT).decode(hpack.Encoder().encode(fields)) == fields
    assert _remembered.cache_info().currsize <= before + 1
    assert _remembered.cache_info().maxsize == 256


def test_huffman_padding_is_checked() -> None:
    assert unhuffman(b"") == b""
    assert unhuffman(b"\x1f") == b"a"
    for wrong in (b"\x18", b"\x1f\xff", b"\xff\xff\xff\xff"):
        with pytest.raises(HpackError):
            unhuffman(wrong)
