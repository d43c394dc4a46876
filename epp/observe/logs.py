"""Log lines: the standard library's loggers, written as JSON or for a terminal.

What goes into `extra` becomes fields of the line; `request_id` is the one that ties lines to a request. No line holds text
of a prompt, values of headers or keys: who logs names what it counted or chose, not what it was given.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal, Protocol, TextIO

import msgspec

from epp.drops import OUTCOMES, Drop
from epp.request import Request

VERBOSE = 15
TRACE = 5

Encoder = Literal["json", "console"]
TimeEncoding = Literal["epoch", "millis", "nano", "iso8601", "rfc3339", "rfc3339nano"]

_LEVEL_NAMES = {
    logging.CRITICAL: "panic",
    logging.ERROR: "error",
    logging.WARNING: "warn",
    logging.INFO: "info",
    VERBOSE: "verbose",
    logging.DEBUG: "debug",
    TRACE: "trace",
}

# What every record has; the rest of its attributes came by `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

_LEVELS = {name.lower(): number for name, number in logging.getLevelNamesMapping().items()}

# hpack among them writes every header's value at debug level.
_CHATTY = ("asyncio", "grpc", "concurrent.futures", "hpack")


def level_of(verbosity: int) -> int:
    """The logging level for `-v`: up to 2 INFO, 3 VERBOSE, 4 DEBUG, from 5 TRACE."""
    return {3: VERBOSE, 4: logging.DEBUG}.get(verbosity, logging.INFO if verbosity < 3 else TRACE)


def level_named(name: str) -> int:
    """The logging level for `--zap-log-level`: a name, or a number as for `-v`. Raises ValueError."""
    if name.isdecimal():
        return level_of(int(name))
    for level, known in _LEVEL_NAMES.items():
        if name.lower() == known:
            return level
    raise ValueError(f"{name!r} is none of {', '.join(_LEVEL_NAMES.values())}, and no number")


def configure(
    *,
    level: int = logging.INFO,
    encoder: Encoder = "console",
    time_encoding: TimeEncoding = "rfc3339",
    stream: TextIO | None = None,
) -> None:
    """Send every logger's lines from `level` up to `stream` (standard error by default), and nowhere else."""
    for number, name in _LEVEL_NAMES.items():
        logging.addLevelName(number, name)
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    handler.setFormatter(JsonLines(time_encoding) if encoder == "json" else ConsoleLines(time_encoding))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(True)


class JsonLines(logging.Formatter):
    """One JSON object a line: level, ts, logger, msg, the fields, and stacktrace where there is one."""

    def __init__(self, time_encoding: TimeEncoding = "rfc3339") -> None:
        super().__init__()
        self._time = _TIMES[time_encoding]

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "level": _level_name(record),
            "ts": self._time(record.created),
            "logger": record.name,
            "msg": record.getMessage(),
        }
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return _json(line)


class ConsoleLines(logging.Formatter):
    """One line for people: time, level, logger, message, fields as JSON; a stack trace on lines of its own."""

    def __init__(self, time_encoding: TimeEncoding = "rfc3339") -> None:
        super().__init__()
        self._time = _TIMES[time_encoding]

    def format(self, record: logging.LogRecord) -> str:
        # A line break that somebody sent must not look like a line of ours.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        fields = _fields(record)
        line = f"{self._time(record.created)}  {_level_name(record).upper():<7}  {record.name}  {message}"
        if fields:
            line = f"{line}  {_json(fields)}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _level_name(record: logging.LogRecord) -> str:
    return _LEVEL_NAMES.get(record.levelno, record.levelname.lower())


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _json(line: Mapping[str, object]) -> str:
    try:
        return msgspec.json.encode(line, enc_hook=str).decode()
    except UnicodeEncodeError:
        # A lone surrogate that a client sent: escaped, the line is still JSON.
        return json.dumps(line, default=str)


def _utc(created_s: float, timespec: str) -> str:
    return datetime.fromtimestamp(created_s, UTC).isoformat(timespec=timespec)


_TIMES: dict[TimeEncoding, Callable[[float], float | str]] = {
    "epoch": lambda created_s: created_s,
    "millis": lambda created_s: created_s * 1e3,
    # In two parts: a float of today's nanoseconds is exact to 256 of them.
    "nano": lambda created_s: int(created_s) * 10**9 + round(created_s % 1 * 1e9),
    "iso8601": lambda created_s: _utc(created_s, "milliseconds").replace("+00:00", "Z"),
    "rfc3339": lambda created_s: _utc(created_s, "seconds").replace("+00:00", "Z"),
    "rfc3339nano": lambda created_s: _utc(created_s, "microseconds").replace("+00:00", "Z"),
}


class Every:
    """Says of each key how often, at most once in `seconds`. Remembers the `max_keys` keys said last."""

    def __init__(self, seconds: float, *, max_keys: int = 1024) -> None:
        self._seconds = seconds
        self._max_keys = max_keys
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, key: str, now_s: float) -> int:
        """How many occurrences a line now would stand for, this one among them; 0 where it is too early for one."""
        said_s, unsaid = self._said.get(key, (-self._seconds, 0))
        if key in self._said and now_s - said_s < self._seconds:
            self._said[key] = (said_s, unsaid + 1)
            return 0
        self._said.pop(key, None)
        self._said[key] = (now_s, 0)
        if len(self._said) > self._max_keys:
            del self._said[next(iter(self._said))]
        return unsaid + 1


class RefusalLog:
    """Lines for refused requests, at the level of their reason: every one of a debug level, of others one a minute each."""

    def __init__(self, log: logging.Logger | None = None, *, every_s: float = 60.0) -> None:
        self._log = log if log is not None else logging.getLogger("epp.refusal")
        self._every = Every(every_s)

    def note(self, drop: Drop, request: Request | None, now_s: float) -> None:
        """`request` is None where it was not understood."""
        outcome = OUTCOMES[drop.reason]
        level = _LEVELS[outcome.log_level]
        if not self._log.isEnabledFor(level):
            return
        times = 1 if level <= logging.DEBUG else self._every(drop.reason.value, now_s)
        if times:
            fields: dict[str, object] = {"reason": drop.reason.value, "status": drop.status, "times": times}
            if request is not None:
                fields |= {"request_id": request.request_id, "model": request.model, "priority": request.priority}
            self._log.log(level, "refused: %s", outcome.cause, extra=fields)


class ScoreShare(Protocol):
    """One scorer's part in a candidate's total."""

    @property
    def scorer(self) -> str: ...
    @property
    def share(self) -> float: ...


class Considered(Protocol):
    @property
    def endpoint(self) -> str: ...
    @property
    def total(self) -> float: ...
    @property
    def shares(self) -> Sequence[ScoreShare]: ...


class LeftOut(Protocol):
    @property
    def endpoint(self) -> str: ...
    @property
    def filter(self) -> str: ...


class Explanation(Protocol):
    """Why a pick is what it is: `picked` best first, `considered` by falling total, `left_out` by filters."""

    @property
    def profile(self) -> str: ...
    @property
    def picked(self) -> Sequence[str]: ...
    @property
    def considered(self) -> Sequence[Considered]: ...
    @property
    def left_out(self) -> Sequence[LeftOut]: ...


class Explained(Protocol):
    """A pick that can say why. Asked only where a line is written: an explanation costs more than the pick."""

    def explain(self) -> Explanation: ...


class PickLog:
    """One log line for each pick at debug level, with the best `shown` candidates. Costs 0.2 µs where nobody listens.

    What `--decision-log` writes is `epp.decisions`.
    """

    def __init__(self, log: logging.Logger | None = None, *, shown: int = 16) -> None:
        self._log = log if log is not None else logging.getLogger("epp.decision")
        self._shown = shown

    def note(self, request: Request, pick: Explained, now_s: float) -> None:
        if not self._log.isEnabledFor(logging.DEBUG):
            return
        why = pick.explain()
        left_out: dict[str, list[str]] = {}
        for out in why.left_out[: self._shown]:
            left_out.setdefault(out.filter, []).append(out.endpoint)
        fields = {
            "request_id": request.request_id,
            "model": request.model,
            "target_model": request.target_model,
            "prompt_tokens": request.prompt_tokens,
            "priority": request.priority,
            "profile": why.profile,
            "picked": list(why.picked),
            "candidates": [
                {
                    "endpoint": candidate.endpoint,
                    "score": round(candidate.total, 4),
                    "by": {share.scorer: round(share.share, 4) for share in candidate.shares},
                }
                for candidate in why.considered[: self._shown]
            ],
            "considered": len(why.considered),
            "left_out": left_out,
        }
        self._log.debug("picked %s", why.picked[0], extra=fields)
