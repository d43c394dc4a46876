"""Reading configuration files: what is understood, what is refused and in which words."""

from __future__ import annotations

import json
import random
import sys
from math import inf
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import msgspec
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from epp.configuration import (
    DEFAULT_TEXT,
    Configuration,
    ConfigurationError,
    build,
    describe,
    json_schema,
    load,
    load_default,
    render_schema,
)
from epp.configuration.catalogue import BUILT_IN, NOT_HERE
from epp.configuration.notation import parse_duration, parse_quantity
from epp.flow.settings import BandSettings, FlowSettings, Holdback, Policies, Programs, Reflective, Static
from epp.pipeline import PluginFaults
from epp.scoring import BoolArray, Candidates, Count, FloatArray, Request, Share
from tests.pools import Pool, a_request, random_pool

CONFIG = Path(__file__).parents[2] / "config"
SAMPLES = sorted(CONFIG.glob("*.yaml"))
HEAD = "apiVersion: llm-d.ai/v1alpha1\nkind: EndpointPickerConfig\n"


def understood(body: str) -> Configuration:
    return load(HEAD + body, "picker.yaml")


def complaints(text: str) -> list[str]:
    with pytest.raises(ConfigurationError) as refusal:
        load(text, "picker.yaml")
    assert str(refusal.value) == "\n".join(map(str, refusal.value.problems))
    return [str(problem).removeprefix("picker.yaml:") for problem in refusal.value.problems]


def shape(configuration: Configuration) -> list[tuple[str, list[str], dict[str, float], str]]:
    return [(p.name, list(p.filters), dict(p.scorers), p.picker) for p in configuration.profiles]


PLUGIN = HEAD + "plugins:\n- type: {}\n  parameters:\n    {}\n"
MISTAKES = [
    (HEAD + "schedulingProfile: []\n", ["3: schedulingProfile: unknown field; did you mean schedulingProfiles?"]),
    (
        HEAD + "plugins:\n- type: queue-scorrer\n",
        ["4: plugins[0].type: unknown plugin type 'queue-scorrer'; did you mean queue-scorer?"],
    ),
    (
        PLUGIN.format("max-score-picker", "maxnumofendpoints: 2"),
        ["6: plugins[0].parameters.maxnumofendpoints: unknown field; did you mean maxNumOfEndpoints?"],
    ),
    (
        PLUGIN.format("max-score-picker", "maxNumOfEndpoints: three"),
        ["6: plugins[0].parameters.maxNumOfEndpoints: expected a whole number, got 'three'"],
    ),
    (
        PLUGIN.format("max-score-picker", "maxNumOfEndpoints: 1.5"),
        ["6: plugins[0].parameters.maxNumOfEndpoints: expected a whole number, got 1.5"],
    ),
    (
        PLUGIN.format("max-score-picker", "maxNumOfEndpoints: 0"),
        ["6: plugins[0].parameters.maxNumOfEndpoints: must be ≥ 1, got 0"],
    ),
    (
        PLUGIN.format("prefix-cache-affinity-filter", "{affinityThreshold: 1.5, maxTtftPenaltyMs: 3}"),
        [
            "6: plugins[0].parameters.affinityThreshold: must be 0 to 1, got 1.5",
            "6: plugins[0].parameters.maxTtftPenaltyMs: unknown field; did you mean maxTTFTPenaltyMs?",
        ],
    ),
    (
        PLUGIN.format("metrics-data-source", "interval: 5"),
        ["6: plugins[0].parameters.interval: expected a duration such as 200ms or 1m30s, got '5'"],
    ),
    (
        PLUGIN.format("file-discovery", "{path: 5, watchFile: maybe}"),
        [
            "6: plugins[0].parameters.path: expected text, got 5; put it in quotes",
            "6: plugins[0].parameters.watchFile: expected true or false, got 'maybe'",
        ],
    ),
    (HEAD + "plugins:\n- type: file-discovery\n", ["4: plugins[0]: parameters.path is missing"]),
    (
        PLUGIN.format("by-label", "label: zone"),
        ["6: plugins[0].parameters: validValues must name a value unless allowsNoLabel is true"],
    ),
    (
        PLUGIN.format("concurrency-detector", "concurrencyMode: request"),
        ["6: plugins[0].parameters.concurrencyMode: unknown value 'request'; did you mean requests?"],
    ),
    (
        PLUGIN.format("core-metrics-extractor", "defaultEngine: vlm"),
        [
            "6: plugins[0].parameters: defaultEngine 'vlm' is none of sglang, triton, triton-tensorrt-llm, trtllm-serve, vllm"
        ],
    ),
    (
        PLUGIN.format("utilization-filter", "conditions: {metric: waiting-queue}"),
        ["6: plugins[0].parameters.conditions: expected a list, got a mapping"],
    ),
    (
        PLUGIN.format("utilization-filter", "conditions: [{metric: waiting-queue}]"),
        ["6: plugins[0].parameters.conditions[0]: maxValue is missing"],
    ),
    (
        PLUGIN.format("label-selector-filter", "matchLabels: {gpu: true}"),
        ["6: plugins[0].parameters.matchLabels.gpu: expected text, got true; put it in quotes"],
    ),
    (
        PLUGIN.format("prefix-cache-scorer", "prefixMatchInfoProducerName: cpu"),
        ["4: plugins[0].parameters: there is no plugin 'cpu' of type approx-prefix-cache-producer"],
    ),
    (
        PLUGIN.format("token-producer", "vllm: {url: http://localhost:8000}"),
        [
            "6: plugins[0].parameters: tokenizing by another server is not part of this version; "
            "without it tokens are estimated"
        ],
    ),
    (
        PLUGIN.format("priority-holdback-policy", "minCeiling: 0.9\n    maxCeiling: 0.5"),
        ["6: plugins[0].parameters: minCeiling 0.9 is above maxCeiling 0.5: the highest priority would wait first"],
    ),
    (
        PLUGIN.format("weighted-token-fairness-policy", "weights: {a: 1.0e-300}"),
        ["6: plugins[0].parameters.weights.a: must be 1e-06 to 1e+06, got 1.0e-300"],
    ),
    (
        HEAD + "plugins:\n- type: queue-scorer\n- type: queue-scorer\n",
        ["5: plugins[1].type: there is already a plugin named 'queue-scorer'; give one a name"],
    ),
    (
        HEAD + "plugins:\n- type: disagg-profile-handler\n",
        [
            "4: plugins[0].type: disagg-profile-handler is a type of the Go picker that needs disaggregated serving, "
            "which this version does not have"
        ],
    ),
    (
        HEAD + "plugins:\n- typ: queue-scorer\n- type: 3\n- queue-scorer\n",
        [
            "4: plugins[0].typ: unknown field; did you mean type?",
            "4: plugins[0]: type is missing",
            "5: plugins[1].type: expected text, got 3; put it in quotes",
            "6: plugins[2]: expected a mapping, got 'queue-scorer'",
        ],
    ),
    (
        HEAD
        + "plugins:\n- type: queue-scorer\nschedulingProfiles:\n- name: p\n  plugins:\n  - pluginRef: queue-scorrer\n",
        [
            "8: schedulingProfiles[0].plugins[0].pluginRef: no plugin is named 'queue-scorrer'; did you mean queue-scorer?"
        ],
    ),
    (
        HEAD + "schedulingProfiles:\n- name: a\n- name: b\n",
        [
            "5: schedulingProfiles[1].name: a second profile needs a profile handler among the plugins, "
            "such as header-profile-handler"
        ],
    ),
    (
        HEAD + "plugins:\n- type: header-profile-handler\nschedulingProfiles:\n- name: decoded\n- name: b\n",
        ["4: plugins[0].type: defaultProfile 'decode' is no profile; did you mean decoded?"],
    ),
    (
        HEAD + "plugins:\n- type: single-profile-handler\nschedulingProfiles:\n- name: a\n- name: b\n",
        ["4: plugins[0].type: single-profile-handler cannot serve 2 profiles"],
    ),
    (
        HEAD + "plugins:\n- type: header-profile-handler\n- type: single-profile-handler\n",
        ["5: plugins[1].type: a second profile handler beside header-profile-handler; one is allowed"],
    ),
    (
        HEAD + "schedulingProfiles:\n- name: a\n- name: a\nplugins:\n- type: header-profile-handler\n"
        "  parameters: {defaultProfile: a}\n",
        ["5: schedulingProfiles[1].name: there is already a profile named 'a'"],
    ),
    (
        HEAD + "plugins:\n- type: random-picker\n- type: max-score-picker\n",
        ["5: plugins[1].type: a second picker; name the profiles' plugins in schedulingProfiles"],
    ),
    (
        HEAD
        + "plugins: [{type: random-picker}, {type: max-score-picker}]\nschedulingProfiles:\n- name: a\n  plugins:\n"
        "  - pluginRef: random-picker\n  - pluginRef: max-score-picker\n",
        ["8: schedulingProfiles[0].plugins[1].pluginRef: a second picker in profile 'a', which has random-picker"],
    ),
    (
        HEAD + "plugins:\n- type: queue-scorer\nsaturationDetector:\n  pluginRef: queue-scorer\n",
        ["6: saturationDetector.pluginRef: queue-scorer is a scorer; here a saturation detector is wanted"],
    ),
    (
        HEAD + "flowControl:\n  maxRequests: 1x\n  defaultRequestTTL: soon\n",
        [
            "4: flowControl.maxRequests: expected a quantity such as 1k or 10Gi, got '1x'",
            "5: flowControl.defaultRequestTTL: expected a duration such as 200ms or 1m30s, got 'soon'",
        ],
    ),
    (
        HEAD + "flowControl:\n  priorityBands:\n  - priority: 1\n    orderingPolicyRef: fcfs-policy\n",
        [
            "6: flowControl.priorityBands[0].orderingPolicyRef: no plugin is named 'fcfs-policy'; did you mean fcfs-ordering-policy?"
        ],
    ),
    (
        HEAD + "featureGates: [flowControl, flowcontrol, flowControl=maybe]\n",
        [
            "3: featureGates[1]: unknown feature gate 'flowcontrol'; did you mean flowControl?",
            "3: featureGates[2]: a gate is set to true or false, not 'maybe'",
        ],
    ),
    (
        HEAD + "dataLayer:\n  crossReplicaSyncerPluginRef: x\n  peerDiscovery: {pluginRef: y}\n",
        [
            "4: dataLayer.crossReplicaSyncerPluginRef: sharing state between replicas is not part of this version; remove this",
            "5: dataLayer.peerDiscovery.pluginRef: sharing state between replicas is not part of this version; remove this",
        ],
    ),
    (
        HEAD + "plugins:\n- type: metrics-data-source\n- {type: metrics-data-source, name: other}\n",
        ["5: plugins[1].name: a second metrics-data-source; one is allowed"],
    ),
    (
        "apiVersion: llm-d.ai/v1\nkind: EndpointPickerConfig\n",
        ["1: apiVersion: unknown value 'llm-d.ai/v1'; did you mean llm-d.ai/v1alpha1?"],
    ),
    ("plugins: []\n", ["1: apiVersion is missing", "1: kind is missing"]),
    (
        HEAD + "plugins: [\n- type: queue-scorer\n",
        ["4: while parsing a flow node expected the node content, but found '-'"],
    ),
    (HEAD + "plugins: []\nkind: EndpointPickerConfig\n", ["4: kind: given before on line 2"]),
    ("{}\n---\n{}\n", ["2: expected a single document in the stream but found another document"]),
    ("", ["1: the file is empty"]),
    ("# nothing\n", ["1: the file is empty"]),
    ("- a\n", ["1: expected a mapping, got a list"]),
    (
        HEAD + "plugins:\n- type: !queue-scorer\n",
        ["4: plugins[0].type: !queue-scorer is no type that a value can have here; quote text that begins with !"],
    ),
    ("[" * 500_000, ["1: nested deeper than 32 levels"]),
    ("- " * 100_000, ["1: nested deeper than 32 levels"]),
    ('{"a":' * 500_000, ["1: nested deeper than 32 levels"]),
    ("\udcff", ["1: cannot be read as YAML: unacceptable character #xdcff: special characters are not allowed"]),
    ("a: \0\n", ["1: cannot be read as YAML: unacceptable character #x0000: special characters are not allowed"]),
    (
        HEAD + "plugins:\n- type: no.such.module:Thing\n- type: json:dumps\n- type: json:JSONDecodeErrors\n",
        [
            "4: plugins[0].type: no.such.module:Thing cannot be imported: No module named 'no'",
            "5: plugins[1].type: json:dumps is no class",
            "6: plugins[2].type: json:JSONDecodeErrors cannot be imported: "
            "module 'json' has no attribute 'JSONDecodeErrors'",
        ],
    ),
]


@pytest.mark.parametrize(("text", "expected"), MISTAKES)
def test_mistakes_are_named_by_line_and_path(text: str, expected: list[str]) -> None:
    told = complaints(text)
    assert [line[: len(wanted)] for line, wanted in zip(told, expected, strict=True)] == expected


@pytest.mark.parametrize("name", NOT_HERE)
def test_types_of_the_go_picker_that_are_not_here_say_so(name: str) -> None:
    assert name not in BUILT_IN
    assert "which this version does not have" in complaints(HEAD + f"plugins:\n- type: {name}\n")[0]


def test_the_default_policy() -> None:
    configuration = load_default()
    assert shape(configuration) == [("default", [], {"least-delay-scorer": 1}, "max-score-picker")]
    assert (configuration.handler, configuration.detector) == ("single-profile-handler", "utilization-detector")
    assert configuration.warnings == ()


@pytest.mark.parametrize("body", ["", "plugins:\n- type: metrics-data-source\n  parameters: {port: 9000}\n"])
def test_a_file_that_leaves_the_policy_open_gets_the_default(body: str) -> None:
    assert shape(understood(body)) == shape(load_default())


@pytest.mark.parametrize("group", ["llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"])
def test_both_groups(group: str) -> None:
    assert load(f"apiVersion: {group}\nkind: EndpointPickerConfig\n", "x").profiles


def test_json_with_tabs() -> None:
    text = json.dumps(yaml.safe_load(DEFAULT_TEXT), indent="\t")
    assert shape(load(text, "x.json")) == shape(load_default())


def test_without_profiles_every_plugin_is_in_the_one_there_is() -> None:
    configuration = understood(
        "plugins:\n- type: decode-filter\n- {type: queue-scorer, name: q}\n- type: context-length-aware\n- type: random-picker\n"
    )
    expected = (["decode-filter", "context-length-aware"], {"q": 1, "context-length-aware": 1}, "random-picker")
    assert shape(configuration) == [("default", *expected)]


def test_profiles_with_a_header() -> None:
    configuration = understood(
        "plugins:\n- type: header-profile-handler\n- type: queue-scorer\n- type: prefill-filter\n- type: random-picker\n"
        "schedulingProfiles:\n- name: decode\n  plugins:\n  - {pluginRef: queue-scorer, weight: 0.5}\n"
        "- name: prefill\n  plugins:\n  - {pluginRef: prefill-filter, weight: 7}\n  - pluginRef: random-picker\n"
    )
    assert shape(configuration) == [
        ("decode", [], {"queue-scorer": 0.5}, "max-score-picker"),
        ("prefill", ["prefill-filter"], {}, "random-picker"),
    ]
    assert configuration.handler == "header-profile-handler"
    warning = "line 14: schedulingProfiles[1].plugins[0]: weight has no effect: prefill-filter is no scorer"
    assert configuration.warnings == (warning,)


def test_merge_keys_and_anchors() -> None:
    configuration = understood(
        "plugins:\n- &one {type: queue-scorer, name: a}\n- {<<: *one, name: b}\n- {<<: *one, type: load-aware-scorer, name: c}\n"
    )
    assert {name: spec.type for name, spec in configuration.plugins.items() if name in "abc"} == {
        "a": "queue-scorer",
        "b": "queue-scorer",
        "c": "load-aware-scorer",
    }


def test_numbers_as_json_writes_them() -> None:
    configuration = understood("plugins:\n- {type: token-load-scorer, parameters: {queueThresholdTokens: 1e6}}\n")
    assert configuration.plugins["token-load-scorer"].arguments == {"queue_threshold_tokens": 1_000_000}


def test_null_means_not_given() -> None:
    configuration = understood("plugins:\n- type: load-aware-scorer\n  name:\n  parameters:\nsaturationDetector:\n")
    assert configuration.plugins["load-aware-scorer"].arguments == {}


def test_the_saturation_detector_now_and_before() -> None:
    def detector(body: str) -> tuple[str, Any]:
        found = understood(body)
        spec = found.plugins[found.detector]
        return spec.type, spec.arguments

    plugin = "plugins:\n- {type: concurrency-detector, name: c, parameters: {maxConcurrency: 7}}\n"
    expected = ("concurrency-detector", {"max_concurrency": 7})
    assert detector(plugin + "flowControl: {saturationDetector: {pluginRef: c}}\n") == expected
    assert detector(plugin + "saturationDetector: {pluginRef: c}\n") == expected
    inline = "saturationDetector: {queueDepthThreshold: 9, kvCacheUtilThreshold: 0.5, metricsStalenessThreshold: 1s}\n"
    assert detector(inline) == (
        "utilization-detector",
        {"queue_depth_threshold": 9, "kv_cache_util_threshold": 0.5, "metrics_staleness_threshold": 1.0},
    )
    mine = "plugins:\n- {type: utilization-detector, name: mine, parameters: {headroom: 1}}\n"
    assert detector(mine) == ("utilization-detector", {"headroom": 1.0})


def test_prefix_parameters_now_and_before() -> None:
    now = understood(
        "plugins:\n- {type: approx-prefix-cache-producer, name: p, parameters: {lruCapacityPerServer: 5, autoTune: false}}\n"
        "- {type: prefix-cache-scorer, parameters: {prefixMatchInfoProducerName: p}}\n"
    )
    assert (now.prefix.lru_capacity_per_server, now.prefix.auto_tune, now.warnings) == (5, False, ())
    before = understood(
        "plugins:\n- {type: prefix-cache-scorer, parameters: {hashBlockSize: 64, lruCapacityPerServer: 5, maxPrefixBlocksToMatch: 256}}\n"
    )
    assert (before.prefix.lru_capacity_per_server, before.prefix.max_prefix_blocks_to_match) == (5, 256)
    assert before.plugins["prefix-cache-scorer"].arguments == {}
    assert len(before.warnings) == 2


def test_the_data_layer_now_and_before() -> None:
    plugins = (
        "plugins:\n- {type: metrics-data-source, name: m, parameters: {path: /m, interval: 1m1.5s}}\n"
        "- {type: core-metrics-extractor, name: e, parameters: {defaultEngine: sglang}}\n"
    )
    sources = "{sources: [{pluginRef: m, extractors: [{pluginRef: e}]}]}\n"
    for layer in (f"dataLayer: {sources}", f"featureGates: [dataLayer]\ndata: {sources}", ""):
        found = understood(plugins + layer)
        assert found.metrics is not None
        assert (found.metrics.path, found.metrics.interval) == ("/m", 61.5)
        assert found.metrics.source().interval_s == 61.5
        assert found.extractor.default_engine == "sglang"
    assert understood("dataLayer: {injectDefaults: false}\n").metrics is None
    assert understood("").metrics is not None


def test_discovery_from_a_file() -> None:
    plugin = "plugins:\n- {type: file-discovery, parameters: {path: /e.yaml, watchFile: true}}\n"
    found = understood(plugin + "dataLayer: {discovery: {pluginRef: file-discovery}}\n").discovery
    assert found is not None and (found.path, found.watch_file) == ("/e.yaml", True)
    assert understood(plugin).discovery is None


def test_parsers_now_and_before() -> None:
    assert understood("").parsers[0] == "openai-parser" and len(understood("").parsers) == 4
    plugins = "plugins: [{type: openai-parser, name: o}, {type: passthrough-parser}]\n"
    listed = "requestHandler: {parsers: [{pluginRef: passthrough-parser}, {pluginRef: o}]}\n"
    assert understood(plugins + listed).parsers == ("passthrough-parser", "openai-parser")
    assert understood(plugins + "parser: {pluginRef: o}\n").parsers == ("openai-parser",)


def test_flow_control_without_its_gate_is_checked_and_warned_of() -> None:
    found = understood(
        "featureGates: [flowControl=false, haPopulateNonLeaderDatastore]\nplugins:\n- type: round-robin-fairness-policy\n"
        "flowControl:\n  maxBytes: 10Gi\n  noEndpointRequestTTL: 0s\n  defaultPriorityBand: {maxRequests: 1k}\n"
        "  usageLimitPolicyPluginRef: static-usage-limit-policy\n"
        "  priorityBands:\n  - {priority: -1, fairnessPolicyRef: round-robin-fairness-policy}\n"
        "  - {priority: 1, orderingPolicyRef: fcfs-ordering-policy}\n"
    )
    assert found.warnings == ("flowControl has no effect without its feature gate, save for saturationDetector",)
    assert shape(found) == shape(load_default())


def test_flow_control_defaults_are_the_go_pickers_but_never_without_a_bound() -> None:
    assert understood("").flow is None
    found = understood("featureGates: [flowControl]\n")
    assert found.flow == FlowSettings()
    assert found.warnings == ()
    assert FlowSettings() == FlowSettings(
        default=BandSettings(max_requests=5000, max_bytes=1_000_000_000, policies=Policies()),
        max_requests=inf,
        max_bytes=512 * 2**20,
        ttl_s=60.0,
        empty_ttl_s=60.0,
        limit=Static(1.0),
    )
    assert Policies() == Policies(fairness="global-strict", ordering="fcfs")


def test_flow_control_is_read_whole() -> None:
    found = understood(
        "featureGates: [flowControl=true]\n"
        "plugins:\n"
        "- {type: shortest-prompt-ordering-policy, name: short, parameters: {maxWaitMultiple: 3}}\n"
        "- {type: weighted-token-fairness-policy, name: shares, parameters: {weights: {gold: 2.5}}}\n"
        "- {type: priority-holdback-policy, parameters: {minCeiling: 0.4, domain: value}}\n"
        "flowControl:\n  maxBytes: 10Gi\n  maxRequests: 20k\n  defaultRequestTTL: 30s\n  noEndpointRequestTTL: 0s\n"
        "  usageLimitPolicyPluginRef: priority-holdback-policy\n"
        "  enableEviction: true\n"
        "  defaultNegativePriorityBand: {maxRequests: 7, orderingPolicyRef: slo-deadline-ordering-policy}\n"
        "  priorityBands:\n"
        "  - {priority: 100, maxBytes: 1M, requestTTL: 5s, fairnessPolicyRef: shares, orderingPolicyRef: short}\n"
        "  - {priority: -5, requestTTL: 0s, fairnessPolicyRef: round-robin-fairness-policy}\n"
    )
    shares = Policies(fairness="weighted-tokens", ordering="shortest-prompt", wait_multiple=3.0, weights={"gold": 2.5})
    assert found.flow == FlowSettings(
        bands={
            100: BandSettings(max_bytes=1_000_000, ttl_s=5.0, policies=shares),
            -5: BandSettings(ttl_s=inf, policies=Policies(fairness="round-robin")),
        },
        negative=BandSettings(max_requests=7, policies=Policies(ordering="slo-deadline")),
        max_requests=20_000,
        max_bytes=10 * 2**30,
        ttl_s=30.0,
        empty_ttl_s=inf,
        limit=Holdback(0.4, 1.0, "value"),
        evicts_running=True,
    )
    assert found.warnings == ()


def test_the_other_limits_and_what_follows_what() -> None:
    gate = "featureGates: [flowControl]\n"
    reflective = understood(gate + "flowControl: {usageLimitPolicyPluginRef: soft-reflective-ceiling-policy}\n")
    assert reflective.flow is not None and reflective.flow.limit == Reflective()
    limit = "plugins: [{type: static-usage-limit-policy, parameters: {threshold: 0.7}}]\n"
    static = understood(gate + limit + "flowControl: {usageLimitPolicyPluginRef: static-usage-limit-policy}\n")
    assert static.flow is not None and static.flow.limit == Static(0.7)
    follows = understood(gate + "flowControl: {defaultRequestTTL: 0s, defaultPriorityBand: {maxRequests: 3}}\n").flow
    assert follows is not None and follows.ttl_s == follows.empty_ttl_s == inf
    assert follows.negative == follows.default == BandSettings(max_requests=3)


@pytest.mark.parametrize(
    ("bounds", "in_all", "default_band"),
    [
        ("{maxRequests: 5}", 2**29, 10**9),
        ("{maxBytes: 0}", 2**29, 10**9),
        ("{maxBytes: 1M}", 10**6, 10**9),
        ("{maxBytes: 4Gi}", 2**32, 10**9),
        ("{defaultPriorityBand: {maxBytes: 0}}", 2**29, 10**9),
        ("{defaultPriorityBand: {maxBytes: 1k}}", 2**29, 1000),
        ("{defaultPriorityBand: {maxBytes: 2Gi}}", 2**31, 2**31),
        ("{defaultNegativePriorityBand: {maxBytes: 3Gi}}", 3 * 2**30, 10**9),
        ("{priorityBands: [{priority: 1, maxBytes: 1G}, {priority: 2, maxBytes: 2G}]}", 2 * 10**9, 10**9),
        ("{maxBytes: 1M, priorityBands: [{priority: 1, maxBytes: 1G}]}", 10**6, 10**9),
    ],
)
def test_what_waits_is_always_bounded(bounds: str, in_all: int, default_band: int) -> None:
    found = understood(f"featureGates: [flowControl]\nflowControl: {bounds}\n").flow
    assert found is not None and (found.max_bytes, found.default.max_bytes) == (in_all, default_band)


def test_program_aware_fairness_is_the_go_pickers() -> None:
    gate = "featureGates: [flowControl]\n"
    as_is = understood(gate + "flowControl: {defaultPriorityBand: {fairnessPolicyRef: program-aware-fairness}}\n").flow
    assert as_is is not None and as_is.default.policies == Policies(
        fairness="program-aware",
        programs=Programs(
            service_weight=0.8, head_wait_weight=0.2, half_life_s=60.0, remembered_s=3600.0, sweep_s=300.0
        ),
    )
    told = (
        "plugins: [{type: program-aware-fairness, name: las, parameters: {lasWeightService: 1, lasWeightHeadWait: 0, "
        "lasHalfLifeSeconds: 0, evictionTtlSeconds: 9, evictionSweepSeconds: 3, strategy: las}}]\n"
    )
    flow = understood(gate + told + "flowControl: {defaultPriorityBand: {fairnessPolicyRef: las}}\n").flow
    assert flow is not None and flow.default.policies.programs == Programs(
        service_weight=1.0, head_wait_weight=0.0, half_life_s=0.0, remembered_s=9.0, sweep_s=3.0
    )


def test_one_band_a_priority() -> None:
    text = "featureGates: [flowControl]\nflowControl: {priorityBands: [{priority: 1}, {priority: 1}]}\n"
    assert complaints(HEAD + text) == [
        "4: flowControl.priorityBands[1].priority: there is already a band of priority 1"
    ]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("200ms", 0.2), ("1m30s", 90), ("1h", 3600), ("0", 0), ("1.5s", 1.5), ("5us", 5e-6), ("7µs", 7e-6), (".5s", 0.5)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "5", "5 s", "s", "-1s", "1d", "1s ", "1e3s", "1m30"])
def test_no_durations(text: str) -> None:
    with pytest.raises(ValueError, match="duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("512", 512),
        ("1k", 1000),
        ("10Gi", 10 * 2**30),
        ("1.5k", 1500),
        ("2e3", 2000),
        ("5E", 5 * 10**18),
        ("3000m", 3),
        ("1E2", 100),
    ],
)
def test_quantities(text: str, number: int) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("text", ["", "k", "1K", "-1", "1.0001", "500m", "1kk", "1 k", "1e999"])
def test_no_quantities(text: str) -> None:
    with pytest.raises(ValueError, match="expected a"):
        parse_quantity(text)


class Longest:
    """Prefers the longest name."""

    def __init__(self, *, rng: random.Random, scale_by: Share = 0.5, ttft_rounds: Count = 1) -> None:
        assert isinstance(rng, random.Random)
        if scale_by == 0:
            raise KeyError("scale")
        self.scale = scale_by

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        return np.array([len(endpoint.name) * self.scale / 10 for endpoint in candidates.members])


class Untyped:
    def __init__(self, limit=3):  # type: ignore[no-untyped-def]
        pass

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        return np.ones(len(candidates), dtype=np.bool_)


class Nothing:
    pass


def named(name: str, parameters: str = "{}") -> str:
    return f"plugins:\n- {{type: '{__name__}:{name}', name: mine, parameters: {parameters}}}\n"


def test_a_class_by_its_module() -> None:
    configuration = understood(named("Longest", "{scaleBy: 1, ttftRounds: 2}"))
    assert shape(configuration) == [("default", [], {"mine": 1}, "max-score-picker")]
    pipeline = build(configuration, random.Random(1), PluginFaults(print))
    assert pipeline.pick(a_request(), Pool(12).candidates()).endpoints[0].name in ("pod-10", "pod-11")


def test_a_strangers_class_is_checked_like_our_own() -> None:
    assert "did you mean scaleBy?" in complaints(HEAD + named("Longest", "{scale: 1}"))[0]
    assert "must be 0 to 1" in complaints(HEAD + named("Longest", "{scaleBy: 2}"))[0]
    assert complaints(HEAD + named("Longest", "{scaleBy: 0}"))[0].endswith("plugins[0].parameters: KeyError: 'scale'")
    assert "must be a keyword with a type" in complaints(HEAD + named("Untyped"))[0]
    assert "has none of the methods" in complaints(HEAD + named("Nothing"))[0]


def test_a_class_by_its_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "stranger-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        f"[epp.scorers]\nlongest-scorer = {__name__}:Longest\nlost-scorer = no.such.module:Thing\n"
    )
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert understood("plugins:\n- type: longest-scorer\n").plugins["longest-scorer"].make is Longest
    assert complaints(HEAD + "plugins:\n- type: longest-scorrer\n")[0].endswith("did you mean longest-scorer?")
    assert "lost-scorer cannot be imported" in complaints(HEAD + "plugins:\n- type: lost-scorer\n")[0]
    described = {entry.type: entry for entry in describe()}
    assert described["longest-scorer"].purpose == "Prefers the longest name."
    assert [parameter.name for parameter in described["longest-scorer"].parameters] == ["scaleBy", "ttftRounds"]
    assert described["lost-scorer"].purpose.startswith("cannot be used: ")


def test_descriptions() -> None:
    described = {entry.type: entry for entry in describe()}
    assert described.keys() >= BUILT_IN.keys()
    assert described["context-length-aware"].kinds == ("filter", "scorer")
    detector = {p.name: (p.accepts, p.default, p.required) for p in described["utilization-detector"].parameters}
    assert detector["metricsStalenessThreshold"] == ("duration > 0", "0.2s", False)
    assert detector["queueDepthThreshold"] == ("number > 0", "5", False)
    path = described["file-discovery"].parameters[0]
    assert (path.name, path.default, path.required) == ("path", "", True)


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_samples(path: Path) -> None:
    text = path.read_text()
    assert text.startswith(("# For ", "# For"))
    configuration = load(text, str(path))
    assert configuration.warnings == ()
    failed: list[str] = []
    pipeline = build(configuration, random.Random(1), PluginFaults(failed.append))
    for seed in range(5):
        pipeline.pick(a_request(prompt_tokens=100), random_pool(20, seed, silent=0.2).candidates())
    assert failed == []
    jsonschema.Draft202012Validator(json_schema()).validate(yaml.safe_load(text))


def test_default_sample_is_the_default() -> None:
    text = (CONFIG / "default.yaml").read_text()
    assert "".join(line for line in text.splitlines(keepends=True) if not line.startswith("#")) == DEFAULT_TEXT


def test_the_written_schema_is_current() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())
    assert (CONFIG / "schema.json").read_text() == render_schema(), "write it anew: epp schema > config/schema.json"


SCHEMA_KNOWS = [
    text for text, _ in MISTAKES if text.startswith(HEAD + "plugins") and "parameters" in text and "vllm" not in text
]


def test_the_schema_refuses_mistakes_and_accepts_what_we_accept() -> None:
    schema = jsonschema.Draft202012Validator(json_schema())
    by_constructors = ("validValues", "by-label", "defaultEngine", "ProducerName", "defaultProfile: a", "maxCeiling")
    for text in SCHEMA_KNOWS:
        document = yaml.safe_load(text)
        if not any(word in text for word in by_constructors):
            assert not schema.is_valid(document), text
    good = "flowControl: {maxBytes: 10Gi, maxRequests: 5, defaultRequestTTL: 1m30s}\nsaturationDetector: {queueDepthThreshold: 5}\n"
    schema.validate(yaml.safe_load(HEAD + good))
    understood(good)


words = st.sampled_from(
    [
        "plugins",
        "type",
        "name",
        "parameters",
        "schedulingProfiles",
        "pluginRef",
        "weight",
        "queue-scorer",
        "dataLayer",
        "sources",
        "flowControl",
        "saturationDetector",
        "max-score-picker",
        "kind",
        "EndpointPickerConfig",
        "<<",
        "x",
    ]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words | st.text(max_size=3), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(words, values, max_size=4), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_document_is_understood_or_refused(document: Any, headed: bool) -> None:
    if headed:
        document = {**document, "apiVersion": "llm-d.ai/v1alpha1", "kind": "EndpointPickerConfig"}
    try:
        load(yaml.safe_dump(document), "x")
    except ConfigurationError as refusal:
        assert refusal.problems and all(problem.line >= 1 for problem in refusal.problems)


@given(st.integers(0, len(DEFAULT_TEXT)), st.text(alphabet="-:{}[]&*!|>'\"%@`#, \n\tax0", max_size=3))
@settings(max_examples=150, deadline=None)
def test_any_damage_is_understood_or_refused(at: int, inserted: str) -> None:
    try:
        load(DEFAULT_TEXT[:at] + inserted + DEFAULT_TEXT[at + 1 :], "x")
    except ConfigurationError as refusal:
        assert refusal.problems


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        load_default().handler = "x"  # type: ignore[misc]
    assert msgspec.structs.asdict(load_default())["profiles"]
