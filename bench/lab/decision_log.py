"""The picker's own decision log as a trace: what came, how long it was and what it shared, without what was decided.

Decisions and outcomes are joined as they are read, with at most `WINDOW` requests waiting for theirs. What the log does not know of an
answer's length is estimated: by how long the answer took, at the tokens per second of the answers that were seen; else as
`MISSING_OUTPUT_TOKENS`, and never beyond what the client allowed.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterable, Iterator
from datetime import datetime

import msgspec
import numpy as np

from bench.lab.lines import reason
from bench.lab.offered import MISSING_OUTPUT_TOKENS, Offered, TraceError
from bench.policies import BLOCK_TOKENS
from epp.decisions.lines import VERSION, Decision, Line, Members, Outcome, Run

WINDOW = 20_000
TOKENS_PER_BYTE = 0.25
"""Of prompt text, where the log tells nothing better."""

_BEGINNING = b'{"line":"'
_FRESH = 1 << 48
"""Names from here on are no fingerprints."""


class Logged(msgspec.Struct, frozen=True):
    """A request of the log. `at_s` counts from the first run's beginning; `outcome` is None where the file ends before it."""

    at_s: float
    decision: Decision
    outcome: Outcome | None
    block_bytes: int
    fingerprint_bytes: int

    @property
    def took_s(self) -> float | None:
        """From arrival to the answer's end."""
        return None if self.outcome is None else self.outcome.ended_s - self.decision.arrived_s


def begins(line: bytes) -> bool:
    """Whether this is a decision log's first line."""
    return line.startswith(_BEGINNING)


def joined(lines: Iterable[tuple[str, bytes]]) -> Iterator[Logged]:
    """Lines, each with its place for messages, as requests, by arrival as far as the window reaches.

    A last line of a run that is cut, because the picker was killed or its disk full, is passed over. Raises TraceError, also while
    they are read.
    """
    run: Run | None = None
    cut: TraceError | None = None
    zero: datetime | None = None
    shift_s = 0.0
    open_ones = _Open()
    decode = msgspec.json.Decoder(Line).decode
    for place, raw in lines:
        try:
            line: Line = decode(raw)
            if isinstance(line, Run):
                if run is not None and line.run != run.run:
                    yield from open_ones.flush()
                run, started = line, _time(line.started)
                if line.version != VERSION:
                    raise ValueError(
                        f"version {line.version} of the decision log; this program reads version {VERSION}"
                    )
                zero = zero or started
                shift_s = (started - zero).total_seconds()
            elif run is None:
                raise ValueError('a decision log begins with {"line":"run",…}: give its older parts first')
        except (ValueError, msgspec.MsgspecError) as error:
            cut = cut or TraceError(f"{place}: {_reason(error, raw)}")
            if raw.rstrip().endswith(b"}") or run is None:
                raise cut from None
            continue
        if cut is not None and not isinstance(line, Run):
            raise cut
        cut = None
        if isinstance(line, Decision):
            if not (line.arrived_s >= 0.0 and line.prompt_bytes >= 0):
                raise TraceError(
                    f"{place}: arrived_s is {line.arrived_s:g} and prompt_bytes {line.prompt_bytes}; neither is ever below 0"
                )
            open_ones.add(Logged(shift_s + line.arrived_s, line, None, run.block_bytes, run.fingerprint_bytes))
        elif isinstance(line, Outcome):
            open_ones.end(line)
        elif isinstance(line, Members):
            continue
        yield from open_ones.ready()
    yield from open_ones.flush()


def _time(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"started: expected a time such as 2026-01-31T12:00:00Z, not {text!r}") from None


def _reason(error: Exception, line: bytes) -> str:
    if not begins(line) and line.lstrip().startswith(b"{"):
        return "a line of another format in a decision log; a log is of one format"
    return reason(error, line)


class _Open:
    """Requests by arrival, of which the first waits for its outcome."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Logged]] = []
        self._ended: dict[int, Outcome] = {}
        self._waiting: set[int] = set()

    def add(self, logged: Logged) -> None:
        decision = logged.decision
        heapq.heappush(self._heap, (logged.at_s, decision.request, logged))
        if decision.picked is not None:
            self._waiting.add(decision.request)

    def end(self, outcome: Outcome) -> None:
        """The end of a request that left before it is passed over."""
        if outcome.request in self._waiting:
            self._waiting.discard(outcome.request)
            self._ended[outcome.request] = outcome

    def ready(self) -> Iterator[Logged]:
        while self._heap and (self._heap[0][1] not in self._waiting or len(self._heap) > WINDOW):
            yield self._next()

    def flush(self) -> Iterator[Logged]:
        while self._heap:
            yield self._next()

    def _next(self) -> Logged:
        _, request, logged = heapq.heappop(self._heap)
        self._waiting.discard(request)
        outcome = self._ended.pop(request, None)
        return logged if outcome is None else msgspec.structs.replace(logged, outcome=outcome)


def offered(
    requests: Iterable[Logged], *, tokens_per_byte: float = TOKENS_PER_BYTE, main_model: str | None = None
) -> Iterator[Offered]:
    """What was asked for. Requests without a prompt are left out: they are no work for a model.

    `tokens_per_byte` holds for all prompts, because one that changed along the way would let equal beginnings differ. Another
    model than `main_model` (None: the first one) is an adapter.
    """
    fresh = itertools.count(_FRESH)
    answers = _AnswerLengths()
    for one in requests:
        decision = one.decision
        model = decision.target_model or decision.model
        if decision.prompt_bytes == 0:
            continue
        if main_model is None:
            main_model = model
        prompt_tokens = max(1, round(decision.prompt_bytes * tokens_per_byte))
        yield Offered(
            at_s=one.at_s,
            prompt_tokens=prompt_tokens,
            output_tokens=answers.of(one),
            blocks=_names(one, prompt_tokens, tokens_per_byte, fresh),
            block_tokens=BLOCK_TOKENS,
            model="" if model == main_model else model,
            tenant=decision.tenant,
            priority=decision.priority,
        )


def _names(one: Logged, prompt_tokens: int, tokens_per_byte: float, fresh: Iterator[int]) -> list[int]:
    """One for each block of tokens: the fingerprint that covers its end. What no fingerprint covers is nobody else's."""
    width = one.fingerprint_bytes
    raw = np.frombuffer(one.decision.fingerprints, np.uint8)
    prints = np.zeros((len(raw) // width, 8), np.uint8)
    prints[:, :width] = raw[: len(prints) * width].reshape(-1, width)
    count = -(-prompt_tokens // BLOCK_TOKENS)
    ends = np.minimum(np.arange(1, count + 1) * BLOCK_TOKENS, prompt_tokens) / (tokens_per_byte * one.block_bytes)
    covering = np.minimum(np.ceil(ends - 1e-9), -(-one.decision.prompt_bytes // one.block_bytes)).astype(np.intp) - 1
    known = covering[covering < len(prints)]
    names: list[int] = prints.view("<u8")[known, 0].tolist()
    return names + list(itertools.islice(fresh, count - len(names)))


class _AnswerLengths:
    """Tokens of answers: as counted, or by the time they took."""

    def __init__(self) -> None:
        self._tokens = 0
        self._seconds = 0.0

    def of(self, one: Logged) -> int:
        outcome, took_s = one.outcome, one.took_s
        if outcome is not None and took_s is not None:
            if outcome.output_tokens is not None:
                self._tokens += outcome.output_tokens
                self._seconds += took_s
                return max(1, outcome.output_tokens)
            if self._seconds > 0:
                return self._allowed(one, round(took_s * self._tokens / self._seconds))
        return self._allowed(one, MISSING_OUTPUT_TOKENS)

    def _allowed(self, one: Logged, tokens: int) -> int:
        limit = one.decision.max_tokens
        return max(1, tokens if limit is None else min(tokens, limit))
