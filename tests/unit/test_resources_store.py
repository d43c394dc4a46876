"""What objects amount to: the store's rules, whoever brings the objects and in whatever order."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.drops import Drop, Reason
from epp.resources.objects import (
    EXPERIMENTAL,
    LLM_D,
    MODEL,
    NETWORKING,
    OBJECTIVE,
    POOL,
    REWRITE,
    UNTOLD_S,
    InferenceModel,
    InferenceModelRewrite,
    InferenceObjective,
    InferencePool,
    Key,
    PoolRef,
    Resource,
    Rule,
    Target,
)
from epp.resources.rules import NAMES_SHOWN, NO_RULES, Rules, Selection, draw_among
from epp.resources.store import Source, Store

HERE = PoolRef("pool")
HERE_ONLY = Selection(("pool",))


def key(kind: str, name: str, group: str = LLM_D, namespace: str = "default") -> Key:
    return Key(kind, namespace, name, group)


def objective(name: str, priority: int, ref: PoolRef = HERE, group: str = LLM_D, **more: Any) -> InferenceObjective:
    namespace = more.pop("namespace", "default")
    return InferenceObjective(key=key(OBJECTIVE, name, group, namespace), pool_ref=ref, priority=priority, **more)


def model(name: str, *targets: Target, asked: str | None = None, **more: Any) -> InferenceModel:
    asked = asked if asked is not None else name
    return InferenceModel(key=key(MODEL, name, EXPERIMENTAL), pool_ref=HERE, model_name=asked, targets=targets, **more)


def rewrite(name: str, *rules: Rule, **more: Any) -> InferenceModelRewrite:
    return InferenceModelRewrite(key=key(REWRITE, name), pool_ref=HERE, rules=rules, **more)


def to(target: str, *models: str) -> Rule:
    return Rule(models, (Target(target),))


def pool(name: str, group: str = NETWORKING) -> InferencePool:
    return InferencePool(key=key(POOL, name, group), selector={"app": name}, target_ports=(8000,))


def store_of(*objects: Resource) -> Store:
    store = Store(HERE_ONLY, "default")
    store.replace(Source.DIRECTORY, objects)
    return store


def rules_of(*objects: Resource) -> Rules:
    return store_of(*objects).of("pool").rules


def reason_of(store: Store, one: Resource) -> str:
    return next(standing.reason for standing in store.standings if standing.key == one.key)


def target(rules: Rules, asked: str) -> str | None:
    rewriting = rules.rewriting(asked)
    return rewriting.draw(random.Random(0)) if rewriting else None


class TestPriorities:
    def test_an_objective_has_its_own(self) -> None:
        rules = rules_of(objective("gold", 10), objective("batch", -5))
        assert (rules.priority("gold", "m"), rules.priority("batch", "m")) == (10, -5)

    def test_unknown_or_absent_is_0(self) -> None:
        rules = rules_of(objective("gold", 10))
        assert (rules.priority("silver", "m"), rules.priority(None, "m"), NO_RULES.priority("gold", "m")) == (0, 0, 0)

    def test_a_model_has_one_too_and_an_objective_goes_before_it(self) -> None:
        rules = rules_of(objective("plain", 0), model("a", priority=1), model("b", priority=-1))
        assert [rules.priority(None, asked) for asked in ("a", "b", "c")] == [1, -1, 0]
        assert [rules.priority("plain", "a"), rules.priority("unknown", "a")] == [0, 1]

    def test_the_newer_group_wins(self) -> None:
        old, new = objective("gold", 1, group=EXPERIMENTAL), objective("gold", 2, group=LLM_D)
        store = store_of(old, new)
        assert store.of("pool").rules.priority("gold", "") == 2
        assert reason_of(store, old) == "there is one of the same name in llm-d.ai"
        store.delete(Source.DIRECTORY, new.key)
        assert store.of("pool").rules.priority("gold", "") == 1


class TestWhichPool:
    @pytest.mark.parametrize("group", [NETWORKING, EXPERIMENTAL])
    def test_either_group_of_the_pool_will_do(self, group: str) -> None:
        assert rules_of(objective("gold", 10, PoolRef("pool", group))).priority("gold", "") == 10

    @pytest.mark.parametrize(
        ("ref", "said"),
        [
            (PoolRef("poll"), "poolRef names poll, and there is no such pool; did you mean pool?"),
            (PoolRef("zzz"), "poolRef names zzz, and there is no such pool; this picker serves pool (--pool-name)"),
            (PoolRef("pool", "example.com"), "poolRef is a InferencePool of example.com, not an"),
            (PoolRef("pool", NETWORKING, "Service"), "poolRef is a Service of"),
        ],
    )
    def test_what_names_no_pool_has_no_effect_and_is_told_once(self, ref: PoolRef, said: str) -> None:
        store = Store(HERE_ONLY, "default")
        one = objective("gold", 10, ref, origin="a.yaml:3")
        (notice,) = store.apply(Source.DIRECTORY, one).notices
        assert notice.startswith(f"a.yaml:3: InferenceObjective default/gold: {said}")
        assert notice.endswith("it has no effect")
        assert store.of("pool").rules == NO_RULES
        assert store.apply(Source.DIRECTORY, one).notices == ()
        store.delete(Source.DIRECTORY, one.key)
        assert store.apply(Source.DIRECTORY, one).notices == (notice,)

    def test_what_is_for_another_known_pool_is_quiet(self) -> None:
        other = objective("gold", 10, PoolRef("poll"))
        store = Store(HERE_ONLY, "default")
        assert store.replace(Source.DIRECTORY, [pool("poll"), other]).notices == ()
        assert store.of("pool").rules == NO_RULES
        assert reason_of(store, other) == "it is for the pool poll, and this picker serves pool (--pool-name)"

    def test_another_namespace_is_told_of(self) -> None:
        store = Store(HERE_ONLY, "default")
        (notice,) = store.apply(Source.DIRECTORY, objective("gold", 10, namespace="ai")).notices
        assert "another namespace than the pool, which is in default (--pool-namespace)" in notice
        assert store.of("pool").rules == NO_RULES

    def test_the_pool_itself_is_known_by_name_and_newest_group(self) -> None:
        new, old = pool("pool"), pool("pool", EXPERIMENTAL)
        store = store_of(old, new, pool("other"))
        assert store.of("pool").pool == new
        store.delete(Source.DIRECTORY, new.key)
        assert store.of("pool").pool == old
        store.replace(Source.DIRECTORY, ())
        assert store.of("pool").pool is None


class TestRewrites:
    def test_exact_goes_before_generic_however_young(self) -> None:
        rules = rules_of(
            rewrite("old", to("any"), created_s=1.0), rewrite("young", to("special", "food"), created_s=2.0)
        )
        assert (target(rules, "food"), target(rules, "other")) == ("special", "any")

    def test_the_oldest_goes_first_then_the_name(self) -> None:
        young, old = rewrite("a", to("young", "m"), created_s=2.0), rewrite("b", to("old", "m"), created_s=1.0)
        assert target(rules_of(young, old), "m") == "old"
        same = rewrite("c", to("late", "m"), created_s=1.0)
        assert target(rules_of(same, old), "m") == "old"
        ageless = rewrite("0", to("never", "m"))
        assert ageless.created_s == UNTOLD_S
        assert target(rules_of(ageless, young), "m") == "young"

    def test_the_first_rule_that_fits_counts(self) -> None:
        rules = rules_of(rewrite("a", to("one", "m"), to("two", "m", "n"), to("three"), to("four")))
        assert [target(rules, asked) for asked in ("m", "n", "x")] == ["one", "two", "three"]

    def test_none_fits(self) -> None:
        assert rules_of(rewrite("a", to("one", "m"))).rewriting("x") is None
        assert NO_RULES.rewriting("x") is None

    def test_the_rule_is_known_by_its_object(self) -> None:
        rewriting = rules_of(rewrite("canary", to("one", "m"))).rewriting("m")
        assert rewriting is not None
        assert rewriting.name == "canary"


def shares(*targets: Target) -> Counter[str]:
    draw, rng = draw_among(targets), random.Random(7)
    return Counter(draw(rng) for _ in range(2000))


class TestDraws:
    def test_by_weight(self) -> None:
        drawn = shares(Target("a", 90), Target("b", 10))
        assert drawn.keys() == {"a", "b"}
        assert 150 < drawn["b"] < 250

    def test_the_same_for_the_same_seed(self) -> None:
        draw = draw_among([Target("a", 90), Target("b", 10)])
        first, second = random.Random(3), random.Random(3)
        assert [draw(first) for _ in range(50)] == [draw(second) for _ in range(50)]

    @pytest.mark.parametrize("weight", [None, 0])
    def test_all_alike_without_weights(self, weight: int | None) -> None:
        drawn = shares(*(Target(name, weight) for name in "abcd"))
        assert len(drawn) == 4
        assert min(drawn.values()) > 400

    def test_what_has_no_weight_beside_others_is_never_drawn(self) -> None:
        assert shares(Target("a"), Target("b", 1), Target("c", 0)).keys() == {"b"}

    @given(
        st.lists(st.tuples(st.sampled_from("abc"), st.none() | st.integers(0, 5)), min_size=1, max_size=5), st.data()
    )
    def test_any_draw_is_one_that_may_be_drawn(self, listed: list[tuple[str, int | None]], data: st.DataObject) -> None:
        class Fixed(random.Random):
            def random(self) -> float:
                return data.draw(st.floats(0, 1, exclude_max=True))

        drawn = draw_among(Target(name, weight) for name, weight in listed)(Fixed())
        weighted = {name for name, weight in listed if weight}
        assert drawn in (weighted or {name for name, _ in listed})


class TestModels:
    def test_targets_and_none(self) -> None:
        known = rules_of(model("a", Target("x")), model("b")).models
        assert known["b"].draw is None
        draw = known["a"].draw
        assert draw is not None
        assert draw(random.Random(0)) == "x"

    def test_the_oldest_of_a_name_wins(self) -> None:
        young = model("a", asked="m", priority=1, created_s=2.0, origin="y.yaml:1")
        old = model("b", asked="m", priority=-1, created_s=1.0)
        store = Store(HERE_ONLY, "default")
        (notice,) = store.replace(Source.DIRECTORY, [young, old]).notices
        assert "the model m is already that of b" in notice
        assert store.of("pool").rules.priority(None, "m") == -1

    def test_of_the_same_age_the_first_name_wins(self) -> None:
        assert rules_of(model("b", asked="m", priority=1), model("a", asked="m", priority=-1)).priority(None, "m") == -1

    def test_alone_they_say_which_models_there_are(self) -> None:
        rules = rules_of(model("b", asked="/model/llama2"), model("a"))
        rules.admit("a")
        rules.admit("/model/llama2")
        rules.admit("")
        with pytest.raises(Drop) as caught:
            rules.admit("c")
        assert caught.value.reason is Reason.NOT_FOUND
        assert caught.value.message == "The model 'c' does not exist here. Known models: /model/llama2, a."

    def test_many_are_not_all_named(self) -> None:
        with pytest.raises(Drop) as caught:
            rules_of(*(model(f"m{number:02}") for number in range(NAMES_SHOWN + 3))).admit("x" * 1000)
        assert "m19 and 3 more." in caught.value.message
        assert len(caught.value.message) < 300

    @pytest.mark.parametrize("others", [(), (rewrite("r", to("x", "y")),), (rewrite("r", to("x", "y")), model("a"))])
    def test_with_rewrites_or_without_models_any_is_welcome(self, others: tuple[Resource, ...]) -> None:
        rules_of(objective("gold", 1), *others).admit("whatever")


class TestSources:
    def test_each_has_its_own_and_the_directory_goes_first(self) -> None:
        store = Store(HERE_ONLY, "default")
        store.apply(Source.KUBERNETES, objective("gold", 1))
        store.apply(Source.KUBERNETES, objective("silver", 3))
        store.replace(Source.DIRECTORY, [objective("gold", 2)])
        assert store.of("pool").rules.objectives == {"gold": 2, "silver": 3}
        store.replace(Source.DIRECTORY, [])
        assert store.of("pool").rules.objectives == {"gold": 1, "silver": 3}
        store.delete(Source.KUBERNETES, key(OBJECTIVE, "gold"))
        assert store.of("pool").rules.objectives == {"silver": 3}

    def test_a_change_tells_whether_anything_is_different(self) -> None:
        store = Store(HERE_ONLY, "default")
        assert store.apply(Source.KUBERNETES, objective("gold", 1)).changed
        assert not store.apply(Source.KUBERNETES, objective("gold", 1)).changed
        assert not store.apply(Source.KUBERNETES, objective("x", 1, PoolRef("elsewhere"))).changed
        assert store.apply(Source.KUBERNETES, pool("pool")).changed
        assert not store.delete(Source.KUBERNETES, key(OBJECTIVE, "never there")).changed

    def test_whoever_took_the_rules_keeps_them(self) -> None:
        store = store_of(objective("gold", 1))
        taken = store.of("pool").rules
        store.replace(Source.DIRECTORY, [])
        assert taken.priority("gold", "") == 1


NAMES = st.sampled_from(["a", "b", "c"])
AGES = st.sampled_from([1.0, 2.0, UNTOLD_S])
REFS = st.sampled_from([HERE, HERE, PoolRef("pool", EXPERIMENTAL), PoolRef("other")])
GROUPS = st.sampled_from([LLM_D, EXPERIMENTAL])
TARGETS = st.lists(st.builds(Target, NAMES, st.none() | st.integers(1, 3)), min_size=1, max_size=2).map(tuple)
OBJECTS: st.SearchStrategy[Resource] = st.one_of(
    st.builds(
        lambda name, group, age, ref, priority: objective(name, priority, ref, group, created_s=age),
        *(NAMES, GROUPS, AGES, REFS, st.integers(-2, 2)),
    ),
    st.builds(
        lambda name, asked, age, targets, priority: model(
            name, *targets, asked=asked, created_s=age, priority=priority
        ),
        *(NAMES, NAMES, AGES, TARGETS, st.integers(-1, 1)),
    ),
    st.builds(
        lambda name, age, rules: rewrite(name, *rules, created_s=age),
        *(NAMES, AGES, st.lists(st.builds(Rule, st.lists(NAMES, max_size=2).map(tuple), TARGETS), max_size=2)),
    ),
    st.builds(pool, st.sampled_from(["pool", "other"]), st.sampled_from([NETWORKING, EXPERIMENTAL])),
)


class TestAnyOrder:
    @given(st.data())
    def test_only_what_there_is_counts(self, data: st.DataObject) -> None:
        """Applies and deletes in any order, with detours, lead where one replacement leads."""
        wanted = data.draw(st.lists(st.tuples(st.sampled_from(Source), OBJECTS), max_size=8))
        final = {(source, one.key): one for source, one in wanted}
        stepwise = Store(HERE_ONLY, "default")
        for source, one in data.draw(st.lists(st.tuples(st.sampled_from(Source), OBJECTS), max_size=5)):
            stepwise.apply(source, one)
            if (source, one.key) not in final:
                stepwise.delete(source, one.key)
        for (source, _), one in data.draw(st.permutations(sorted(final.items(), key=lambda item: item[0]))):
            stepwise.apply(source, one)
        at_once = Store(HERE_ONLY, "default")
        for source in data.draw(st.permutations(list(Source))):
            at_once.replace(source, [one for (where, _), one in final.items() if where is source])
        assert stepwise.of("pool").rules == at_once.of("pool").rules
        assert stepwise.standings == at_once.standings
        assert stepwise.of("pool").pool == at_once.of("pool").pool

    @given(st.lists(OBJECTS, max_size=8, unique_by=lambda one: one.key))
    def test_every_object_stands_somewhere(self, objects: list[Resource]) -> None:
        store = store_of(*objects)
        assert [standing.key for standing in store.standings] == sorted(one.key for one in objects)
        known = {standing.key: standing.reason for standing in store.standings}
        for one in objects:
            if isinstance(one, InferenceObjective) and not known[one.key]:
                assert store.of("pool").rules.objectives[one.key.name] == one.priority
