"""The list and the watch of one collection as a state machine: answers in, what to ask next and what changed out. No clock, no I/O.

A collection is listed page by page, then watched from where the list was taken; a watch that ends goes on where it ended. Only
what the server positively says takes an object away: a DELETED event, or a whole new list without it. Nothing that fails does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")

PAGE = 100
"""Objects in a page of a list: a page of pods is 0.6 MB and takes 2 ms to read, in which no request is answered."""

WATCH_S = (300, 600)
"""A watch is asked to end by itself after a random time in this range, as other clients ask: load spreads over API servers anew."""

FIRST_DELAY_S = 0.5
MOST_DELAY_S = 15.0
"""After failures in a row the wait doubles from the first to the last of these; each is shortened by a random part up to half. A
server, or what stands before it, may ask for more than the first, and for no more than the last: an hour would be one without news."""

ABSENT_S = 10.0
"""How often a resource type that is not installed is looked for; shortened likewise."""

LASTED_S = 1.0
"""A watch that held for so long was none that failed, however it ended."""

GONE = 410
_ABSENT = 404
_BUSY = (429, 503)

Delta = Mapping[str, T | None]
"""Objects that are others than before, by name; None for one that is not there any more."""


class Ask(msgspec.Struct, frozen=True):
    """The next question: a page of the list, or the watch."""

    watch: bool
    parameters: Mapping[str, str]


class Refusal(Exception):
    """An answer that is no answer to the question. `status` as in HTTP, also where it came in the middle of a watch."""

    def __init__(self, status: int, message: str, retry_after_s: float = 0.0) -> None:
        super().__init__(f"{message} ({status})")
        self.status = status
        self.retry_after_s = retry_after_s


class _ListMeta(msgspec.Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    # `continue` is a word of Python's.
    next_page: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct, frozen=True):
    metadata: _ListMeta
    items: tuple[msgspec.Raw, ...] | None = ()


class _Event(msgspec.Struct, frozen=True):
    type: str
    object: msgspec.Raw


class _Metadata(msgspec.Struct, frozen=True, rename="camel"):
    name: str = ""
    resource_version: str = ""


class _Object(msgspec.Struct, frozen=True):
    metadata: _Metadata


class _Status(msgspec.Struct, frozen=True):
    code: int = 0
    message: str = ""


_PAGE = msgspec.json.Decoder(_Page)
_EVENT = msgspec.json.Decoder(_Event)
_OBJECT = msgspec.json.Decoder(_Object)
_STATUS = msgspec.json.Decoder(_Status)


class Reflector(Generic[T]):
    """`objects` by name, as far as the server's answers told. All in one namespace.

    `read` makes of an object's JSON what is kept. Where it raises ValueError, the object stays what it was before, and
    `unreadable` hears its name and why; one that never could be read is not there.

    The caller puts the question that `ask` names and feeds back all that comes of it. Methods that take an answer return what
    changed; those that take an end return the seconds to wait before the next question.
    """

    def __init__(
        self, read: Callable[[bytes], T], unreadable: Callable[[str, ValueError], None], rng: random.Random
    ) -> None:
        self.objects: dict[str, T] = {}
        self.synced = False
        """Whether `objects` were whole once."""
        self.settled = False
        """Whether the first question has its answer: a whole list, or that there is none to be had."""
        self._read = read
        self._unreadable = unreadable
        self._rng = rng
        # The version that each object has, those that could not be read included.
        self._versions: dict[str, str] = {}
        # Where a watch goes on; "" is nowhere: list first.
        self._at = ""
        self._next_page = ""
        self._listing: dict[str, msgspec.Raw] = {}
        self._failures = 0
        # A list that was asked for at once, with no watch since that lasted.
        self._hurried = False

    def __repr__(self) -> str:
        state = f"watching from {self._at}" if self._at else f"listing, {len(self._listing)} so far"
        return f"<Reflector {len(self.objects)} objects, {state}>"

    def ask(self) -> Ask:
        """The question to put now."""
        if self._at:
            seconds = self._rng.randrange(*WATCH_S)
            watch = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
            return Ask(True, {**watch, "resourceVersion": self._at})
        page = {"limit": str(PAGE)}
        return Ask(False, {**page, "continue": self._next_page} if self._next_page else page)

    def page(self, body: bytes) -> Delta[T]:
        """The answer to a list. Nothing changes before the last page. Raises ValueError where it is no list."""
        page = _PAGE.decode(body)
        for item in page.items or ():
            self._listing[_OBJECT.decode(item).metadata.name] = item
        self._next_page = page.metadata.next_page
        if self._next_page:
            return {}
        if not page.metadata.resource_version:
            raise ValueError("a list without a resourceVersion")
        listing, self._listing = self._listing, {}
        delta: dict[str, T | None] = {}
        for name in [name for name in self._versions if name not in listing]:
            self._remove(name, delta)
        for name, item in listing.items():
            self._put(name, _OBJECT.decode(item).metadata.resource_version, item, delta)
        self._at = page.metadata.resource_version
        self.synced = self.settled = True
        return delta

    def line(self, line: bytes) -> Delta[T]:
        """One event of the watch. Raises Refusal where it is an error, to be fed to `refused`, and ValueError where it is no event."""
        event = _EVENT.decode(line)
        if event.type == "ERROR":
            status = _STATUS.decode(event.object)
            raise Refusal(status.code, status.message)
        metadata = _OBJECT.decode(event.object).metadata
        delta: dict[str, T | None] = {}
        if event.type == "DELETED":
            self._remove(metadata.name, delta)
        elif event.type in ("ADDED", "MODIFIED"):
            self._put(metadata.name, metadata.resource_version, event.object, delta)
        # Not after a list: a list that goes well and a watch that never does would follow each other without a pause.
        self._failures = 0
        # A BOOKMARK has a version only; other types are not known yet, and their version counts as well.
        self._at = metadata.resource_version or self._at
        return delta

    def ended(self, lasted_s: float) -> float:
        """The watch ended, in order or by a lost connection, `lasted_s` after its first byte; 0 where there was none."""
        if lasted_s < LASTED_S:
            return self._backoff()
        self._failures = 0
        self._hurried = False
        return 0.0

    def failed(self) -> float:
        """The question could not be put, or its answer was cut off or garbled."""
        if not self._at:
            self._begin_list()
        return self._backoff()

    def refused(self, refusal: Refusal) -> float:
        """The server answered, with an error."""
        if refusal.status not in _BUSY:
            # Whatever the server does not like about where a watch goes on, or a list: a new list is the way out.
            self._begin_list()
        if refusal.status == _ABSENT:
            self.settled = True
            return self._jittered(ABSENT_S)
        if refusal.status == GONE and not self._failures and not self._hurried:
            self._failures = 1
            self._hurried = True
            return 0.0
        if refusal.status == 403:
            self.settled = True
        return max(min(refusal.retry_after_s, MOST_DELAY_S), self._backoff())

    def elsewhere(self) -> None:
        """The collection is to be asked for at another place, as another version of the same objects."""
        self._begin_list()

    def _begin_list(self) -> None:
        self._at = self._next_page = ""
        self._listing = {}

    def _backoff(self) -> float:
        self._failures += 1
        return self._jittered(min(MOST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures - 1, 16)))

    def _jittered(self, seconds: float) -> float:
        return seconds * (0.5 + 0.5 * self._rng.random())

    def _put(self, name: str, version: str, raw: msgspec.Raw, delta: dict[str, T | None]) -> None:
        if self._versions.get(name) == version:
            return
        self._versions[name] = version
        try:
            read = self._read(bytes(raw))
        except ValueError as error:
            self._unreadable(name, error)
            return
        if name not in self.objects or self.objects[name] != read:
            self.objects[name] = read
            delta[name] = read

    def _remove(self, name: str, delta: dict[str, T | None]) -> None:
        self._versions.pop(name, None)
        if self.objects.pop(name, None) is not None:
            delta[name] = None
