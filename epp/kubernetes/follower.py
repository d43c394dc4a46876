"""Keeps one collection followed: puts a reflector's questions to the API server and hands over what changed. The asyncio shell."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

from epp.kubernetes.api import Api, Connection, Unanswered
from epp.kubernetes.reflector import WATCH_S, Ask, Delta, Reflector, Refusal

log = logging.getLogger("epp.kubernetes")

T = TypeVar("T")

SILENCE_S = WATCH_S[1] + 30.0
"""Longest time without a line in which a watch is believed in: the server ends each sooner."""


class Follower(Generic[T]):
    """Follows the collection at the first of `paths` that is there, all of which are views of the same objects.

    `on_delta` is called with what changed, all that came in one read together; `on_listed` whenever a list has been taken in whole;
    `on_settled` when it is known first what there is, be it that it may not be read.
    `faults` hears of exceptions that are bugs: the collection is then read anew. `what` is the collection in words.
    """

    def __init__(
        self,
        api: Api,
        what: str,
        paths: Sequence[str],
        reflector: Reflector[T],
        on_delta: Callable[[Delta[T]], None],
        *,
        on_listed: Callable[[], None] = lambda: None,
        on_settled: Callable[[], None] = lambda: None,
        faults: Callable[[str, Exception], None],
        selector: str = "",
    ) -> None:
        self.reflector = reflector
        self._api = api
        self._what = what
        self._paths = paths
        self._on_delta = on_delta
        self._on_listed = on_listed
        self._on_settled = on_settled
        self._faults = faults
        self._selector: Mapping[str, str] = {"labelSelector": selector} if selector else {}
        self._turn = 0
        self._complaint = ""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Returns when nothing is left running; nothing is handed over from the call on."""
        self._task.cancel()
        await asyncio.wait((self._task,))

    async def _run(self) -> None:
        connection = self._api.connection()
        try:
            while True:
                delay_s = await self._turn_once(connection)
                self._settle()
                await asyncio.sleep(delay_s)
        finally:
            connection.close()

    async def _turn_once(self, connection: Connection) -> float:
        """One question and all of its answer. Returns how long to wait before the next."""
        ask = self.reflector.ask()
        try:
            return await (self._watch if ask.watch else self._list)(connection, ask)
        except Refusal as refusal:
            return self._refused(connection, refusal)
        except Unanswered:
            return self.reflector.failed()
        except ValueError as error:
            connection.close()
            self._say(logging.WARNING, f"{self._what}: an answer is not understood; what was known stays: {error}")
            return self.reflector.refused(Refusal(0, str(error)))
        except Exception as error:
            connection.close()
            self._faults("kubernetes", error)
            return self.reflector.refused(Refusal(0, repr(error)))

    @property
    def _path(self) -> str:
        return self._paths[self._turn % len(self._paths)]

    async def _list(self, connection: Connection, ask: Ask) -> float:
        body = await connection.ask(self._path, {**ask.parameters, **self._selector})
        self._tell(self.reflector.page(body))
        if self.reflector.ask().watch:
            self._complaint = ""
            self._on_listed()
        return 0.0

    async def _watch(self, connection: Connection, ask: Ask) -> float:
        clock = self._api.clock
        await connection.watch(self._path, {**ask.parameters, **self._selector})
        begun_s = clock()
        self._complaint = ""
        try:
            while (lines := await connection.lines(SILENCE_S)) is not None:
                self._take(lines)
        except Unanswered as error:
            log.debug("the watch of %s broke: %s", self._what, error)
        except BaseException:
            connection.close()
            raise
        return self.reflector.ended(clock() - begun_s)

    def _take(self, lines: Sequence[bytes]) -> None:
        """What came before an error counts."""
        together: dict[str, T | None] = {}
        try:
            for line in lines:
                if line:
                    together.update(self.reflector.line(line))
        finally:
            self._tell(together)

    def _tell(self, delta: Delta[T]) -> None:
        if delta:
            self._on_delta(delta)

    def _settle(self) -> None:
        if not self.reflector.settled:
            return
        on_settled, self._on_settled = self._on_settled, lambda: None
        try:
            on_settled()
        except Exception as error:
            # What follows the collection must outlive whoever listens.
            self._faults("kubernetes", error)

    def _refused(self, connection: Connection, refusal: Refusal) -> float:
        """Say what keeps the collection from being read, once for each reason. Returns how long to wait."""
        status = refusal.status
        if status == 404:
            self._turn += 1
            if self._turn % len(self._paths):
                self.reflector.elsewhere()
                return 0.0
            self._say(logging.INFO, f"{self._what}: not installed; looked for now and then")
        elif status == 403:
            self._say(logging.WARNING, f"{self._what} may not be read; what was known of them stays: {refusal}")
        elif status == 401:
            # Credentials are read when a connection is made.
            connection.close()
            self._say(logging.ERROR, f"{self._api.credentials} is not accepted; what was known stays: {refusal}")
        elif status != 410:
            self._say(logging.WARNING, f"{self._what} cannot be read now; what was known stays: {refusal}")
        return self.reflector.refused(refusal)

    def _say(self, level: int, complaint: str) -> None:
        if complaint != self._complaint:
            self._complaint = complaint
            log.log(level, "%s", complaint)
