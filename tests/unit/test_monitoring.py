"""The alerts and the dashboard that we ship ask for series, and labels of them, that the picker makes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from prometheus_client.parser import text_string_to_metric_families as parse_text

from epp.app import Picker
from epp.assembly import read_configuration
from epp.observe.text import write
from epp.settings import Settings
from tests.unit.test_flow_dispatch import Hall
from tests.unit.test_metrics_exposition import ALERTS, exposition, samples

MONITORING = Path(__file__).parents[2] / "deploy" / "monitoring"

OURS = re.compile(r"\b((?:epp|inference|llm_d_epp|process)_\w+)(?:\{([^}]*)\})?")
GROUPED = re.compile(r"\bby ?\(([^)]*)\)")
TLS = Settings(endpoints=("127.0.0.1:1",))
SCRAPED = {"pod", "instance", "namespace", "job", "cluster"}
"""Labels that Prometheus adds when it reads."""


def made() -> dict[str, set[str]]:
    """Every series of a picker under traffic that has flow control on, with the labels that its samples have."""
    hall = Hall(1)
    account = hall.serve()
    for _ in range(2):
        hall.wait()
    hall.end(account)
    hall.pump(0.3)
    look = hall.dispatcher.look(hall.now_s)
    flow = "".join(write(family, openmetrics=False) for family in hall.record.families(lambda: look))
    found = {name: {key for labels, _ in rows for key in labels} for name, rows in samples(exposition()).items()}
    for family in (*parse_text(flow), *parse_text(page_of(TLS))):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def page_of(settings: Settings) -> str:
    configuration = read_configuration(settings)
    return Picker(settings, configuration).exposition.render("")[1].decode()


def expressions() -> Iterator[tuple[str, str]]:
    """Title and expression of each alert and each panel's line."""
    for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]
    for panel in json.loads((MONITORING / "dashboard.json").read_text())["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"]


async def test_every_series_and_label_exists() -> None:
    have = made()
    seen = 0
    for title, expression in expressions():
        names = OURS.findall(GROUPED.sub("", expression))
        seen += len(names)
        for name, _ in names:
            assert name in have, (title, name)
        if names:
            grouped = {label.strip() for group in GROUPED.findall(expression) for label in group.split(",")}
            assert grouped <= have[names[0][0]] | SCRAPED, (title, grouped)
        else:
            assert "vllm:" in expression, title
    assert seen > 50


def test_the_printed_alerts_are_as_printed() -> None:
    groups = yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"]
    assert groups[0]["name"] == "gateway-api-inference-extension"
    plain = {rule["alert"]: rule["expr"].replace(" ", "") for rule in groups[0]["rules"]}
    assert plain == {name: expression.replace(" ", "") for name, expression in ALERTS.items()}
    assert {rule["for"] for rule in groups[0]["rules"]} == {"5m"}


def test_names_of_the_servers_own_metrics_exist() -> None:
    page = (MONITORING.parents[1] / "tests" / "data" / "metrics" / "vllm-0.32.0.txt").read_text()
    names = {name for _, expression in expressions() for name in re.findall(r"vllm:\w+", expression)}
    assert names and all(f"\n{name}" in page for name in names)
