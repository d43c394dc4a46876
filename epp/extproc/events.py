"""The words that pass between Envoy's wire, the exchange, and the dispatcher. Frozen values, no behaviour.

codec ──Event──► Exchange ──Reply──► codec
                    │  ▲
             Notice ▼  │ Steer | Drop
                 Dispatcher
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Generic, Protocol, TypeVar, final

import msgspec

from epp.drops import Drop


class BodyMode(enum.IntEnum):
    """Envoy's `ProcessingMode.BodySendMode`, same numbers."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX_STREAMED = 4


class Modes(msgspec.Struct, frozen=True):
    """How Envoy shows the two bodies (`protocol_config` of the first message)."""

    request: BodyMode
    response: BodyMode


# --- Events: what Envoy says -----------------------------------------------------------------------------------------


class RequestHeaders(msgspec.Struct, frozen=True):
    """`headers` are lower case, pseudo headers included, `raw_value` preferred to `value`, repeated names joined by ','.

    `subset` is the subset hint's list (None: key absent). `modes` is None where the message has no `protocol_config`.
    `pool` is what the proxy's metadata calls the pool that the request is for, "" where it does not say.
    """

    headers: dict[str, str]
    end: bool
    subset: tuple[str, ...] | None = None
    modes: Modes | None = None
    pool: str = ""


class RequestBody(msgspec.Struct, frozen=True, gc=False):
    """`subset` may first arrive with the body: metadata of the first message that has it is kept."""

    data: bytes | memoryview
    end: bool
    subset: tuple[str, ...] | None = None


class RequestTrailers(msgspec.Struct, frozen=True):
    pass


class ResponseHeaders(msgspec.Struct, frozen=True):
    """`served` is who really answered (`x-gateway-destination-endpoint-served`, or the attribute `upstream.address`)."""

    headers: dict[str, str]
    end: bool
    served: str | None = None


class ResponseBody(msgspec.Struct, frozen=True, gc=False):
    data: bytes
    end: bool


class ResponseTrailers(msgspec.Struct, frozen=True):
    pass


class Closed(msgspec.Struct, frozen=True):
    """The gRPC stream is over: `clean` when Envoy half-closed it, False when it was reset, cancelled or lost."""

    clean: bool


Event = RequestHeaders | RequestBody | RequestTrailers | ResponseHeaders | ResponseBody | ResponseTrailers | Closed


# --- Notices: what the exchange tells the dispatcher -----------------------------------------------------------------


@final
class Arrival(msgspec.Struct, frozen=True):
    """Enough of a request has arrived to decide.

    `has_body` is False for a request that ended with its headers or whose body Envoy does not show before its headers
    must go on (NONE, STREAMED). `truncated` means that `body` may be only the beginning (Envoy's buffer limit, or
    trailers follow); what replaces it then replaces that beginning. `can_rewrite` tells whether the body can still be
    changed.
    `sees_answer` tells whether the answer's body will be shown, `can_look` whether it is hidden but can be asked for
    (`Steer.look`). `pool` is the pool that the proxy says the request is for, "" where it does not say.
    """

    headers: dict[str, str]
    body: bytes
    has_body: bool
    truncated: bool = False
    can_rewrite: bool = True
    sees_answer: bool = True
    can_look: bool = False
    subset: tuple[str, ...] | None = None
    pool: str = ""


class Cause(enum.Enum):
    """How an exchange ended. Where Envoy hides the answer's body, nothing tells a client that left from a whole answer:
    both are COMPLETE once the answer's headers came. EVICTED is one that a `Drop` after its `Steer` cut short.
    """

    COMPLETE = "complete"
    ABORTED = "aborted"
    EVICTED = "evicted"


@final
class Started(msgspec.Struct, frozen=True):
    """The answer's headers are here. `status` is 0 where `:status` is missing or no number."""

    status: int
    headers: dict[str, str]
    served: str | None = None


@final
class FirstBody(msgspec.Struct, frozen=True):
    """The first non-empty piece of the answer's body: the first token, where the answer is a stream."""


@final
class Finished(msgspec.Struct, frozen=True):
    """The exchange is over; sent exactly once for every `Steer`, never after a `Drop`.

    `tail` is the end of the answer's body as far as it was seen (at most `TAIL_BYTES`), `body_bytes` how much of it
    was seen.
    """

    cause: Cause
    tail: bytes = b""
    body_bytes: int = 0


Notice = Arrival | Started | FirstBody | Finished

_CONNECTS_NOT = (b"connection failure", b"connection timeout")


def connected_not(body: bytes) -> bool:
    """Whether the body of a 503 is Envoy's word that it could not connect to the server.

    Envoy 1.40 says "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, …".
    """
    return body.startswith(b"upstream connect error") and any(reason in body[:256] for reason in _CONNECTS_NOT)


TAIL_BYTES = 16 * 1024
"""How much of an answer's end is kept to read `usage` from: a final SSE chunk, or the end of a JSON answer."""


# --- Answers of the dispatcher ---------------------------------------------------------------------------------------


class Steer(msgspec.Struct, frozen=True):
    """Where the request goes. `destination` is `ip:port` or a comma list, best first; "" leaves it to the proxy's routes.

    `body` replaces the request's body (None: unchanged). `turn_back` is (model as the server says it, model as the client
    asked), applied to the answer. `look` asks Envoy to show this answer's body. `scores` go into dynamic metadata. `evictable`:
    the dispatcher wants to be told how to end the request while it runs.
    """

    destination: str
    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()
    body: bytes | None = None
    turn_back: tuple[str, str] | None = None
    look: bool = False
    scores: Mapping[str, float] | None = None
    evictable: bool = False


# --- Replies: what the exchange tells Envoy ---------------------------------------------------------------------------


class RequestHeadersReply(msgspec.Struct, frozen=True):
    """`steer` is None where the headers only pass, because the decision comes with the body's answer."""

    steer: Steer | None = None


class RequestBodyReply(msgspec.Struct, frozen=True):
    """The answer to one body message, one for one. `body` replaces its bytes (None: unchanged)."""

    steer: Steer | None = None
    body: bytes | None = None


class StreamedRequestBody(msgspec.Struct, frozen=True):
    """Full duplex: one piece of the body that the server shall receive."""

    data: bytes | memoryview
    end: bool


class RequestTrailersReply(msgspec.Struct, frozen=True):
    pass


class ResponseHeadersReply(msgspec.Struct, frozen=True):
    """`look_over` asks to see this answer's body (`STREAMED`); its value is the request body mode in force, to be kept."""

    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()
    look_over: BodyMode | None = None


class ResponseBodyReply(msgspec.Struct, frozen=True):
    """The answer to one body message, one for one. `body` replaces its bytes (None: unchanged)."""

    body: bytes | None = None


class StreamedResponseBody(msgspec.Struct, frozen=True, gc=False):
    """Full duplex: one piece of the body that the client shall receive."""

    data: bytes | memoryview
    end: bool


class ResponseTrailersReply(msgspec.Struct, frozen=True):
    pass


class MoreTime(msgspec.Struct, frozen=True):
    """Ask Envoy to wait for the next reply for up to `seconds`, where its `max_message_timeout` allows as much."""

    seconds: int


class Immediate(msgspec.Struct, frozen=True):
    """Envoy answers the client itself, with what `drop` says; where an answer has begun, it resets the client's stream instead. The
    exchange is over.
    """

    drop: Drop


class EndOfStream(msgspec.Struct, frozen=True):
    """Close our side of the stream with OK."""


Reply = (
    RequestHeadersReply
    | RequestBodyReply
    | StreamedRequestBody
    | RequestTrailersReply
    | ResponseHeadersReply
    | ResponseBodyReply
    | StreamedResponseBody
    | ResponseTrailersReply
    | MoreTime
    | Immediate
    | EndOfStream
)


Handle = TypeVar("Handle")


Routed = tuple[Steer, Handle] | Drop
"""What became of a request that had to wait."""


class Waiting(Protocol[Handle]):
    """A request that waits for its turn. Its answer is given to `resume`, which the caller of `route` sets before anything else
    can happen, exactly once, unless `cancel` was called before. It never comes while `route` or `cancel` runs.
    """

    resume: Callable[[Routed[Handle]], None]

    def cancel(self, now_s: float) -> None:
        """Nobody waits for the answer any more. Harmless when repeated, and after the answer."""
        ...


class Dispatcher(Protocol, Generic[Handle]):
    """Decides, and keeps account. `Handle` is its own record of the request, handed back with every later notice.

    No method raises anything but `Drop` from `route`. Times are seconds of the loop's monotonic clock.
    """

    def route(self, arrival: Arrival, opened_s: float, now_s: float) -> tuple[Steer, Handle] | Waiting[Handle]:
        """Pick, and take the ledger entry in the same step, or let the request wait. `opened_s` is when its headers came.

        Raises Drop when the request is refused; there is no handle then and no later notice.
        """
        ...

    def runs(self, handle: Handle, evict: Callable[[Drop], None]) -> None:
        """Told first where the steer is `evictable`. `evict` has Envoy refuse the request, or cut off its answer where that has
        begun; `finished` comes once Envoy has. It is not to be called from a method of this protocol, and harmless after `finished`.
        """
        ...

    def started(self, handle: Handle, notice: Started, now_s: float) -> Mapping[str, str]:
        """Returns headers to add to the answer."""
        ...

    def first_body(self, handle: Handle, now_s: float) -> None: ...

    def finished(self, handle: Handle, notice: Finished, now_s: float) -> None: ...


__all__ = [
    "TAIL_BYTES",
    "Arrival",
    "BodyMode",
    "Cause",
    "Closed",
    "Dispatcher",
    "Drop",
    "EndOfStream",
    "Event",
    "Finished",
    "FirstBody",
    "Handle",
    "Immediate",
    "Modes",
    "MoreTime",
    "Notice",
    "Reply",
    "RequestBody",
    "RequestBodyReply",
    "RequestHeaders",
    "RequestHeadersReply",
    "RequestTrailers",
    "RequestTrailersReply",
    "ResponseBody",
    "ResponseBodyReply",
    "ResponseHeaders",
    "ResponseHeadersReply",
    "ResponseTrailers",
    "ResponseTrailersReply",
    "Routed",
    "Started",
    "Steer",
    "StreamedRequestBody",
    "StreamedResponseBody",
    "Waiting",
]
