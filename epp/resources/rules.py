"""What the objects amount to for each pool: compiled at each change, so that a request pays for look-ups only."""

from __future__ import annotations

import difflib
import random
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from itertools import accumulate

import msgspec

from epp.drops import Drop, Reason
from epp.resources.objects import (
    EXPERIMENTAL,
    NETWORKING,
    POOL,
    BaseModel,
    HttpRoute,
    InferenceModel,
    InferenceModelRewrite,
    InferenceObjective,
    InferencePool,
    Key,
    PoolRef,
    Resource,
    Target,
)
from epp.resources.reading import GROUPS
from epp.resources.routing import Routing, bases_of, ways_of

NAMES_SHOWN = 20
"""Most model names in the refusal of an unknown one."""


class Draw(msgspec.Struct, frozen=True):
    """One of `models`, with the odds of `weights`, which add up."""

    models: tuple[str, ...]
    weights: tuple[int, ...]

    def __call__(self, rng: random.Random) -> str:
        if len(self.models) == 1:
            return self.models[0]
        return self.models[bisect_right(self.weights, rng.random() * self.weights[-1])]


def draw_among(targets: Iterable[Target]) -> Draw:
    """Odds by weight; without any weight (or with zeros only) all alike. Where some have a weight the others are never drawn."""
    listed = tuple(targets)
    weighted = [(target.model, target.weight) for target in listed if target.weight]
    if not weighted:
        weighted = [(target.model, 1) for target in listed]
    return Draw(tuple(model for model, _ in weighted), tuple(accumulate(weight for _, weight in weighted)))


class Known(msgspec.Struct, frozen=True):
    """What an InferenceModel says of its model. `draw` None leaves the name alone."""

    priority: int
    draw: Draw | None


class Rewriting(msgspec.Struct, frozen=True):
    """A rule of the InferenceModelRewrite called `name`."""

    name: str
    draw: Draw


class Rules(msgspec.Struct, frozen=True):
    """Everything in force. `objectives` are priorities by name; `exact` and `models` are by the model that clients ask for.

    `only` says which models there are, in words, where no other may be asked for; "" where any may.
    """

    objectives: Mapping[str, int] = {}
    models: Mapping[str, Known] = {}
    exact: Mapping[str, Rewriting] = {}
    generic: Rewriting | None = None
    only: str = ""

    def admit(self, model: str) -> None:
        """Raises Drop for a model that nothing is known of, where only known ones are served. "" is no model, and passes."""
        if self.only and model and model not in self.models:
            shown = model if len(model) <= 100 else f"{model[:100]}…"
            raise Drop(Reason.NOT_FOUND, f"The model {shown!r} does not exist here. {self.only}")

    def priority(self, objective: str | None, model: str) -> int:
        """Of a request that names `objective` and asks for `model`: the objective's, else the model's, else 0."""
        if objective is not None:
            priority = self.objectives.get(objective)
            if priority is not None:
                return priority
        known = self.models.get(model)
        return known.priority if known is not None else 0

    def rewriting(self, model: str) -> Rewriting | None:
        """The rule for `model`: one that names it, else one for every model."""
        return self.exact.get(model, self.generic)


NO_RULES = Rules()


class Standing(msgspec.Struct, frozen=True):
    """What became of one object: in force if `reason` is "". `notable` reasons and `slips` are worth a line in the log."""

    key: Key
    origin: str
    reason: str = ""
    notable: bool = False
    slips: tuple[str, ...] = ()

    def notices(self) -> tuple[str, ...]:
        said = (*self.slips, f"{self.reason}; it has no effect") if self.notable else self.slips
        place = f"{self.origin}: " if self.origin else ""
        return tuple(f"{place}{self.key}: {what}" for what in said)


class Selection(msgspec.Struct, frozen=True):
    """Which pools are served: those of `names`, or every one that names the Service `picker` as its endpoint picker."""

    names: tuple[str, ...] = ()
    picker: str = ""

    def __str__(self) -> str:
        if self.picker:
            return f"this picker serves the pools whose endpoint picker is {self.picker} (--picker-service)"
        return f"this picker serves {', '.join(self.names)} (--pool-name)"


class Compiled(msgspec.Struct, frozen=True):
    """`rules` of each pool that is served, in the order of precedence among pools; `pools` are the objects that describe
    them, where there is one. `routing` tells which pool a request is for. `standings` say what became of every object, by key.
    """

    rules: Mapping[str, Rules]
    pools: Mapping[str, InferencePool]
    routing: Routing
    standings: tuple[Standing, ...]


def compile_rules(objects: Iterable[Resource], selection: Selection, namespace: str) -> Compiled:
    """What `objects`, no two of the same key, amount to. Their order does not matter."""
    return _Compiler(objects, selection, namespace).compiled()


class _Draft:
    """The rules of one pool in the making."""

    def __init__(self) -> None:
        self._objectives: dict[str, int] = {}
        self._models: dict[str, Known] = {}
        self._owners: dict[str, Key] = {}
        self._exact: dict[str, Rewriting] = {}
        self._generic: Rewriting | None = None
        self._rewrites = False

    def rules(self) -> Rules:
        only = _only(self._models) if self._models and not self._rewrites else ""
        return Rules(self._objectives, self._models, self._exact, self._generic, only)

    def enact(self, one: InferenceObjective | InferenceModel | InferenceModelRewrite) -> str:
        """Put the object in force. Returns why not, where another came first."""
        if isinstance(one, InferenceObjective):
            self._objectives[one.key.name] = one.priority
        elif isinstance(one, InferenceModel):
            owner = self._owners.setdefault(one.model_name, one.key)
            if owner != one.key:
                return f"the model {one.model_name} is already that of {owner.name}, which is older or first by name"
            self._models[one.model_name] = Known(one.priority, draw_among(one.targets) if one.targets else None)
        else:
            self._rewrite(one)
        return ""

    def _rewrite(self, one: InferenceModelRewrite) -> None:
        self._rewrites = True
        for rule in one.rules:
            rewriting = Rewriting(one.key.name, draw_among(rule.targets))
            for model in rule.models:
                self._exact.setdefault(model, rewriting)
            if not rule.models and self._generic is None:
                self._generic = rewriting


class _Compiler:
    def __init__(self, objects: Iterable[Resource], selection: Selection, namespace: str) -> None:
        self._selection = selection
        self._namespace = namespace
        # The oldest first; of the same age by name, then by group.
        self._objects = sorted(
            objects, key=lambda one: (one.created_s, one.key.name, GROUPS.index(one.key.group), one.key)
        )
        self._best: dict[tuple[str, str, str], str] = {}
        for one in sorted(self._objects, key=lambda one: GROUPS.index(one.key.group)):
            self._best.setdefault((one.key.kind, one.key.namespace, one.key.name), one.key.group)
        known = [one for one in self._objects if isinstance(one, InferencePool) and not self._elsewhere(one)]
        served = [one.key.name for one in known if self._names_us(one)] if selection.picker else selection.names
        self._drafts = {name: _Draft() for name in served}
        self._pools = {one.key.name: one for one in known if one.key.name in self._drafts}
        self._names = sorted({o.key.name for o in self._objects if isinstance(o, InferencePool)} | {*served})

    def compiled(self) -> Compiled:
        standings = sorted((self._take(one) for one in self._objects), key=lambda standing: standing.key)
        rules = {name: draft.rules() for name, draft in self._drafts.items()}
        return Compiled(rules, self._pools, self._routing(rules), tuple(standings))

    def _routing(self, rules: Mapping[str, Rules]) -> Routing:
        here = [one for one in self._objects if not self._elsewhere(one)]
        owners: dict[str, str] = {}
        for name, one in rules.items():
            for model in (*one.models, *one.exact):
                owners.setdefault(model, name)
        routes = (one for one in here if isinstance(one, HttpRoute))
        bases = bases_of(one for one in here if isinstance(one, BaseModel))
        return Routing(ways_of(routes, self._drafts), bases, owners)

    def _names_us(self, one: InferencePool) -> bool:
        return one.picker is not None and one.picker.name == self._selection.picker

    def _take(self, one: Resource) -> Standing:
        reason, notable = self._misplaced(one)
        if not reason and not isinstance(one, InferencePool | HttpRoute | BaseModel):
            reason = self._drafts[one.pool_ref.name].enact(one)
            notable = bool(reason)
        return Standing(one.key, one.origin, reason, notable, one.slips)

    def _elsewhere(self, one: Resource) -> str:
        """Why the object is not the one of its name; "" where it is."""
        key = one.key
        if key.namespace != self._namespace:
            return f"it is in another namespace than the pool, which is in {self._namespace} (--pool-namespace)"
        group = self._best[key.kind, key.namespace, key.name]
        return f"there is one of the same name in {group}" if group != key.group else ""

    def _misplaced(self, one: Resource) -> tuple[str, bool]:
        """Why the object is for no pool that is served, and whether somebody should hear of it; "" where it is for one."""
        reason = self._elsewhere(one)
        if reason:
            return reason, True
        if isinstance(one, HttpRoute):
            served = any(share.pool in self._drafts for rule in one.rules for share in rule.shares)
            return (
                ("", False) if served else (f"it sends nothing to a pool that is served here; {self._selection}", False)
            )
        return ("", False) if isinstance(one, InferencePool | BaseModel) else self._misdirected(one.pool_ref)

    def _misdirected(self, ref: PoolRef) -> tuple[str, bool]:
        if ref.kind != POOL or ref.group not in (NETWORKING, EXPERIMENTAL):
            return f"poolRef is a {ref.kind} of {ref.group}, not an {POOL} of {NETWORKING} or {EXPERIMENTAL}", True
        if ref.name in self._drafts:
            return "", False
        if ref.name in self._names:
            return f"it is for the pool {ref.name}, and {self._selection}", False
        near = difflib.get_close_matches(ref.name, self._names, n=1)
        meant = f"did you mean {near[0]}? " if near else ""
        return f"poolRef names {ref.name}, and there is no such pool; {meant}{self._selection}", True


def _only(models: Iterable[str]) -> str:
    names = sorted(models)
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"Known models: {', '.join(names[:NAMES_SHOWN])}{more}."
