"""A directory of manifests, followed while running: `--resources`."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from epp.resources.document import MAX_BYTES, Manifest, Refusal, read_manifest
from epp.resources.objects import Key, Resource

logger = logging.getLogger("epp.resources")

SUFFIXES = (".yaml", ".yml", ".json")
"""Of the files that `kubectl apply -f DIR` would read. Like it, this one does not look into directories below."""

POLL_S = 0.25
"""How often the directory is looked at: one listing and a `stat` a file."""

Signature = tuple[int, ...]
Listing = Mapping[str, Signature]

OnObjects = Callable[[Sequence[Resource]], None]
"""Called with all objects of the directory, no two of one key, whenever they are others than before; first than none."""


class ResourcesError(Exception):
    """The directory cannot be read at the start."""


class Snapshot(msgspec.Struct, frozen=True):
    """All that a directory says at one moment. `refusals` are lines about what is left out, `others` about what does not matter."""

    objects: tuple[Resource, ...]
    refusals: tuple[str, ...]
    others: tuple[str, ...]


class _File(msgspec.Struct, frozen=True):
    """A file as it was read last. `kept` are its objects, those of before included where it is broken now."""

    signature: Signature
    manifest: Manifest
    kept: Mapping[Key, Resource]


class FollowedDirectory:
    """A directory and what was last read from it, looked at from time to time.

    Files may be written in place, replaced by rename, or reached through links that are swapped, as Kubernetes does with a
    mounted ConfigMap. A change counts once two looks in a row see the same in the whole directory, so that what is just
    being written is let be and what is changed together is taken together.

    An object that is refused in its new form stays what it was, as it would with `kubectl apply`; where a file is so broken
    that nobody can tell which object is meant, everything stays that it had before and does not have now.
    """

    def __init__(self, path: Path, namespace: str) -> None:
        self.path = path
        self._namespace = namespace
        self._seen: Listing | None = None
        self._read: Listing = {}
        self._files: dict[str, _File] = {}
        self._lost = ""

    def load(self) -> Snapshot:
        """Read now. Raises ResourcesError where there is no such directory."""
        try:
            self._seen = self._listing()
        except OSError as error:
            raise ResourcesError(f"--resources {self.path} cannot be read: {error.strerror or error}") from None
        return self._refresh(self._seen)

    def look(self) -> Snapshot | None:
        """What a changed directory says; None where it says what it said."""
        try:
            listing = self._listing()
        except OSError as error:
            self._seen = None
            return self._lose(f"{self.path} cannot be read: {error.strerror or error}; what it said before stays")
        steady, self._seen = listing == self._seen, listing
        if not steady or (listing == self._read and not self._lost):
            return None
        return self._refresh(listing)

    def _lose(self, complaint: str) -> Snapshot | None:
        if complaint == self._lost:
            return None
        self._lost = complaint
        return self._snapshot()

    def _refresh(self, listing: Listing) -> Snapshot:
        self._lost = ""
        self._files = {name: self._file(name, listing[name]) for name in sorted(listing)}
        self._read = listing
        return self._snapshot()

    def _file(self, name: str, signature: Signature) -> _File:
        before = self._files.get(name)
        if before is not None and before.signature == signature:
            return before
        path = self.path / name
        try:
            with path.open("rb") as opened:
                manifest = read_manifest(opened.read(MAX_BYTES + 1), str(path), self._namespace)
        except OSError as error:
            manifest = Manifest(refusals=(Refusal(str(path), "", f"cannot be read: {error.strerror or error}"),))
        return _File(signature, manifest, _kept(manifest, before.kept if before is not None else {}))

    def _snapshot(self) -> Snapshot:
        objects: dict[Key, Resource] = {}
        refusals = [self._lost] if self._lost else []
        others: list[str] = []
        for file in self._files.values():
            refusals += map(str, file.manifest.refusals)
            others += file.manifest.others
            for key, one in file.kept.items():
                first = objects.setdefault(key, one)
                if first is not one:
                    refusals.append(f"{one.origin}: {key} is already at {first.origin}")
        return Snapshot(tuple(objects.values()), tuple(refusals), tuple(others))

    def _listing(self) -> Listing:
        found: dict[str, Signature] = {}
        for name in os.listdir(self.path):
            if name.startswith(".") or not name.endswith(SUFFIXES):
                continue
            try:
                seen = os.stat(self.path / name)
            except FileNotFoundError:
                # Removed since the listing, or a link to nowhere: not there.
                continue
            found[name] = (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
        return found


def _kept(manifest: Manifest, before: Mapping[Key, Resource]) -> dict[Key, Resource]:
    kept = {one.key: one for one in manifest.objects}
    meant = {refusal.key for refusal in manifest.refusals}
    for key, one in before.items():
        if key not in kept and (key in meant or None in meant):
            kept[key] = one
    return kept


class Directory:
    """Hands the directory's objects over at the start and at every change."""

    def __init__(self, path: Path, namespace: str, on_objects: OnObjects, *, poll_s: float = POLL_S) -> None:
        self._followed = FollowedDirectory(path, namespace)
        self._on_objects = on_objects
        self._poll_s = poll_s
        self._timer: asyncio.TimerHandle | None = None
        self._looking: asyncio.Future[Snapshot | None] | None = None
        self._said = Snapshot((), (), ())
        self._closed = False

    def start(self) -> None:
        """Objects have been handed over on return. Raises ResourcesError; a file that cannot be used is only logged."""
        self._take(self._followed.load())
        self._look_later()

    async def close(self) -> None:
        """Returns when nothing is left running; nothing is handed over afterwards."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        if self._looking is not None:
            await asyncio.wait((self._looking,))

    def _look_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._poll_s, self._look)

    def _look(self) -> None:
        # In a thread: 100 KB of changed manifests take 70 ms to read, in which no request would be answered.
        self._looking = asyncio.get_running_loop().run_in_executor(None, self._followed.look)
        self._looking.add_done_callback(self._looked)

    def _looked(self, looking: asyncio.Future[Snapshot | None]) -> None:
        self._looking = None
        if self._closed:
            return
        self._look_later()
        snapshot = looking.result()
        if snapshot is not None:
            self._take(snapshot)

    def _take(self, snapshot: Snapshot) -> None:
        before, self._said = self._said, snapshot
        for line in snapshot.refusals:
            if line not in before.refusals:
                logger.error("%s", line)
        for line in snapshot.others:
            if line not in before.others:
                logger.debug("%s: not for an endpoint picker, passed over", line)
        if snapshot.objects != before.objects:
            self._on_objects(snapshot.objects)
