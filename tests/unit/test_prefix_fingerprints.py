"""Fingerprints: the same prefix gives the same values whatever follows it and whichever way they are computed."""

from __future__ import annotations

import numpy as np
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.prefix import fingerprints as module
from epp.prefix.fingerprints import CHAINED_BLOCKS, FINGERPRINT_BITS, fingerprints, seed_of
from epp.request import BLOCK_BYTES

UNLIMITED = 1 << 30


def text(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def by_the_definition(prompt: bytes, seed: int) -> list[int]:
    last, result = seed, []
    for number, start in enumerate(range(0, len(prompt), BLOCK_BYTES)):
        block = prompt[start : start + BLOCK_BYTES]
        if number < CHAINED_BLOCKS:
            last = xxhash.xxh3_64_intdigest(block, last) % (1 << FINGERPRINT_BITS)
        else:
            last = (last * module._FACTOR + xxhash.xxh3_64_intdigest(block)) % (1 << FINGERPRINT_BITS)
        result.append(last)
    return result


@given(size=st.integers(0, 3 * module._PIECE_BLOCKS * BLOCK_BYTES), seed=st.integers(0, (1 << FINGERPRINT_BITS) - 1))
@settings(max_examples=40, deadline=None)
def test_every_size_follows_the_definition(size: int, seed: int) -> None:
    prompt = text(size)
    assert fingerprints((prompt,), seed, UNLIMITED).tolist() == by_the_definition(prompt, seed)


def test_sizes_around_the_switches_between_the_forms() -> None:
    for blocks in (*range(14, 19), *range(CHAINED_BLOCKS - 2, CHAINED_BLOCKS + 3)):
        for extra in (-1, 0, 1):
            prompt = text(blocks * BLOCK_BYTES + extra)
            assert fingerprints((prompt,), 7, UNLIMITED).tolist() == by_the_definition(prompt, 7)


@given(
    shared=st.integers(0, 300 * BLOCK_BYTES),
    first=st.integers(1, 9 * BLOCK_BYTES),
    second=st.integers(1, 9 * BLOCK_BYTES),
)
@settings(max_examples=40, deadline=None)
def test_two_prompts_share_exactly_the_whole_blocks_of_their_common_beginning(
    shared: int, first: int, second: int
) -> None:
    start = text(shared)
    a = fingerprints((start + b"a" + text(first, 1),), 1, UNLIMITED)
    b = fingerprints((start + b"b" + text(second, 2),), 1, UNLIMITED)
    n = min(len(a), len(b))
    assert np.flatnonzero(a[:n] == b[:n]).tolist() == list(range(shared // BLOCK_BYTES))


def test_a_partial_last_block_has_its_fingerprint() -> None:
    assert len(fingerprints((text(BLOCK_BYTES + 1),), 1, UNLIMITED)) == 2


def test_the_cap_keeps_the_beginning() -> None:
    prompt = text(200 * BLOCK_BYTES)
    whole = fingerprints((prompt,), 1, UNLIMITED)
    for cap in (0, 1, 77, CHAINED_BLOCKS, CHAINED_BLOCKS + 1, 150, 200, 201):
        assert fingerprints((prompt,), 1, cap).tolist() == whole[:cap].tolist()


def test_a_cap_on_several_prompts() -> None:
    a, b = text(3 * BLOCK_BYTES, 1), text(3 * BLOCK_BYTES, 2)
    whole = fingerprints((a, b), 1, UNLIMITED)
    assert len(whole) == 6
    for cap in range(7):
        assert fingerprints((a, b), 1, cap).tolist() == whole[:cap].tolist()


def test_nothing_has_no_fingerprints() -> None:
    for prompts in ((), (b"",), (b"", b"")):
        result = fingerprints(prompts, 1, UNLIMITED)
        assert result.dtype == np.uint64
        assert len(result) == 0


def test_several_prompts_are_one_sequence_and_no_joined_text() -> None:
    a, b, c = text(BLOCK_BYTES, 1), text(BLOCK_BYTES, 2), text(BLOCK_BYTES, 3)
    assert fingerprints((a, b), 1, UNLIMITED)[0] == fingerprints((a, c), 1, UNLIMITED)[0]
    assert fingerprints((a, b), 1, UNLIMITED)[1] != fingerprints((a, c), 1, UNLIMITED)[1]
    assert fingerprints((a, b), 1, UNLIMITED)[1] != fingerprints((a + b,), 1, UNLIMITED)[1]
    assert fingerprints((a, b), 1, UNLIMITED)[1] != fingerprints((b,), 1, UNLIMITED)[0]


def test_order_of_blocks_matters() -> None:
    a, b = text(BLOCK_BYTES, 1), text(BLOCK_BYTES, 2)
    assert fingerprints((a + b,), 1, UNLIMITED)[1] != fingerprints((b + a,), 1, UNLIMITED)[1]


def test_values_fit_in_60_bits() -> None:
    values = fingerprints((text(4000 * BLOCK_BYTES),), 1, UNLIMITED)
    assert int(values.max()) < 1 << FINGERPRINT_BITS
    assert len(np.unique(values)) == 4000


def test_seeds_differ_by_model_and_salt_and_cannot_be_confused() -> None:
    seeds = {seed_of("a"), seed_of("ab"), seed_of("a", "b"), seed_of("", "ab"), seed_of("", "a"), seed_of("")}
    assert len(seeds) == 6
    assert seed_of("a", "b") == seed_of("a", "b")
    assert all(0 <= seed < 1 << FINGERPRINT_BITS for seed in seeds)
