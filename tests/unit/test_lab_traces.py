"""Traces: what their formats say, that their times go forward, and that they are what they claim to be."""

from __future__ import annotations

import gzip
import itertools
import json
import lzma
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from bench.lab.formats import WINDOW, read, read_file
from bench.lab.generated import GENERATED, copies
from bench.lab.offered import Offered, TraceError, block_hashes, chain, prompt_text
from bench.lab.simulation import EndlessCache
from bench.lab.traces import names, taken, trace
from bench.traces import reduce

BLOCKS = b'{"timestamp": 3000, "input_length": 600, "output_length": 7, "hash_ids": [4, 9]}\n'


def line(**fields: object) -> bytes:
    return json.dumps(fields).encode() + b"\n"


def shared(one: Offered, other: Offered) -> int:
    """Tokens that both begin with, in full blocks."""
    pairs = zip(block_hashes(one, chain(one)), block_hashes(other, chain(other)), strict=False)
    return 64 * sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


class TestFormats:
    def test_mooncake(self) -> None:
        first, second = read([BLOCKS, b"\n", BLOCKS.replace(b"3000", b"4500")], "x")
        assert (first.at_s, second.at_s) == (0.0, 1.5)
        assert (first.prompt_tokens, first.output_tokens, list(first.blocks)) == (600, 7, [4, 9])

    def test_azure(self) -> None:
        lines = [
            b"TIMESTAMP,ContextTokens,GeneratedTokens\r\n",
            b"2023-11-16 18:17:03.9799600,4808,10\r\n",
            b"2023-11-16 18:17:04.0319600,3180,8\r\n",
        ]
        first, second = read(lines, "x")
        assert second.at_s == pytest.approx(0.052)
        assert (first.prompt_tokens, second.output_tokens) == (4808, 8)
        assert not set(first.blocks) & set(second.blocks)

    def test_requests_with_text(self) -> None:
        text = "a" * 1000
        one, other, longer = read(
            [
                line(timestamp=1.0, body={"model": "m", "messages": [{"role": "user", "content": text}]}),
                line(timestamp=2.5, url="/v1/completions", body={"model": "m", "prompt": text, "max_tokens": 9}),
                line(timestamp=3.0, model="m", prompt=text + "b", output_tokens=3),
            ],
            "x",
        )
        assert (one.at_s, other.at_s, longer.at_s) == (0.0, 1.5, 2.0)
        assert (one.output_tokens, other.output_tokens, longer.output_tokens) == (256, 9, 3)
        assert (other.prompt_tokens, longer.prompt_tokens) == (250, 251)
        assert shared(other, longer) == 192
        assert shared(one, other) == 0

    def test_sessions_with_plain_text(self) -> None:
        first, second = read(
            [
                line(timestamp=1760587752017385, input="x" * 512, output="y" * 40, session_id="s"),
                line(timestamp=1760587753017385, input="x" * 600, output="y" * 40, session_id="s"),
            ],
            "x",
        )
        assert second.at_s == pytest.approx(1.0)
        assert shared(first, second) == 128
        assert (first.output_tokens, first.tenant) == (10, "s")

    @pytest.mark.parametrize(
        ("bad", "says"),
        [
            (b"{nonsense\n", "the line is no JSON from 'nonsense' on"),
            (BLOCKS.replace(b"3000", b"NaN"), "the line is no JSON from 'NaN, "),
            (BLOCKS[:40], "the line is cut off after .*; remove it"),
            (b"2024-01-01 00:00:00,100,100\n", "no JSON object like the lines before: '2024"),
            (b'{"line":"run","version":1}\n', "a line of a decision log among those of a trace"),
            (line(timestamp=1, hash_ids=[3, -1], input_length=9, output_length=1), "hash_ids: -1 is not from 0"),
            (
                line(timestamp=1, hash_ids=[1 << 64], input_length=9, output_length=1),
                f"hash_ids: {1 << 64} is not from",
            ),
            (line(timestamp=1, hash_ids=[1], input_length=9, output_length=-1), "output_length is -1"),
            (line(timestamp=1e300, hash_ids=[1], input_length=9, output_length=1), "days after the request before"),
            (
                line(timestamp=1, hash_ids=["a"], input_length=9, output_length=1),
                r"hash_ids\[0\]: expected `int`, got `str`",
            ),
            (line(timestamp=1, hash_ids=[1], input_length=600, output_length=1), "cannot be a prompt of 600"),
            (line(timestamp=1, hash_ids=[1]), "input_length and output_length are needed"),
            (line(timestamp=1, hash_ids=[1], input_length=9, output_length=1, block_tokens=100), "multiple of 64"),
            (line(timestamp=1), "expected hash_ids, a text in input, or an OpenAI request"),
            (line(timestamp="soon", hash_ids=[1]), "timestamp"),
        ],
    )
    def test_a_mistake_is_named_by_its_line(self, bad: bytes, says: str) -> None:
        with pytest.raises(TraceError, match=f"^log:3: .*{says}"):
            list(read([BLOCKS, b"\n", bad], "log"))

    def test_mistakes_in_azures_format_and_empty_files(self) -> None:
        with pytest.raises(TraceError, match=r"^log:2: expected TIMESTAMP"):
            list(read([b"TIMESTAMP,ContextTokens,GeneratedTokens\n", b"yesterday,1,2\n"], "log"))
        with pytest.raises(TraceError, match=r"^log:2: expected TIMESTAMP"):
            list(read([b"TIMESTAMP,ContextTokens,GeneratedTokens\n", b"2024-01-01 00:00:00,-1,2\n"], "log"))
        with pytest.raises(TraceError, match="no request"):
            list(read([b"\n"], "log"))
        for strange in (b"hello\n", b"Timestamp,Request tokens\n", b"[1, 2]\n", b"\x7fELF\n"):
            with pytest.raises(TraceError, match=r"^log:1: a log of no known format begins with .*; known are "):
                list(read([strange], "log"))
        with pytest.raises(TraceError, match="no/such/file"):
            list(read_file(Path("no/such/file")))

    def test_lines_are_read_as_they_are_needed(self) -> None:
        given = 0

        def endless() -> Iterator[bytes]:
            nonlocal given
            while True:
                given += 1
                yield BLOCKS

        assert len(list(itertools.islice(read(endless(), "x"), 1000))) == 1000
        assert given <= 1001 + WINDOW

    def test_lines_are_put_into_the_order_of_their_times_as_far_as_can_be(self) -> None:
        at = [BLOCKS.replace(b"3000", b"%d" % (1000 * n)) for n in range(2 * WINDOW)]
        mixed = [line for pair in zip(at[1::2], at[::2], strict=True) for line in pair]
        assert [one.at_s for one in read(mixed, "x")] == [float(n) for n in range(2 * WINDOW)]
        with pytest.raises(TraceError, match=rf"^x:{2 * WINDOW}: .* before that of a line far above; sort the file"):
            list(read([*at[1:], at[0]], "x"))

    @pytest.mark.parametrize("pack", [bytes, gzip.compress, lzma.compress])
    def test_what_a_file_is_packed_by_is_told_by_its_content(
        self, pack: Callable[[bytes], bytes], tmp_path: Path
    ) -> None:
        for name in ("log.jsonl", "log.gz", "log.xz"):
            path = tmp_path / name
            path.write_bytes(pack(BLOCKS * 3))
            assert len(list(read_file(path))) == 3

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (gzip.compress(BLOCKS * 99)[:60], "the packed file is cut off"),
            (lzma.compress(BLOCKS * 99)[:90], "the packed file is cut off"),
            (b"\x28\xb5\x2f\xfdxyz", "zstd -d it first"),
            (b"PK\x03\x04xyz", "unzip it first"),
        ],
    )
    def test_what_cannot_be_unpacked(self, content: bytes, says: str, tmp_path: Path) -> None:
        path = tmp_path / "log.jsonl"
        path.write_bytes(content)
        with pytest.raises(TraceError, match=f"^{path}: .*{says}"):
            list(read_file(path))


class TestTraces:
    @pytest.mark.parametrize("name", names())
    def test_times_go_forward_and_a_seed_makes_a_trace(self, name: str) -> None:
        one, again, other = (list(taken(trace(name, seed), 300, 2.0)) for seed in (1, 1, 2))
        times = [request.at_s for request in one]
        assert times == sorted(times)
        assert times[0] >= 0.0
        assert [(r.at_s, list(r.blocks)) for r in one] == [(r.at_s, list(r.blocks)) for r in again]
        assert times != [request.at_s for request in other]
        for request in one:
            assert len(request.blocks) * request.block_tokens >= request.prompt_tokens
        assert len(prompt_text(one[-1])) == 4 * one[-1].prompt_tokens

    def test_a_name_that_is_none(self) -> None:
        with pytest.raises(TraceError, match="conversation, toolagent"):
            trace("nonsense")

    @pytest.mark.parametrize(
        ("name", "rate", "median_tokens", "shared_share"),
        [
            ("conversation", 3.4, 6909, 0.37),
            ("toolagent", 6.6, 6331, 0.60),
            ("azure-code", 2.6, 1469, 0.0),
            ("groups", 10, 7216, 0.77),
            ("root", 10, 10240, 0.80),
            ("documents", 10, 5000, 0.43),
            ("answers", 10, 290, 0.0),
            ("adapters", 10, 1512, 0.22),
            ("sessions", 3.0, 35_000, 0.90),
            ("agents", 4.0, 3600, 0.92),
        ],
    )
    def test_traces_are_what_they_claim(self, name: str, rate: float, median_tokens: int, shared_share: float) -> None:
        requests = list(taken(trace(name), 2000 if name in (*GENERATED, "agents") else 24_000, 1.0))
        cache = EndlessCache()
        found = sum(min(cache.take(chain(one)) * one.block_tokens, one.prompt_tokens) for one in requests)
        tokens = np.array([one.prompt_tokens for one in requests])
        assert len(requests) / requests[-1].at_s == pytest.approx(rate, rel=0.6)
        assert np.median(tokens) == pytest.approx(median_tokens, rel=0.35)
        assert found / tokens.sum() == pytest.approx(shared_share, abs=0.12)

    def test_copies_of_sessions_share_what_the_recorded_ones_do_and_no_more(self) -> None:
        recorded = [
            Offered(at_s=float(turn), prompt_tokens=128, output_tokens=1, blocks=[1, own], block_tokens=64, tenant=name)
            for name, own in (("a", 2), ("b", 3))
            for turn in range(3)
        ]
        requests = list(itertools.islice(copies(recorded, 1), 30))
        assert {one.blocks[0] for one in requests} == {1}
        assert set(Counter(one.blocks[1] for one in requests[:20]).values()) <= {1, 2, 3}
        assert len({one.blocks[1] for one in requests}) >= 10


class TestReduce:
    def test_text_goes_and_what_is_shared_stays(self, tmp_path: Path) -> None:
        secret = "the quick brown fox " * 40
        for session in ("a", "b"):
            rows = [
                line(
                    timestamp=1760587752000000 + turn, input=secret * turn + session, output="an answer", session_id="s"
                )
                for turn in (1, 2)
            ]
            (tmp_path / session).write_bytes(b"".join(rows))
        paths = [tmp_path / "a", tmp_path / "b"]
        lines = list(reduce.lines(paths))
        assert not any(word in b"".join(lines) for word in (b"quick", b"answer"))
        before = [one for path in paths for one in read_file(path)]
        after = sorted(read(lines, "reduced"), key=lambda one: one.tenant)
        assert [one.prompt_tokens for one in after] == [one.prompt_tokens for one in before]
        for i, j in itertools.combinations(range(4), 2):
            assert shared(after[i], after[j]) == shared(before[i], before[j])
