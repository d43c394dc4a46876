"""What the configuration says to parts other than the pipeline: one frozen value each, by the plugin types that set it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec

from epp.configuration.shapes import Unread
from epp.flow.settings import LEAST_WAIT_MULTIPLE, LEAST_WEIGHT, MOST_WEIGHT, Holdback, Programs
from epp.quota.limits import Limit, Limits
from epp.quota.tenants import FAIRNESS_ID
from epp.scoring import Count, NotNegative, Positive, PositiveSeconds, Share
from epp.signals.engines import ENGINE_LABEL, CustomMetric, EngineChoice, EngineConfig
from epp.signals.source import MetricsSource

NotNegativeCount = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class PrefixSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The index of which endpoint has which prompt prefix cached.

    With `auto_tune` an endpoint's capacity follows what it reports of its KV cache, and `lru_capacity_per_server` (in blocks)
    stands in until it does. Prompts are indexed up to `max_prefix_tokens_to_match`, or `max_prefix_blocks_to_match` where that is 0;
    both 0 is without bound. The Go picker's 131,072 tokens took a server that has the beginning of a longer session for one that
    has all of it. Blocks are 64 tokens; `block_size_tokens` is accepted and changes nothing.
    """

    auto_tune: bool = True
    block_size_tokens: Count = 16
    max_prefix_tokens_to_match: NotNegativeCount = 524288
    max_prefix_blocks_to_match: NotNegativeCount = 2048
    lru_capacity_per_server: Count = 31250


class InFlightSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The account of requests and prompt tokens in flight.

    With `add_estimated_output_tokens` a request also counts `output_ratio` · its prompt's tokens, at most
    `max_estimated_output_tokens`, for the answer to come.
    """

    add_estimated_output_tokens: bool = False
    output_ratio: NotNegative = 1.5
    max_estimated_output_tokens: Count | None = None
    prefix_match_info_producer_name: str = "approx-prefix-cache-producer"
    sync_cross_replica_state: bool = True


class Resolution(msgspec.Struct, frozen=True, rename="camel"):
    """Pixels."""

    width: Count = 640
    height: Count = 360


class Fixed(msgspec.Struct, frozen=True, rename="camel"):
    """A number of tokens, whatever the size; an image's is `static_token`, a frame's `num_tokens_per_frame`."""

    static_token: Count | None = None
    num_tokens_per_frame: Count | None = None


class Factor(msgspec.Struct, frozen=True, rename="camel"):
    """Pixels to a token."""

    factor: Positive = 1024.0


class ImageEstimate(msgspec.Struct, frozen=True, rename="camel"):
    """Tokens of an image."""

    mode: Literal["static", "dynamic"] = "dynamic"
    default_resolution: Resolution = Resolution()
    static: Fixed | None = None
    dynamic: Factor | None = None


class FrameTokens(msgspec.Struct, frozen=True, rename="camel"):
    """Tokens of a video's frame."""

    mode: Literal["static", "dynamic"] = "dynamic"
    static: Fixed | None = None
    dynamic: Factor | None = None


class SampledFrames(msgspec.Struct, frozen=True, rename="camel"):
    """So many frames a second."""

    sample_fps: Positive | None = msgspec.field(default=None, name="sampleFPS")
    temporal_patch_size: Count | None = None


class StridedFrames(msgspec.Struct, frozen=True, rename="camel"):
    """Every so many of the source's frames."""

    default_source_fps: Positive | None = msgspec.field(default=None, name="defaultSourceFPS")
    frame_stride: Count | None = None


class Frames(msgspec.Struct, frozen=True, rename="camel"):
    """How many frames of a video count."""

    mode: Literal["sampled", "strided"] = "sampled"
    min_frames: NotNegativeCount | None = None
    max_frames: NotNegativeCount | None = None
    sampled: SampledFrames | None = None
    strided: StridedFrames | None = None


class VideoEstimate(msgspec.Struct, frozen=True, rename="camel"):
    """Tokens of a video."""

    default_resolution: Resolution = Resolution()
    default_duration: PositiveSeconds | None = None
    tokens_per_frame: FrameTokens | None = None
    frames: Frames | None = None
    max_video_tokens: NotNegativeCount | None = None


class Estimate(msgspec.Struct, frozen=True, rename="camel"):
    """How tokens of images and videos are estimated."""

    image: ImageEstimate | None = None
    video: VideoEstimate | None = None


class TokenSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Prompt tokens, by estimate from bytes.

    `estimate` is accepted and changes nothing. `vllm` and `uds_tokenizer_config` are read only to be refused.
    """

    model_name: str = ""
    estimate: Estimate | None = None
    vllm: Unread = Unread()
    uds_tokenizer_config: Unread = Unread()


class MetricsSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Where model servers' metrics pages are.

    `port` None is the endpoint's own, `interval` (seconds) None the process's own setting.
    """

    scheme: Literal["http", "https"] = "http"
    path: str = "/metrics"
    port: Port | None = None
    insecure_skip_verify: bool = True
    ca_cert_path: str = ""
    client_cert_path: str = ""
    client_key_path: str = ""
    interval: PositiveSeconds | None = None

    def source(self) -> MetricsSource:
        """Raises ValueError, also for certificate files that cannot be used."""
        arguments = msgspec.structs.asdict(self)
        arguments["interval"] = None if self.interval is None else f"{self.interval:f}s"
        return MetricsSource(**arguments)


class ExtractorSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """What is read from a metrics page, by the engine that an endpoint's label names.

    `default_engine` stands in where there is no label `engine_label_key`.
    """

    default_engine: str = "vllm"
    engine_label_key: str = ENGINE_LABEL
    engine_configs: tuple[EngineConfig, ...] = ()
    custom_metrics: tuple[CustomMetric, ...] = ()

    def choice(self) -> EngineChoice:
        """Raises ValueError."""
        return EngineChoice(**msgspec.structs.asdict(self))


class FileDiscovery(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Endpoints listed in a file.

    It is read anew when it changes, unless `watch_file` is false.
    """

    path: str
    watch_file: bool = True


class NoParameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Of a type that has nothing to set."""


class ProgramFairness(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Programs (fairness ids) that were served least and wait longest go first.

    Both count from 0 to 1 among those that wait, times their weights. Service is the tokens of prompts that were not cached, and twice
    those of answers; it halves every `las_half_life_seconds`, 0: never. After `eviction_ttl_seconds` without any a program is forgotten.
    """

    strategy: Literal["las"] = "las"
    las_weight_service: NotNegative = 0.8
    las_weight_head_wait: NotNegative = 0.2
    las_half_life_seconds: NotNegative = 60
    eviction_ttl_seconds: Positive = 3600
    eviction_sweep_seconds: Positive = 300

    def programs(self) -> Programs:
        return Programs(
            service_weight=self.las_weight_service,
            head_wait_weight=self.las_weight_head_wait,
            half_life_s=self.las_half_life_seconds,
            remembered_s=self.eviction_ttl_seconds,
            sweep_s=self.eviction_sweep_seconds,
        )


class ShortestPrompt(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The shortest uncached prompt goes first, and nobody waits for more than a multiple of its fair wait.

    The fair wait is that in order of arrival, in tokens of the same line.
    """

    max_wait_multiple: Annotated[float, msgspec.Meta(ge=LEAST_WAIT_MULTIPLE)] = 4.0


class WeightedTokens(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Whoever was given the fewest prompt tokens goes next.

    `weights` are by fairness id; who is not named has 1.
    """

    weights: Mapping[str, Annotated[float, msgspec.Meta(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]] = {}


class StaticLimit(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One ceiling of saturation for every priority."""

    threshold: NotNegative = 1.0


class PriorityHoldback(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Ceilings of saturation that step down with priority."""

    min_ceiling: Share
    max_ceiling: Share = 1.0
    shape: Literal["linear"] = "linear"
    domain: Literal["rank", "value"] = "rank"

    def limit(self) -> Holdback:
        """Raises ValueError."""
        return Holdback(self.min_ceiling, self.max_ceiling, self.domain)


class QuotaSettings(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Rate limits on requests and tokens, by tenant and by model.

    `tenant` says who is one: `fairness-id`, `api-key` (Authorization: Bearer, or x-api-key), or the name of a header. A limit
    names an API key by its SHA-256 in hexadecimal. A request is charged its prompt and `estimated_answer_tokens`, less
    where the client allows less, until its answer says what it really took. The `max_tenants` seen last are remembered.
    """

    limits: tuple[Limit, ...]
    tenant: str = FAIRNESS_ID
    estimated_answer_tokens: NotNegativeCount = 256
    max_tenants: Count = 10_000

    def table(self) -> Limits:
        """Raises ValueError."""
        if not self.tenant:
            raise ValueError("tenant is empty: say fairness-id, api-key, or the name of a header")
        return Limits(self.limits)


Settings = (
    PrefixSettings
    | InFlightSettings
    | TokenSettings
    | MetricsSettings
    | ExtractorSettings
    | FileDiscovery
    | NoParameters
    | ProgramFairness
    | ShortestPrompt
    | WeightedTokens
    | StaticLimit
    | PriorityHoldback
    | QuotaSettings
)
