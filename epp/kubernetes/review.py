"""Who may read metrics, by the API server's word: whose a bearer token is (TokenReview), and what he may do (SubjectAccessReview)."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from epp.kubernetes.api import Api, Unanswered
from epp.kubernetes.reflector import Refusal

log = logging.getLogger("epp.kubernetes")

ADMITTED_S = 60.0
REFUSED_S = 10.0
"""For how long an answer counts. A token that is revoked reads metrics for a minute more; a role that is granted counts at once nearly."""

UNANSWERED_S = 3600.0
"""For how long an answer counts while the API server gives none: nobody is let in who was not let in before."""

REMEMBERED = 256
"""Tokens and paths: a stranger who tries many makes us forget, not grow."""


class _User(msgspec.Struct, frozen=True):
    username: str = ""
    uid: str = ""
    groups: tuple[str, ...] = ()
    extra: Mapping[str, tuple[str, ...]] = {}


class _TokenStatus(msgspec.Struct, frozen=True):
    authenticated: bool = False
    user: _User = _User()


class _TokenReview(msgspec.Struct, frozen=True):
    status: _TokenStatus = _TokenStatus()


class _AccessStatus(msgspec.Struct, frozen=True):
    allowed: bool = False


class _AccessReview(msgspec.Struct, frozen=True):
    status: _AccessStatus = _AccessStatus()


class _Known(msgspec.Struct, frozen=True):
    verdict: HTTPStatus
    asked_s: float


class Reviews:
    """Judges readers of the metrics port: OK, UNAUTHORIZED, FORBIDDEN, or SERVICE_UNAVAILABLE where nobody can tell."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._connection = api.connection()
        self._one_at_a_time = asyncio.Lock()
        self._known: dict[tuple[bytes, str], _Known] = {}
        self._complaint = ""

    def close(self) -> None:
        self._connection.close()

    async def judge(self, authorization: str, path: str) -> HTTPStatus:
        """Whether who shows this Authorization header may get `path`. A token is not kept, but its hash."""
        scheme, _, token = authorization.partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            return HTTPStatus.UNAUTHORIZED
        key = hashlib.sha256(token.encode("latin-1", "replace")).digest(), path
        # Before it is our turn: who is known need not wait for a stranger, of whom the API server is being asked.
        verdict = self._valid(self._known.get(key))
        if verdict is not None:
            return verdict
        async with self._one_at_a_time:
            known = self._known.get(key)
            verdict = self._valid(known)
            if verdict is not None:
                return verdict
            try:
                verdict = await self._ask(token, path)
            except (Unanswered, Refusal, ValueError) as error:
                return self._as_before(known, error)
            self._complaint = ""
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = _Known(verdict, self._api.clock())
            return verdict

    def _valid(self, known: _Known | None) -> HTTPStatus | None:
        """What is remembered, where it still counts."""
        if known is None:
            return None
        # While the API server gives nobody an answer, none is waited for.
        lasts_s = UNANSWERED_S if self._api.reach.lost else _lasts_s(known)
        return known.verdict if self._api.clock() < known.asked_s + lasts_s else None

    async def _ask(self, token: str, path: str) -> HTTPStatus:
        review = msgspec.json.decode(
            await self._review("authentication.k8s.io/v1", "TokenReview", {"token": token}), type=_TokenReview
        )
        if not review.status.authenticated:
            return HTTPStatus.UNAUTHORIZED
        user = review.status.user
        spec = {
            "user": user.username,
            "uid": user.uid,
            "groups": user.groups,
            "extra": user.extra,
            "nonResourceAttributes": {"path": path, "verb": "get"},
        }
        answer = await self._review("authorization.k8s.io/v1", "SubjectAccessReview", spec)
        allowed = msgspec.json.decode(answer, type=_AccessReview).status.allowed
        return HTTPStatus.OK if allowed else HTTPStatus.FORBIDDEN

    async def _review(self, version: str, kind: str, spec: Mapping[str, object]) -> bytes:
        body = {"apiVersion": version, "kind": kind, "spec": spec}
        return await self._connection.ask(f"/apis/{version}/{kind.lower()}s", method="POST", body=body)

    def _as_before(self, known: _Known | None, error: Exception) -> HTTPStatus:
        complaint = f"nobody can tell who may read metrics: {error}"
        if complaint != self._complaint:
            self._complaint = complaint
            log.error("%s; who was let in before still is", complaint)
        if isinstance(error, Refusal) and error.status == HTTPStatus.UNAUTHORIZED:
            self._connection.close()
        if known is not None and self._api.clock() < known.asked_s + UNANSWERED_S:
            return known.verdict
        return HTTPStatus.SERVICE_UNAVAILABLE


def _lasts_s(known: _Known) -> float:
    return ADMITTED_S if known.verdict is HTTPStatus.OK else REFUSED_S
