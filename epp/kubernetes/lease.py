"""Holds a Lease, or waits for it: the asyncio shell of the election."""

from __future__ import annotations

import asyncio
import datetime
import logging
import random
from collections.abc import Callable

import msgspec

from epp.kubernetes.api import Api, Connection, Unanswered
from epp.kubernetes.election import RETRY_S, Election, LeaseSpec
from epp.kubernetes.reflector import Refusal

log = logging.getLogger("epp.kubernetes")

RELEASE_TIMEOUT_S = 3.0


class _Metadata(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    name: str
    namespace: str
    resource_version: str = ""


class _Lease(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    api_version: str = "coordination.k8s.io/v1"
    kind: str = "Lease"
    metadata: _Metadata
    spec: LeaseSpec = LeaseSpec()


_DECODER = msgspec.json.Decoder(_Lease)


class Leadership:
    """Whether this replica leads, by the Lease `name`. `on_change` is called when it begins and ceases to."""

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        identity: str,
        *,
        on_change: Callable[[], None],
        faults: Callable[[str, Exception], None],
        rng: random.Random,
    ) -> None:
        self._api = api
        self._collection = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        self._metadata = _Metadata(name, namespace)
        self._election = Election(identity)
        self._on_change = on_change
        self._faults = faults
        self._rng = rng
        self._complaint = ""
        self._task: asyncio.Task[None] | None = None

    @property
    def leading(self) -> bool:
        return self._election.leading

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def release(self) -> None:
        """Let another lead, at once. Safe to call twice, and without `start`; returns in seconds whatever the API server does."""
        task, self._task = self._task, None
        if task is None:
            return
        task.cancel()
        await asyncio.wait((task,))
        connection = self._api.connection()
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                lease = await self._read(connection)
                spec = self._election.release(lease.spec if lease is not None else None, _now())
                if spec is not None:
                    await self._write(connection, lease, spec)
        except (Refusal, Unanswered, TimeoutError, ValueError) as error:
            # A TimeoutError has no words of its own.
            reason = str(error) or "no answer in time"
            log.warning("the Lease %s is left to run out: %s", self._metadata.name, reason)
        finally:
            connection.close()

    async def _run(self) -> None:
        connection = self._api.connection()
        try:
            while True:
                await self._turn(connection)
                # Replicas that were started together must not ask together.
                await asyncio.sleep(RETRY_S * (0.8 + 0.4 * self._rng.random()))
        finally:
            connection.close()

    async def _turn(self, connection: Connection) -> None:
        before = self.leading
        try:
            lease = await self._read(connection)
            spec = self._election.wants(lease.spec if lease is not None else None, self._api.clock(), _now())
            if spec is not None:
                await self._write(connection, lease, spec)
            self._complaint = ""
        except Unanswered:
            pass
        except Refusal as refusal:
            # Another replica was faster: its Lease is seen at the next look.
            if refusal.status != 409:
                self._complain(f"the Lease {self._metadata.name} cannot be kept: {refusal}")
            if refusal.status == 401:
                connection.close()
        except ValueError as error:
            self._complain(f"the Lease {self._metadata.name} is not understood: {error}")
        except Exception as error:
            connection.close()
            self._faults("lease", error)
        if self.leading != before:
            log.info("%s the leader", "this replica is" if self.leading else "another replica is")
            self._on_change()

    async def _read(self, connection: Connection) -> _Lease | None:
        try:
            return _DECODER.decode(await connection.ask(f"{self._collection}/{self._metadata.name}"))
        except Refusal as refusal:
            if refusal.status == 404:
                return None
            raise

    async def _write(self, connection: Connection, lease: _Lease | None, spec: LeaseSpec) -> None:
        if lease is None:
            await connection.ask(self._collection, method="POST", body=_Lease(metadata=self._metadata, spec=spec))
        else:
            # With the version that was read: of two who write at once, one is refused.
            body = _Lease(metadata=lease.metadata, spec=spec)
            await connection.ask(f"{self._collection}/{self._metadata.name}", method="PUT", body=body)
        self._election.wrote(spec, self._api.clock())

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            log.error("%s", complaint)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
