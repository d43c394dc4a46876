"""DNS names behind endpoints, against a name server made of a dictionary; and endpoints from the command line."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

import pytest

from epp.discovery.names import Resolution
from epp.discovery.source import DiscoveryError
from epp.discovery.static import StaticDiscovery, parse_endpoint
from epp.endpoint import Endpoint
from tests.waiting import PATIENCE_S


class Zone(dict[str, list[str]]):
    """A name server that counts questions and lets a test wait for the next."""

    def __init__(self, **names: list[str]) -> None:
        super().__init__(names)
        self.asked: list[str] = []
        self._turn = asyncio.Condition()

    async def lookup(self, name: str) -> Sequence[str]:
        self.asked.append(name)
        async with self._turn:
            self._turn.notify_all()
        await asyncio.sleep(0)
        if name not in self:
            raise OSError("no such name")
        return tuple(self[name])

    async def asked_again(self, times: int = 2) -> None:
        """Returns when a question that began after now has been answered."""
        wanted = len(self.asked) + times
        async with asyncio.timeout(PATIENCE_S), self._turn:
            await self._turn.wait_for(lambda: len(self.asked) >= wanted)


def named(name: str, port: int = 8000, **more: str) -> Endpoint:
    return Endpoint(name=f"{name}-{port}", address=name, port=port, **more)  # type: ignore[arg-type]


def resolution(zone: Zone, seen: list[list[str]]) -> Resolution:
    def on_change(endpoints: Sequence[Endpoint]) -> None:
        seen.append([one.destination for one in endpoints])

    return Resolution(on_change, lookup=zone.lookup, refresh_s=0.002, retry_s=0.002, rng=random.Random(3))


async def test_names_become_ips_and_metrics_are_asked_by_name() -> None:
    zone = Zone(one=["10.0.0.1"], two=["10.0.0.2", "10.0.0.3"])
    seen: list[Sequence[Endpoint]] = []
    followed = Resolution(seen.append, lookup=zone.lookup)
    ip = Endpoint(name="ip", address="fd00::9", port=1)
    await followed.begin([named("one"), named("two"), ip, named("one", 8001, metrics_address="stats")])
    await followed.close()
    ((one, two, third, other),) = seen
    assert (one.destination, one.metrics_address) == ("10.0.0.1:8000", "one")
    assert (two.destination, two.metrics_address) == ("10.0.0.2:8000", "10.0.0.2")
    assert third is ip
    assert (other.destination, other.metrics_address) == ("10.0.0.1:8001", "stats")
    assert sorted(zone.asked) == ["one", "two"]


async def test_ips_alone_need_no_task_and_no_question() -> None:
    zone, seen = Zone(), list[list[str]]()
    followed = resolution(zone, seen)
    before = asyncio.all_tasks()
    await followed.begin([Endpoint(name="a", address="10.0.0.1", port=1)])
    followed.update([Endpoint(name="a", address="10.0.0.1", port=1)])
    followed.update([Endpoint(name="a", address="10.0.0.1", port=2)])
    assert asyncio.all_tasks() == before
    assert (seen, zone.asked) == ([["10.0.0.1:1"], ["10.0.0.1:2"]], [])


async def test_a_name_moves() -> None:
    zone, seen = Zone(one=["10.0.0.1"]), list[list[str]]()
    followed = resolution(zone, seen)
    await followed.begin([named("one")])
    zone["one"] = ["10.0.0.7"]
    await zone.asked_again()
    await followed.close()
    assert seen == [["10.0.0.1:8000"], ["10.0.0.7:8000"]]


async def test_the_address_in_use_is_kept_while_it_is_among_the_answers() -> None:
    zone, seen = Zone(one=["10.0.0.1", "10.0.0.2"]), list[list[str]]()
    followed = resolution(zone, seen)
    await followed.begin([named("one")])
    zone["one"] = ["10.0.0.3", "10.0.0.1"]
    await zone.asked_again()
    await followed.close()
    assert seen == [["10.0.0.1:8000"]]


async def test_the_last_good_answer_outlives_the_name_server(caplog: pytest.LogCaptureFixture) -> None:
    zone, seen = Zone(one=["10.0.0.1"]), list[list[str]]()
    followed = resolution(zone, seen)
    await followed.begin([named("one")])
    del zone["one"]
    await zone.asked_again(4)
    followed.update([named("one"), Endpoint(name="b", address="10.0.0.2", port=1)])
    await followed.close()
    assert seen == [["10.0.0.1:8000"], ["10.0.0.1:8000", "10.0.0.2:1"]]
    assert [record.getMessage() for record in caplog.records] == [
        "cannot resolve one: no such name; its last address stays in use"
    ]


async def test_a_name_that_is_not_there_yet(caplog: pytest.LogCaptureFixture) -> None:
    """Starting does not fail on it: it is left out, and comes in when it resolves."""
    zone, seen = Zone(one=["10.0.0.1"]), list[list[str]]()
    followed = resolution(zone, seen)
    await followed.begin([named("one"), named("late"), named("empty")])
    zone["late"], zone["empty"] = ["10.0.0.2"], []
    await zone.asked_again(4)
    await followed.close()
    assert seen == [["10.0.0.1:8000"], ["10.0.0.1:8000", "10.0.0.2:8000"]]
    assert "cannot resolve late: no such name; it is left out until it has one" in caplog.text
    assert "cannot resolve empty: it has no address" in caplog.text


async def test_a_new_name_in_an_update_comes_in_when_it_resolves() -> None:
    zone, seen = Zone(one=["10.0.0.1"], two=["10.0.0.2"]), list[list[str]]()
    followed = resolution(zone, seen)
    await followed.begin([named("one")])
    followed.update([named("one"), named("two")])
    await zone.asked_again()
    await followed.close()
    assert seen == [["10.0.0.1:8000"], ["10.0.0.1:8000", "10.0.0.2:8000"]]


async def test_a_name_that_left_and_returns_is_asked_afresh() -> None:
    zone, seen = Zone(one=["10.0.0.1"]), list[list[str]]()
    followed = resolution(zone, seen)
    await followed.begin([named("one")])
    zone["one"] = ["10.0.0.7"]
    followed.update([])
    followed.update([named("one")])
    await zone.asked_again()
    await followed.close()
    assert seen == [["10.0.0.1:8000"], [], ["10.0.0.7:8000"]]


async def test_nothing_is_handed_on_after_close() -> None:
    zone, seen = Zone(one=["10.0.0.1"]), list[list[str]]()
    followed = resolution(zone, seen)
    await followed.begin([named("one")])
    await followed.close()
    asked = len(zone.asked)
    zone["one"] = ["10.0.0.2"]
    await asyncio.sleep(0.02)
    assert (len(zone.asked), len(seen)) == (asked, 1)


@pytest.mark.parametrize(
    ("text", "address", "port", "destination"),
    [
        ("10.0.0.5:8000", "10.0.0.5", 8000, "10.0.0.5:8000"),
        ("[fd00::5]:1", "fd00::5", 1, "[fd00::5]:1"),
        (" vllm-0.local:65535", "vllm-0.local", 65535, "vllm-0.local:65535"),
    ],
)
def test_endpoints_of_the_command_line(text: str, address: str, port: int, destination: str) -> None:
    one = parse_endpoint(text)
    assert (one.address, one.port, one.destination, one.name) == (address, port, destination, destination)


@pytest.mark.parametrize(
    "text",
    ["", "a", ":1", "a:", "a:0", "a:65536", "fd00::5:8000", "http://a:1", "a b:1", "[a]:1", "a:1:2", "[fd00::5]1"],
)
def test_no_endpoints_of_the_command_line(text: str) -> None:
    with pytest.raises(DiscoveryError, match=r"."):
        parse_endpoint(text)


async def test_static_endpoints() -> None:
    seen: list[Sequence[Endpoint]] = []
    zone = Zone(a=["10.0.0.1"])
    source = StaticDiscovery(["a:1", "10.0.0.2:2"], seen.append, lookup=zone.lookup)
    await source.start()
    await source.close()
    assert [[one.destination for one in members] for members in seen] == [["10.0.0.1:1", "10.0.0.2:2"]]
    with pytest.raises(DiscoveryError, match="a:1 is named twice"):
        StaticDiscovery(["a:1", "a:1"], seen.append)
