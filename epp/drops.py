"""Why a request is refused, and what the client, the metrics and the log then say: one enum, one table.

`python -m epp.drops` prints the table as `docs/outcomes.md`.
"""

from __future__ import annotations

import enum
import sys
from collections.abc import Sequence

import msgspec


class Reason(enum.Enum):
    """A cause of refusal. Its value is the log field and the label of `epp_refusals_total`."""

    BAD_REQUEST = "bad-request"
    BODY_TOO_LARGE = "body-too-large"
    NOT_FOUND = "not-found"
    NO_ENDPOINTS = "rejected-no-endpoints"
    SATURATED = "rejected-saturated"
    TTL_EXPIRED = "rejected-ttl-expired"
    TTL_EXPIRED_NO_ENDPOINTS = "ttl-expired-no-endpoints"
    EVICTED = "evicted"
    EVICTED_QUEUE_PRESSURE = "evicted-queue-pressure"
    CLIENT_GONE = "rejected-context-cancelled"
    SHUTTING_DOWN = "rejected-shutting-down"
    OVER_QUOTA = "rejected-over-quota"
    INTERNAL = "internal"


class Return(enum.Enum):
    """What a `Retry-After` goes by. The value is how the documentation says it."""

    NEVER = "none"
    DRAIN = "when its priority level has drained that far, at the rate measured"
    POOL = "as long again as the pool has been without an endpoint"
    QUOTA = "when the tenant's bucket holds enough again"
    ELSEWHERE = "at once: another replica may answer"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one reason means outside.

    `header` is the value of `DROPPED_REASON_HEADER`, None where the request was no good to begin with. `error_type`, `code` and
    `param` are fields of the body, as OpenAI's clients show them. `error_code` is the label of the request error counters,
    `log_level` a name of `logging`'s. `cause` is for the documentation.
    """

    reason: Reason
    status: int
    error_type: str
    code: str
    error_code: str
    log_level: str
    cause: str
    header: str | None = None
    param: str | None = None
    retry: Return = Return.NEVER


CLIENT_CLOSED_REQUEST = 499
"""The status, in metrics only, of a request whose client left: nobody is there to be answered."""


def _rejected(
    reason: Reason, status: int, error_type: str, error_code: str, log_level: str, retry: Return, cause: str
) -> Outcome:
    """A request that was good and not served: its reason is told in a header too."""
    return Outcome(
        reason=reason,
        status=status,
        error_type=error_type,
        code=reason.value.replace("-", "_"),
        error_code=error_code,
        log_level=log_level,
        cause=cause,
        header=reason.value,
        retry=retry,
    )


_INVALID = "invalid_request_error"
_LIMITED = "rate_limit_error"
_UNAVAILABLE = "service_unavailable_error"
_EXHAUSTED = "InferencePoolResourceExhausted"

OUTCOMES: dict[Reason, Outcome] = {
    outcome.reason: outcome
    for outcome in (
        Outcome(
            reason=Reason.BAD_REQUEST,
            status=400,
            error_type=_INVALID,
            code="bad_request",
            error_code="BadRequest",
            log_level="debug",
            cause="the request cannot be understood",
        ),
        Outcome(
            reason=Reason.BODY_TOO_LARGE,
            status=413,
            error_type=_INVALID,
            code="body_too_large",
            error_code="BadRequest",
            log_level="info",
            cause="the body is over the limit",
        ),
        Outcome(
            reason=Reason.NOT_FOUND,
            status=404,
            error_type=_INVALID,
            code="model_not_found",
            error_code="NotFound",
            log_level="info",
            param="model",
            cause="no such model is served here",
        ),
        _rejected(
            Reason.NO_ENDPOINTS,
            *(503, _UNAVAILABLE, "ServiceUnavailable", "warning", Return.POOL),
            "the pool, or what the gateway allows of it, has no ready endpoint",
        ),
        _rejected(
            Reason.SATURATED,
            *(429, _LIMITED, _EXHAUSTED, "info", Return.DRAIN),
            "the pool is full and the request may not wait, or no more requests may",
        ),
        _rejected(
            Reason.TTL_EXPIRED,
            *(429, _LIMITED, _EXHAUSTED, "info", Return.DRAIN),
            "the request waited as long as it may, and the pool was full",
        ),
        msgspec.structs.replace(
            _rejected(
                Reason.TTL_EXPIRED_NO_ENDPOINTS,
                *(503, _UNAVAILABLE, "ServiceUnavailable", "warning", Return.POOL),
                "the request waited as long as it may, and there was no ready endpoint",
            ),
            header=Reason.NO_ENDPOINTS.value,
        ),
        _rejected(
            Reason.EVICTED,
            *(429, _LIMITED, _EXHAUSTED, "info", Return.DRAIN),
            "the request gave way to one of higher priority while it ran; an answer that has begun is cut off instead",
        ),
        _rejected(
            Reason.EVICTED_QUEUE_PRESSURE,
            *(429, _LIMITED, _EXHAUSTED, "info", Return.DRAIN),
            "the request gave way while it waited, because too much waited",
        ),
        _rejected(
            Reason.CLIENT_GONE,
            *(CLIENT_CLOSED_REQUEST, "client_closed_request", "ClientClosedRequest", "debug", Return.NEVER),
            "the client left while the request waited",
        ),
        _rejected(
            Reason.SHUTTING_DOWN,
            *(503, _UNAVAILABLE, "ServiceUnavailable", "info", Return.ELSEWHERE),
            "this picker is going down",
        ),
        msgspec.structs.replace(
            _rejected(
                Reason.OVER_QUOTA,
                *(429, _LIMITED, "QuotaExceeded", "info", Return.QUOTA),
                "the tenant has used up its requests or tokens",
            ),
            code="rate_limit_exceeded",
        ),
        Outcome(
            reason=Reason.INTERNAL,
            status=500,
            error_type="internal_error",
            code="internal",
            error_code="Internal",
            log_level="error",
            cause="a bug of the picker's",
        ),
    )
}

DROPPED_REASON_HEADER = "x-llm-d-request-dropped-reason"
RETRY_AFTER_HEADER = "retry-after"

UNMEASURED_RETRY_S = 1
"""The `Retry-After` of a refusal that promises one where nobody measured anything."""


class Drop(Exception):
    """A refusal on its way to the client. `message` is for the client: what is wrong and what to do.

    `retry_after_s` may be set by whoever knows better until the refusal is sent; it matters only where the reason's rule
    is not `Return.NEVER`. `more_headers` are further response headers, lower case.
    """

    def __init__(
        self,
        reason: Reason,
        message: str,
        *,
        retry_after_s: int | None = None,
        more_headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retry_after_s = retry_after_s
        self.more_headers = more_headers

    @property
    def status(self) -> int:
        return OUTCOMES[self.reason].status

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Response headers, lower case."""
        outcome = OUTCOMES[self.reason]
        headers = [("content-type", "application/json")]
        if outcome.header is not None:
            headers.append((DROPPED_REASON_HEADER, outcome.header))
        if outcome.retry is not Return.NEVER:
            seconds = UNMEASURED_RETRY_S if self.retry_after_s is None else self.retry_after_s
            headers.append((RETRY_AFTER_HEADER, str(seconds)))
        return (*headers, *self.more_headers)

    def body(self) -> bytes:
        """OpenAI-shaped JSON."""
        outcome = OUTCOMES[self.reason]
        error = {
            "message": self.message,
            "type": outcome.error_type,
            "param": outcome.param,
            "code": outcome.code,
        }
        return msgspec.json.encode({"error": error})


_PAGE = f"""# What a client sees when it is refused

Every refusal is one row of one table in `epp/drops.py`; this page is written from it (`make format`).

The body is JSON as OpenAI's API has it, `{{"error": {{"message", "type", "param", "code"}}}}`; the message says what to do. A request
that was good and still not served also carries its reason in `{DROPPED_REASON_HEADER}`. `Retry-After` is whole seconds, spread at
random so that those who were refused together do not come back together.

{{table}}

The reason is the label of `epp_refusals_total` and the field `reason` of the log line. A status of {CLIENT_CLOSED_REQUEST} is seen in
metrics and logs only: the client has gone and nothing is sent. An answer of the model server passes as it is, errors included.
"""

_COLUMNS = (
    *("cause", "status", f"`{DROPPED_REASON_HEADER}`", "`type`", "`code`"),
    *("`Retry-After`", "reason", "`error_code` of the error counters", "log level"),
)


def page() -> str:
    """`docs/outcomes.md`."""
    rows = [_row(_COLUMNS), _row(["---"] * len(_COLUMNS))]
    rows += [_row(_cells(outcome)) for outcome in OUTCOMES.values()]
    return _PAGE.replace("{table}", "\n".join(rows))


def _cells(outcome: Outcome) -> list[str]:
    return [
        outcome.cause,
        str(outcome.status),
        f"`{outcome.header}`" if outcome.header else "–",
        f"`{outcome.error_type}`",
        f"`{outcome.code}`",
        "–" if outcome.retry is Return.NEVER else outcome.retry.value,
        f"`{outcome.reason.value}`",
        f"`{outcome.error_code}`",
        outcome.log_level,
    ]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.stdout.write(page())
