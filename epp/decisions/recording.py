"""What the decision log will hold: taken down on the request path, kept until a writer takes it, bounded.

Nothing here is text of a prompt or value of a header. What could be turned back, fingerprints and tenants, leaves memory
only salted (`epp.decisions.encoder`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from epp.endpoint import Candidates, Endpoint, FloatArray, IntArray
from epp.request import NO_FINGERPRINTS, Request, TokenCounts

ROOM_BYTES = 16 * 2**20
"""Most that waits for the writer: 4 s of 2,000 requests a second with prompts of 16 KB."""

CANDIDATES_KEPT = 64
"""Of a larger pool the best by score. A thousand would make a line of 26 KB."""

_RECORD_BYTES = 600
_COLUMN_BYTES = 8
_COLUMNS = 8

Population = tuple[IntArray, tuple[Endpoint, ...]]


class Pick(Protocol):
    """As `epp.pipeline.Pick`."""

    @property
    def slots(self) -> tuple[int, ...]: ...
    @property
    def profile(self) -> str: ...
    @property
    def considered(self) -> IntArray: ...
    @property
    def totals(self) -> FloatArray: ...
    @property
    def population(self) -> Population: ...


class Seen(msgspec.Struct, frozen=True, eq=False):
    """Candidates at a pick: `slots`, and one row of `columns` each for waiting, running, KV use, requests and tokens in flight, hit
    blocks. `totals` belong to `considered`, the slots that no filter left out. `left` more are not here.
    """

    slots: IntArray
    considered: IntArray
    totals: FloatArray
    columns: tuple[FloatArray, ...]
    left: int


class Taken(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """A decision. `slot` is -1 and `seen` None where the request was refused."""

    number: int
    opened_s: float
    decided_s: float
    model: str
    target_model: str
    fairness_id: str
    priority: int
    stream: bool
    prompt_bytes: int
    prompt_tokens: int
    max_tokens: int | None
    fingerprints: NDArray[np.uint64]
    slot: int = -1
    refused: str = ""
    profile: str = ""
    population: Population | None = None
    seen: Seen | None = None

    @property
    def size(self) -> int:
        """Bytes that it keeps in memory, nearly."""
        blocks = len(self.fingerprints) + (_COLUMNS * len(self.seen.slots) if self.seen is not None else 0)
        # Names are the client's, and as long as it likes.
        names = len(self.model) + len(self.target_model) + len(self.fairness_id)
        return _RECORD_BYTES + names + _COLUMN_BYTES * blocks


class Ended(msgspec.Struct, frozen=True, eq=False, kw_only=True):
    """The end of request `number`. `served` is "" where the pick answered."""

    number: int
    ended_s: float
    status: int
    aborted: bool
    ttft_s: float | None
    prompt_tokens: int | None
    cached_tokens: int | None
    output_tokens: int | None
    served: str

    @property
    def size(self) -> int:
        return _RECORD_BYTES


Record = Taken | Ended


class Recording:
    """Keeps records in their order until `take`. What finds no room is forgotten, and `lost()` called.

    A request costs 4 µs at 8 endpoints, its lines 14 when they are written; at 1,000 endpoints 30 to 100 (where many score the same) and 40.
    """

    def __init__(self, lost: Callable[[], None], room_bytes: int = ROOM_BYTES) -> None:
        self._lost = lost
        self._room_bytes = room_bytes
        self._held_bytes = 0
        self._records: deque[Record] = deque()
        self._number = 0

    def __len__(self) -> int:
        """Records that wait to be taken."""
        return len(self._records)

    def picked(self, request: Request, pick: Pick, candidates: Candidates, opened_s: float, now_s: float) -> int:
        """Take down a pick, before the ledger has it. The number for `ended`; 0, which `ended` passes over, where it was lost."""
        return self._decided(request, opened_s, now_s, "", pick, _seen(candidates, pick))

    def refused(self, request: Request | None, reason: str, opened_s: float, now_s: float) -> None:
        """`request` is None where it was not understood."""
        self._decided(request if request is not None else _UNREAD, opened_s, now_s, reason, None, None)

    def ended(
        self,
        number: int,
        now_s: float,
        *,
        status: int,
        aborted: bool,
        ttft_s: float | None,
        usage: TokenCounts | None,
        served: str,
    ) -> None:
        if not number:
            return
        self._keep(
            Ended(
                number=number,
                ended_s=now_s,
                status=status,
                aborted=aborted,
                ttft_s=ttft_s,
                prompt_tokens=usage.prompt_tokens if usage is not None else None,
                cached_tokens=usage.cached_tokens if usage is not None else None,
                output_tokens=usage.completion_tokens if usage is not None else None,
                served=served,
            )
        )

    def take(self, most: int) -> list[Record]:
        """The oldest records, at most `most`; they are the caller's now."""
        taken = [self._records.popleft() for _ in range(min(most, len(self._records)))]
        self._held_bytes -= sum(record.size for record in taken)
        return taken

    def _decided(
        self, request: Request, opened_s: float, now_s: float, reason: str, pick: Pick | None, seen: Seen | None
    ) -> int:
        number = self._number + 1
        kept = self._keep(
            Taken(
                number=number,
                opened_s=opened_s,
                decided_s=now_s,
                model=request.model,
                target_model=request.target_model,
                fairness_id=request.fairness_id,
                priority=request.priority,
                stream=request.stream,
                prompt_bytes=request.prompt_bytes,
                prompt_tokens=request.prompt_tokens,
                max_tokens=request.max_tokens,
                fingerprints=request.fingerprints,
                slot=pick.slots[0] if pick is not None else -1,
                refused=reason,
                profile=pick.profile if pick is not None else "",
                population=pick.population if pick is not None else None,
                seen=seen,
            )
        )
        if not kept:
            return 0
        self._number = number
        return number

    def _keep(self, record: Record) -> bool:
        size = record.size
        if self._held_bytes + size > self._room_bytes:
            self._lost()
            return False
        self._held_bytes += size
        self._records.append(record)
        return True


_UNREAD = Request(request_id="", path="", model="", target_model="", headers={}, fingerprints=NO_FINGERPRINTS)


def _seen(candidates: Candidates, pick: Pick) -> Seen:
    """The columns are gathered, and so copied, before the ledger changes them."""
    considered, totals, c = pick.considered, pick.totals, candidates
    if len(c) > CANDIDATES_KEPT:
        if len(considered) > CANDIDATES_KEPT:
            best = np.argpartition(totals, -CANDIDATES_KEPT)[-CANDIDATES_KEPT:]
            considered, totals = considered[best], totals[best]
        chosen = np.zeros(int(c.slots.max()) + 1, dtype=np.bool_)
        chosen[considered] = chosen[pick.slots[0]] = True
        c = c.keep(chosen[c.slots])
    columns = (c.waiting, c.running, c.kv_usage, c.in_flight, c.in_flight_tokens, c.hit_blocks)
    return Seen(c.slots, considered, totals, columns, len(candidates) - len(c))
