"""Whose request it is: a name from its headers, kept only as a keyed hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from epp.request import Request

FAIRNESS_ID = "fairness-id"
API_KEY = "api-key"

ID_BYTES = 16


def api_key(headers: Mapping[str, str]) -> str:
    """The key as OpenAI's clients send it (`Authorization: Bearer`), or Anthropic's (`x-api-key`); "" without one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return headers.get("x-api-key", "").strip()


class Tenants:
    """Tells tenants apart by `source`: `fairness-id`, `api-key`, or the name of a header.

    Requests that do not say whose they are count together, as one tenant. `secret` is of this process: ids cannot be
    turned back into keys by whoever sees them.
    """

    def __init__(self, source: str, secret: bytes) -> None:
        self._source = source.lower()
        self._secret = secret

    def name(self, request: Request) -> str:
        """The tenant as limits name it: the header's value; of an API key its SHA-256 in hexadecimal, "" for none."""
        if self._source == FAIRNESS_ID:
            return request.fairness_id
        if self._source == API_KEY:
            key = api_key(request.headers)
            return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest() if key else ""
        return request.headers.get(self._source, "")

    def id(self, name: str) -> bytes:
        """`ID_BYTES` that stand for that name in this process."""
        data = name.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, digest_size=ID_BYTES, key=self._secret).digest()
