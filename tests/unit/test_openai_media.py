"""Media take as many prompt bytes as their tokens cost, the same for the same content."""

from __future__ import annotations

import base64
import io
import json
import struct
from typing import Any

import pytest
from PIL import Image

from epp.openai import media
from epp.openai.body import parse


def encoded(width: int, height: int, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(buffer, form, **options)
    return base64.b64encode(buffer.getvalue())


@pytest.mark.parametrize("size", [(1, 1), (640, 360), (1030, 770)])
@pytest.mark.parametrize(
    ("form", "options"),
    [
        ("PNG", {}),
        ("GIF", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("JPEG", {"exif": b"Exif\x00\x00" + b"\x00" * 60_000}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x00"}),
    ],
)
def test_size_is_read_from_the_header(size: tuple[int, int], form: str, options: dict[str, Any]) -> None:
    assert media.image_size(encoded(*size, form, **options)) == size


def test_an_image_costs_by_its_pixels() -> None:
    small, large = (
        media.image(b"data:image/png;base64," + encoded(w, h, "PNG")) for w, h in ((640, 640), (1280, 1280))
    )
    assert (len(small), len(large)) == (400 * 4, 1600 * 4)
    assert len(media.image(b"https://example.com/cat.png")) == media.IMAGE_TOKENS * 4
    huge = base64.b64encode(b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", 60_000, 60_000))
    assert len(media.image(huge)) == media.MAX_IMAGE_TOKENS * 4
    assert len(media.image(encoded(1, 1, "PNG"))) == 4


@pytest.mark.parametrize(
    "header", [b"\x89PNG", b"GIF8", b"RIFF\0\0\0\0WEBPVP8 ", b"RIFF\0\0\0\0WEBP????", b"\xff\xd8\xff", b"?", b""]
)
def test_a_broken_header_counts_as_the_default(header: bytes) -> None:
    assert len(media.image(base64.b64encode(header) or b"=")) == media.IMAGE_TOKENS * 4


def test_audio_costs_by_its_length() -> None:
    second = base64.b64encode(bytes(media.WAV_BYTES_PER_S))
    assert len(media.audio(second, True)) == 25 * 4
    assert len(media.audio(b"data:audio/mpeg;base64," + second, False)) == 50 * 4
    assert len(media.audio(b"https://example.com/a.mp3", False)) == media.AUDIO_TOKENS * 4


def prompt(path: str, part: dict[str, Any]) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": [part, {"type": "text", "text": "What is it?"}]}]}
    (only,) = parse({":path": path}, json.dumps(body).encode()).prompts
    return only


PNG = encoded(640, 640, "PNG").decode()
IMAGES: list[tuple[str, dict[str, Any]]] = [
    (
        "/v1/chat/completions",
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}", "detail": "low"}},
    ),
    ("/v1/chat/completions", {"type": "image_url", "image_url": f"data:image/png;base64,{PNG}"}),
    ("/v1/messages", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}),
    (
        "/v1/messages",
        {
            "type": "tool_result",
            "content": [{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}],
        },
    ),
]


@pytest.mark.parametrize(("path", "part"), IMAGES)
def test_images_of_every_api(path: str, part: dict[str, Any]) -> None:
    written = prompt(path, part)
    assert written.startswith(b'\n"user"')
    assert written.endswith(b'"What is it?"')
    assert len(written) == len(b'\n"user""What is it?"') + 1600


PARTS: list[tuple[dict[str, Any], int]] = [
    ({"type": "image_url", "image_url": None, "uuid": "cat-1"}, media.IMAGE_TOKENS),
    ({"type": "image_url", "image_url": 7}, media.IMAGE_TOKENS),
    ({"type": "video_url", "video_url": {"url": "https://example.com/cat.mp4"}}, media.VIDEO_TOKENS),
    ({"type": "audio_url", "audio_url": {"url": "https://example.com/cat.wav"}}, media.AUDIO_TOKENS),
    ({"type": "input_audio", "input_audio": {"data": base64.b64encode(bytes(32_000)).decode(), "format": "wav"}}, 25),
    ({"type": "input_audio", "input_audio": None}, 1),
    ({"type": "file", "file": {"file_id": "file-1"}}, media.FILE_TOKENS),
    ({"type": "input_file", "file_data": "JVBERi0="}, media.FILE_TOKENS),
    (
        {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}},
        media.FILE_TOKENS,
    ),
    ({"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "abcdef"}}, 2),
    ({"type": "image", "source": {"type": "url", "url": "https://example.com/cat.png"}}, media.IMAGE_TOKENS),
    ({"type": "novelty", "novelty": "x"}, 0),
]


@pytest.mark.parametrize(("part", "tokens"), PARTS)
def test_parts_cost_what_their_tokens_do(part: dict[str, Any], tokens: int) -> None:
    assert len(prompt("/v1/messages", part)) == len(b'\n"user""What is it?"') + tokens * 4
