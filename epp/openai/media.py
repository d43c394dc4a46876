"""Images, audio and video as prompt bytes: a hash of the content, repeated for as long as the content costs.

A server caches the tokens of an image like those of text, so the canonical prompt must have as many bytes for it,
the same for the same image and different for another.
"""

from __future__ import annotations

import binascii
import struct

import xxhash

BYTES_PER_TOKEN = 4
PIXELS_PER_TOKEN = 32 * 32
"""A vision encoder's patch after merging: Qwen3-VL's 32 × 32; the other widespread ones are within a third of it."""

IMAGE_TOKENS = 640 * 360 // PIXELS_PER_TOKEN
"""For an image whose size is not in the request (a URL, an unknown format)."""

MAX_IMAGE_TOKENS = 16_384
"""Where servers scale an image down (Qwen2.5-VL: 12.8 million pixels)."""

VIDEO_TOKENS = 20 * IMAGE_TOKENS
"""10 s at 2 frames a second, each an image of the default size."""

AUDIO_TOKENS_PER_S = 25
AUDIO_TOKENS = 30 * AUDIO_TOKENS_PER_S
"""For audio behind a URL: the 30 s of one encoder window."""

WAV_BYTES_PER_S = 32_000  # 16 kHz, 16 bit, one channel
COMPRESSED_BYTES_PER_S = 16_000  # 128 kbit/s

FILE_TOKENS = 1_500
"""For a document: about a page and a half of text."""

_BASE64 = b";base64,"
_HEAD_BYTES = 2_048
_JPEG_HEAD_BYTES = 131_072  # an EXIF block, up to 64 KiB, may stand before the size


def image(content: bytes) -> bytes:
    """`content` identifies the image: a data URL, bare base64, a URL or an id, raw from the JSON text."""
    return _repeated(content, _image_tokens(content))


def audio(content: bytes, is_wav: bool) -> bytes:
    payload = _payload(content)
    if payload is None:
        return _repeated(content, AUDIO_TOKENS)
    per_s = WAV_BYTES_PER_S if is_wav else COMPRESSED_BYTES_PER_S
    return _repeated(content, max(1, len(payload) * 3 // 4 * AUDIO_TOKENS_PER_S // per_s))


def video(content: bytes) -> bytes:
    return _repeated(content, VIDEO_TOKENS)


def file(content: bytes) -> bytes:
    return _repeated(content, FILE_TOKENS)


def _repeated(content: bytes, tokens: int) -> bytes:
    digest = xxhash.xxh3_128_digest(content)
    length = tokens * BYTES_PER_TOKEN
    return (digest * (length // len(digest) + 1))[:length]


def _payload(content: bytes) -> bytes | None:
    """The base64 text of a data URL or of bare base64; None for a URL."""
    if content.startswith(b"data:"):
        comma = content.find(_BASE64, 0, 256)
        return content[comma + len(_BASE64) :] if comma >= 0 else None
    return None if b"://" in content[:16] else content


def _image_tokens(content: bytes) -> int:
    payload = _payload(content)
    size = None if payload is None else image_size(payload)
    if size is None:
        return IMAGE_TOKENS
    return min(max(size[0] * size[1] // PIXELS_PER_TOKEN, 1), MAX_IMAGE_TOKENS)


def image_size(payload: bytes) -> tuple[int, int] | None:
    """Width and height in pixels from the header of a base64 PNG, JPEG, GIF or WebP; None where it is none of them."""
    head = _decoded(payload, _HEAD_BYTES)
    try:
        if head.startswith(b"\x89PNG"):
            return struct.unpack(">II", head[16:24])
        if head.startswith(b"GIF8"):
            return struct.unpack("<HH", head[6:10])
        if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
            return _webp_size(head)
        if head.startswith(b"\xff\xd8"):
            return _jpeg_size(head) or _jpeg_size(_decoded(payload, _JPEG_HEAD_BYTES))
    except struct.error:
        return None
    return None


def _decoded(payload: bytes, length: int) -> bytes:
    encoded = payload[: length * 4 // 3 // 4 * 4].replace(b"\\/", b"/")
    try:
        return binascii.a2b_base64(encoded[: len(encoded) // 4 * 4])
    except binascii.Error:
        return b""


def _webp_size(head: bytes) -> tuple[int, int] | None:
    if head[12:16] == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if head[12:16] == b"VP8L":
        (bits,) = struct.unpack("<I", head[21:25])
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if head[12:16] == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _jpeg_size(head: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(head) and head[at] == 0xFF:
        marker = head[at + 1]
        # SOF0..SOF15 carry the size; C4, C8 and CC in that range are tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", head[at + 5 : at + 9])
            return width, height
        (length,) = struct.unpack(">H", head[at + 2 : at + 4])
        at += 2 + length
    return None
