"""The fields of an EndpointPickerConfig file, as they stand there."""

from __future__ import annotations

from typing import Literal

import msgspec

from epp.configuration.shapes import Placed, PlacedWhole, Unread
from epp.scoring import NotNegative, Positive, PositiveSeconds, Quantity, Seconds, Share


class PluginEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A plugin, by default under the name of its type."""

    type: Placed
    name: Placed | None = None
    parameters: Unread = Unread()


class Reference(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A plugin by its name."""

    plugin_ref: Placed


class WeightedReference(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A plugin of a profile. The weight is a scorer's."""

    plugin_ref: Placed
    weight: NotNegative | None = None


class ProfileEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A scheduling profile."""

    name: Placed
    plugins: tuple[WeightedReference, ...] = ()


class SourceEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A data source and who reads it."""

    plugin_ref: Placed
    extractors: tuple[Reference, ...] = ()


class DataLayer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where endpoints and their signals come from."""

    inject_defaults: bool = True
    sources: tuple[SourceEntry, ...] = ()
    discovery: Reference | None = None
    peer_discovery: Reference | None = None
    cross_replica_syncer_plugin_ref: Placed | None = None
    cross_replica_sync_interval: PositiveSeconds = 0.2


class OldDataLayer(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """As `dataLayer` was written before."""

    sources: tuple[SourceEntry, ...] = ()


class BandDefaults(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A priority level's limits and policies. Its `max_bytes` are 1G where not given.

    `request_ttl` is ours: how long its requests may wait, where that is not `defaultRequestTTL`; 0s: for ever.
    """

    max_bytes: Quantity | None = None
    max_requests: Quantity = 5000
    fairness_policy_ref: Placed | None = None
    ordering_policy_ref: Placed | None = None
    request_ttl: Seconds | None = msgspec.field(default=None, name="requestTTL")


class BandEntry(BandDefaults, frozen=True, kw_only=True, rename="camel"):
    """One priority level."""

    priority: PlacedWhole


class SaturationEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Which plugin tells how full the pool is; the other fields are how this was written before there were plugins for it."""

    plugin_ref: Placed | None = None
    queue_depth_threshold: Positive | None = None
    kv_cache_util_threshold: Share | None = None
    metrics_staleness_threshold: PositiveSeconds | None = None


class FlowControlEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Queues by priority in front of the pool.

    All levels together hold `max_bytes`: where not given 512Mi, or the most that a level is given. With `enable_eviction` requests
    below priority 0 that run are ended for those of higher priority that wait.
    """

    max_bytes: Quantity | None = None
    max_requests: Quantity | None = None
    default_request_ttl: Seconds = msgspec.field(default=60.0, name="defaultRequestTTL")
    no_endpoint_request_ttl: Seconds | None = msgspec.field(default=None, name="noEndpointRequestTTL")
    default_priority_band: BandDefaults | None = None
    default_negative_priority_band: BandDefaults | None = None
    priority_bands: tuple[BandEntry, ...] = ()
    usage_limit_policy_plugin_ref: Placed | None = None
    saturation_detector: Reference | None = None
    enable_eviction: bool = False


class RequestHandlerEntry(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Which request formats are understood."""

    parsers: tuple[Reference, ...] = ()


class File(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The whole file."""

    api_version: Literal["llm-d.ai/v1alpha1", "inference.networking.x-k8s.io/v1alpha1"]
    kind: Literal["EndpointPickerConfig"]
    feature_gates: tuple[Placed, ...] = ()
    plugins: tuple[PluginEntry, ...] = ()
    scheduling_profiles: tuple[ProfileEntry, ...] = ()
    data_layer: DataLayer | None = None
    data: OldDataLayer | None = None
    flow_control: FlowControlEntry | None = None
    request_handler: RequestHandlerEntry | None = None
    saturation_detector: SaturationEntry | None = None
    parser: Reference | None = None
