"""A quota as a configuration file writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from epp.configuration import ConfigurationError, load, load_default
from epp.quota.limits import Limit, Scope

HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\nplugins:\n- type: quota\n  parameters: "
SAMPLE = Path(__file__).parents[2] / "config" / "quota.yaml"


def mistakes(parameters: str) -> str:
    with pytest.raises(ConfigurationError) as refused:
        load(HEAD + parameters, "picker.yaml")
    return "\n".join(str(problem) for problem in refused.value.problems)


def test_there_is_none_unless_it_is_written() -> None:
    assert load_default().quota is None


def test_the_least_that_can_be_said() -> None:
    quota = load(HEAD + "{limits: [{requestsPerMinute: 5}]}", "picker.yaml").quota
    assert quota is not None
    assert quota.limits == (Limit(requests_per_minute=5),)
    assert (quota.tenant, quota.estimated_answer_tokens, quota.max_tenants) == ("fairness-id", 256, 10_000)


def test_the_sample_has_every_scope_but_one() -> None:
    quota = load(SAMPLE.read_text(), "quota.yaml").quota
    assert quota is not None and quota.tenant == "api-key"
    assert {limit.scope for limit in quota.limits} == {Scope.TENANT, Scope.TENANT_MODEL, Scope.ALL}
    assert quota.limits[2].burst_seconds == 30.0


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ("{}", "limits"),
        ("{limits: []}", "limits is empty"),
        ("{limits: [{model: m}]}", "neither requestsPerMinute nor tokensPerMinute"),
        ("{limits: [{requestsPerMinute: 0}]}", "requestsPerMinute"),
        ("{limits: [{requestPerMinute: 1}]}", "requestsPerMinute"),
        ("{limits: [{tokensPerMinute: 1}, {requestsPerMinute: 1}]}", "a second limit for each tenant and all models"),
        ("{limits: [{tokensPerMinute: 1, shared: true, tenants: [a]}]}", "cannot name some"),
        ("{limits: [{tokensPerMinute: 1, burstSeconds: 0}]}", "burstSeconds"),
        ("{tenant: '', limits: [{tokensPerMinute: 1}]}", "tenant"),
    ],
)
def test_mistakes_are_named(parameters: str, told: str) -> None:
    found = mistakes(parameters)
    assert told in found and "plugins[0].parameters" in found and "picker.yaml:5" in found


def test_one_quota_is_enough() -> None:
    text = (
        HEAD
        + "{limits: [{tokensPerMinute: 1}]}\n- {type: quota, name: q2, parameters: {limits: [{tokensPerMinute: 2}]}}"
    )
    with pytest.raises(ConfigurationError, match="a second quota"):
        load(text, "picker.yaml")
