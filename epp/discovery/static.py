"""Endpoints named on the command line: `--endpoint host:port`, repeated."""

from __future__ import annotations

import re
from collections.abc import Sequence

from epp.discovery.names import Lookup, Resolution, host, system_lookup
from epp.discovery.source import DiscoveryError, OnChange
from epp.discovery.spread import POOL_LABEL
from epp.endpoint import Endpoint

_HOST_PORT = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+):(\d{1,5})")


def parse_endpoint(text: str) -> Endpoint:
    """Read `host:port`, the host an IPv4, an IPv6 in brackets, or a DNS name. It is named after itself; `pool=host:port` is
    labelled with the pool.

    Raises DiscoveryError for anything else.
    """
    pool, named, place = text.strip().rpartition("=")
    match = _HOST_PORT.fullmatch(place) if pool or not named else None
    address = host(match[1]) if match else None
    if match is None or address is None:
        raise DiscoveryError(f"{text!r} is no host:port, such as 10.0.0.5:8000, [fd00::5]:8000 or vllm-0.local:8000")
    port = int(match[2])
    if not 0 < port < 65536:
        raise DiscoveryError(f"{text!r}: the port must be in 1..65535")
    return Endpoint(name=match[0], address=address, port=port, labels={POOL_LABEL: pool} if pool else {})


class StaticDiscovery:
    """A membership that never changes but for the IPs behind its names.

    Raises DiscoveryError for a malformed or repeated endpoint.
    """

    def __init__(self, listed: Sequence[str], on_change: OnChange, *, lookup: Lookup = system_lookup) -> None:
        self._endpoints = tuple(map(parse_endpoint, listed))
        names = [one.name for one in self._endpoints]
        repeated = next((name for name in names if names.count(name) > 1), None)
        if repeated is not None:
            raise DiscoveryError(f"endpoint {repeated} is named twice")
        self._resolution = Resolution(on_change, lookup=lookup)

    async def start(self) -> None:
        await self._resolution.begin(self._endpoints)

    async def close(self) -> None:
        await self._resolution.close()
