"""Which endpoint a session belongs to: told by a token that the client carries, or remembered here by the client's id."""

from __future__ import annotations

import base64
from collections import OrderedDict
from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec

from epp.scoring import Candidates, Endpoint, NotNegative, Positive, Request

MAX_SESSIONS = 100_000
"""Sessions remembered at once (about 25 MB); the one unused for longest makes room."""

Strategy = Literal["encoded_endpoint_header", "session_id"]


class TokenHeader(msgspec.Struct, frozen=True, rename="camel"):
    """Which header carries the token, in requests and answers."""

    header: str = "x-session-token"


class Source(msgspec.Struct, frozen=True, rename="camel"):
    """A request header that may carry the session's id."""

    header: str


class SessionIds(msgspec.Struct, frozen=True, rename="camel"):
    """Where the id is looked for, in this order, and for how many seconds an unused session is remembered."""

    sources: tuple[Source, ...] = (Source("x-session-id"),)
    eviction_ttl_seconds: Positive = 300.0
    eviction_sweep_seconds: NotNegative = 10.0


DEFAULT_TOKEN = TokenHeader()
DEFAULT_IDS = SessionIds()


class Sessions(Protocol):
    def endpoint_key(self, request: Request, candidates: Candidates) -> str | None:
        """`namespace/name` of the endpoint that the request's session belongs to."""
        ...

    def moved(self, request: Request) -> None:
        """The session's endpoint is no candidate: it may go elsewhere."""
        ...

    def picked(self, request: Request, endpoint: Endpoint) -> None: ...

    def answer_headers(self, endpoint: Endpoint) -> Mapping[str, str]: ...


class CarriedSessions:
    """The client carries base64 of `namespace/name` in a header; nothing is remembered here."""

    def __init__(self, config: TokenHeader) -> None:
        self._header = config.header.lower()

    def endpoint_key(self, request: Request, candidates: Candidates) -> str | None:
        token = request.headers.get(self._header)
        if not token:
            return None
        try:
            return base64.b64decode(token, validate=True).decode()
        except ValueError:
            return None

    def moved(self, request: Request) -> None:
        """The next answer carries a new token."""

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        """Nothing to keep."""

    def answer_headers(self, endpoint: Endpoint) -> Mapping[str, str]:
        return {self._header: base64.b64encode(endpoint.key.encode()).decode()}


class RememberedSessions:
    """Sessions by the client's own id, for as long as they are used. At most `MAX_SESSIONS`."""

    def __init__(self, config: SessionIds) -> None:
        self._headers = [source.header.lower() for source in config.sources]
        self._ttl_s = config.eviction_ttl_seconds
        self._sweep_s = config.eviction_sweep_seconds
        self._bound: OrderedDict[str, tuple[str, float]] = OrderedDict()
        self._now_s = 0.0
        self._swept_s = 0.0

    def __len__(self) -> int:
        return len(self._bound)

    def _id(self, request: Request) -> str | None:
        for header in self._headers:
            if value := request.headers.get(header):
                return value
        return None

    def endpoint_key(self, request: Request, candidates: Candidates) -> str | None:
        self._now_s = candidates.now_s
        self._sweep()
        session = self._id(request)
        bound = self._bound.get(session) if session else None
        return bound[0] if bound and bound[1] >= self._now_s - self._ttl_s else None

    def moved(self, request: Request) -> None:
        if session := self._id(request):
            self._bound.pop(session, None)

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        """Bind a new session to `endpoint`; one that is bound stays where it is."""
        session = self._id(request)
        if session is None:
            return
        bound = self._bound.pop(session, None)
        kept = bound is not None and bound[1] >= self._now_s - self._ttl_s
        self._bound[session] = (bound[0] if bound and kept else endpoint.key, self._now_s)
        if len(self._bound) > MAX_SESSIONS:
            self._bound.popitem(last=False)

    def answer_headers(self, endpoint: Endpoint) -> Mapping[str, str]:
        return {}

    def _sweep(self) -> None:
        if self._now_s - self._swept_s < self._sweep_s:
            return
        self._swept_s = self._now_s
        # In order of use: the first that is young enough ends the sweep.
        while self._bound:
            session, (_, used_s) = next(iter(self._bound.items()))
            if used_s >= self._now_s - self._ttl_s:
                return
            del self._bound[session]


def sessions(strategy: Strategy, token: TokenHeader, ids: SessionIds) -> Sessions:
    """Raises ValueError where a session id could be found nowhere."""
    if strategy == "encoded_endpoint_header":
        return CarriedSessions(token)
    if not ids.sources:
        raise ValueError("sessionIdConfig.sources must name a header")
    return RememberedSessions(ids)


def session_index(found: Sessions, request: Request, candidates: Candidates) -> int | None:
    """The index of the session's endpoint among the candidates; None for a new session or one whose endpoint is gone."""
    key = found.endpoint_key(request, candidates)
    if key is None:
        return None
    index = candidates.find(key)
    if index is None:
        found.moved(request)
    return index
