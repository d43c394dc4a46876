"""The decision log: what is taken down, how it is salted, where it is written. Real files, no real time."""

from __future__ import annotations

import random
import sys
from collections import Counter
from pathlib import Path
from types import FrameType

import msgspec
import numpy as np
import pytest

from epp.configuration import build, load_default
from epp.decisions import file as module
from epp.decisions.encoder import Encoder
from epp.decisions.file import DecisionFile
from epp.decisions.lines import PRINT_BYTES, Decision, Line, Members, Outcome, Run
from epp.decisions.recording import CANDIDATES_KEPT, Ended, Recording, Taken
from epp.dispatcher import Dispatcher, Policy
from epp.drops import Drop
from epp.endpoint import Endpoint, Endpoints, Report
from epp.extproc.events import Arrival, Cause, Finished, Started
from epp.ledger import Ledger
from epp.observe.logs import PickLog
from epp.observe.metrics import Metrics
from epp.openai.tokens import TokenEstimator
from epp.pipeline import PluginFaults
from epp.prefix.index import PrefixIndex
from tests.pools import a_request
from tests.waiting import eventually

SECRET = "xyzzy-planted"
LINE: msgspec.json.Decoder[Line] = msgspec.json.Decoder(Line)


def an_encoder(key: bytes = bytes(range(32))) -> Encoder:
    return Encoder(key, run="r", started="2026-01-01T00:00:00Z", zero_s=50.0, pool="p")


class Desk:
    """A dispatcher that records."""

    def __init__(self, endpoints: int = 3, recording: Recording | None = None) -> None:
        rng = random.Random(1)
        self.lost = 0
        self.faults: list[tuple[str, Exception]] = []
        self.recording = recording or Recording(self._lose)
        self.endpoints = Endpoints()
        self.endpoints.replace(
            [Endpoint(name=f"pod-{n}", address=f"10.0.{n // 200}.{n % 200 + 1}", port=8000) for n in range(endpoints)]
        )
        self.ledger = Ledger(self.endpoints)
        self.dispatcher = Dispatcher(
            endpoints=self.endpoints,
            pipeline=build(load_default(), rng, PluginFaults(lambda line: None)),
            ledger=self.ledger,
            index=PrefixIndex(),
            metrics=Metrics(),
            estimator=TokenEstimator(),
            policy=Policy(look_share=0.0),
            rng=rng,
            timer=lambda: 0.0,
            faults=lambda kind, error: self.faults.append((kind, error)),
            picks=PickLog(),
            recording=self.recording,
        )

    def _lose(self) -> None:
        self.lost += 1

    def serve(
        self, text: str, *, now_s: float = 60.0, tail: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        routed = self.dispatcher.route(chat(text, headers), now_s - 0.5, now_s)
        assert isinstance(routed, tuple)
        account = routed[1]
        self.dispatcher.started(account, Started(200, {"content-type": "application/json"}), now_s + 1)
        self.dispatcher.first_body(account, now_s + 2)
        self.dispatcher.finished(account, Finished(Cause.COMPLETE, tail, len(tail)), now_s + 3)

    def lines(self, encoder: Encoder | None = None) -> list[Line]:
        encoder = encoder or an_encoder()
        return [LINE.decode(line) for record in self.recording.take(10_000) for line in encoder.encode(record)]


def chat(text: str, headers: dict[str, str] | None = None) -> Arrival:
    body = msgspec.json.encode(
        {"model": "m", "stream": True, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}
    )
    return Arrival({":path": "/v1/chat/completions", **(headers or {})}, body, True)


def decisions(lines: list[Line]) -> list[Decision]:
    return [line for line in lines if isinstance(line, Decision)]


class TestWhatIsTakenDown:
    def test_a_pick_and_its_outcome(self) -> None:
        desk = Desk()
        slots = desk.endpoints.slots
        desk.endpoints.report(int(slots[1]), Report(waiting=4.0, running=2.0, kv_usage=0.25), 59.9)
        tail = (
            b'{"usage": {"prompt_tokens": 99, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 64}}}'
        )
        desk.serve("word " * 400, tail=tail)
        members, decision, outcome = desk.lines()
        assert members == Members(
            {int(slot): one.destination for slot, one in zip(slots, desk.endpoints.members, strict=True)}
        )
        assert isinstance(decision, Decision)
        assert (decision.arrived_s, decision.decided_s) == (9.5, 10.0)
        assert (decision.model, decision.stream, decision.max_tokens, decision.tenant) == ("m", True, 9, "")
        assert decision.prompt_bytes >= 2000 and len(decision.fingerprints) == PRINT_BYTES * -(
            -decision.prompt_bytes // 256
        )
        seen = decision.candidates
        assert seen is not None and seen.endpoint == [int(slot) for slot in slots]
        assert (seen.waiting, seen.running, seen.kv_usage) == ([0.0, 4.0, 0.0], [0.0, 2.0, 0.0], [0.25, 0.25, 0.25])
        assert decision.picked in seen.endpoint and len(seen.score) == 3
        assert outcome == Outcome(
            request=1, ended_s=13.0, status=200, ttft_s=2.5, prompt_tokens=99, cached_tokens=64, output_tokens=7
        )

    def test_signals_are_those_that_the_pick_went_by(self) -> None:
        desk = Desk(1)
        for number in range(3):
            desk.dispatcher.route(chat(f"{number} " * 400), 60.0 + number, 60.0 + number)
        seen = [one.candidates for one in decisions(desk.lines())]
        assert [one.in_flight for one in seen if one is not None] == [[0.0], [1.0], [2.0]]
        assert seen[0] is not None and seen[0].in_flight_tokens == [0.0]

    def test_a_refusal(self) -> None:
        desk = Desk(0)
        with pytest.raises(Drop):
            desk.dispatcher.route(chat("hello " * 100), 60.0, 60.0)
        (decision,) = desk.lines()
        assert isinstance(decision, Decision)
        assert (decision.picked, decision.refused, decision.candidates) == (None, "rejected-no-endpoints", None)
        assert decision.prompt_bytes > 600 and decision.fingerprints

    def test_who_really_served(self) -> None:
        desk = Desk(2)
        steer, account = desk.dispatcher.route(chat("hello " * 100), 60.0, 60.0)  # type: ignore[misc]
        (other,) = {one.destination for one in desk.endpoints.members} - {steer.destination}
        desk.dispatcher.started(account, Started(200, {}, other), 61.0)
        desk.dispatcher.finished(account, Finished(Cause.ABORTED), 62.0)
        outcome = desk.lines()[-1]
        assert isinstance(outcome, Outcome) and (outcome.served, outcome.aborted) == (other, True)

    def test_a_large_pool_by_its_best(self) -> None:
        desk = Desk(300)
        for number, slot in enumerate(desk.endpoints.slots):
            desk.endpoints.in_flight_tokens[slot] = number
        desk.serve("hello " * 100)
        (decision,) = decisions(desk.lines())
        seen = decision.candidates
        assert seen is not None and len(seen.endpoint) == CANDIDATES_KEPT and seen.left == 300 - CANDIDATES_KEPT
        assert decision.picked in seen.endpoint and max(seen.in_flight_tokens) == CANDIDATES_KEPT - 1
        best = max(range(CANDIDATES_KEPT), key=lambda i: seen.score[i] or 0.0)
        assert seen.in_flight_tokens[best] == 0.0

    def test_a_filtered_candidate_has_no_score(self) -> None:
        desk = Desk(3)
        endpoints = desk.endpoints
        candidates = endpoints.candidates(60.0)

        class Some:
            slots = (int(endpoints.slots[2]),)
            profile = "default"
            considered = endpoints.slots[1:]
            totals = np.array([0.5, 0.75])
            population = (endpoints.slots, endpoints.members)

        desk.recording.picked(a_request(), Some(), candidates, 60.0, 60.0)
        (decision,) = decisions(desk.lines())
        assert decision.candidates is not None and decision.candidates.score == [None, 0.5, 0.75]

    def test_a_bug_of_the_recording_costs_no_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        desk = Desk()
        for name in ("picked", "refused", "ended"):
            monkeypatch.setattr(desk.recording, name, _boom)
        desk.serve("hello " * 100)
        assert [kind for kind, _ in desk.faults] == ["decision-log"]
        assert desk.endpoints.in_flight.sum() == 0


def _boom(*args: object, **kwargs: object) -> None:
    raise RuntimeError("planted")


class TestCost:
    def test_of_taking_a_request_down(self) -> None:
        """Counted calls, because a noisy machine blurs microseconds; without a recording there is one question in route and one at
        the end.
        """
        desk = Desk(8)
        desk.serve("hello " * 400)
        calls = Counter[str]()

        def note(frame: FrameType, event: str, argument: object) -> None:
            if event == "call" and "epp/decisions" in frame.f_code.co_filename:
                calls["python"] += 1
            elif event == "c_call" and "epp/decisions" in frame.f_code.co_filename:
                calls["c"] += 1

        sys.setprofile(note)
        try:
            desk.serve("hello " * 400)
        finally:
            sys.setprofile(None)
        assert 0 < calls["python"] <= 9 and calls["c"] <= 12, calls


class TestSecrecy:
    def test_no_word_of_a_request(self) -> None:
        desk = Desk()
        headers = {
            "authorization": f"Bearer {SECRET}",
            "x-api-key": SECRET,
            "cookie": SECRET,
            "x-llm-d-inference-fairness-id": SECRET,
            "x-request-id": SECRET,
            "x-session-id": SECRET,
        }
        desk.serve(f"{SECRET} " * 50, headers=headers, tail=SECRET.encode())
        body = {"model": SECRET * 40, "cache_salt": SECRET, "user": SECRET, "prompt": SECRET * 40, "tools": [SECRET]}
        arrival = Arrival({":path": "/v1/completions", **headers}, msgspec.json.encode(body), True)
        desk.dispatcher.route(arrival, 60.0, 60.0)
        encoder = an_encoder()
        text = b"".join(line for record in desk.recording.take(100) for line in encoder.encode(record))
        assert text.count(b'"decision"') == 2 and b'"outcome"' in text
        assert SECRET.encode() not in text and SECRET[:6].encode() not in text
        # The grep can fail: the model's name is the one word that is written.
        assert b'"model":"m"' in text and b'"model":"other"' in text

    def test_fingerprints_are_not_those_of_the_text(self) -> None:
        desk = Desk()
        desk.serve("hello " * 400)
        (taken,) = [record for record in desk.recording.take(10) if isinstance(record, Taken)]
        raw = taken.fingerprints.tobytes()
        first, second = an_encoder(b"1" * 32), an_encoder(b"2" * 32)
        a, b = (LINE.decode(encoder.encode(taken)[-1]) for encoder in (first, second))
        assert isinstance(a, Decision) and isinstance(b, Decision)
        for at in range(0, len(raw), 8):
            assert raw[at : at + PRINT_BYTES] not in a.fingerprints
        assert a.fingerprints != b.fingerprints
        assert not {a.fingerprints[i : i + PRINT_BYTES] for i in range(0, len(a.fingerprints), PRINT_BYTES)} & {
            b.fingerprints[i : i + PRINT_BYTES] for i in range(0, len(b.fingerprints), PRINT_BYTES)
        }

    def test_sharing_survives(self) -> None:
        desk = Desk()
        shared = "a common beginning " * 80
        for end in ("one " * 100, "two " * 200):
            desk.serve(shared + end)
        desk.serve("another " * 300)
        first, second, third = (one.fingerprints for one in decisions(desk.lines()))
        common = len(shared) // 256 * PRINT_BYTES
        assert first[:common] == second[:common]
        assert first[common + PRINT_BYTES :][:PRINT_BYTES] != second[common + PRINT_BYTES :][:PRINT_BYTES]
        assert first[:PRINT_BYTES] != third[:PRINT_BYTES]

    def test_tenants_are_told_apart_within_a_run(self) -> None:
        desk = Desk()
        header = "x-llm-d-inference-fairness-id"
        for tenant in ("a", "b", "a", None):
            desk.serve("hello " * 100, headers={header: tenant} if tenant else {})
        records = desk.recording.take(100)
        a, b, again, nobody = (
            one.tenant
            for one in (LINE.decode(an_encoder().encode(r)[-1]) for r in records)
            if isinstance(one, Decision)
        )
        assert a == again != b and nobody == "" and len(a) == 16
        other = LINE.decode(an_encoder(b"x" * 32).encode(records[0])[-1])
        assert isinstance(other, Decision) and other.tenant != a


class TestBounds:
    def test_what_finds_no_room_is_lost_and_so_is_its_outcome(self) -> None:
        lost: list[int] = []
        desk = Desk(recording=Recording(lambda: lost.append(1), room_bytes=3000))
        for _ in range(10):
            desk.serve("hello " * 100)
        kept = desk.lines()
        numbers = [one.request for one in kept if isinstance(one, Decision)]
        ends = [one.request for one in kept if isinstance(one, Outcome)]
        assert numbers and ends == numbers[: len(ends)] and len(lost) + len(kept) - 1 >= 10
        desk.serve("hello " * 100)
        assert [type(one) for one in desk.lines()] == [Members, Decision, Outcome]

    def test_records_know_their_size(self) -> None:
        desk = Desk()
        desk.serve("hello " * 40_000)
        taken, ended = desk.recording.take(2)
        assert isinstance(taken, Taken) and isinstance(ended, Ended)
        assert taken.size > taken.fingerprints.nbytes > 7000 and 0 < ended.size < 1000
        sizes = []
        for length in (1, 200):
            desk.serve("hi", headers={"x-llm-d-inference-fairness-id": "x" * length})
            record, _ = desk.recording.take(2)
            assert isinstance(record, Taken)
            sizes.append(record.size)
        assert sizes[1] - sizes[0] == 199


class Shelf:
    """A file being written, and what it reports."""

    def __init__(self, path: Path, max_bytes: int = 100_000_000) -> None:
        self.path = path
        self.desk = Desk()
        self.fates: Counter[str] = Counter()
        self.errors: list[Exception] = []
        self.file = DecisionFile(
            path,
            self.desk.recording,
            pool="p",
            max_bytes=max_bytes,
            failed=self.errors.append,
            count=lambda fate, n: self.fates.update({fate: n}),
        )

    def parts(self) -> list[Path]:
        """Oldest first."""
        numbered = sorted(self.path.parent.glob(f"{self.path.name}.*"), key=lambda p: -int(p.suffix[1:]))
        return [*numbered, self.path]

    def lines(self, path: Path | None = None) -> list[Line]:
        return [LINE.decode(line) for line in (path or self.path).read_bytes().splitlines()]


class TestFile:
    async def test_holds_everything_by_its_end(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path / "log")
        shelf.file.start()
        for number in range(300):
            shelf.desk.serve(f"{number} hello " * 100)
        await shelf.file.close()
        await shelf.file.close()
        lines = shelf.lines()
        assert isinstance(lines[0], Run) and isinstance(lines[1], Members)
        assert [one.request for one in decisions(lines)] == list(range(1, 301))
        assert sum(isinstance(one, Outcome) for one in lines) == 300
        assert sum(isinstance(one, Members) for one in lines) == 1
        assert shelf.fates == {"written": len(lines)} and not shelf.errors

    async def test_is_written_while_requests_come(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "INTERVAL_S", 0.001)
        shelf = Shelf(tmp_path / "log")
        shelf.file.start()
        shelf.desk.serve("hello " * 100)
        await eventually(lambda: shelf.fates["written"] >= 4)
        assert len(shelf.lines()) == 4
        await shelf.file.close()

    async def test_is_appended_to(self, tmp_path: Path) -> None:
        for _ in range(2):
            shelf = Shelf(tmp_path / "log")
            shelf.file.start()
            shelf.desk.serve("hello " * 100)
            await shelf.file.close()
        runs = [one for one in shelf.lines() if isinstance(one, Run)]
        assert len(runs) == 2 and runs[0].run != runs[1].run

    async def test_ends_a_line_that_was_cut(self, tmp_path: Path) -> None:
        (tmp_path / "log").write_bytes(b'{"line":"deci')
        shelf = Shelf(tmp_path / "log")
        shelf.file.start()
        await shelf.file.close()
        cut, run = shelf.path.read_bytes().splitlines()
        assert cut == b'{"line":"deci' and isinstance(LINE.decode(run), Run)

    async def test_rotates_within_its_bound(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path / "log", max_bytes=64_000)
        shelf.file.start()
        for number in range(1000):
            shelf.desk.serve(f"{number} hello " * 100)
            if number % 100 == 99:
                await shelf.file.close()
                shelf.file.start()
        await shelf.file.close()
        parts = shelf.parts()
        assert len(parts) == module.PARTS
        assert max(part.stat().st_size for part in parts) <= 64_000 // module.PARTS
        kept: list[int] = []
        for part in parts:
            lines = shelf.lines(part)
            assert isinstance(lines[0], Run)
            # The newest part may have been begun for the outcome of a decision that stands in the one before.
            first = next((i for i, one in enumerate(lines) if isinstance(one, Decision)), None)
            assert part == parts[-1] if first is None else any(isinstance(one, Members) for one in lines[:first])
            kept += [one.request for one in decisions(lines)]
        assert kept == list(range(kept[0], 1001)) and kept[0] > 1

    async def test_cannot_be_started_where_it_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(OSError):
            Shelf(tmp_path / "no" / "log").file.start()

    async def test_goes_on_after_a_failed_write(self, tmp_path: Path) -> None:
        shelf = Shelf(tmp_path / "log")
        shelf.file.start()
        shelf.path.unlink()
        shelf.path.mkdir()
        shelf.desk.serve("hello " * 100)
        await shelf.file.close()
        assert shelf.fates == {"lost": 4} and len(shelf.errors) == 1
        shelf.path.rmdir()
        shelf.desk.serve("hello " * 100)
        shelf.file._turn()
        await shelf.file.close()
        assert [type(one) for one in shelf.lines()] == [Run, Members, Decision, Outcome]

    async def test_a_record_that_cannot_be_encoded_is_lost_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shelf = Shelf(tmp_path / "log")
        shelf.file.start()
        shelf.desk.serve("hello " * 100)
        encode = shelf.file._encoder.encode
        monkeypatch.setattr(
            shelf.file._encoder, "encode", lambda record: _boom() if isinstance(record, Ended) else encode(record)
        )
        await shelf.file.close()
        assert [type(one) for one in shelf.lines()] == [Run, Members, Decision]
        assert shelf.fates["lost"] == 1 and len(shelf.errors) == 1
