"""HPACK (RFC 7541), the half of it that a server needs: header blocks into fields, with the table of 4,096 bytes of HTTP/2.

Envoy refers to the table for all but the path, and puts into it what it has not said before. A block with a fresh `traceparent` takes
9 µs; the library that the tests hold this against takes 40.
"""

from __future__ import annotations

import functools
from collections import deque

from hpack.huffman_table import HUFFMAN_COMPLETE, HUFFMAN_EMIT_SYMBOL, HUFFMAN_FAIL, HUFFMAN_TABLE
from hpack.table import HeaderTable

Field = tuple[bytes, bytes]

TABLE_BYTES = 4096
"""What a client may assume of us unless we announce something else (RFC 9113, section 6.5.2). We announce nothing else: clients
use a table of this size before they have heard of any other, and some ever after."""

FIELD_OVERHEAD = 32
"""What a field counts beyond its octets, in the table (section 4.1) as in a list (RFC 9113, section 6.5.2)."""

MAX_UPDATES = 64
"""Table size updates at the start of a block. Two say all (section 4.2), but encoders may repeat every change that was made; a block
of 64 KiB of nothing else would take 30 ms."""

REMEMBERED_STRING_BYTES = 128

_SHIFTS = (0, 7, 14, 21, 28)

_STATIC: tuple[Field, ...] = (*HeaderTable.STATIC_TABLE,)


class HpackError(Exception):
    """The block cannot be decoded; neither can any later one, so the connection has to end."""


class TooLarge(HpackError):
    """The fields add up to more than the limit."""


class Decoder:
    """Decodes the blocks of one connection, in the order they came. `max_list_bytes` limits one list of fields.

    `changes` counts what changed the table, or may have: a block that leaves it as it was means the same as long as it stays so.
    `list_bytes` is what the fields of the last block count.
    """

    def __init__(self, max_list_bytes: int) -> None:
        self._max_list_bytes = max_list_bytes
        self._table: deque[Field] = deque()
        self._room = self._size = TABLE_BYTES
        self.changes = 0
        self.list_bytes = 0

    def decode(self, block: bytes) -> list[Field]:
        """The fields in order, names and values as sent. After an HpackError there is no other call."""
        fields: list[Field] = []
        table = self._table
        position = updates = 0
        room = self._max_list_bytes
        try:
            while position < len(block):
                first = block[position]
                if 0xBD < first < 0xFF:
                    # Most of a block: an entry of the table by one byte.
                    field = table[first - 0xBE]
                    position += 1
                elif first & 0x80:
                    index, position = _integer(block, position, 0x7F)
                    field = self._entry(index)
                elif first & 0x40:
                    field, position = self._literal(block, position, 0x3F)
                    self._insert(field)
                elif first & 0x20:
                    updates += 1
                    if fields or updates > MAX_UPDATES:
                        raise HpackError("table size update after a field, or too many")
                    size, position = _integer(block, position, 0x1F)
                    self._resize(size)
                    continue
                else:
                    field, position = self._literal(block, position, 0x0F)
                room -= len(field[0]) + len(field[1]) + FIELD_OVERHEAD
                if room < 0:
                    raise TooLarge(f"header list larger than {self._max_list_bytes} bytes")
                fields.append(field)
        except IndexError:
            raise HpackError("header block is cut short or refers to an entry that is not there") from None
        self.list_bytes = self._max_list_bytes - room
        return fields

    def _entry(self, index: int) -> Field:
        if index > len(_STATIC):
            return self._table[index - len(_STATIC) - 1]
        if not index:
            raise HpackError("index 0")
        return _STATIC[index - 1]

    def _literal(self, block: bytes, position: int, mask: int) -> tuple[Field, int]:
        index, position = _integer(block, position, mask)
        if index:
            name = self._entry(index)[0]
        else:
            name, position = _string(block, position)
        value, position = _string(block, position)
        return (name, value), position

    def _insert(self, field: Field) -> None:
        self.changes += 1
        self._table.appendleft(field)
        self._room -= len(field[0]) + len(field[1]) + FIELD_OVERHEAD
        self._evict()

    def _resize(self, size: int) -> None:
        if size > TABLE_BYTES:
            raise HpackError("table size update to more than was announced")
        self.changes += 1
        self._room += size - self._size
        self._size = size
        self._evict()

    def _evict(self) -> None:
        while self._room < 0:
            name, value = self._table.pop()
            self._room += len(name) + len(value) + FIELD_OVERHEAD


def _integer(block: bytes, position: int, mask: int) -> tuple[int, int]:
    """An integer with a prefix of `mask` (section 5.1), at most five octets beyond it: as in the library, and 35 bits."""
    value = block[position] & mask
    position += 1
    if value < mask:
        return value, position
    for shift in _SHIFTS:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise HpackError("integer too large")


def _string(block: bytes, position: int) -> tuple[bytes, int]:
    length, start = _integer(block, position, 0x7F)
    stop = start + length
    if stop > len(block):
        raise HpackError("header block is cut short")
    data = block[start:stop]
    if not block[position] & 0x80:
        return data, stop
    return (unhuffman if length > REMEMBERED_STRING_BYTES else _remembered)(data), stop


_STEPS: dict[int, tuple[bytes, int, bool]] = {}
"""(state << 8 | byte) to (octets decoded, next state, whether a string may end here); filled as met, 65,536 at most."""


def unhuffman(data: bytes) -> bytes:
    """Decode a Huffman string (section 5.2) a byte at a time. Raises HpackError."""
    steps = _STEPS
    state = 0
    complete = True
    out = bytearray()
    for byte in data:
        step = steps.get(state << 8 | byte)
        if step is None:
            step = steps[state << 8 | byte] = _step(state, byte)
        decoded, state, complete = step
        out += decoded
    if not complete:
        raise HpackError("Huffman string ends inside a symbol")
    return bytes(out)


_remembered = functools.lru_cache(256)(unhuffman)
"""A string means the same on every connection. Envoy sends the path of each call in full: 0.2 µs instead of 5."""


def _step(state: int, byte: int) -> tuple[bytes, int, bool]:
    """Two steps of the library's table, which goes by half bytes."""
    out = b""
    flags = 0
    for nibble in (byte >> 4, byte & 0xF):
        state, flags, symbol = HUFFMAN_TABLE[state * 16 + nibble]
        if flags & HUFFMAN_FAIL:
            raise HpackError("not a Huffman string")
        if flags & HUFFMAN_EMIT_SYMBOL:
            out += bytes((symbol,))
    return out, state, bool(flags & HUFFMAN_COMPLETE)
