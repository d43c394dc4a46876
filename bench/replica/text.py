"""A stand-in for a tokenizer: four bytes are a token. Shared byte prefixes are shared token prefixes, and nothing is learned.

The chat template pads each message to whole tokens, so that an answer, sent back as a message of the next turn, has the
very tokens that were generated.
"""

from __future__ import annotations

import random
from collections.abc import Iterable

from bench.replica.kv import TOKEN_BYTES

_WORDS = (
    "the and you for are but not all any can had her was one our out day get has him his how man new now old see two way "
    "who boy did its let put say she too use dad mom big end far few got job lot men own run set six ten top try why yes"
)
_TEXT = "".join(f"{word} " for word in random.Random(4).choices(_WORDS.split(), k=4096)).encode()


def padded(text: bytes) -> bytes:
    """`text`, filled up with blanks to whole tokens."""
    return text + b" " * (-len(text) % TOKEN_BYTES)


def token_count(text: bytes) -> int:
    return -(-len(text) // TOKEN_BYTES)


def chat_prompt(messages: Iterable[tuple[str, bytes]], preamble: bytes = b"") -> bytes:
    """(role, content) pairs as the model reads them, up to where its answer begins. `preamble`: tools."""
    parts = [padded(preamble)]
    for role, content in messages:
        parts.append(padded(b"<|%s|>\n" % role.encode()))
        parts.append(padded(content + b"<|end|>\n"))
    parts.append(padded(b"<|assistant|>\n"))
    return b"".join(parts)


def answer(seed: int, tokens: int) -> bytes:
    """`tokens` tokens of ASCII without anything that JSON escapes. Equal seeds begin alike."""
    start = seed % (len(_TEXT) // TOKEN_BYTES) * TOKEN_BYTES
    wanted = tokens * TOKEN_BYTES
    copies = 1 + -(-wanted // len(_TEXT))
    return (_TEXT * copies)[start : start + wanted]
