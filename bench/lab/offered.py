"""One request of a trace, and what its text is to a picker and to an engine.

A trace says which blocks of text requests have in common, not the text. Each block gets a text of its own, four bytes a token,
so that shared blocks are shared bytes to the picker and shared tokens to the engine, and nothing else is.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import xxhash

from bench.policies import BLOCK_TOKENS
from bench.replica.kv import TOKEN_BYTES

_MASK = (1 << 60) - 1
_FACTOR = 0x9E3779B97F4A7C5
_WORD = 16


MISSING_OUTPUT_TOKENS = 256
"""Of an answer of which nothing is known."""


class TraceError(ValueError):
    """A trace that cannot be read. The message names file and line and says what was expected."""


class Offered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request as a trace has it. `at_s` is when its client sends it.

    `blocks` names the text of each started block of `block_tokens` tokens, from the prompt's beginning; equal names behind
    equal names are equal text. They are below 2^64. Where it goes on beyond the prompt it is the answer's text, known up to `known_tokens` tokens
    (0: up to the prompt's end). `block_tokens` is a multiple of `BLOCK_TOKENS`. `model` is the LoRA adapter asked for, "" for none.
    """

    at_s: float
    prompt_tokens: int
    output_tokens: int
    blocks: Sequence[int]
    block_tokens: int = 512
    known_tokens: int = 0
    model: str = ""
    tenant: str = ""
    priority: int = 0


def prompt_text(offered: Offered) -> bytes:
    """The prompt, ASCII without anything that JSON escapes."""
    copies = offered.block_tokens * TOKEN_BYTES // _WORD
    text = b"".join([b"%016x" % block * copies for block in offered.blocks])
    return text[: offered.prompt_tokens * TOKEN_BYTES]


def chain(offered: Offered) -> list[int]:
    """One value for each of `blocks`, covering everything before it and the model."""
    value = xxhash.xxh3_64_intdigest(offered.model.encode()) & _MASK if offered.model else 0
    return [value := (value * _FACTOR + block + 1) & _MASK for block in offered.blocks]


def block_hashes(offered: Offered, chained: Sequence[int]) -> list[int]:
    """One value for each full block of `BLOCK_TOKENS` known tokens, covering everything before it; `chained` is its `chain`."""
    parts = range(offered.block_tokens // BLOCK_TOKENS)
    known = max(offered.known_tokens, offered.prompt_tokens) // BLOCK_TOKENS
    if len(parts) == 1:
        return list(chained[:known])
    return [value * 31 + part for value in chained for part in parts][:known]
