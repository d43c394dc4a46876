"""What every source of endpoints is, whatever it reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from epp.endpoint import Endpoint

OnChange = Callable[[Sequence[Endpoint]], None]
"""Called with the whole membership, in order, addresses resolved to IPs, whenever it is another than before."""


class DiscoverySource(Protocol):
    async def start(self) -> None:
        """Returns when the first good set has been handed to `OnChange`. Raises DiscoveryError where there is none."""
        ...

    async def close(self) -> None:
        """Returns when nothing is left running; `OnChange` is not called afterwards."""
        ...


class DiscoveryError(Exception):
    """There is no membership to start with. The message says where, what is wrong, and what was expected."""
