"""DNS names to IPs, since Envoy routes to `ip:port` only; the last good answer stays until there is a better one."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import random
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import msgspec

from epp.discovery.source import OnChange
from epp.endpoint import Endpoint

logger = logging.getLogger("epp.discovery")

REFRESH_S = 30.0
RETRY_S = 2.0
LOOKUP_TIMEOUT_S = 5.0

_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?"
_DNS_NAME = re.compile(rf"(?=.{{1,254}}$){_LABEL}(\.{_LABEL})*\.?")

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""All IPs of a name. Raises OSError where it has none."""


def is_ip(address: str) -> bool:
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def host(text: str) -> str | None:
    """An IP (brackets taken off) or a DNS name as given; None where `text` is neither."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if is_ip(bare):
        return bare
    # A name of nothing but digits and dots is a mistyped IPv4.
    return text if _DNS_NAME.fullmatch(text) and text.strip("0123456789.") else None


async def system_lookup(name: str) -> Sequence[str]:
    """As the operating system resolves names, each IP once.

    IPv4 comes first: `localhost` often means ::1 before 127.0.0.1, and model servers bind 0.0.0.0 by default.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    ips = dict.fromkeys(str(address[0]) for *_, address in found)
    return sorted(ips, key=lambda ip: ":" in ip)


class Answers:
    """What is known of names: the IPs of each, and the one that is used. Pure: answers are handed in."""

    def __init__(self) -> None:
        self._ips: dict[str, Sequence[str]] = {}
        self._chosen: dict[str, str] = {}

    def learn(self, name: str, ips: Sequence[str]) -> None:
        """`ips` is not empty. The IP in use is kept while it is among them: a server's cache is worth more than an order."""
        self._ips[name] = ips
        if self._chosen.get(name) not in ips:
            self._chosen[name] = ips[0]

    def known(self, name: str) -> bool:
        return name in self._chosen

    def keep(self, names: Iterable[str]) -> None:
        """Forget all other names."""
        kept = set(names)
        self._ips = {name: ips for name, ips in self._ips.items() if name in kept}
        self._chosen = {name: ip for name, ip in self._chosen.items() if name in kept}

    def apply(self, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        """`endpoints` with IPs for addresses; those with a name that is not known are left out.

        Metrics are asked by name, for the sake of TLS, unless the name means several servers.
        """
        return tuple(one for one in map(self._resolved, endpoints) if one is not None)

    def _resolved(self, endpoint: Endpoint) -> Endpoint | None:
        name = endpoint.address
        if is_ip(name):
            return endpoint
        ip = self._chosen.get(name)
        if ip is None:
            return None
        by_name = name if len(self._ips[name]) == 1 else ip
        return msgspec.structs.replace(endpoint, address=ip, metrics_address=endpoint.metrics_address or by_name)


class Resolution:
    """Between a source and its `on_change`: hands on the membership with names resolved, and keeps them resolved."""

    def __init__(
        self,
        on_change: OnChange,
        *,
        lookup: Lookup = system_lookup,
        refresh_s: float = REFRESH_S,
        retry_s: float = RETRY_S,
        rng: random.Random | None = None,
    ) -> None:
        self._on_change = on_change
        self._lookup = lookup
        self._refresh_s = refresh_s
        self._retry_s = retry_s
        self._rng = rng or random.Random()
        self._wanted: tuple[Endpoint, ...] = ()
        self._handed_on: tuple[Endpoint, ...] | None = None
        self._answers = Answers()
        self._complaints: dict[str, str] = {}
        self._refreshing: asyncio.Task[None] | None = None

    async def begin(self, endpoints: Sequence[Endpoint]) -> None:
        """Returns when every name has had its first answer or `LOOKUP_TIMEOUT_S` has passed, and the set is handed on."""
        self._wanted = tuple(endpoints)
        await self._ask(self._names())
        self._hand_on()
        self._follow_names()

    def update(self, endpoints: Sequence[Endpoint]) -> None:
        """The source's membership is now another. What needs no look-up is handed on at once."""
        self._wanted = tuple(endpoints)
        self._answers.keep(self._names())
        self._hand_on()
        self._follow_names()

    async def close(self) -> None:
        task, self._refreshing = self._refreshing, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def _names(self) -> list[str]:
        return list(dict.fromkeys(one.address for one in self._wanted if not is_ip(one.address)))

    def _unknown(self) -> list[str]:
        return [name for name in self._names() if not self._answers.known(name)]

    def _hand_on(self) -> None:
        resolved = self._answers.apply(self._wanted)
        if resolved != self._handed_on:
            self._on_change(resolved)
            # Only what was taken counts as handed on: what a listener failed over is offered again.
            self._handed_on = resolved

    def _follow_names(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            self._refreshing = None
        if self._names():
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
            self._refreshing.add_done_callback(_say_how_it_ended)

    async def _refresh(self) -> None:
        if self._unknown():
            await self._ask(self._unknown())
            self._hand_on()
        while True:
            wait_s = self._retry_s if self._unknown() else self._refresh_s
            await asyncio.sleep(wait_s * self._rng.uniform(0.8, 1.2))
            await self._ask(self._unknown() or self._names())
            self._hand_on()

    async def _ask(self, names: Sequence[str]) -> None:
        answers = await asyncio.gather(*map(self._answer, names))
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, str):
                self._complain(name, answer)
            else:
                self._complaints.pop(name, None)
                self._answers.learn(name, answer)

    async def _answer(self, name: str) -> Sequence[str] | str:
        """IPs, or why there are none."""
        try:
            async with asyncio.timeout(LOOKUP_TIMEOUT_S):
                return await self._lookup(name) or "it has no address"
        except TimeoutError:
            return f"no answer within {LOOKUP_TIMEOUT_S:g} s"
        except (OSError, UnicodeError) as error:
            return str(error)

    def _complain(self, name: str, reason: str) -> None:
        if self._complaints.get(name) == reason:
            return
        self._complaints[name] = reason
        known: Mapping[bool, str] = {True: "its last address stays in use", False: "it is left out until it has one"}
        logger.warning("cannot resolve %s: %s; %s", name, reason, known[self._answers.known(name)])


def _say_how_it_ended(task: asyncio.Task[None]) -> None:
    """It ends by being cancelled; anything else is a fault that must not wait for the garbage collector to be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        context = {"message": "following DNS names ended", "exception": error, "task": task}
        task.get_loop().call_exception_handler(context)
