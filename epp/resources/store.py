"""The one owner of all API objects, whoever brings them."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from epp.resources.objects import InferencePool, Key, Resource
from epp.resources.rules import NO_RULES, Standing, compile_rules


class Source(enum.IntEnum):
    """Where objects come from. Where two have the same object, the first of them here counts."""

    DIRECTORY = 0
    KUBERNETES = 1


class Change(msgspec.Struct, frozen=True):
    """What a call did: whether other rules hold now, and what is to be logged that was not said before."""

    changed: bool
    notices: tuple[str, ...]


class Store:
    """Objects by source and key, and the `rules` that they amount to for one pool.

    What holds depends on the objects alone, not on the order in which they came. `rules` is replaced whole at a change:
    whoever took it before still has a consistent view.
    """

    def __init__(self, pool_name: str, namespace: str) -> None:
        self._pool_name = pool_name
        self._namespace = namespace
        self._objects: dict[Source, dict[Key, Resource]] = {source: {} for source in Source}
        self._notices: frozenset[str] = frozenset()
        self.rules = NO_RULES
        self.pool: InferencePool | None = None
        self.standings: tuple[Standing, ...] = ()

    def __len__(self) -> int:
        return len(self.standings)

    def __repr__(self) -> str:
        return f"<Store {len(self)} objects for {self._namespace}/{self._pool_name}>"

    def summary(self) -> str:
        """What is in force, in a line for the log."""
        idle = sum(bool(standing.reason) for standing in self.standings)
        rules = self.rules
        rewrites = len(rules.exact) + (rules.generic is not None)
        return (
            f"resources: {len(self)} objects, {idle} without effect; {len(rules.objectives)} objectives, {len(rules.models)} models, "
            f"rewrites of {rewrites} models"
        )

    def apply(self, source: Source, one: Resource) -> Change:
        """The source has this object now, in place of what it had under the same key."""
        self._objects[source][one.key] = one
        return self._compile()

    def delete(self, source: Source, key: Key) -> Change:
        """The source has no object of this key any more. It may not have had one."""
        self._objects[source].pop(key, None)
        return self._compile()

    def replace(self, source: Source, objects: Iterable[Resource]) -> Change:
        """The source has exactly these objects now. Of several with one key the last counts."""
        self._objects[source] = {one.key: one for one in objects}
        return self._compile()

    def _compile(self) -> Change:
        merged: dict[Key, Resource] = {}
        for source in reversed(Source):
            merged.update(self._objects[source])
        compiled = compile_rules(merged.values(), self._pool_name, self._namespace)
        changed = (compiled.rules, compiled.pool) != (self.rules, self.pool)
        self.rules, self.pool, self.standings = compiled.rules, compiled.pool, compiled.standings
        said = tuple(notice for standing in compiled.standings for notice in standing.notices())
        fresh = tuple(notice for notice in said if notice not in self._notices)
        self._notices = frozenset(said)
        return Change(changed, fresh)
