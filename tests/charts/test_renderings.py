"""What the charts render to is what is kept, and sound by itself."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path

import click
import pytest
import yaml

from epp import configuration
from epp.cli import cli
from epp.cli.run import command, settings_of
from epp.kubernetes.objects import plural, policies
from epp.settings import Settings
from tests.charts.arguments import CONFIGS, THEIRS
from tests.charts.cases import CASES
from tests.charts.manifests import MANIFESTS, manifest
from tests.charts.render import CHARTS, GOLDEN, ROOT, Made, containers, objects, one, picker, pods, render, run


def settings(args: list[str]) -> Settings:
    """What `epp run` makes of `args`. Raises click.ClickException."""
    # Below `epp`, as in life: a command keeps the help flags of the context that it met first.
    context: click.Context = command.make_context("run", list(args), parent=click.Context(cli, **cli.context_settings))
    return settings_of(context.params, {"NAMESPACE": "inference"})


@pytest.mark.parametrize("name", CASES)
def test_it_renders_to_what_is_kept(rendered: Callable[[str], str], name: str) -> None:
    kept = (GOLDEN / f"{name}.yaml").read_text()
    assert rendered(name) == kept, "if that is meant, `make charts` writes it anew"


def test_nothing_is_kept_that_is_rendered_no_more() -> None:
    assert {path.stem for path in GOLDEN.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_manifests_without_helm_are_renderings(helm: Path, path: Path) -> None:
    text = manifest(render(helm, MANIFESTS[path]))
    assert path.read_text() == text, "`make charts` writes it anew"
    assert "elm.sh" not in text and "Helm\n" not in text
    assert len(objects(text)) == len(objects(render(helm, MANIFESTS[path])))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_kustomize_finds_what_it_changes(path: Path) -> None:
    about = yaml.safe_load((path.parent / "kustomization.yaml").read_text())
    assert about["resources"] == [path.name]
    (image,) = about["images"]
    made = objects(path.read_text())
    assert picker(made)["image"] == f"{image['name']}:{image['newTag']}"
    # Where Kustomize puts objects of a namespace it puts the subjects of bindings that are in `default` as well.
    assert {each["subjects"][0]["namespace"] for each in made if "subjects" in each} == {about["namespace"]}
    assert not [each for each in made if "namespace" in each["metadata"]]


@pytest.mark.parametrize("chart", ["epp", "epp-standalone"])
def test_helm_finds_nothing_to_complain_of(helm: Path, chart: str) -> None:
    values = "--set=router.modelServers.matchLabels.app=model"
    said = run(helm, "lint", "--strict", str(CHARTS / chart), values, "--kube-version=1.34.0")
    assert "[WARNING]" not in said and "[ERROR]" not in said


def test_charts_have_the_version_of_the_picker() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for chart in ("library", "epp", "epp-standalone"):
        about = yaml.safe_load((CHARTS / chart / "Chart.yaml").read_text())
        assert (about["version"], about["appVersion"]) == (version, version)
        assert all(each["version"] == version for each in about.get("dependencies", []))


@pytest.mark.parametrize("name", CASES)
def test_containers_may_nothing_and_are_watched(made: Callable[[str], Made], name: str) -> None:
    for pod in pods(made(name)):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(made(name)):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"livenessProbe", "readinessProbe"} & set(container)
        assert {"cpu", "memory"} <= set(container["resources"]["requests"])
        assert "cpu" not in container["resources"].get("limits", {})


@pytest.mark.parametrize("name", CASES)
def test_all_that_is_named_is_there(made: Callable[[str], Made], name: str) -> None:
    """Accounts, roles, configurations, ports, and pods that selectors mean."""
    found = made(name)
    names = {(each["kind"], each["metadata"]["name"]) for each in found}
    assert len(names) == len(found)
    for each in found:
        if each["kind"].endswith("Binding"):
            assert (each["roleRef"]["kind"], each["roleRef"]["name"]) in names
            assert (
                each["subjects"][0]["name"] == "collector" or ("ServiceAccount", each["subjects"][0]["name"]) in names
            )
    templates = [each["spec"]["template"] for each in found if each["kind"] == "Deployment"]
    for template in templates:
        account = template["spec"].get("serviceAccountName")
        assert ("ServiceAccount", account) in names or template["spec"]["automountServiceAccountToken"] is False
        volumes = {each["name"] for each in template["spec"]["volumes"]}
        for each in template["spec"]["volumes"]:
            assert "configMap" not in each or ("ConfigMap", each["configMap"]["name"]) in names
        for container in [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    servers = ("-servers",)
    for each in found:
        selector = each["spec"].get("selector", each["spec"].get("podSelector", {})) if "spec" in each else {}
        wanted = selector.get("matchLabels", selector)
        if each["kind"] in ("InferencePool", "ServiceMonitor") or each["metadata"]["name"].endswith(servers):
            continue
        if wanted:
            meant = [one for one in templates if wanted.items() <= one["metadata"]["labels"].items()]
            assert len(meant) == 1, each["metadata"]["name"]


@pytest.mark.parametrize("name", CASES)
def test_the_picker_takes_its_arguments_and_its_configuration(made: Callable[[str], Made], name: str) -> None:
    found = made(name)
    args = picker(found)["args"]
    read = settings(args)
    config = one(
        found,
        "ConfigMap",
        next(
            iter(
                each["metadata"]["name"]
                for each in found
                if each["kind"] == "Service" and each["metadata"]["name"].endswith("-epp")
            )
        ),
    )
    assert read.config_file is not None
    assert str(read.config_file.parent) == picker(found)["volumeMounts"][0]["mountPath"]
    assert read.config_file.name in config["data"]
    for file, text in config["data"].items():
        configuration.load(text, file)
    ports = {each["name"]: each["containerPort"] for each in picker(found)["ports"]}
    assert (ports["grpc"], ports["grpc-health"]) == (read.grpc_port, read.grpc_health_port)
    assert ports["metrics"] == read.metrics_port
    (grace,) = (pod["terminationGracePeriodSeconds"] for pod in pods(found) if "serviceAccountName" in pod)
    assert read.drain_timeout_s + 5 <= grace


def test_a_pod_budget_never_holds_up_the_only_one_that_is_ready(made: Callable[[str], Made]) -> None:
    for name in ("inferencepool-leader-election", "router-values", "router-gateway"):
        assert not [each for each in made(name) if each["kind"] == "PodDisruptionBudget"], name
    assert one(made("everything"), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def rights(made: Made, role: str) -> set[tuple[str, str, str]]:
    """Group, resource and verb of each."""
    rules = one(made, "Role", role)["rules"]
    return set(chain.from_iterable(product(rule["apiGroups"], rule["resources"], rule["verbs"]) for rule in rules))


def test_rights_are_the_kinds_that_are_watched_and_no_more(made: Callable[[str], Made]) -> None:
    watched = {(each.group, plural(each.kind)) for each in policies("inference.networking.k8s.io")}
    wanted = {(*each, verb) for each in {("", "pods"), *watched} for verb in ("list", "watch")}
    assert rights(made("router-gateway"), "vllm-qwen3-32b-epp") == wanted
    assert rights(made("without-pool"), "pool-epp") == {("", "pods", "list"), ("", "pods", "watch")}
    more = rights(made("router-values"), "vllm-qwen3-32b-epp") - wanted
    assert {each[:2] for each in more} == {("coordination.k8s.io", "leases")}
    old = "inference.networking.x-k8s.io"
    assert (old, "inferencepools", "watch") in rights(made("old-pool"), "pool-epp")
    cluster = one(made("router-gateway"), "ClusterRole")["rules"]
    assert [(rule["resources"], rule["verbs"]) for rule in cluster] == [
        (["tokenreviews"], ["create"]),
        (["subjectaccessreviews"], ["create"]),
    ]
    assert not [each for each in made("standalone-everything") if each["kind"] == "ClusterRole"]


@pytest.mark.parametrize("chart", THEIRS)
def test_arguments_of_other_charts_are_taken(chart: str) -> None:
    read = settings(THEIRS[chart])
    assert read.grpc_port == 9002 and read.grpc_health_port == 9003
    assert read.log_encoder == "json"
    for name, text in CONFIGS.items():
        configuration.load(text, name)


def test_the_image_is_what_the_charts_take_it_for(made: Callable[[str], Made]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    (pod,) = pods(made("router-gateway"))
    security = pod["securityContext"]
    assert f"USER {security['runAsUser']}:{security['runAsGroup']}\n" in dockerfile
    ports = " ".join(str(each["containerPort"]) for each in picker(made("router-gateway"))["ports"])
    assert f"EXPOSE {ports}\n" in dockerfile
    # Arguments follow the entry point: no command of a chart stands in for it.
    assert dockerfile.rstrip().endswith('ENTRYPOINT ["/opt/epp/bin/epp", "run"]')
    assert "command" not in picker(made("router-gateway"))


@pytest.mark.parametrize("chart", ["epp", "epp-standalone"])
def test_an_archive_holds_all_that_the_chart_links_to(helm: Path, tmp_path: Path, chart: str) -> None:
    run(helm, "package", str(CHARTS / chart), f"--destination={tmp_path}")
    (archive,) = tmp_path.glob("*.tgz")
    values = ["--set=router.modelServers.matchLabels.app=model", "--kube-version=1.34.0"]
    assert run(helm, "template", "pool", str(archive), *values) == run(
        helm, "template", "pool", str(CHARTS / chart), *values
    )
