"""The one owner of all API objects, whoever brings them."""

from __future__ import annotations

import enum
from collections.abc import Iterable

import msgspec

from epp.resources.objects import InferencePool, Key, Resource
from epp.resources.routing import NO_ROUTING
from epp.resources.rules import NO_RULES, Compiled, Selection, Standing, compile_rules


class Source(enum.IntEnum):
    """Where objects come from. Where two have the same object, the first of them here counts."""

    DIRECTORY = 0
    KUBERNETES = 1


class Change(msgspec.Struct, frozen=True):
    """What a call did: whether other rules hold now, and what is to be logged that was not said before."""

    changed: bool
    notices: tuple[str, ...]


class InForce:
    """What the objects amount to for one pool: `rules`, and the object that describes it, None where there is none.

    Both are replaced whole at a change: whoever took `rules` before still has a consistent view.
    """

    __slots__ = ("pool", "rules")

    def __init__(self) -> None:
        self.rules = NO_RULES
        self.pool: InferencePool | None = None


class Store:
    """Objects by source and key, and what is in force for each pool that is served.

    What holds depends on the objects alone, not on the order in which they came. `served` are names, the first the one that
    counts where nothing else says which pool is meant, and `routing` is what else there is.
    """

    def __init__(self, selection: Selection, namespace: str) -> None:
        self._selection = selection
        self._namespace = namespace
        self._objects: dict[Source, dict[Key, Resource]] = {source: {} for source in Source}
        self._notices: frozenset[str] = frozenset()
        self._in_force: dict[str, InForce] = {name: InForce() for name in selection.names}
        self.routing = NO_ROUTING
        self.standings: tuple[Standing, ...] = ()

    def __len__(self) -> int:
        return len(self.standings)

    def __repr__(self) -> str:
        return f"<Store {len(self)} objects for {len(self._in_force)} pools in {self._namespace}>"

    @property
    def served(self) -> tuple[str, ...]:
        return tuple(self._in_force)

    def of(self, pool: str) -> InForce:
        """Raises KeyError for a pool that is not served. The same for as long as it is."""
        return self._in_force[pool]

    def summary(self) -> str:
        """What is in force, in a line for the log."""
        idle = sum(bool(standing.reason) for standing in self.standings)
        rules = [one.rules for one in self._in_force.values()]
        return (
            f"resources: {len(self)} objects, {idle} without effect; {sum(len(one.objectives) for one in rules)} objectives, "
            f"{sum(len(one.models) for one in rules)} models, "
            f"rewrites of {sum(len(one.exact) + (one.generic is not None) for one in rules)} models"
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
        compiled = compile_rules(merged.values(), self._selection, self._namespace)
        changed = self._enact(compiled)
        self.standings = compiled.standings
        said = tuple(notice for standing in compiled.standings for notice in standing.notices())
        fresh = tuple(notice for notice in said if notice not in self._notices)
        self._notices = frozenset(said)
        return Change(changed, fresh)

    def _enact(self, compiled: Compiled) -> bool:
        """Whether anything in force is different now."""
        self.routing = compiled.routing
        changed = list(compiled.rules) != list(self._in_force)
        self._in_force = {name: self._in_force.get(name) or InForce() for name in compiled.rules}
        for name, one in self._in_force.items():
            now = compiled.rules[name], compiled.pools.get(name)
            changed = changed or now != (one.rules, one.pool)
            one.rules, one.pool = now
        return changed
