"""What is fuzzed: each target takes any bytes, and raises AssertionError, or what nobody documents, where a promise breaks.

The same functions serve the coverage-guided fuzzer (`python -m tests.fuzz`) and the short runs of `test_targets.py`.
"""

from __future__ import annotations

import contextlib
import math
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import hpack
import msgspec

from epp.configuration import ConfigurationError, load
from epp.discovery.document import parse_endpoints
from epp.discovery.source import DiscoveryError
from epp.drops import Drop, Reason
from epp.extproc import codec
from epp.extproc.calls import Call, CallReader, Malformed, read_call
from epp.extproc.events import (
    BodyMode,
    Closed,
    EndOfStream,
    Event,
    Finished,
    Immediate,
    Modes,
    Notice,
    Reply,
    RequestBody,
    RequestHeaders,
    RequestTrailers,
    ResponseBody,
    ResponseHeaders,
    ResponseTrailers,
    Steer,
    StreamedRequestBody,
    StreamedResponseBody,
)
from epp.extproc.exchange import PIECE_BYTES, Exchange
from epp.extproc.frames import PREFACE
from epp.extproc.hpack import FIELD_OVERHEAD, MAX_UPDATES, Field, HpackError
from epp.extproc.http2 import Connection, Ended, Limits, Lost, Opened, Received
from epp.extproc.http2 import Event as Http2Event
from epp.extproc.room import Room
from epp.openai import body as request_body
from epp.openai.api import Kind
from epp.openai.rewrite import rewrite_model
from epp.openai.scan import mend
from epp.openai.turnback import TurnBack
from epp.openai.usage import usage
from epp.signals.answers import MAX_HEAD_BYTES, Answer, AnswerParser, ScrapeError
from epp.signals.engines import BUILT_IN, PageReader
from epp.signals.page import MAX_SERIES, Family, Labels, selector

Target = Callable[[bytes], None]


def cuts(data: bytes, by: int) -> Iterator[bytes]:
    """`data` in pieces: one by one where `by` is 0, else of sizes that `by` decides."""
    at = 0
    while at < len(data):
        by = by * 5 % 251
        size = 1 + by % 31
        yield data[at : at + size]
        at += size


# --- HTTP/2 ----------------------------------------------------------------------------------------------------------

GREETING = PREFACE + b"\0\0\0\4\0\0\0\0\0"
SMALL = Limits(
    max_message_bytes=2_000,
    max_assembling_bytes=3_000,
    max_queued_bytes=4_000,
    max_connection_queued_bytes=6_000,
    max_concurrent_streams=5,
    stream_window_bytes=1_000,
    connection_window_bytes=65_535,
    max_header_list_bytes=2_000,
    max_continuations=3,
    remembered_blocks=2,
    chatter_burst=60,
)


def http2(data: bytes) -> None:
    """Frames after the greeting. The first byte says whether our SETTINGS are acknowledged before them, and how they are cut."""
    if not data:
        return
    frames = GREETING + (b"\0\0\0\4\1\0\0\0\0" if data[0] & 1 else b"") + data[1:]
    whole = _heard(frames, [frames])
    assert whole == _heard(frames, list(cuts(frames, data[0])))
    _check_calls(whole[0])
    _answered(frames)


def _heard(frames: bytes, pieces: Sequence[bytes]) -> tuple[list[Http2Event], bytes]:
    connection = Connection(SMALL)
    events: list[Http2Event] = []
    for piece in pieces:
        events += connection.receive(piece, 0.0)
        assert len(connection._rest) <= 9 + SMALL.max_frame_bytes
        assert connection.assembling_bytes <= SMALL.max_assembling_bytes
        assert connection.open_streams <= SMALL.max_concurrent_streams
    output = connection.take_output()
    read_frames(output)
    events += connection.lost()
    assert connection.assembling_bytes == connection.queued_bytes == connection.open_streams == 0
    return events, output


def _check_calls(events: Sequence[Http2Event]) -> None:
    """Each call opens once, then has messages, then one half-close at most, then one loss at most."""
    rank = {Opened: 0, Received: 1, Ended: 2, Lost: 3}
    seen: dict[int, int] = {}
    for event in events:
        now = rank[type(event)]
        before = seen.get(event.stream_id)
        assert (before is None) == (now == 0), event
        assert before is None or now > before or before == now == 1, event
        seen[event.stream_id] = now
    assert all(last >= 2 for last in seen.values())


def _answered(frames: bytes) -> None:
    """The same frames, each read answered: echoed, closed at the half-close, never more queued than allowed."""
    connection = Connection(SMALL)
    gone = set()
    for piece in cuts(frames, 7):
        for event in connection.receive(piece, 0.0):
            assert event.stream_id not in gone
            if type(event) is Lost:
                gone.add(event.stream_id)
            if type(event) is Received:
                connection.send(event.stream_id, event.message * 3)
            elif type(event) is Ended:
                connection.close(event.stream_id, 0)
        assert connection.queued_bytes <= SMALL.max_connection_queued_bytes
        read_frames(connection.take_output())
    connection.abort()
    assert connection.queued_bytes == connection.open_streams == 0
    assert connection.closing


def read_frames(output: bytes) -> list[tuple[int, int, int, bytes]]:
    """(type, flags, stream, payload) of each frame; fails where the bytes are no whole frames."""
    frames = []
    at = 0
    while at < len(output):
        head, flags, stream_id = struct.unpack_from(">LBL", output, at)
        size = head >> 8
        frames.append((head & 0xFF, flags, stream_id, output[at + 9 : at + 9 + size]))
        at += 9 + size
    assert at == len(output)
    return frames


def header_block(data: bytes) -> None:
    """The blocks of one connection, each after a byte that says how long it is, then all of them again: our reader, which
    remembers, against the library, which reads every one."""
    blocks = []
    at = 0
    while at < len(data):
        blocks.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    limit = 2_000
    reader = CallReader(limit, remembered_blocks=2, remembered_block_bytes=128)
    library = hpack.Decoder(max_header_list_size=limit)
    for block in blocks * 2:
        try:
            fields: list[Field] | None = [
                (bytes(name), bytes(value)) for name, value in library.decode(block, raw=True)
            ]
        except hpack.HPACKError:
            fields = None
        try:
            call = _read(reader, block)
        except HpackError:
            # The library takes any number of table size updates.
            assert fields is None or _updates(block) > MAX_UPDATES
            return
        assert fields is not None
        assert call == _called(fields)
        assert [*reader._decoder._table] == [*library.header_table.dynamic_entries]
        assert len(reader.remembered) <= 2
        if call is not None:
            assert call.path
            assert call.timeout_s is None or 0 <= call.timeout_s < math.inf


def _read(reader: CallReader, block: bytes) -> Call | None:
    """None for fields that no call may have."""
    with contextlib.suppress(Malformed):
        return reader.remembered.get(block) or reader.call(block)
    return None


def _called(fields: Sequence[Field]) -> Call | None:
    with contextlib.suppress(Malformed):
        return read_call(fields, sum(len(name) + len(value) + FIELD_OVERHEAD for name, value in fields))
    return None


def _updates(block: bytes) -> int:
    """How many table size updates a block begins with."""
    updates = at = 0
    while at < len(block) and block[at] & 0xE0 == 0x20:
        updates += 1
        if block[at] & 0x1F == 0x1F:
            at += 1
            while block[at] & 0x80:
                at += 1
        at += 1
    return updates


# --- ext_proc --------------------------------------------------------------------------------------------------------


def message(data: bytes) -> None:
    """The quick reading of a protobuf message says what upb says, or leaves it to upb."""
    quick = codec.decode_usual(data)
    try:
        slow = codec.decode(data)
    except codec.Undecodable:
        # What upb refuses for a string that is no UTF-8, or a part it knows more of, the quick reading may not have read.
        assert quick is None
        return
    assert quick is None or quick == slow


MODES = [Modes(request, response) for request in BodyMode for response in BodyMode]


def exchange(data: bytes) -> None:
    """One byte an event, with what it carries after it; any order. The cut of a body must not matter."""
    if len(data) < 2:
        return
    modes = MODES[data[0] % len(MODES)]
    drops = data[1] & 1
    steer = Steer("10.0.0.1:8000", turn_back=("served", "asked") if data[1] & 2 else None, look=bool(data[1] & 4))
    if data[1] & 8:
        steer = msgspec.structs.replace(steer, body=b'{"model":"served"}')
    wanted: Drop | Steer = Drop(Reason.SATURATED, "later") if drops else steer
    later = bool(data[1] & 16)
    events = list(_events(data[2:], modes if data[1] & 32 else None))
    room = Room(60)
    told = _told(Exchange(modes, 40, room), events, wanted, later)
    assert room.held_bytes == 0
    _check_account(told)
    _check_bodies(events, told, modes, steer)


def _events(data: bytes, modes: Modes | None) -> Iterator[Event]:
    at = 0
    while at < len(data):
        kind, size = data[at] & 7, data[at] >> 4
        end = bool(data[at] & 8)
        body = data[at + 1 : at + 1 + size]
        at += 1
        match kind:
            case 0:
                yield RequestHeaders({":path": "/v1/completions", "content-length": "3"}, end, modes=modes)
            case 1:
                at += size
                yield RequestBody(body, end)
            case 2:
                yield RequestTrailers()
            case 3:
                yield ResponseHeaders({":status": "200", "content-length": "9"}, end)
            case 4:
                at += size
                yield ResponseBody(body, end)
            case 5:
                yield ResponseTrailers()
            case 6:
                yield Closed(end)
            case 7:
                yield ResponseBody(b'{"model": "served"}' + bytes(700) * size, end)


def _told(of: Exchange, events: Sequence[Event], answer: Steer | Drop, later: bool) -> list[Reply | Notice | Steer]:
    """All that comes out, the steers that went in among it. `later`: the dispatcher answers one event after it is asked."""
    out: list[Reply | Notice | Steer] = []
    asked = 0
    for event in [*events, Closed(False)]:
        asked_before = asked
        if asked and later:
            out += _decided(of, answer)
            asked -= 1
        for effect in of.receive(event):
            out.append(effect)
            if type(effect).__name__ == "Arrival":
                asked += 1
        if asked and not later:
            out += _decided(of, answer)
            asked -= 1
        assert asked <= 1 + asked_before
    if asked:
        out += _decided(of, answer)
    return out


def _decided(of: Exchange, answer: Steer | Drop) -> list[Reply | Notice | Steer]:
    return [*([answer] if isinstance(answer, Steer) else []), *of.receive(answer)]


def _check_account(told: Sequence[Reply | Notice | Steer]) -> None:
    """Asked once at most; every steer finished once; one end; nothing for Envoy after it."""
    kinds = Counter(type(one).__name__ for one in told)
    assert kinds["Arrival"] <= 1
    assert kinds["Finished"] == kinds["Steer"]
    for once in ("Immediate", "EndOfStream", "Started", "FirstBody", "RequestTrailersReply", "ResponseTrailersReply"):
        assert kinds[once] <= 1, once
    ended = [at for at, one in enumerate(told) if type(one) is EndOfStream or type(one) is Immediate]
    notices = (Finished, EndOfStream, Steer)
    assert all(isinstance(one, notices) for one in told[ended[0] + 1 :]) if ended else True
    for before, after in pairwise(told):
        assert type(before).__name__ != "Started" or type(after).__name__ == "ResponseHeadersReply"
    for one in told:
        if not isinstance(one, Steer | Finished | Immediate) and type(one).__name__ in _REPLIES:
            codec.encode(one)  # type: ignore[arg-type]  # the names of `_REPLIES` are those of `Reply`


_REPLIES = {kind.__name__ for kind in Reply.__args__} - {"EndOfStream"}


def _check_bodies(events: Sequence[Event], told: Sequence[Reply | Notice | Steer], modes: Modes, steer: Steer) -> None:
    pieces = [one for one in told if isinstance(one, StreamedRequestBody | StreamedResponseBody)]
    assert all(len(piece.data) <= PIECE_BYTES for piece in pieces)
    there = [piece for piece in pieces if type(piece) is StreamedRequestBody]
    if there:
        sent = b"".join(bytes(piece.data) for piece in there)
        begun = [type(event) for event in events].index(RequestHeaders)
        asked = b"".join(event.data for event in events[begun:] if type(event) is RequestBody)
        assert sent == steer.body if steer.body is not None else asked.startswith(sent)
    assert sum(piece.end for piece in there) <= 1
    back = b"".join(bytes(piece.data) for piece in pieces if type(piece) is StreamedResponseBody)
    if steer.turn_back is None and modes.response is BodyMode.FULL_DUPLEX_STREAMED:
        answered = b"".join(event.data for event in events if type(event) is ResponseBody)
        assert answered.startswith(back)


# --- Bodies ----------------------------------------------------------------------------------------------------------

PATHS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/embeddings",
    "/pooling",
    "/rerank",
    "/generate",
    "/v1/images/generations",
    "/tokenize",
    "/v1/models",
    "",
]


def request(data: bytes) -> None:
    """A request body under each API: read or refused with 400, cut off without refusal, renamed without other change."""
    if not data:
        return
    headers = {":path": PATHS[data[0] % len(PATHS)]} if data[0] % len(PATHS) < len(PATHS) - 1 else {}
    text = data[1:]
    try:
        parsed = request_body.parse(headers, text)
    except Drop as drop:
        assert drop.reason is Reason.BAD_REQUEST
    else:
        assert parsed.prompt_bytes == sum(map(len, parsed.prompts))
        assert parsed.max_tokens is None or parsed.max_tokens >= 0
        _renamed(text, headers, parsed)
    cut = request_body.parse(headers, text, truncated=True)
    assert cut.prompt_bytes == sum(map(len, cut.prompts))
    rewrite_model(text, "other", truncated=True)
    _mended(text)


def _renamed(text: bytes, headers: dict[str, str], parsed: request_body.Parsed) -> None:
    other = rewrite_model(text, 'o"ther')
    if other is text:
        return
    again = request_body.parse(headers, other)
    assert msgspec.structs.replace(again, model=parsed.model) == parsed
    if parsed.model:
        assert again.model == 'o"ther'


def _mended(text: bytes) -> None:
    """What begins a JSON text is made JSON."""
    whole = mend(text)
    assert len(whole) <= 2 * len(text) + 2
    try:
        msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return
    if text.lstrip()[:1] != b"{":
        return
    half = mend(text[: len(text) // 2])
    if half.strip():
        msgspec.json.decode(half)


_LONG_MODEL = re.compile(rb'"model"\s*:\s*"(?:[^"\\]|\\.){20,}', re.DOTALL)


def answer_body(data: bytes) -> None:
    """The model's name is turned back the same however the answer is cut; usage is read from anything."""
    if not data:
        return
    text = data[1:]
    if _LONG_MODEL.search(text):
        # Held back no longer than the server's name could be. What follows such a value begins anew, and in what is not JSON
        # its closing quote can begin another member.
        return
    whole = TurnBack("served", "asked")
    wanted = whole.feed(text) + whole.flush()
    pieces = TurnBack("served", "asked")
    got = bytearray()
    for piece in cuts(text, data[0]):
        got += pieces.feed(piece)
        assert len(pieces._held) <= pieces.max_held_bytes
    assert bytes(got) + pieces.flush() == wanted
    for kind in (Kind.CHAT, Kind.MESSAGES, Kind.GENERATE):
        found = usage(text, "application/json", kind)
        for count in (found.prompt_tokens, found.completion_tokens, found.cached_tokens) if found else ():
            assert count is None or count >= 0


# --- Signals ---------------------------------------------------------------------------------------------------------


def page(data: bytes) -> None:
    """Two pages of one server, split at a NUL: the second read by who remembers the first, and by who does not."""
    first, _, second = data.partition(b"\0")
    for engine in BUILT_IN.values():
        seasoned = PageReader(engine)
        seasoned.read(first)
        report = seasoned.read(second)
        assert report == PageReader(engine).read(second)
        for number in (report.waiting, report.running, report.prompt_tokens_total, report.cached_tokens_total):
            assert number is None or math.isfinite(number)
        assert report.kv_usage is None or 0 <= report.kv_usage <= 1
    family = Family(selector("a{b=c}"), Labels())
    assert len(family.series(first)) <= MAX_SERIES


def metrics_answer(data: bytes) -> None:
    """HTTP answers: the same however they are cut, and never more kept than the limits allow."""
    if data:
        assert _answers(data[1:], [data[1:]]) == _answers(data[1:], list(cuts(data[1:], data[0])))


def _answers(data: bytes, pieces: Sequence[bytes]) -> list[object]:
    """Up to the first answer: what follows it belongs to a connection that is not used again."""
    parser = AnswerParser(max_body_bytes=500)
    try:
        for piece in pieces:
            found = parser.receive(piece)
            assert len(parser._unread) <= MAX_HEAD_BYTES + 500 + len(piece)
            if found is not None:
                return [found.status, found.body]
        last: Answer | None = parser.end()
    except ScrapeError as error:
        return [error.failure]
    return [] if last is None else [last.status, last.body]


# --- Files -----------------------------------------------------------------------------------------------------------


def configuration(data: bytes) -> None:
    try:
        load(data.decode("utf-8", "surrogateescape"), "file")
    except ConfigurationError as error:
        assert error.problems
        assert all(problem.line >= 1 for problem in error.problems)


def endpoints(data: bytes) -> None:
    try:
        found = parse_endpoints(data, "file")
    except DiscoveryError as error:
        assert str(error).startswith("file")
        return
    assert len({one.key for one in found}) == len({one.destination for one in found}) == len(found)


TARGETS: dict[str, Target] = {
    "http2": http2,
    "header_block": header_block,
    "message": message,
    "exchange": exchange,
    "request": request,
    "answer_body": answer_body,
    "page": page,
    "metrics_answer": metrics_answer,
    "configuration": configuration,
    "endpoints": endpoints,
}
