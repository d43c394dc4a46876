"""The table of refusals, whole: every reason by status, header, body, Retry-After, metric label and log level."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from epp.drops import (
    DROPPED_REASON_HEADER,
    OUTCOMES,
    RETRY_AFTER_HEADER,
    UNMEASURED_RETRY_S,
    Drop,
    Reason,
    Return,
    page,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "outcomes.md"

# Reason: status, drop-reason header, type, code, metric label, log level, Retry-After by.
WHOLE = {
    "BAD_REQUEST": (400, None, "invalid_request_error", "bad_request", "BadRequest", "debug", "NEVER"),
    "BODY_TOO_LARGE": (413, None, "invalid_request_error", "body_too_large", "BadRequest", "info", "NEVER"),
    "NOT_FOUND": (404, None, "invalid_request_error", "model_not_found", "NotFound", "info", "NEVER"),
    "NO_ENDPOINTS": (
        *(503, "rejected-no-endpoints", "service_unavailable_error", "rejected_no_endpoints"),
        *("ServiceUnavailable", "warning", "POOL"),
    ),
    "SATURATED": (
        *(429, "rejected-saturated", "rate_limit_error", "rejected_saturated"),
        *("InferencePoolResourceExhausted", "info", "DRAIN"),
    ),
    "TTL_EXPIRED": (
        *(429, "rejected-ttl-expired", "rate_limit_error", "rejected_ttl_expired"),
        *("InferencePoolResourceExhausted", "info", "DRAIN"),
    ),
    "TTL_EXPIRED_NO_ENDPOINTS": (
        *(503, "rejected-no-endpoints", "service_unavailable_error", "ttl_expired_no_endpoints"),
        *("ServiceUnavailable", "warning", "POOL"),
    ),
    "EVICTED": (
        *(429, "evicted", "rate_limit_error", "evicted"),
        *("InferencePoolResourceExhausted", "info", "DRAIN"),
    ),
    "EVICTED_QUEUE_PRESSURE": (
        *(429, "evicted-queue-pressure", "rate_limit_error", "evicted_queue_pressure"),
        *("InferencePoolResourceExhausted", "info", "DRAIN"),
    ),
    "CLIENT_GONE": (
        *(499, "rejected-context-cancelled", "client_closed_request", "rejected_context_cancelled"),
        *("ClientClosedRequest", "debug", "NEVER"),
    ),
    "SHUTTING_DOWN": (
        *(503, "rejected-shutting-down", "service_unavailable_error", "rejected_shutting_down"),
        *("ServiceUnavailable", "info", "ELSEWHERE"),
    ),
    "OVER_QUOTA": (
        *(429, "rejected-over-quota", "rate_limit_error", "rate_limit_exceeded"),
        *("QuotaExceeded", "info", "QUOTA"),
    ),
    "INTERNAL": (500, None, "internal_error", "internal", "Internal", "error", "NEVER"),
}


def test_the_table_is_whole() -> None:
    assert set(OUTCOMES) == set(Reason)
    assert {
        reason.name: (o.status, o.header, o.error_type, o.code, o.error_code, o.log_level, o.retry.name)
        for reason, o in OUTCOMES.items()
    } == WHOLE


def test_the_document_is_the_table() -> None:
    assert DOCUMENT.read_text() == page(), "write it anew: make format"


@pytest.mark.parametrize("reason", Reason)
def test_the_document_has_a_row_for_each(reason: Reason) -> None:
    rows = [
        line
        for line in page().splitlines()
        if f"| `{reason.value}` |" in line and f"| {OUTCOMES[reason].cause} |" in line
    ]
    assert len(rows) == 1
    assert f"| {OUTCOMES[reason].status} |" in rows[0]


@pytest.mark.parametrize("reason", Reason)
def test_a_level_is_one_of_loggings(reason: Reason) -> None:
    assert OUTCOMES[reason].log_level.upper() in logging.getLevelNamesMapping()


@pytest.mark.parametrize("reason", Reason)
def test_who_may_come_back_is_told_when(reason: Reason) -> None:
    outcome = OUTCOMES[reason]
    assert (outcome.retry is not Return.NEVER) == (outcome.status in (429, 503))
    unmeasured = dict(Drop(reason, "no").headers())
    measured = dict(Drop(reason, "no", retry_after_s=17).headers())
    if outcome.retry is Return.NEVER:
        assert RETRY_AFTER_HEADER not in unmeasured and RETRY_AFTER_HEADER not in measured
    else:
        assert unmeasured[RETRY_AFTER_HEADER] == str(UNMEASURED_RETRY_S)
        assert measured[RETRY_AFTER_HEADER] == "17"


@pytest.mark.parametrize("reason", Reason)
def test_headers_and_body(reason: Reason) -> None:
    outcome = OUTCOMES[reason]
    drop = Drop(reason, 'Say "less".', more_headers=(("x-ratelimit-limit-requests", "3"),))
    headers = dict(drop.headers())
    assert drop.status == outcome.status
    assert headers["content-type"] == "application/json"
    assert headers.get(DROPPED_REASON_HEADER) == outcome.header
    assert headers["x-ratelimit-limit-requests"] == "3"
    assert len(headers) == len(drop.headers())
    assert all(name == name.lower() and value.isascii() for name, value in headers.items())
    assert json.loads(drop.body()) == {
        "error": {
            "message": 'Say "less".',
            "type": outcome.error_type,
            "param": "model" if reason is Reason.NOT_FOUND else None,
            "code": outcome.code,
        }
    }


def test_a_code_tells_the_reason() -> None:
    assert len({outcome.code for outcome in OUTCOMES.values()}) == len(Reason)


def test_who_knows_better_may_set_the_time_until_it_is_sent() -> None:
    drop = Drop(Reason.SATURATED, "full")
    drop.retry_after_s = 9
    assert (RETRY_AFTER_HEADER, "9") in drop.headers()
    assert str(drop) == drop.message == "full"
