"""What is replayed: files of one trace, looked through once before anything runs, then read again as often as needed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from bench.lab import decision_log
from bench.lab.decision_log import TOKENS_PER_BYTE, Logged
from bench.lab.formats import lines_of, ordered, read
from bench.lab.offered import Offered, TraceError
from bench.replay.histogram import BUCKETS, Counts, bucket, quantiles
from epp.decisions.lines import Members

LONGEST = 0.1
"""The share of requests, those with the longest prompts, that is looked at for itself."""

_TELL_EVERY = 1000


class Recorded(msgspec.Struct, frozen=True):
    """What the log says really happened, as far as answers were seen. NaN: of none."""

    answers: int
    ttft_s: tuple[float, float, float]
    """p50, p90, p99."""
    e2e_s: tuple[float, float, float]
    hit: float


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Files of one trace, and what they hold. `first` and `count` say which requests are meant; times count from the first.

    `servers` is the size of the pool that wrote a decision log, 0 for other traces. `long_prompt` is the length, in tokens, from which a prompt is
    among the longest tenth. `priorities`: some request has another than 0.
    """

    paths: tuple[Path, ...]
    kind: str
    first: int
    count: int
    span_s: float
    prompt_tokens: int
    output_tokens: int
    long_prompt: int
    priorities: bool = False
    tokens_per_byte: float = TOKENS_PER_BYTE
    main_model: str | None = None
    servers: int = 0
    recorded: Recorded | None = None

    def requests(self) -> Iterator[Offered]:
        """The requests, read anew. Raises TraceError."""
        everything = _requests(self.paths, self.kind, self.tokens_per_byte, self.main_model)
        return ordered(itertools.islice(everything, self.first, self.first + self.count))

    def part(self, first: int, count: int) -> Source:
        """Some of its requests in a row, as a trace of their own; what it says of all of them it says of these."""
        share = count / self.count
        return msgspec.structs.replace(
            self,
            first=self.first + first,
            count=count,
            span_s=self.span_s * share,
            prompt_tokens=round(self.prompt_tokens * share),
            output_tokens=round(self.output_tokens * share),
        )


DECISION_LOG = "decision log"


def survey(
    paths: Sequence[Path], *, most: int | None = None, tell: Callable[[int], None] = lambda requests: None
) -> Source:
    """Read everything once, at most `most` requests, and say what it is. Raises TraceError.

    `tell` hears now and then how many requests there are so far.
    """
    first_line = next((line for line in lines_of(paths[0]) if line.strip()), b"")
    if decision_log.begins(first_line):
        facts = _LogFacts()
        lengths = _Lengths()
        for logged in itertools.islice(decision_log.joined(facts.watched(_placed(paths))), most):
            facts.add(logged)
        requests = _requests(paths, DECISION_LOG, facts.tokens_per_byte, facts.main_model)
        return lengths.of(requests, most, tell, paths, DECISION_LOG, facts)
    if len(paths) > 1:
        raise TraceError(f"{paths[1]}: only a decision log may come in several files, and {paths[0]} is none")
    kind = "lengths" if first_line.startswith(b"TIMESTAMP,") else "requests"
    return _Lengths().of(_requests(paths, kind, TOKENS_PER_BYTE, None), most, tell, paths, kind, None)


def _requests(paths: Sequence[Path], kind: str, tokens_per_byte: float, main_model: str | None) -> Iterator[Offered]:
    if kind != DECISION_LOG:
        return read(lines_of(paths[0]), str(paths[0]))
    joined = decision_log.joined(_placed(paths))
    return ordered(decision_log.offered(joined, tokens_per_byte=tokens_per_byte, main_model=main_model))


def _placed(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        for number, line in enumerate(lines_of(path), 1):
            if line.strip():
                yield f"{path}:{number}", line


class _Lengths:
    """How many requests, how long, over what time."""

    def __init__(self) -> None:
        self._prompts: Counter[int] = Counter()
        self._prompt_tokens = 0
        self._output_tokens = 0
        self._count = 0
        self._last_s = 0.0
        self._priorities = False

    def of(
        self,
        requests: Iterable[Offered],
        most: int | None,
        tell: Callable[[int], None],
        paths: Sequence[Path],
        kind: str,
        facts: _LogFacts | None,
    ) -> Source:
        for one in itertools.islice(requests, most):
            self._count += 1
            self._prompt_tokens += one.prompt_tokens
            self._output_tokens += one.output_tokens
            self._prompts[one.prompt_tokens] += 1
            self._last_s = one.at_s
            self._priorities = self._priorities or one.priority != 0
            if self._count % _TELL_EVERY == 0:
                tell(self._count)
        if not self._count:
            raise TraceError(f"{paths[0]}: there is no request in it that has a prompt")
        return Source(
            paths=tuple(paths),
            kind=kind,
            first=0,
            count=self._count,
            span_s=self._last_s,
            prompt_tokens=self._prompt_tokens,
            output_tokens=self._output_tokens,
            long_prompt=self._long_prompt(),
            priorities=self._priorities,
            tokens_per_byte=facts.tokens_per_byte if facts is not None else TOKENS_PER_BYTE,
            main_model=facts.main_model if facts is not None else None,
            servers=facts.servers if facts is not None else 0,
            recorded=facts.recorded() if facts is not None else None,
        )

    def _long_prompt(self) -> int:
        left = self._count * LONGEST
        for tokens, count in sorted(self._prompts.items(), reverse=True):
            left -= count
            if left <= 0:
                return tokens
        return 0


class _LogFacts:
    """What a decision log tells beyond its requests."""

    def __init__(self) -> None:
        self.servers = 0
        self._models: Counter[str] = Counter()
        self._bytes = 0
        self._tokens = 0
        self._counted_tokens = 0
        self._cached_tokens = 0
        self._ttft = np.zeros(BUCKETS, np.int64)
        self._e2e = np.zeros(BUCKETS, np.int64)

    def watched(self, lines: Iterable[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
        """`lines`, of which those that tell of the pool are heard."""
        for place, line in lines:
            if line.startswith(b'{"line":"members"'):
                try:
                    self.servers = max(self.servers, len(msgspec.json.decode(line, type=Members).endpoints))
                except msgspec.MsgspecError as error:
                    raise TraceError(f"{place}: {error}") from None
            yield place, line

    def add(self, logged: Logged) -> None:
        decision, outcome = logged.decision, logged.outcome
        if decision.prompt_bytes:
            self._models[decision.target_model or decision.model] += 1
        if outcome is None:
            return
        if outcome.prompt_tokens and decision.prompt_bytes:
            self._bytes += decision.prompt_bytes
            self._tokens += outcome.prompt_tokens
            if outcome.cached_tokens is not None:
                self._counted_tokens += outcome.prompt_tokens
                self._cached_tokens += outcome.cached_tokens
        if outcome.ttft_s is not None:
            self._ttft[bucket(outcome.ttft_s)] += 1
            took_s = logged.took_s
            if took_s is not None and not outcome.aborted:
                self._e2e[bucket(took_s)] += 1

    @property
    def tokens_per_byte(self) -> float:
        return self._tokens / self._bytes if self._bytes else TOKENS_PER_BYTE

    @property
    def main_model(self) -> str | None:
        return self._models.most_common(1)[0][0] if self._models else None

    def recorded(self) -> Recorded | None:
        answers = int(self._ttft.sum())
        if not answers:
            return None
        hit = self._cached_tokens / self._counted_tokens if self._counted_tokens else np.nan
        return Recorded(answers, _three(self._ttft), _three(self._e2e), hit)


def _three(counts: Counts) -> tuple[float, float, float]:
    p50, p90, p99 = (float(quantiles(counts, share)) for share in (0.5, 0.9, 0.99))
    return p50, p90, p99
