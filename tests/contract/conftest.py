"""The transports run on both loops they can meet: uvloop in service, asyncio's own where uvloop is not to be had."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import pytest
import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    name = item.path.name
    if name.startswith(("test_transport", "test_health", "test_metrics", "test_kubernetes")):
        return LOOPS
    # The plugin refuses None: every test file needs a loop.
    loop = "uvloop" if name == "test_h2spec.py" else "asyncio"
    return {loop: LOOPS[loop]}
