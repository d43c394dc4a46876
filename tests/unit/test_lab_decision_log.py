"""A decision log read back as a trace: what the picker wrote down is what the lab offers."""

from __future__ import annotations

import itertools
import random
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench.lab import decision_log
from bench.lab.decision_log import joined, offered
from bench.lab.formats import read
from bench.lab.offered import Offered, TraceError, chain
from epp.decisions.encoder import Encoder
from epp.decisions.lines import Decision, Line, Members, Outcome, Run
from epp.decisions.recording import Taken
from epp.prefix.fingerprints import fingerprints, seed_of

RUN = Run(run="a", started="2026-01-01T00:00:00Z", pool="p", block_bytes=256)


def prints(*values: int) -> bytes:
    return b"".join(value.to_bytes(6, "little") for value in values)


def decision(request: int, at_s: float, *values: int, **more: object) -> Decision:
    fields = {"prompt_bytes": 256 * len(values), "picked": 0, "model": "m", "fingerprints": prints(*values), **more}
    return Decision(request=request, arrived_s=at_s, decided_s=at_s, **fields)  # type: ignore[arg-type]


def outcome(request: int, at_s: float, tokens: int | None = 7) -> Outcome:
    return Outcome(request=request, ended_s=at_s, status=200, output_tokens=tokens)


def log(*lines: Line) -> list[bytes]:
    return [msgspec.json.encode(line) + b"\n" for line in lines]


def placed(lines: Iterable[bytes]) -> Iterator[tuple[str, bytes]]:
    return ((f"log:{number}", line) for number, line in enumerate(lines, 1))


def of(*lines: Line, **more: float) -> list[Offered]:
    return list(offered(joined(placed(log(*lines))), **more))  # type: ignore[arg-type]


class TestJoining:
    def test_outcomes_belong_to_their_decisions(self) -> None:
        got = of(RUN, Members({0: "a"}), decision(1, 1, 5), decision(2, 2, 6), outcome(2, 3, 20), outcome(1, 4, 10))
        assert [(one.at_s, one.output_tokens) for one in got] == [(1, 10), (2, 20)]

    def test_refusals_and_what_never_ended_are_there_too(self) -> None:
        got = of(RUN, decision(1, 1, 5, picked=None, refused="x"), decision(2, 2, 6))
        assert [one.at_s for one in got] == [1, 2]

    def test_one_that_waited_comes_when_it_arrived(self) -> None:
        got = of(RUN, decision(1, 5, 5), decision(2, 3, 6), outcome(2, 6), outcome(1, 7))
        assert [one.at_s for one in got] == [3, 5]

    def test_a_later_run_comes_later_and_shares_nothing_by_number(self) -> None:
        later = msgspec.structs.replace(RUN, run="b", started="2026-01-01T00:10:00Z")
        got = of(RUN, decision(1, 1, 5), RUN, outcome(1, 2, 50), later, decision(1, 1, 5), outcome(1, 2, 60))
        assert [(one.at_s, one.output_tokens) for one in got] == [(1, 50), (601, 60)]

    @pytest.mark.parametrize("more", [(), (RUN, decision(2, 2, 6)), (RUN,)], ids=["end", "appended", "empty"])
    def test_a_line_that_the_picker_s_end_cut_is_passed_over(self, more: Sequence[Line]) -> None:
        lines = [*log(RUN, decision(1, 1, 5)), log(outcome(1, 2))[0][:-9] + b"\n", *log(*more)]
        got = list(offered(joined(placed(lines))))
        assert [one.at_s for one in got] == [1, 2][: 1 + (len(more) == 2)]

    def test_the_first_one_that_never_ends_holds_up_no_more_than_a_window(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(decision_log, "WINDOW", 10)
        lines: Iterator[Line] = itertools.chain(
            (RUN, decision(1, 0, 5)),
            *((decision(n, n, 5), outcome(n, n + 0.5)) for n in range(2, 100)),
        )
        read_lines = 0

        def counted() -> Iterator[tuple[str, bytes]]:
            nonlocal read_lines
            for number, line in enumerate(lines, 1):
                read_lines = number
                yield str(number), msgspec.json.encode(line)

        assert next(offered(joined(counted()))).at_s == 0
        assert read_lines < 30

    @given(st.permutations(range(8)), st.integers(0, 2**32))
    @settings(deadline=None)
    def test_nothing_is_lost_and_all_is_in_order(self, ends: Sequence[int], seed: int) -> None:
        rng = random.Random(seed)
        lines: list[Line] = [RUN]
        pending = []
        for number in range(8):
            lines.append(decision(number + 1, rng.uniform(0, 9), number))
            pending.append(number)
            while pending and rng.random() < 0.5:
                lines.append(outcome(pending.pop(rng.randrange(len(pending))) + 1, 10))
        got = of(*lines)
        assert sorted(one.blocks[0] for one in got) == list(range(8))


class TestAnswers:
    def test_unknown_lengths_by_the_time_they_took(self) -> None:
        got = of(
            RUN,
            decision(1, 0, 5),
            outcome(1, 2, 100),
            decision(2, 10, 5),
            outcome(2, 11, None),
            decision(3, 20, 5, max_tokens=30),
            outcome(3, 21, None),
        )
        assert [one.output_tokens for one in got] == [100, 50, 30]

    def test_nothing_known(self) -> None:
        got = of(RUN, decision(1, 0, 5), decision(2, 1, 5, max_tokens=9), outcome(2, 3, None))
        assert [one.output_tokens for one in got] == [256, 9]


class TestText:
    def test_equal_beginnings_stay_equal_at_any_token_size(self) -> None:
        for rate in (0.2, 0.25, 0.3, 0.41):
            one, other = of(RUN, decision(1, 0, 1, 2, 3, 4, 5), decision(2, 1, 1, 2, 3, 9, 9), tokens_per_byte=rate)
            assert one.prompt_tokens == round(5 * 256 * rate)
            assert len(one.blocks) == -(-one.prompt_tokens // 64)
            common = sum(a == b for a, b in zip(chain(one), chain(other), strict=True))
            assert common == int(3 * 256 * rate / 64 + 1e-9)

    def test_what_was_not_fingerprinted_is_nobody_elses(self) -> None:
        one, other = of(RUN, decision(1, 0, 1, 2, prompt_bytes=1024), decision(2, 1, 1, 2, prompt_bytes=1024))
        assert one.blocks[:2] == other.blocks[:2] and not set(one.blocks[2:]) & set(other.blocks[2:])
        assert len(one.blocks) == 4

    def test_a_request_without_a_prompt_is_no_work(self) -> None:
        assert of(RUN, decision(1, 0), decision(2, 1, 5)) == of(RUN, decision(2, 1, 5))

    def test_other_models_are_adapters(self) -> None:
        got = of(RUN, decision(1, 0, 5), decision(2, 1, 5, model="x", target_model="y"), decision(3, 2, 5))
        assert [one.model for one in got] == ["", "y", ""]

    def test_what_the_picker_writes_is_what_the_lab_reads(self) -> None:
        encoder = Encoder(bytes(32), run="r", started="2026-01-01T00:00:00Z", zero_s=0.0, pool="p")
        shared = "the same beginning, sixteen blocks of it " * 100
        texts = [shared + "one", shared + "other" * 300, "something else " * 100]
        lines = [encoder.begin()]
        for number, text in enumerate(texts):
            found = fingerprints((text.encode(),), seed_of("m"), 1000)
            taken = _taken(number + 1, float(number), len(text), found)
            lines += encoder.encode(taken)
        first, second, third = read(lines, "log")
        common = sum(a == b for a, b in zip(first.blocks, second.blocks, strict=False))
        assert common == len(shared) // 256
        assert not set(first.blocks) & set(third.blocks)
        assert [one.at_s for one in (first, second, third)] == [0, 1, 2]


def _taken(number: int, at_s: float, size: int, found: NDArray[np.uint64]) -> Taken:
    return Taken(
        number=number,
        opened_s=at_s,
        decided_s=at_s,
        model="m",
        target_model="m",
        fairness_id="t",
        priority=0,
        stream=True,
        prompt_bytes=size,
        prompt_tokens=size // 4,
        max_tokens=None,
        fingerprints=found,
    )


class TestMistakes:
    @pytest.mark.parametrize(
        "lines, message",
        [
            ([*log(RUN), b'{"line":"decision","request":1}\n'], "log:2: Object missing required field `arrived_s`"),
            ([*log(RUN), b"{oops}\n"], "log:2: a line of another format in a decision log"),
            ([*log(RUN), b'{"line":"decision",oops\n', *log(decision(1, 0, 5))], "log:2: the line is no JSON from"),
            ([*log(RUN), b'{"line":"dec\n', b"{again\n", *log(decision(1, 0, 5))], "log:2: the line is cut off after"),
            ([b"{oops"], "log:1: the line is no JSON from"),
            ([*log(RUN, decision(1, -5, 5))], "log:2: arrived_s is -5 and prompt_bytes"),
            ([*log(RUN), b'{"timestamp": 1, "hash_ids": [1]}\n'], "log:2: a line of another format in a decision log"),
            (log(msgspec.structs.replace(RUN, started="yesterday")), "log:1: started: expected a time such as 2026-"),
            (log(RUN, msgspec.structs.replace(RUN, version=9)), "log:2: version 9 of the decision log"),
            (log(Members({})), "log:1: a decision log begins with"),
        ],
    )
    def test_name_the_line(self, lines: list[bytes], message: str) -> None:
        with pytest.raises(TraceError, match=message.split("`")[0]) as caught:
            list(read(lines, "log"))
        assert str(caught.value).startswith(message)


def endless(count: int) -> Iterator[bytes]:
    yield msgspec.json.encode(RUN)
    for number in range(1, count):
        yield msgspec.json.encode(decision(number, number / 10, *range(number, number + 40)))
        if number > 50:
            yield msgspec.json.encode(outcome(number - 50, number / 10))


def peak_bytes(lines: Iterable[bytes]) -> int:
    tracemalloc.start()
    try:
        for _ in read(lines, "log"):
            pass
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_long_log_streams() -> None:
    peak_bytes(endless(100))
    short, long = peak_bytes(endless(2_000)), peak_bytes(endless(20_000))
    assert long < 1.2 * short < 2_000_000
