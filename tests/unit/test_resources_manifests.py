"""Manifests as people write them: the product documents' own, and every mistake in its words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.resources.document import MAX_BYTES, Manifest, read_manifest
from epp.resources.objects import (
    MODEL,
    NETWORKING,
    OBJECTIVE,
    UNTOLD_S,
    InferenceModel,
    InferenceModelRewrite,
    InferenceObjective,
    InferencePool,
    Key,
    Picker,
    PoolRef,
    Rule,
    Target,
)
from epp.resources.reading import PRIORITY_OF_CRITICALITY, Refused, read_object
from epp.resources.rules import Selection
from epp.resources.store import Source, Store

MANIFESTS = Path(__file__).parents[1] / "data" / "manifests"
LLAMA = "vllm-llama3-8b-instruct"


def product(name: str) -> Manifest:
    return read_manifest((MANIFESTS / name).read_bytes(), name, "default")


def written(text: str) -> Manifest:
    return read_manifest(text.encode(), "a.yaml", "default")


def only(text: str) -> object:
    manifest = written(text)
    assert manifest.refusals == ()
    (one,) = manifest.objects
    return one


def refusal(text: str) -> str:
    manifest = written(text)
    assert manifest.objects == ()
    (one,) = manifest.refusals
    return str(one)


def objective(name: str = "gold", spec: str = "{priority: 10, poolRef: {name: pool}}") -> str:
    return f"""
apiVersion: llm-d.ai/v1alpha2
kind: InferenceObjective
metadata: {{name: {name}}}
spec: {spec}
"""


def manifest(kind: str, version: str, *spec: str) -> str:
    lines = "\n".join(f"  {line}" for line in spec)
    return f"apiVersion: {version}\nkind: {kind}\nmetadata:\n  name: x\nspec:\n{lines}\n"


class TestProductDocuments:
    @pytest.mark.parametrize("path", sorted(MANIFESTS.glob("*.yaml")), ids=lambda path: path.name)
    def test_every_manifest_loads(self, path: Path) -> None:
        found = product(path.name)
        assert found.refusals == ()
        assert found.objects or found.others

    def test_objectives_in_the_wrong_group_and_without_one(self) -> None:
        first, second = product("gke-objectives.yaml").objects
        assert isinstance(first, InferenceObjective)
        assert isinstance(second, InferenceObjective)
        assert (first.priority, second.priority) == (10, 20)
        assert second.pool_ref == PoolRef(LLAMA, NETWORKING)
        assert second.slips == ()
        assert "inference.networking.k8s.io/v1alpha2; read as inference.networking.x-k8s.io/v1alpha2" in first.slips[0]

    @pytest.mark.parametrize("pool", ["gke-pool-v1.yaml", "gke-pool-v1alpha2.yaml"])
    def test_pools_of_either_group(self, pool: str) -> None:
        one = product(pool).objects[0]
        assert isinstance(one, InferencePool)
        assert one.target_ports == (8000,)
        assert one.selector == {"app": one.key.name}
        assert one.picker == Picker(f"{one.key.name}-epp", 9002, pool == "gke-pool-v1.yaml")

    def test_a_pool_that_no_objective_names_is_told_of(self) -> None:
        change = Store(Selection((LLAMA,)), "default").replace(
            Source.DIRECTORY, product("gke-multi-cluster.yaml").objects
        )
        (notice,) = change.notices
        assert notice.startswith("gke-multi-cluster.yaml:19: InferenceObjective default/food-review: ")
        assert "poolRef names llama3-8b-instruct" in notice
        assert f"did you mean {LLAMA}?" in notice

    def test_the_oldest_api(self) -> None:
        pool, model = product("ack-v1alpha1.yaml").objects
        assert isinstance(pool, InferencePool)
        assert isinstance(model, InferenceModel)
        assert (model.model_name, model.priority) == ("/model/llama2", 1)
        assert model.targets == (Target("/model/llama2", 100),)
        assert pool.picker == Picker("inference-gateway-ext-proc", 9002)

    def test_rewrites_with_ages(self) -> None:
        canary, fallback = product("rewrites.yaml").objects
        assert isinstance(canary, InferenceModelRewrite)
        assert isinstance(fallback, InferenceModelRewrite)
        assert fallback.created_s == canary.created_s - 30 * 86_400
        assert canary.rules == (Rule(("food-review",), (Target("food-review-v1", 90), Target("food-review-v2", 10))),)
        assert fallback.rules[0].models == ("gpt-4o", "gpt-4o-mini")
        assert fallback.rules[1] == Rule((), (Target("base"),))

    def test_what_does_not_matter_is_named_and_passed_over(self) -> None:
        found = product("restrict-toleration.yaml")
        assert found.objects == ()
        assert found.others == (
            "restrict-toleration.yaml:1: ValidatingAdmissionPolicy restrict-toleration (admissionregistration.k8s.io/v1)",
            "restrict-toleration.yaml:29: ValidatingAdmissionPolicyBinding restrict-toleration "
            "(admissionregistration.k8s.io/v1)",
            "restrict-toleration.yaml:41: ConfigMap reserved (v1)",
        )


POOL_V1 = ("InferencePool", "inference.networking.k8s.io/v1")
MODEL_V1 = ("InferenceModel", "inference.networking.x-k8s.io/v1alpha1")
MODEL_V2 = ("InferenceModel", "inference.networking.x-k8s.io/v1alpha2")
REWRITE = ("InferenceModelRewrite", "llm-d.ai/v1alpha2")
REF = "poolRef: {name: pool}"


class TestMistakes:
    @pytest.mark.parametrize(
        ("kind", "spec", "said"),
        [
            (POOL_V1, ["selector: {matchLabels: {a: b}}"], "a.yaml:5: spec: targetPorts is missing"),
            (
                POOL_V1,
                ["selector: {matchLabels: {a: b}}", "targetPorts:", "- number: 8000", "- number: 65536"],
                "a.yaml:9: spec.targetPorts[1].number: expected int <= 65535",
            ),
            (
                POOL_V1,
                ["selector: {matchLabels: {a: b}}", "targetPorts: [{number: 1}, {number: 2}, {number: 1}]"],
                "a.yaml:7: spec.targetPorts: port 1 is given twice",
            ),
            (
                POOL_V1,
                ["selector: {matchLabels: {a: 1}}", "targetPorts: [{number: 1}]"],
                "a.yaml:6: spec.selector.matchLabels[...]: expected str, got int",
            ),
            (
                POOL_V1,
                ["selector: {matchLabels: {a: b}}", "targetPort: 8000"],
                "a.yaml:7: spec.targetPort: unknown field; did you mean targetPorts?",
            ),
            (
                POOL_V1,
                ["selector: {matchLabels: {a: b}}", "targetPorts: [{number: 1}]", "endpointPickerRef: {name: epp}"],
                "a.yaml:8: spec.endpointPickerRef: port is required where kind is Service",
            ),
            (
                MODEL_V2,
                [REF, "modelName: m", "criticality: Criticial"],
                "a.yaml:8: spec.criticality: unknown value 'Criticial'; did you mean Critical?",
            ),
            (
                MODEL_V2,
                [REF, "modelName: m", "targetModels: [{name: a, weight: 1}, {name: b}]"],
                "a.yaml:8: spec.targetModels: weights must be set for all targets or for none",
            ),
            (
                MODEL_V2,
                [REF, "modelName: m", "targetModels:", "- {name: a, weight: 1}", "- {name: b, weight: 0}"],
                "a.yaml:10: spec.targetModels[1].weight: must be at least 1",
            ),
            (MODEL_V1, ["modelName: m"], "a.yaml:5: spec: poolRef is missing"),
            (REWRITE, [REF, "rules: [{targets: []}]"], "a.yaml:7: spec.rules[0].targets: expected list of length >= 1"),
            (
                REWRITE,
                [REF, "rules:", "- targets:", "  - {modelRewrite: a, weight: many}"],
                "a.yaml:9: spec.rules[0].targets[0].weight: expected int, got str",
            ),
            (
                REWRITE,
                [REF, "rules:", "- targets: [{modelRewrite: a}]", "  matches: [{model: {type: Regex, value: a}}]"],
                "a.yaml:9: spec.rules[0].matches[0].model.type: invalid enum value 'Regex'",
            ),
            (
                REWRITE,
                [REF, "rules: [{matches: [{model: {value: a, tpye: Exact}}], targets: [{modelRewrite: b}]}]"],
                "a.yaml:7: spec.rules[0].matches[0].model.tpye: unknown field; did you mean type?",
            ),
            (
                ("InferencePool", "inference.networking.k8s.io/v2"),
                ["a: b"],
                "a.yaml:1: apiVersion: InferencePool is not known in inference.networking.k8s.io/v2; known: "
                "inference.networking.k8s.io/v1, inference.networking.x-k8s.io/v1alpha2, "
                "inference.networking.x-k8s.io/v1alpha1",
            ),
        ],
    )
    def test_is_named_by_line_and_path(self, kind: tuple[str, str], spec: list[str], said: str) -> None:
        assert refusal(manifest(*kind, *spec)) == said

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("just words", "a.yaml:1: must be a mapping with apiVersion and kind"),
            ("kind: InferencePool", "a.yaml:1: apiVersion is missing"),
            ("apiVersion: v1", "a.yaml:1: kind is missing"),
            ("apiVersion: v1\nkind: [a]", "a.yaml:2: kind: must be a text"),
            ("a: b\nc: d: e", "a.yaml:2: neither YAML nor JSON: mapping values are not allowed in this context"),
            ("a: b\na: c", "a.yaml:2: 'a' is given twice"),
            ("? [a]\n: b", "a.yaml:1: a key must be a text"),
            ("[" * 100, "a.yaml:1: nested deeper than 32 levels"),
            ("a: !!python/object:os.system {}\nkind: !!binary aGk=", "a.yaml:2: cannot use a value of type"),
            (objective(name="Gold"), "a.yaml:4: metadata.name: expected str matching regex"),
            (objective().replace("metadata: {name: gold}", "metadata: {}"), "a.yaml:4: metadata: name is missing"),
            (
                objective().replace("metadata: {name: gold}", "metadata: 7"),
                "a.yaml:4: metadata: expected mapping, got int",
            ),
            (objective().replace("spec:", "specs:"), "a.yaml:5: specs: unknown field; did you mean spec?"),
            (objective().partition("spec")[0], "a.yaml:2: spec is missing"),
            (objective(spec="{priority: 3000000000, poolRef: {name: p}}"), "a.yaml:5: spec.priority: expected int <="),
        ],
    )
    def test_of_any_kind(self, text: str, said: str) -> None:
        assert refusal(text).startswith(said)

    def test_a_file_that_is_not_text(self) -> None:
        assert str(read_manifest(b"a: b\nc: \xff", "a.yaml", "d").refusals[0]) == "a.yaml:2: not UTF-8"

    def test_a_file_that_is_too_large(self) -> None:
        assert "at most" in str(read_manifest(b" " * (MAX_BYTES + 1), "a.yaml", "d").refusals[0])

    def test_aliases_that_stand_for_billions_are_refused(self) -> None:
        levels = "\n".join(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 9)}]" for n in range(1, 12))
        assert "too large with its aliases" in refusal(f"l0: &l0 [x]\n{levels}")

    def test_an_alias_of_itself_is_refused(self) -> None:
        assert "too large with its aliases" in refusal("a: &a [*a]")


class TestDocuments:
    def test_a_bad_one_leaves_the_rest(self) -> None:
        text = f"# nothing\n---{objective('a')}---\na: [\n---{objective('b', '{}')}---\n---{objective('c')}"
        found = written(text)
        assert [one.key.name for one in found.objects] == ["a", "c"]
        broken, incomplete = found.refusals
        assert broken.key is None
        assert broken.place in ("a.yaml:8", "a.yaml:9")
        assert str(incomplete) == "a.yaml:13: spec: poolRef is missing"
        assert incomplete.key == Key(OBJECTIVE, "default", "b", "llm-d.ai")
        assert [one.origin for one in found.objects] == ["a.yaml:3", "a.yaml:16"]

    def test_the_first_of_two_of_one_name_counts(self) -> None:
        text = f"{objective()}---{objective(spec='{priority: 3, poolRef: {name: pool}}')}"
        found = written(text)
        assert [one.priority for one in found.objects if isinstance(one, InferenceObjective)] == [10]
        assert str(found.refusals[0]) == "a.yaml:7: InferenceObjective default/gold is already at a.yaml:2"

    def test_a_list_is_its_items(self) -> None:
        items = "".join(
            f"- {{apiVersion: llm-d.ai/v1alpha2, kind: InferenceObjective, metadata: {{name: {name}}}, spec: {spec}}}\n"
            for name, spec in (("a", "{poolRef: {name: p}}"), ("b", "{}"), ("c", "{poolRef: {name: p}}"))
        )
        found = written(f"apiVersion: v1\nkind: List\nitems:\n{items}")
        assert [one.key.name for one in found.objects] == ["a", "c"]
        assert str(found.refusals[0]) == "a.yaml:5: spec: poolRef is missing"

    def test_json_with_tabs(self) -> None:
        text = '{\n\t"apiVersion": "llm-d.ai/v1alpha2", "kind": "InferenceObjective",\n\t"metadata": {"name": "a"},'
        one = only(text + '\n\t"spec": {"poolRef": {"name": "p"}}}')
        assert isinstance(one, InferenceObjective)
        assert one.priority == 0

    def test_byte_order_mark_and_windows_line_ends(self) -> None:
        text = "﻿" + f"---{objective('a')}---{objective('b')}".replace("\n", "\r\n")
        assert [one.origin for one in written(text).objects] == ["a.yaml:2", "a.yaml:7"]

    def test_dashes_inside_a_text_begin_nothing(self) -> None:
        text = objective().replace(
            "{name: gold}", "\n  name: gold\n  annotations:\n    note: |\n      ---\n      -----"
        )
        assert isinstance(only(text), InferenceObjective)

    def test_anchors_and_merges(self) -> None:
        spec = "\n  <<: *shared\n  priority: 7"
        head = objective(spec=spec).replace("kind:", "x-shared: &shared {poolRef: {name: pool}, priority: 1}\nkind:")
        found = written(head)
        assert str(found.refusals[0]).startswith("a.yaml:3: x-shared: unknown field")
        merged = "{<<: {poolRef: {name: pool}, priority: 1}, priority: 7}"
        one = only(objective(spec=merged))
        assert isinstance(one, InferenceObjective)
        assert one.priority == 7

    @given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
    def test_anything_is_read_or_refused(self, text: str) -> None:
        read_manifest(text.encode("utf-8", "surrogatepass"), "a.yaml", "default")

    @given(st.data())
    def test_a_document_spoils_no_other(self, data: st.DataObject) -> None:
        names = data.draw(st.lists(st.sampled_from("abcdef"), unique=True, max_size=4))
        bad = ["a: [", "x", "apiVersion: v1\nkind: ConfigMap", "{", "- a", objective("z", "{}"), ""]
        parts = [objective(name) for name in names] + data.draw(st.lists(st.sampled_from(bad), max_size=4))
        found = written("\n---\n".join(data.draw(st.permutations(parts))))
        assert sorted(one.key.name for one in found.objects) == sorted(names)


class TestObjects:
    """The same reading as a watch would feed it."""

    def test_what_an_api_server_hands_out_may_have_fields_of_tomorrow(self) -> None:
        value = {
            "apiVersion": "llm-d.ai/v1alpha2",
            "kind": "InferenceObjective",
            "metadata": {"name": "a", "namespace": "ai", "uid": "1", "creationTimestamp": "1970-01-01T00:01:00Z"},
            "spec": {"poolRef": {"name": "p", "group": "x", "zone": 1}, "tomorrow": True},
        }
        one = read_object(value, namespace="default")
        assert isinstance(one, InferenceObjective)
        assert one.key == Key(OBJECTIVE, "ai", "a", "llm-d.ai")
        assert one.created_s == 60.0
        with pytest.raises(Refused, match=r"spec\.poolRef\.zone"):
            read_object({**value, "spec": {"poolRef": {"name": "p", "zone": 1}}}, namespace="default", strict=True)

    def test_what_is_not_said(self) -> None:
        one = only(objective(spec="{priority: null, poolRef: {name: p}}"))
        assert isinstance(one, InferenceObjective)
        assert (one.priority, one.created_s, one.key.namespace) == (0, UNTOLD_S, "default")
        assert one.pool_ref == PoolRef("p", NETWORKING, "InferencePool")

    @pytest.mark.parametrize(("criticality", "priority"), [*PRIORITY_OF_CRITICALITY.items(), ("null", 0)])
    def test_criticality(self, criticality: str, priority: int) -> None:
        one = only(manifest(*MODEL_V2, REF, "modelName: m", f"criticality: {criticality}"))
        assert isinstance(one, InferenceModel)
        assert one.priority == priority
        assert one.key.kind == MODEL

    def test_a_weight_of_zero_was_allowed_once(self) -> None:
        one = only(
            manifest(*MODEL_V1, REF, "modelName: m", "targetModels: [{name: a, weight: 0}, {name: b, weight: 1}]")
        )
        assert isinstance(one, InferenceModel)
        assert one.targets == (Target("a", 0), Target("b", 1))

    def test_a_kind_of_that_name_in_a_foreign_group_is_not_ours(self) -> None:
        assert read_object({"apiVersion": "example.com/v1", "kind": "InferencePool"}, namespace="d") is None

    def test_any_kind_of_experimental_object_may_be_in_the_wrong_group(self) -> None:
        kinds: Iterable[str] = ("InferenceModel", "InferenceModelRewrite")
        for kind in kinds:
            text = manifest(kind, "inference.networking.k8s.io/v1alpha2", REF, "modelName: m", "rules: []")
            text = text.replace("  rules: []\n" if kind == "InferenceModel" else "  modelName: m\n", "")
            one = only(text)
            assert isinstance(one, (InferenceModel, InferenceModelRewrite))
            assert one.key.group == "inference.networking.x-k8s.io"
            assert len(one.slips) == 1
