"""Why a request is refused, and what the client, the metrics and the log then say: one enum, one table."""

from __future__ import annotations

import enum

import msgspec


class Reason(enum.Enum):
    """A cause of refusal. Its value is the log field and, where the protocol names it, the drop-reason header."""

    BAD_REQUEST = "bad-request"
    BODY_TOO_LARGE = "body-too-large"
    NO_ENDPOINTS = "rejected-no-endpoints"
    SATURATED = "rejected-saturated"
    SHUTTING_DOWN = "rejected-shutting-down"
    INTERNAL = "internal"


class Outcome(msgspec.Struct, frozen=True):
    """What one reason means outside: HTTP status, OpenAI error type, `error_code` metric label, log level name."""

    status: int
    error_type: str
    error_code: str
    log_level: str
    named_in_header: bool = False


OUTCOMES: dict[Reason, Outcome] = {
    Reason.BAD_REQUEST: Outcome(400, "invalid_request_error", "BadRequest", "debug"),
    Reason.BODY_TOO_LARGE: Outcome(413, "invalid_request_error", "BadRequest", "info"),
    Reason.NO_ENDPOINTS: Outcome(503, "service_unavailable_error", "ServiceUnavailable", "warning", True),
    Reason.SATURATED: Outcome(429, "rate_limit_error", "InferencePoolResourceExhausted", "info", True),
    Reason.SHUTTING_DOWN: Outcome(503, "service_unavailable_error", "ServiceUnavailable", "info", True),
    Reason.INTERNAL: Outcome(500, "internal_error", "Internal", "error"),
}

DROPPED_REASON_HEADER = "x-llm-d-request-dropped-reason"


class Drop(Exception):
    """A refusal on its way to the client. `message` is for the client: what is wrong and what to do."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message

    @property
    def status(self) -> int:
        return OUTCOMES[self.reason].status

    def headers(self) -> tuple[tuple[str, str], ...]:
        """Response headers, lower case."""
        outcome = OUTCOMES[self.reason]
        headers = [("content-type", "application/json")]
        if outcome.named_in_header:
            headers.append((DROPPED_REASON_HEADER, self.reason.value))
        return tuple(headers)

    def body(self) -> bytes:
        """OpenAI-shaped JSON."""
        outcome = OUTCOMES[self.reason]
        code = self.reason.value.replace("-", "_")
        return msgspec.json.encode({"error": {"message": self.message, "type": outcome.error_type, "code": code}})
