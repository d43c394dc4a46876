"""List and watch in any order of events: what the reflector believes is what the server said, and nothing that fails empties it."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from epp.kubernetes.reflector import (
    ABSENT_S,
    FIRST_DELAY_S,
    LASTED_S,
    MOST_DELAY_S,
    Delta,
    Reflector,
    Refusal,
)

NAMES = ("a", "b", "c", "d")


def read(data: bytes) -> int:
    value: int = json.loads(data)["value"]
    if value < 0:
        raise ValueError("negative")
    return value


def an_object(name: str, version: int, value: int = 1) -> dict[str, Any]:
    return {"metadata": {"name": name, "resourceVersion": str(version)}, "value": value}


def a_page(version: int, *objects: dict[str, Any], following: str = "") -> bytes:
    return json.dumps(
        {"metadata": {"resourceVersion": str(version), "continue": following}, "items": list(objects)}
    ).encode()


def an_event(kind: str, body: dict[str, Any]) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode()


def a_reflector(unreadable: list[str] | None = None) -> Reflector[int]:
    heard = unreadable if unreadable is not None else []
    return Reflector(read, lambda name, error: heard.append(f"{name}: {error}"), random.Random(1))


def test_a_list_is_whole_only_with_its_last_page() -> None:
    reflector = a_reflector()
    assert not reflector.ask().watch
    assert reflector.page(a_page(5, an_object("a", 1), following="more")) == {}
    assert not reflector.synced
    assert reflector.ask().parameters["continue"] == "more"
    assert reflector.page(a_page(5, an_object("b", 2, 7))) == {"a": 1, "b": 7}
    assert reflector.synced
    ask = reflector.ask()
    assert ask.watch
    assert ask.parameters["resourceVersion"] == "5"
    assert ask.parameters["allowWatchBookmarks"] == "true"


def test_a_watch_goes_on_where_the_last_event_or_bookmark_was() -> None:
    reflector = a_reflector()
    reflector.page(a_page(5))
    assert reflector.line(an_event("ADDED", an_object("a", 6))) == {"a": 1}
    assert reflector.line(an_event("BOOKMARK", {"metadata": {"resourceVersion": "9"}})) == {}
    assert reflector.ended(lasted_s=60.0) == 0.0
    assert reflector.ask().parameters["resourceVersion"] == "9"
    assert reflector.failed() > 0.0
    assert reflector.ask().parameters["resourceVersion"] == "9"


def test_a_list_that_broke_off_begins_anew_and_forgets_its_first_pages() -> None:
    reflector = a_reflector()
    reflector.page(a_page(5, an_object("a", 1), following="more"))
    reflector.failed()
    assert "continue" not in reflector.ask().parameters
    assert reflector.page(a_page(7, an_object("b", 6))) == {"b": 1}


def test_a_list_without_a_version_is_none() -> None:
    reflector = a_reflector()
    reflector.page(a_page(5, an_object("a", 1)))
    reflector.refused(Refusal(410, "gone"))
    with pytest.raises(ValueError, match="without a resourceVersion"):
        reflector.page(b'{"metadata": {}, "items": []}')
    assert reflector.objects == {"a": 1}


def test_what_may_not_be_read_is_settled() -> None:
    reflector = a_reflector()
    assert reflector.refused(Refusal(403, "no")) > 0.0
    assert reflector.settled


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_server_does_not_cost_a_new_list(status: int) -> None:
    reflector = a_reflector()
    reflector.page(a_page(5, an_object("a", 1)))
    assert reflector.refused(Refusal(status, "busy", retry_after_s=12.0)) == 12.0
    assert reflector.ask().watch
    assert reflector.refused(Refusal(status, "down for the day", retry_after_s=86400.0)) == MOST_DELAY_S


def test_what_is_gone_is_listed_anew_at_once_but_not_without_end() -> None:
    reflector = a_reflector()
    reflector.page(a_page(5, an_object("a", 1)))
    with pytest.raises(Refusal) as refused:
        reflector.line(an_event("ERROR", {"code": 410, "message": "too old"}))
    assert reflector.refused(refused.value) == 0.0
    assert not reflector.ask().watch
    assert reflector.objects == {"a": 1}
    delays = []
    for _ in range(5):
        reflector.page(a_page(6, an_object("a", 1)))
        delays.append(reflector.refused(refused.value))
    assert min(delays) >= FIRST_DELAY_S / 2
    assert delays[-1] > delays[0]


def test_a_server_that_forgets_after_every_event_is_not_listed_without_a_pause() -> None:
    reflector = a_reflector()
    gone = Refusal(410, "too old")
    delays = []
    for version in range(5):
        reflector.page(a_page(version + 1))
        reflector.line(an_event("BOOKMARK", {"metadata": {"resourceVersion": str(version + 1)}}))
        delays.append(reflector.refused(gone))
    assert delays[0] == 0.0
    assert min(delays[1:]) >= FIRST_DELAY_S / 2
    reflector.page(a_page(9))
    assert reflector.ended(LASTED_S) == 0.0
    assert reflector.refused(gone) == 0.0


def test_a_new_list_tells_what_is_missing_and_what_is_another() -> None:
    reflector = a_reflector()
    reflector.page(a_page(5, an_object("a", 1), an_object("b", 2), an_object("c", 3)))
    reflector.refused(Refusal(410, "gone"))
    assert reflector.page(a_page(9, an_object("a", 1), an_object("b", 8, 5))) == {"b": 5, "c": None}


def test_a_change_of_version_alone_is_no_change() -> None:
    reflector = a_reflector()
    reflector.page(a_page(5, an_object("a", 1)))
    assert reflector.line(an_event("MODIFIED", an_object("a", 6))) == {}


def test_an_object_that_cannot_be_read_stays_what_it_was_until_it_is_deleted() -> None:
    heard: list[str] = []
    reflector = a_reflector(heard)
    reflector.page(a_page(5, an_object("a", 1), an_object("b", 2, -1)))
    assert reflector.objects == {"a": 1}
    assert reflector.line(an_event("MODIFIED", an_object("a", 6, -1))) == {}
    assert reflector.objects == {"a": 1}
    assert heard == ["b: negative", "a: negative"]
    assert reflector.line(an_event("DELETED", an_object("a", 7, -1))) == {"a": None}
    assert reflector.line(an_event("DELETED", an_object("b", 8, -1))) == {}


def test_waits_grow_stay_bounded_and_begin_anew_after_success() -> None:
    reflector = a_reflector()
    delays = [reflector.failed() for _ in range(30)]
    for number, delay in enumerate(delays):
        whole = min(MOST_DELAY_S, FIRST_DELAY_S * 2**number)
        assert whole / 2 <= delay <= whole
    reflector.page(a_page(5))
    assert reflector.ended(LASTED_S) == 0.0
    assert reflector.failed() <= FIRST_DELAY_S


def test_a_watch_that_breaks_at_once_again_and_again_is_slowed_down() -> None:
    reflector = a_reflector()
    reflector.page(a_page(5))
    delays = [reflector.ended(0.0) for _ in range(8)]
    assert min(delays) > 0.0
    assert delays[-1] > MOST_DELAY_S / 2 - 1e-9


def test_a_type_that_is_not_installed_is_settled_and_looked_for() -> None:
    reflector = a_reflector()
    delay = reflector.refused(Refusal(404, "not found"))
    assert ABSENT_S / 2 <= delay <= ABSENT_S
    assert reflector.settled
    assert not reflector.synced
    assert reflector.page(a_page(3, an_object("a", 1))) == {"a": 1}
    reflector.refused(Refusal(404, "not found"))
    assert reflector.objects == {"a": 1}


class AnyOrder(RuleBasedStateMachine):
    """A server with a history, a connection that may break anywhere, and a listener that only hears deltas."""

    def __init__(self) -> None:
        super().__init__()
        self.version = 1
        self.truth: dict[str, tuple[int, int]] = {}
        self.events: list[tuple[int, bytes]] = []
        self.compacted = 0
        self.reflector = a_reflector()
        self.heard: dict[str, int] = {}
        # A list taken and not handed over whole: its version and the objects still to come.
        self.listing: tuple[int, list[dict[str, Any]]] | None = None
        self.whole_list: set[str] = set()
        self.sure: set[str] = set()

    def take(self, delta: Delta[int]) -> None:
        for name, value in delta.items():
            if value is None:
                del self.heard[name]
            else:
                self.heard[name] = value

    @initialize(names=st.sets(st.sampled_from(NAMES)))
    def begin(self, names: set[str]) -> None:
        for name in sorted(names):
            self.put(name, 1)

    @rule(name=st.sampled_from(NAMES), value=st.integers(0, 2))
    def put(self, name: str, value: int) -> None:
        self.version += 1
        kind = "MODIFIED" if name in self.truth else "ADDED"
        self.truth[name] = (self.version, value)
        self.events.append((self.version, an_event(kind, an_object(name, self.version, value))))

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        if name in self.truth:
            self.version += 1
            _, value = self.truth.pop(name)
            self.events.append((self.version, an_event("DELETED", an_object(name, self.version, value))))

    @rule()
    def bookmark(self) -> None:
        ask = self.reflector.ask()
        if ask.watch and not [v for v, _ in self.events if v > int(ask.parameters["resourceVersion"])]:
            body = {"metadata": {"resourceVersion": str(self.version)}}
            self.take(self.reflector.line(an_event("BOOKMARK", body)))

    @rule()
    def compact(self) -> None:
        self.compacted = self.version

    @rule(cut=st.integers(0, 2))
    def answer(self, cut: int) -> None:
        """One answer of the server to what is asked; of a watch the events so far, less some that are cut off."""
        ask = self.reflector.ask()
        if ask.watch:
            at = int(ask.parameters["resourceVersion"])
            if at < self.compacted:
                refusal = Refusal(410, "gone")
                self.reflector.refused(refusal)
                return
            due = [line for version, line in self.events if version > at]
            for line in due[: len(due) - cut]:
                self.take(self.reflector.line(line))
            self.reflector.ended(2.0)
            return
        if "continue" not in ask.parameters or self.listing is None:
            objects = [an_object(name, version, value) for name, (version, value) in self.truth.items()]
            self.listing = (self.version, objects)
        version, objects = self.listing
        head, rest = objects[:2], objects[2:]
        self.listing = (version, rest)
        self.take(self.reflector.page(a_page(version, *head, following="more" if rest else "")))

    @precondition(lambda self: True)
    @rule(status=st.sampled_from([0, 401, 403, 404, 410, 429, 500, 503, 504]))
    def refuse(self, status: int) -> None:
        before = dict(self.reflector.objects)
        assert self.reflector.refused(Refusal(status, "no")) >= 0.0
        assert self.reflector.objects == before
        self.listing = None

    @rule()
    def break_off(self) -> None:
        before = dict(self.reflector.objects)
        assert self.reflector.failed() > 0.0
        assert self.reflector.objects == before
        self.listing = None

    @invariant()
    def deltas_tell_all(self) -> None:
        assert self.heard == self.reflector.objects

    @rule()
    def settle(self) -> None:
        """Left in peace, it comes to know what is true."""
        self.listing = None
        self.reflector.failed()
        for _ in range(10):
            self.answer(cut=0)
        assert self.reflector.objects == {name: value for name, (_, value) in self.truth.items()}


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


@given(st.lists(st.binary(max_size=40), max_size=5))
def test_bytes_that_are_no_answer_change_nothing(garbage: list[bytes]) -> None:
    reflector = a_reflector()
    reflector.page(a_page(5, an_object("a", 1)))
    for data in garbage:
        with pytest.raises((ValueError, Refusal)):
            reflector.line(data)
        with pytest.raises(ValueError):
            reflector.page(data)
    assert reflector.objects == {"a": 1}
