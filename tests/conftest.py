"""Programs that are made while the tests run that do without them, and the API server and the browser that they are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.browser import Browser
from tests.cluster import Cluster
from tests.tools import TOOLS, Builder, Missing

# Whether an example took 200 ms says how busy the machine is.
settings.register_profile("busy", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

FIXTURES = {
    "browser": ("chromium",),
    "h2spec": ("h2spec",),
    "helm": ("helm",),
    "cluster": ("etcd", "kube-apiserver"),
    "envoy_gateway": ("envoy-gateway",),
}
"""The tools behind each fixture."""

_BUILDER = pytest.StashKey[Builder]()


def _needs(item: pytest.Item) -> set[str]:
    return {tool for name in getattr(item, "fixturenames", ()) for tool in FIXTURES.get(name, ())}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that need a tool go last, in the order in which the tools are built, the others stay as they are."""
    order = list(TOOLS)
    items.sort(key=lambda item: max((order.index(tool) for tool in _needs(item)), default=-1))


def pytest_collection_finish(session: pytest.Session) -> None:
    needed = {tool for item in session.items for tool in _needs(item)}
    if needed and not session.config.option.collectonly:
        session.config.stash[_BUILDER] = Builder(needed)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Waits for what a test needs before its time begins to count: a compiler at work is no test that hangs."""
    for tool in _needs(item):
        item.config.stash[_BUILDER].wait(tool)
    return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    if _BUILDER in config.stash:
        config.stash[_BUILDER].close()


def _tool(config: pytest.Config, name: str) -> Path:
    try:
        return config.stash[_BUILDER].path(name)
    except Missing as missing:
        reason = f"left out, for want of a program: {missing}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def h2spec(pytestconfig: pytest.Config) -> Path:
    """The conformance suite of HTTP/2."""
    return _tool(pytestconfig, "h2spec")


@pytest.fixture(scope="session")
def helm(pytestconfig: pytest.Config) -> Path:
    """Helm 3."""
    return _tool(pytestconfig, "helm")


@pytest.fixture(scope="session")
def envoy_gateway(pytestconfig: pytest.Config) -> Path:
    """Envoy Gateway, the control plane."""
    return _tool(pytestconfig, "envoy-gateway")


@pytest.fixture(scope="session")
def browser(pytestconfig: pytest.Config) -> Browser:
    """Chromium."""
    return Browser(_tool(pytestconfig, "chromium"))


@pytest.fixture(scope="session")
def cluster(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A real API server with nothing behind it, for the whole session: tests keep to namespaces of their own."""
    etcd, server = _tool(pytestconfig, "etcd"), _tool(pytestconfig, "kube-apiserver")
    with Cluster(tmp_path_factory.mktemp("cluster"), etcd, server) as running:
        yield running
