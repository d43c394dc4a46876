"""Keeps the gateway's objects for every pool of a namespace that asks to be attached. The asyncio shell of `objects`."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import random
from collections.abc import Callable, Mapping
from functools import partial

from epp.attach.objects import MADE, OWNED, OWNED_IN, Attached, read, status, wanted
from epp.kubernetes.api import Api, Connection, Unanswered
from epp.kubernetes.follower import Follower
from epp.kubernetes.objects import Collection, plural, policies
from epp.kubernetes.reflector import Delta, Reflector, Refusal
from epp.resources.objects import POOL

log = logging.getLogger("epp.attach")

AGAIN_S = 5.0
"""After something could not be made, everything is applied anew; what is there already is not changed by that."""
RENEW_S = 300.0
"""How soon an object that somebody else changed is put right."""

_APPLY = "application/apply-patch+yaml"
_MANAGER = {"fieldManager": "epp-attach", "force": "true"}


class Attacher:
    """One namespace, from `start` to `close`. `faults` hears of exceptions that are bugs."""

    def __init__(
        self, api: Api, namespace: str, *, faults: Callable[[str, Exception], None], rng: random.Random
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._faults = faults
        self._rng = rng
        self._changed = asyncio.Event()
        self._complaints: dict[str, str] = {}
        self._followers: dict[str, Follower[Attached]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Returns at once: pools come when the API server names them."""
        self._followers = {one.group: self._follow(one) for one in policies() if one.kind == POOL}
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self, notice_s: float, grace_s: float) -> None:
        """Nobody waits for us: what was made stays."""
        await self.close()

    async def close(self) -> None:
        """Returns when nothing is left running. Safe to call twice."""
        followers, self._followers = self._followers, {}
        await asyncio.gather(*(follower.close() for follower in followers.values()))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    def _follow(self, collection: Collection) -> Follower[Attached]:
        def unreadable(name: str, error: ValueError) -> None:
            log.error("%s %s/%s: %s; it stays what it was", POOL, self._namespace, name, error)

        return Follower(
            self._api,
            f"{collection} in {self._namespace}",
            collection.paths(self._namespace),
            Reflector(partial(read, namespace=self._namespace), unreadable, self._rng),
            self._heard,
            on_settled=self._changed.set,
            faults=self._faults,
        )

    def _heard(self, _: Delta[Attached]) -> None:
        self._changed.set()

    async def _run(self) -> None:
        connection = self._api.connection()
        delay_s = RENEW_S
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(delay_s):
                        await self._changed.wait()
                self._changed.clear()
                delay_s = RENEW_S if await self._make(connection) else AGAIN_S
        finally:
            connection.close()

    async def _make(self, connection: Connection) -> bool:
        """Apply what pools ask for, and take away what none does. Returns whether all went well."""
        try:
            well = [await self._attach(connection, attached) for attached in self._asking().values()]
            well += [await self._sweep(connection, *each) for each in self._followers.items()]
            return all(well)
        except Exception as error:
            self._faults("attach", error)
            return False

    def _asking(self) -> dict[str, Attached]:
        """Pools with the annotation, by name; of two groups the first counts."""
        pools = [one for follower in self._followers.values() for one in follower.reflector.objects.values()]
        return {one.pool.key.name: one for one in reversed(pools) if one.place or one.complaint}

    async def _sweep(self, connection: Connection, group: str, follower: Follower[Attached]) -> bool:
        """Take away what belongs to pools of this group that are gone or ask no more."""
        if not follower.reflector.synced:
            # Until a list was whole, a pool that is not known may be there all the same.
            return True
        # One that asks for what cannot be keeps what it had: a slip of the pen must not take its traffic away.
        kept = sorted(name for name, one in self._asking().items() if one.pool.key.group == group)
        among = f",{OWNED} notin ({','.join(kept)})" if kept else ""
        unasked = {"labelSelector": f"{OWNED_IN}={group}{among}"}
        paths = [f"{self._root(version)}/{resource}" for version, resource in MADE]
        return all(
            [await self._ask(connection, f"leftovers at {path}", "DELETE", path, unasked) == "" for path in paths]
        )

    async def _attach(self, connection: Connection, attached: Attached) -> bool:
        name = attached.pool.key.name
        problem = ""
        for (version, resource), one in zip(MADE, wanted(attached), strict=False):
            path = f"{self._root(version)}/{resource}/{one['metadata']['name']}"
            problem = problem or await self._ask(connection, f"{resource} for {name}", "PATCH", path, _MANAGER, one)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said = status(attached, problem, now)
        if said is None:
            return True
        path = f"{self._root(attached.api_version)}/{plural(POOL)}/{name}/status"
        untold = await self._ask(connection, f"the status of {name}", "PATCH", path, _MANAGER, said)
        return not problem and not untold

    def _root(self, version: str) -> str:
        return f"/{'apis' if '/' in version else 'api'}/{version}/namespaces/{self._namespace}"

    async def _ask(
        self,
        connection: Connection,
        what: str,
        method: str,
        path: str,
        parameters: Mapping[str, str],
        body: object = None,
    ) -> str:
        """Why it could not be done, which is logged once; "" where it was."""
        try:
            await connection.ask(path, parameters, method=method, body=body, content_type=_APPLY)
        except Unanswered as error:
            # The API says that of itself.
            return str(error)
        except Refusal as refusal:
            complaint = str(refusal)
            if self._complaints.get(what) != complaint:
                log.error("%s in %s: %s", what, self._namespace, complaint)
            self._complaints[what] = complaint
            return complaint
        self._complaints.pop(what, None)
        return ""
