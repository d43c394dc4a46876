"""Filters, scorers, pickers and profile handlers, one file each, and the table that names them in configuration files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from epp.scoring import Filter, Picker, ProfileHandler, Scorer
from scorers.active_request_scorer import ActiveRequestScorer
from scorers.by_label import ByLabel
from scorers.concurrency_detector import ConcurrencyDetector
from scorers.context_length_aware import ContextLengthAware
from scorers.decode_filter import DecodeFilter
from scorers.encode_filter import EncodeFilter
from scorers.endpoint_attribute_filter import EndpointAttributeFilter
from scorers.endpoint_attribute_scorer import EndpointAttributeScorer
from scorers.header_based_testing_filter import HeaderBasedTestingFilter
from scorers.header_label_affinity_scorer import HeaderLabelAffinityScorer
from scorers.header_profile_handler import HeaderProfileHandler
from scorers.kv_cache_utilization_scorer import KvCacheUtilizationScorer
from scorers.label_selector_filter import LabelSelectorFilter
from scorers.least_delay_scorer import LeastDelayScorer
from scorers.load_aware_scorer import LoadAwareScorer
from scorers.lora_affinity_scorer import LoraAffinityScorer
from scorers.max_score_picker import MaxScorePicker
from scorers.no_hit_lru_scorer import NoHitLruScorer
from scorers.prefill_filter import PrefillFilter
from scorers.prefill_wait_detector import PrefillWaitDetector
from scorers.prefix_cache_affinity_filter import PrefixCacheAffinityFilter
from scorers.prefix_cache_scorer import PrefixCacheScorer
from scorers.queue_scorer import QueueScorer
from scorers.random_picker import RandomPicker
from scorers.round_robin_picker import RoundRobinPicker
from scorers.running_requests_size_scorer import RunningRequestsSizeScorer
from scorers.session_affinity_filter import SessionAffinityFilter
from scorers.session_affinity_scorer import SessionAffinityScorer
from scorers.single_profile_handler import SingleProfileHandler
from scorers.token_load_scorer import TokenLoadScorer
from scorers.utilization_detector import UtilizationDetector
from scorers.utilization_filter import UtilizationFilter
from scorers.weighted_random_picker import WeightedRandomPicker

Plugin = Filter | Scorer | Picker | ProfileHandler

PLUGINS: Final[Mapping[str, type[Filter] | type[Scorer] | type[Picker] | type[ProfileHandler]]] = {
    "active-request-scorer": ActiveRequestScorer,
    "by-label": ByLabel,
    "by-label-selector": LabelSelectorFilter,
    "concurrency-detector": ConcurrencyDetector,
    "context-length-aware": ContextLengthAware,
    "decode-filter": DecodeFilter,
    "encode-filter": EncodeFilter,
    "endpoint-attribute-filter": EndpointAttributeFilter,
    "endpoint-attribute-scorer": EndpointAttributeScorer,
    "header-based-testing-filter": HeaderBasedTestingFilter,
    "header-label-affinity-scorer": HeaderLabelAffinityScorer,
    "header-profile-handler": HeaderProfileHandler,
    "kv-cache-utilization-scorer": KvCacheUtilizationScorer,
    "label-selector-filter": LabelSelectorFilter,
    "least-delay-scorer": LeastDelayScorer,
    "load-aware-scorer": LoadAwareScorer,
    "lora-affinity-scorer": LoraAffinityScorer,
    "max-score-picker": MaxScorePicker,
    "no-hit-lru-scorer": NoHitLruScorer,
    "prefill-filter": PrefillFilter,
    "prefill-wait-detector": PrefillWaitDetector,
    "prefix-cache-affinity-filter": PrefixCacheAffinityFilter,
    "prefix-cache-scorer": PrefixCacheScorer,
    "queue-scorer": QueueScorer,
    "random-picker": RandomPicker,
    "round-robin-picker": RoundRobinPicker,
    "running-requests-size-scorer": RunningRequestsSizeScorer,
    "session-affinity-filter": SessionAffinityFilter,
    "session-affinity-scorer": SessionAffinityScorer,
    "single-profile-handler": SingleProfileHandler,
    "token-load-scorer": TokenLoadScorer,
    "utilization-detector": UtilizationDetector,
    "utilization-filter": UtilizationFilter,
    "weighted-random-picker": WeightedRandomPicker,
}
