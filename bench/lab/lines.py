"""Lines of a log: unpacked as they are read, and what to say of one that cannot be read."""

from __future__ import annotations

import gzip
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

import msgspec

from bench.lab.offered import TraceError
from epp.drops import Drop

_PACKED: tuple[tuple[bytes, Callable[[Path], IO[bytes]] | str], ...] = (
    (b"\x1f\x8b", cast("Callable[[Path], IO[bytes]]", gzip.open)),
    (b"\xfd7zXZ\x00", lzma.open),
    (b"\x28\xb5\x2f\xfd", "zstd -d"),
    (b"PK\x03\x04", "unzip"),
    (b"BZh", "bunzip2"),
)
"""By the first bytes of a file how it is opened, or what unpacks it where this program cannot."""


def lines_of(path: Path) -> Iterator[bytes]:
    """Unpacked where they are packed by gzip or xz. Raises TraceError while they are read."""
    try:
        with _opened(path) as lines:
            yield from lines
    except EOFError as error:
        raise TraceError(f"{path}: the packed file is cut off; unpack what is there, and replay that") from error
    except (OSError, lzma.LZMAError, zlib.error) as error:
        raise TraceError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _opened(path: Path) -> IO[bytes]:
    file = path.open("rb")
    first = file.peek(8)
    how = next((how for magic, how in _PACKED if first.startswith(magic)), None)
    if how is None:
        return file
    file.close()
    if isinstance(how, str):
        raise TraceError(f"{path}: packed in a way that is not read here: {how} it first")
    return how(path)


def excerpt(line: bytes, at: int = 0) -> str:
    """What stands in a line, from `at` on, for a message."""
    return repr(line[at : at + 60].decode("utf-8", "replace").strip())


def reason(error: Exception, line: bytes) -> str:
    """Why a line of JSON could not be read, for who wrote it."""
    if isinstance(error, Drop):
        return error.message
    said = str(error)
    if isinstance(error, msgspec.ValidationError) and line.lstrip().startswith(b"{"):
        match = re.fullmatch(r"(.*) - at `\$\.?(.*)`", said, re.DOTALL)
        return f"{match[2]}: {match[1][0].lower()}{match[1][1:]}" if match else said
    if not line.lstrip().startswith(b"{"):
        return f"no JSON object like the lines before: {excerpt(line)}"
    if isinstance(error, msgspec.DecodeError):
        match = re.search(r"\(byte (\d+)\)", said)
        if match and int(match[1]) < len(line.rstrip()):
            return f"the line is no JSON from {excerpt(line, int(match[1]))} on"
        return f"the line is cut off after {line.rstrip()[-40:].decode('utf-8', 'replace')!r}; remove it"
    return said
