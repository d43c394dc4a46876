"""A streamed answer as server-sent events, one write for whatever tokens there are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from bench.replica.dialects import Answer, Dialect, Stamp, Usage
from bench.replica.kv import TOKEN_BYTES
from bench.replica.live import Generation


def answers(generations: Sequence[Generation]) -> list[Answer]:
    return [Answer(generation.text.decode(), generation.reason) for generation in generations]


def usage(generations: Sequence[Generation]) -> Usage:
    """The usage of all choices together, once they are done."""
    return Usage(
        sum(generation.prompt_tokens for generation in generations),
        sum(generation.cached_tokens for generation in generations),
        sum(generation.output_tokens for generation in generations),
    )


async def events(
    dialect: Dialect, stamp: Stamp, generations: Sequence[Generation], interval: int, include_usage: bool
) -> AsyncIterator[bytes]:
    """Pieces of at least `interval` tokens, choice after choice. The first brings the opening, the last everything that
    follows, so that an answer is as many writes as pieces."""
    for choice, generation in enumerate(generations):
        before, after = dialect.piece(stamp, choice)
        lead = dialect.opening(stamp, choice)
        sent = 0
        while sent < generation.output_tokens:
            await generation.reach(min(sent + interval, generation.output_tokens))
            text = generation.text[sent * TOKEN_BYTES : generation.tokens * TOKEN_BYTES]
            sent = generation.tokens
            parts = [lead, before, text, after]
            lead = b""
            if generation.done:
                parts.append(dialect.closing(stamp, choice, generation.reason))
                if generation is generations[-1]:
                    parts.append(dialect.ending(stamp, answers(generations), usage(generations), include_usage))
            yield b"".join(parts)
