"""All plugin types: what each makes, what it is for, and which are known but not here."""

from __future__ import annotations

import enum
import importlib
import importlib.metadata
import inspect
from collections.abc import Mapping
from typing import Final

import msgspec

from epp.configuration import parts
from epp.configuration.annotations import Unsupported, record_of_plugin, record_of_struct
from epp.configuration.shapes import REQUIRED, Field, Record, Written, plain
from epp.scoring import Notation
from scorers import PLUGINS

ENTRY_POINTS = "epp.scorers"


class Kind(enum.Enum):
    """What a plugin may be referred to as. The first four run at each pick."""

    FILTER = "filter"
    SCORER = "scorer"
    PICKER = "picker"
    PROFILE_HANDLER = "profile handler"
    SATURATION = "saturation detector"
    PRODUCER = "producer"
    SOURCE = "data source"
    EXTRACTOR = "extractor"
    DISCOVERY = "discovery"
    PARSER = "parser"
    FAIRNESS = "fairness policy"
    ORDERING = "ordering policy"
    USAGE_LIMIT = "usage limit policy"
    EVICTION = "eviction policy"
    QUOTA = "quota"


_METHODS = {
    "filter": Kind.FILTER,
    "score": Kind.SCORER,
    "pick": Kind.PICKER,
    "choose": Kind.PROFILE_HANDLER,
    "saturation": Kind.SATURATION,
}
POLICY = frozenset({Kind.FILTER, Kind.SCORER, Kind.PICKER, Kind.PROFILE_HANDLER, Kind.SATURATION})


class PluginType(msgspec.Struct, frozen=True):
    """`make` takes what `record` reads. `kinds` are in the order of `Kind`. `purpose` is one line."""

    name: str
    kinds: tuple[Kind, ...]
    make: type
    record: Record
    purpose: str

    @property
    def is_policy(self) -> bool:
        """Whether it runs at picks, rather than setting up another part."""
        return not POLICY.isdisjoint(self.kinds)


_SETTINGS: Final[Mapping[str, tuple[Kind, type[parts.Settings]]]] = {
    "approx-prefix-cache-producer": (Kind.PRODUCER, parts.PrefixSettings),
    "inflight-load-producer": (Kind.PRODUCER, parts.InFlightSettings),
    "token-producer": (Kind.PRODUCER, parts.TokenSettings),
    "tokenizer": (Kind.PRODUCER, parts.TokenSettings),
    "metrics-data-source": (Kind.SOURCE, parts.MetricsSettings),
    "core-metrics-extractor": (Kind.EXTRACTOR, parts.ExtractorSettings),
    "file-discovery": (Kind.DISCOVERY, parts.FileDiscovery),
    "shortest-prompt-ordering-policy": (Kind.ORDERING, parts.ShortestPrompt),
    "weighted-token-fairness-policy": (Kind.FAIRNESS, parts.WeightedTokens),
    "program-aware-fairness": (Kind.FAIRNESS, parts.ProgramFairness),
    "static-usage-limit-policy": (Kind.USAGE_LIMIT, parts.StaticLimit),
    "priority-holdback-policy": (Kind.USAGE_LIMIT, parts.PriorityHoldback),
    "quota": (Kind.QUOTA, parts.QuotaSettings),
}

_PLAIN: Final[Mapping[str, tuple[Kind, str]]] = {
    "openai-parser": (Kind.PARSER, "Understands the OpenAI API's requests."),
    "anthropic-parser": (Kind.PARSER, "Understands Anthropic's messages."),
    "vllmhttp-parser": (Kind.PARSER, "Understands vLLM's own generate requests, whose prompt is token ids."),
    "passthrough-parser": (Kind.PARSER, "Takes any other request, to be routed by load."),
    "global-strict-fairness-policy": (Kind.FAIRNESS, "One line for all flows of a priority level."),
    "round-robin-fairness-policy": (Kind.FAIRNESS, "Flows of a priority level take turns."),
    "fcfs-ordering-policy": (Kind.ORDERING, "First come, first served."),
    "edf-ordering-policy": (Kind.ORDERING, "Who would be given up first goes first."),
    "slo-deadline-ordering-policy": (Kind.ORDERING, "Whose wanted time to first token passes first goes first."),
    "soft-reflective-ceiling-policy": (Kind.USAGE_LIMIT, "Lower priorities pause more often as the pool fills."),
    "sheddable-eviction-filter": (Kind.EVICTION, "Only requests of negative priority may be evicted."),
    "priority-then-time-eviction-order-policy": (
        Kind.EVICTION,
        "The lowest priority is evicted first, the newest of it.",
    ),
}
"""Types without parameters that have no class of their own."""

NOT_HERE: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "disagg-profile-handler",
            "pd-profile-handler",
            "disagg-headers-handler",
            "prefill-header-handler",
            "always-disagg-pd-decider",
            "prefix-based-pd-decider",
            "always-disagg-multimodal-decider",
            "p2p-source-producer",
        ),
        "disaggregated serving",
    ),
    "data-parallel-profile-handler": "routing to data-parallel ranks",
    **dict.fromkeys(
        ("predicted-latency-producer", "latency-scorer", "latency-slo-admitter", "slo-headroom-tier-filter"),
        "latency prediction",
    ),
    **dict.fromkeys(("mm-embeddings-cache-producer", "mm-embeddings-cache-scorer"), "multimodal cache affinity"),
    **dict.fromkeys(("precise-prefix-cache-producer", "precise-prefix-cache-scorer"), "KV cache events"),
    "burst-prefix-cache-producer": "co-locating bursts",
    **dict.fromkeys(("topology-affinity-filter", "topology-affinity-scorer", "topology-extractor"), "topology"),
    **dict.fromkeys(
        (
            "multicluster-session-affinity-filter",
            "multicluster-queue-scorer",
            "multicluster-kv-cache-utilization-scorer",
            "multicluster-prefix-cache-scorer",
            "multicluster-approx-prefix-cache-producer",
            "multicluster-file-discovery",
            "multicluster-metrics-data-source",
            "multicluster-metrics-extractor",
        ),
        "routing across clusters",
    ),
    **dict.fromkeys(("models-data-source", "models-data-extractor"), "reading /v1/models"),
    **dict.fromkeys(("dcgm-data-source", "dcgm-extractor"), "GPU metrics of DCGM"),
    **dict.fromkeys(("k8s-notification-source", "endpoint-notification-source"), "notification sources"),
    "session-id-producer": "the session id attribute",
    "agent-identity": "agent identity",
    "disaggregatedset-rollout-screener": "rollout screening",
    "probabilistic-admitter": "probabilistic admission",
    "request-attribute-reporter": "request attribute reports",
    "destination-endpoint-served-verifier": "the conformance test's verifier",
    **dict.fromkeys(("vllmgrpc-parser", "sglanghttp-parser", "vertexai-parser"), "this request format"),
}
"""Types that the Go picker has and this one does not, by what they would need."""


def _plugin_type(name: str, make: type) -> PluginType:
    kinds = tuple(kind for method, kind in _METHODS.items() if callable(getattr(make, method, None)))
    return PluginType(name, kinds, make, record_of_plugin(make), _first_line(make))


def _first_line(make: type) -> str:
    return (inspect.getdoc(make) or "").partition("\n")[0]


BUILT_IN: Final[Mapping[str, PluginType]] = {
    **{name: _plugin_type(name, make) for name, make in PLUGINS.items()},
    **{
        name: PluginType(name, (kind,), make, record_of_struct(make), _first_line(make))
        for name, (kind, make) in _SETTINGS.items()
    },
    **{
        name: PluginType(name, (kind,), parts.NoParameters, record_of_struct(parts.NoParameters), purpose)
        for name, (kind, purpose) in _PLAIN.items()
    },
}


class NoSuchType(LookupError):
    """Why a type cannot be used."""


def find(name: str) -> PluginType:
    """A built-in type, an entry point of the group `epp.scorers`, or `package.module:Class`.

    Raises NoSuchType, also where a third party's class cannot be imported, and Unsupported where its parameters
    cannot be configured.
    """
    known = BUILT_IN.get(name)
    if known is not None:
        return known
    if name in NOT_HERE:
        raise NoSuchType(
            f"{name} is a type of the Go picker that needs {NOT_HERE[name]}, which this version does not have"
        )
    make = _imported(name) if ":" in name else _entry_point(name)
    plugin_type = _plugin_type(name, make)
    if not plugin_type.kinds:
        raise NoSuchType(f"{name} has none of the methods {', '.join(_METHODS)}")
    return plugin_type


def _imported(name: str) -> type:
    module_name, _, attribute = name.partition(":")
    try:
        make = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise NoSuchType(f"{name} cannot be imported: {error}") from error
    return _class(name, make)


def _entry_point(name: str) -> type:
    found = importlib.metadata.entry_points(group=ENTRY_POINTS, name=name)
    if not found:
        raise NoSuchType("")
    try:
        make = next(iter(found)).load()
    except (ImportError, AttributeError) as error:
        raise NoSuchType(f"{name} cannot be imported: {error}") from error
    return _class(name, make)


def _class(name: str, make: object) -> type:
    if not isinstance(make, type):
        raise NoSuchType(f"{name} is no class")
    return make


def names() -> set[str]:
    """All types that can be written without a module, third parties' included."""
    return {*BUILT_IN, *(entry.name for entry in importlib.metadata.entry_points(group=ENTRY_POINTS))}


class ParameterDescription(msgspec.Struct, frozen=True):
    """`default` as it would be written; "" where there is none: required, if `required`."""

    name: str
    accepts: str
    default: str
    required: bool


class Description(msgspec.Struct, frozen=True):
    """One plugin type for a person."""

    type: str
    kinds: tuple[str, ...]
    purpose: str
    parameters: tuple[ParameterDescription, ...]


def describe() -> tuple[Description, ...]:
    """All built-in types and installed third parties', in the order of `Kind`; one that cannot be loaded says why."""
    order = list(Kind)
    types = sorted(BUILT_IN.values(), key=lambda entry: (order.index(entry.kinds[0]), entry.name))
    others = sorted(names() - BUILT_IN.keys())
    return tuple([_description(entry) for entry in types] + [_third_party(name) for name in others])


def _third_party(name: str) -> Description:
    try:
        return _description(find(name))
    except (NoSuchType, Unsupported) as error:
        return Description(name, (), f"cannot be used: {error}", ())


def _description(entry: PluginType) -> Description:
    kinds = tuple(kind.value for kind in entry.kinds)
    return Description(entry.name, kinds, entry.purpose, tuple(map(_parameter, entry.record.fields)))


def _parameter(field: Field) -> ParameterDescription:
    return ParameterDescription(field.name, field.shape.spoken(), _written(field), field.default is REQUIRED)


def _written(field: Field) -> str:
    default = plain(field.default)
    if default is None:
        return ""
    if isinstance(field.shape, Written) and field.shape.notation is Notation.DURATION:
        return f"{default:g}s"
    return msgspec.json.encode(default).decode()
