"""What is replayed: files of one trace, looked through once before anything runs, then read again as often as needed."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec
import numpy as np

from bench.lab import decision_log
from bench.lab.decision_log import TOKENS_PER_BYTE, Logged
from bench.lab.formats import AZURE_HEADER, ordered, read
from bench.lab.lines import lines_of
from bench.lab.offered import Offered, TraceError
from bench.replay.histogram import BUCKETS, Counts, bucket, quantiles
from epp.decisions.lines import Members

LONGEST = 0.1
"""The share of requests, those with the longest prompts, that is looked at for itself."""

DECISION_LOG = "a decision log"
LENGTHS = "lengths without text"
REQUESTS = "a trace"

_TELL_EVERY = 1000


class Recorded(msgspec.Struct, frozen=True):
    """What the log says really happened. Of time to first token and hits as far as answers were seen; NaN: of none."""

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
    first: int = 0
    count: int = 0
    span_s: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    long_prompt: int = 0
    priorities: bool = False
    tokens_per_byte: float = TOKENS_PER_BYTE
    main_model: str | None = None
    servers: int = 0
    recorded: Recorded | None = None

    def requests(self) -> Iterator[Offered]:
        """The requests that are meant, read anew. Raises TraceError."""
        return ordered(itertools.islice(itertools.islice(self.everything(), self.first, None), self.count))

    def everything(self) -> Iterator[Offered]:
        """All that the files hold. Raises TraceError."""
        if self.kind != DECISION_LOG:
            return read(lines_of(self.paths[0]), str(self.paths[0]))
        joined = decision_log.joined(_placed(self.paths))
        return ordered(decision_log.offered(joined, tokens_per_byte=self.tokens_per_byte, main_model=self.main_model))

    def part(self, first: int, count: int) -> Source:
        """Some of its requests in a row, as a trace of their own. Raises TraceError."""
        return _measured(msgspec.structs.replace(self, first=self.first + first, count=count), lambda done: None)


Tell = Callable[[int], None]
"""Hears now and then how many requests are done."""


@contextmanager
def _nobody(text: str, total: int | None) -> Iterator[Tell]:
    yield lambda done: None


def survey(
    paths: Sequence[Path],
    *,
    most: int | None = None,
    progress: Callable[[str, int | None], AbstractContextManager[Tell]] = _nobody,
) -> Source:
    """Read everything, at most `most` requests, and say what it is. Raises TraceError.

    `progress` is asked for whom to tell at each of the times that everything is read: what is done, of how many requests.
    """
    twice = next((path for path in paths if paths.count(path) > 1), None)
    if twice is not None:
        raise TraceError(f"{twice}: given twice")
    first_line = next((line for line in lines_of(paths[0]) if line.strip()), b"")
    if decision_log.begins(first_line):
        facts, count = _LogFacts(), 0
        with progress("reading", most) as tell:
            logs = decision_log.joined(facts.watched(_placed(paths)))
            for count, logged in enumerate(itertools.islice(logs, most), 1):
                facts.add(logged)
                if count % _TELL_EVERY == 0:
                    tell(count)
        source = Source(
            paths=tuple(paths),
            kind=DECISION_LOG,
            tokens_per_byte=facts.tokens_per_byte,
            main_model=facts.main_model,
            servers=facts.servers,
            recorded=facts.recorded(),
        )
        again: tuple[str, int | None] = "measuring", count
    elif len(paths) > 1:
        raise TraceError(f"{paths[1]}: only a decision log may come in several files, and {paths[0]} is none")
    else:
        kind = LENGTHS if first_line.startswith(AZURE_HEADER) else REQUESTS
        source = Source(paths=tuple(paths), kind=kind)
        again = "reading", most
    with progress(*again) as tell:
        return _measured(msgspec.structs.replace(source, count=most or sys.maxsize), tell)


def _measured(source: Source, tell: Tell) -> Source:
    """The source with how many requests there are, how long, over what time."""
    prompts: Counter[int] = Counter()
    count = output_tokens = 0
    last_s = 0.0
    priorities = False
    for count, one in enumerate(source.requests(), 1):
        prompts[one.prompt_tokens] += 1
        output_tokens += one.output_tokens
        priorities = priorities or one.priority != 0
        last_s = one.at_s
        if count % _TELL_EVERY == 0:
            tell(count)
    if not count:
        raise TraceError(f"{source.paths[0]}: there is no request in it that has a prompt")
    return msgspec.structs.replace(
        source,
        count=count,
        span_s=last_s,
        prompt_tokens=sum(tokens * times for tokens, times in prompts.items()),
        output_tokens=output_tokens,
        long_prompt=_long_prompt(prompts, count),
        priorities=priorities,
    )


def _long_prompt(prompts: Counter[int], count: int) -> int:
    left = count * LONGEST
    for tokens, times in sorted(prompts.items(), reverse=True):
        left -= times
        if left <= 0:
            return tokens
    return 0


def _placed(paths: Sequence[Path]) -> Iterator[tuple[str, bytes]]:
    for path in paths:
        for number, line in enumerate(lines_of(path), 1):
            if line.strip():
                yield f"{path}:{number}", line


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
        if took_s is not None and not outcome.aborted and outcome.status < 400:
            self._e2e[bucket(took_s)] += 1

    @property
    def tokens_per_byte(self) -> float:
        return self._tokens / self._bytes if self._bytes else TOKENS_PER_BYTE

    @property
    def main_model(self) -> str | None:
        return self._models.most_common(1)[0][0] if self._models else None

    def recorded(self) -> Recorded | None:
        if not self._e2e.any():
            return None
        hit = self._cached_tokens / self._counted_tokens if self._counted_tokens else np.nan
        return Recorded(_three(self._ttft), _three(self._e2e), hit)


def _three(counts: Counts) -> tuple[float, float, float]:
    p50, p90, p99 = (float(quantiles(counts, share)) for share in (0.5, 0.9, 0.99))
    return p50, p90, p99
