"""What a log line holds, and what never gets into one."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.drops import OUTCOMES, Drop, Reason
from epp.observe import logs
from epp.observe.logs import TRACE, VERBOSE, Encoder, Every, Explained, PickLog, RefusalLog, TimeEncoding
from epp.pipeline import Considered, Explanation, LeftOut, Pick, ScoreShare
from epp.request import Request

REQUEST = Request(
    request_id="req-1",
    path="/v1/chat/completions",
    model="llama",
    target_model="llama-8b",
    headers={"authorization": "Bearer sk-secret", "x-request-id": "req-1"},
    prompt_bytes=400,
    prompt_tokens=100,
)


def a_real_pick_explains_itself(pick: Pick) -> Explained:
    """For the type checker: what the pipeline returns is what the log takes."""
    return pick


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)


def lines(level: int, encoder: Encoder = "json", time_encoding: TimeEncoding = "rfc3339") -> io.StringIO:
    stream = io.StringIO()
    logs.configure(level=level, encoder=encoder, time_encoding=time_encoding, stream=stream)
    return stream


def parsed(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_json_line_has_the_fields_of_extra() -> None:
    stream = lines(logging.INFO)
    logging.getLogger("epp.x").warning("scrape of %s failed", "pod-0", extra={"request_id": "r1", "times": 3})
    (line,) = parsed(stream)
    ts = line.pop("ts")
    assert line == {"level": "warn", "logger": "epp.x", "msg": "scrape of pod-0 failed", "request_id": "r1", "times": 3}
    assert ts.endswith("Z")


def test_an_exception_is_a_field_in_json_and_lines_in_the_console() -> None:
    for encoder in ("json", "console"):
        stream = lines(logging.INFO, encoder)
        try:
            raise RuntimeError("bug")
        except RuntimeError:
            logging.getLogger("epp.x").exception("failed")
        text = stream.getvalue()
        assert "RuntimeError: bug" in text
        assert (len(text.splitlines()) == 1) == (encoder == "json")
    assert "ERROR    epp.x  failed\nTraceback" in text


@pytest.mark.parametrize("value", ['quote " and \\', "lone \ud800", "line\nbreak", float("nan"), np.float64(1.5), {1}])
def test_any_field_leaves_json_whole(value: object) -> None:
    stream = lines(logging.INFO)
    logging.getLogger("epp.x").info("m", extra={"field": value})
    (line,) = parsed(stream)
    assert "field" in line


def test_a_line_break_from_outside_makes_no_line() -> None:
    stream = lines(logging.INFO, "console")
    logging.getLogger("epp.x").info("model %s", "a\n2026-01-01  ERROR  forged", extra={"field": "b\nc"})
    assert len(stream.getvalue().splitlines()) == 1


def test_a_console_line() -> None:
    stream = lines(logging.INFO, "console", "epoch")
    logging.getLogger("epp.x").info("ready", extra={"port": 9002})
    assert stream.getvalue().endswith('  INFO     epp.x  ready  {"port":9002}\n')


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("epoch", 1700000000.25),
        ("millis", 1700000000250.0),
        ("nano", 1700000000250000000),
        ("iso8601", "2023-11-14T22:13:20.250Z"),
        ("rfc3339", "2023-11-14T22:13:20Z"),
        ("rfc3339nano", "2023-11-14T22:13:20.250000Z"),
    ],
)
def test_time_encodings(encoding: TimeEncoding, expected: object) -> None:
    record = logging.makeLogRecord({"msg": "m", "created": 1700000000.25, "levelno": logging.INFO})
    assert json.loads(logs.JsonLines(encoding).format(record))["ts"] == expected


@pytest.mark.parametrize(
    ("verbosity", "level"),
    [(0, 20), (1, 20), (2, 20), (3, VERBOSE), (4, logging.DEBUG), (5, TRACE), (9, TRACE)],
)
def test_verbosity(verbosity: int, level: int) -> None:
    assert logs.level_of(verbosity) == logs.level_named(str(verbosity)) == level


@pytest.mark.parametrize(
    ("name", "level"), [("debug", 10), ("INFO", 20), ("error", 40), ("panic", 50), ("verbose", 15)]
)
def test_named_levels(name: str, level: int) -> None:
    assert logs.level_named(name) == level


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud' is none of panic, error"):
        logs.level_named("loud")


def test_levels_filter_and_are_named() -> None:
    stream = lines(VERBOSE)
    log = logging.getLogger("epp.x")
    log.log(VERBOSE, "seen")
    log.debug("unseen")
    logging.getLogger("asyncio").info("chatter")
    logging.getLogger("hpack.table").log(VERBOSE, "chatter")
    assert [(line["level"], line["msg"]) for line in parsed(stream)] == [("verbose", "seen")]


def test_configuring_twice_writes_once() -> None:
    before = lines(logging.INFO)
    stream = lines(logging.INFO)
    logging.getLogger("epp.x").info("once")
    assert (len(parsed(before)), len(parsed(stream))) == (0, 1)


def test_every_counts_what_it_left_out() -> None:
    every = Every(60.0)
    assert [every("a", at_s) for at_s in (0.0, 1.0, 59.9, 60.0, 61.0, 130.0)] == [1, 0, 0, 3, 0, 2]


def test_every_says_the_first_at_any_time_of_the_clock() -> None:
    assert Every(60.0)("a", -1000.0) == 1


def test_every_forgets_the_key_said_longest_ago() -> None:
    every = Every(60.0, max_keys=2)
    every("a", 0.0)
    every("b", 1.0)
    every("a", 60.0)
    every("c", 61.0)
    assert every("a", 62.0) == 0
    assert every("b", 62.0) == 1


@settings(max_examples=50)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 50)), max_size=60))
def test_every_occurrence_is_told_or_still_owed(events: list[tuple[str, float]]) -> None:
    every = Every(10.0)
    events.sort(key=lambda event: event[1])
    told = [(key, at_s, every(key, at_s)) for key, at_s in events]
    for key in "abc":
        mine = [(at_s, n) for k, at_s, n in told if k == key]
        said = [i for i, (_, n) in enumerate(mine) if n]
        assert all(mine[later][0] - mine[earlier][0] >= 10.0 for earlier, later in pairwise(said))
        owed = len(mine) - 1 - said[-1] if said else 0
        assert sum(n for _, n in mine) + owed == len(mine)


class Picked(msgspec.Struct, frozen=True):
    """A pick among `candidates`, whose explanation counts how often it was asked for."""

    candidates: int = 3
    asked: list[int] = msgspec.field(default_factory=list)

    def explain(self) -> Explanation:
        self.asked.append(1)
        return Explanation(
            "default",
            ("ns/pod-0",),
            tuple(
                Considered(f"ns/pod-{i}", f"10.0.0.{i}:8000", 3.0 - i / 1000, (ScoreShare("queue", 0.5, 2.0, 1.0),))
                for i in range(self.candidates)
            ),
            (LeftOut("ns/pod-9", "label-filter"),),
        )


def test_a_decision_is_one_line_with_its_reasons() -> None:
    stream = lines(logging.DEBUG)
    PickLog().note(REQUEST, Picked(), 0.0)
    (line,) = parsed(stream)
    assert line["msg"] == "picked ns/pod-0"
    assert line["request_id"] == "req-1"
    assert line["candidates"][0] == {"endpoint": "ns/pod-0", "score": 3.0, "by": {"queue": 1.0}}
    assert line["left_out"] == {"label-filter": ["ns/pod-9"]}
    assert (line["profile"], line["considered"], line["prompt_tokens"]) == ("default", 3, 100)


def test_a_decision_nobody_reads_is_not_explained() -> None:
    stream = lines(logging.INFO)
    pick = Picked()
    PickLog().note(REQUEST, pick, 0.0)
    assert stream.getvalue() == ""
    assert pick.asked == []


def test_a_decision_among_a_thousand_shows_the_best() -> None:
    stream = lines(logging.DEBUG)
    PickLog(shown=4).note(REQUEST, Picked(1000), 0.0)
    (line,) = parsed(stream)
    assert [candidate["endpoint"] for candidate in line["candidates"]] == [f"ns/pod-{i}" for i in range(4)]
    assert line["considered"] == 1000


def test_a_decision_tells_nothing_of_headers() -> None:
    stream = lines(TRACE)
    PickLog().note(REQUEST, Picked(), 0.0)
    assert "secret" not in stream.getvalue()
    assert "authorization" not in stream.getvalue()


@pytest.mark.parametrize("reason", Reason)
def test_a_refusal_is_told_at_the_level_of_its_reason(reason: Reason) -> None:
    stream = lines(logging.DEBUG)
    RefusalLog().note(Drop(reason, "sk-secret: what the client wrote"), REQUEST, 0.0)
    (line,) = parsed(stream)
    assert line["level"] == {"warning": "warn"}.get(OUTCOMES[reason].log_level, OUTCOMES[reason].log_level)
    assert (line["reason"], line["status"], line["times"]) == (reason.value, OUTCOMES[reason].status, 1)
    assert (line["request_id"], line["model"]) == ("req-1", "llama")
    assert "secret" not in stream.getvalue()


def test_a_flood_of_refusals_is_a_line_a_minute_for_each_reason() -> None:
    stream = lines(logging.INFO)
    refusals = RefusalLog()
    for second in range(121):
        for reason in (Reason.SATURATED, Reason.NO_ENDPOINTS, Reason.BAD_REQUEST):
            refusals.note(Drop(reason, "no"), None, float(second))
    told = [(line["reason"], line["times"]) for line in parsed(stream)]
    assert told == [(r, n) for n in (1, 60, 60) for r in ("rejected-saturated", "rejected-no-endpoints")]


def test_what_says_only_who_debugs_is_told_every_time() -> None:
    stream = lines(logging.DEBUG)
    refusals = RefusalLog()
    for _ in range(3):
        refusals.note(Drop(Reason.BAD_REQUEST, "no"), None, 0.0)
    assert len(parsed(stream)) == 3
