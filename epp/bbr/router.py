"""A request's way through a body-based router: read the outermost fields, set headers, change nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from epp.bbr.record import Record
from epp.bbr.steps import Empty, Fields, Header, Missing, Step, Unfit
from epp.drops import Drop, Reason
from epp.extproc.events import Arrival, Finished, Started, Steer
from epp.openai.body import BYTE_ORDER_MARK
from epp.openai.canonical import UNREADABLE
from epp.openai.scan import mend

PASSED = Steer(destination="")
"""Nothing is said: the request goes on as it came."""

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class Router:
    """Implements `epp.extproc.events.Dispatcher`. `refused` counts a refusal, `timer` is a fine monotonic clock in seconds.

    All steps have to succeed, or the request goes on without headers: a half would lead it astray.
    """

    def __init__(
        self, steps: Sequence[Step], record: Record, refused: Callable[[Drop], None], timer: Callable[[], float]
    ) -> None:
        self._steps = tuple(steps)
        self._record = record
        self._refused = refused
        self._timer = timer

    def route(self, arrival: Arrival, opened_s: float, now_s: float) -> tuple[Steer, None]:
        """Raises Drop for a body that is no JSON object."""
        if not arrival.has_body:
            return PASSED, None
        if arrival.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            self._record.unread += 1
            return PASSED, None
        fields = self._read(arrival)
        headers = self._headers(fields) if fields is not None else None
        if headers is None:
            return PASSED, None
        self._record.successes += 1
        return Steer(destination="", set_headers=headers), None

    def runs(self, handle: None, evict: Callable[[Drop], None]) -> None: ...

    def started(self, handle: None, notice: Started, now_s: float) -> Mapping[str, str]:
        return {}

    def first_body(self, handle: None, now_s: float) -> None: ...

    def finished(self, handle: None, notice: Finished, now_s: float) -> None: ...

    def _read(self, arrival: Arrival) -> Fields | None:
        """None where only the beginning is there and says nothing. Raises Drop."""
        body = arrival.body.removeprefix(BYTE_ORDER_MARK)
        try:
            return _decode(mend(body) if arrival.truncated else body)
        except UNREADABLE as error:
            if arrival.truncated:
                self._record.unread += 1
                return None
            drop = Drop(Reason.BAD_REQUEST, f"Failed to parse request body as a JSON object: {error}.")
            self._refused(drop)
            raise drop from None

    def _headers(self, fields: Fields) -> tuple[Header, ...] | None:
        headers = []
        for step in self._steps:
            began = self._timer()
            try:
                headers.append(step.header(fields))
            except Missing as missing:
                self._count(missing)
                return None
            finally:
                self._record.took(step.type, step.name, self._timer() - began)
        return tuple(headers)

    def _count(self, missing: Missing) -> None:
        record = self._record
        counts = {Empty: record.empty, Unfit: record.unfit}.get(type(missing), record.missing)
        counts[missing.field] += 1
