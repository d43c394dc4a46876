"""Every policy of another system by the name that reports know it by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from bench.policies import Policy
from bench.policies.aibrix import PrefixCache
from bench.policies.chwbl import BoundedHash
from bench.policies.dynamo import LinearCost, ShortestFirst
from bench.policies.go_picker import Blend, Sticky
from bench.policies.llumnix import MissesAndQueue
from bench.policies.lmetric import Product
from bench.policies.preble import ExploitExplore
from bench.policies.production_stack import PrefixAware
from bench.policies.sglang import CacheAware, LeastLoad
from bench.policies.simple import LeastRequest, PowerOfTwo, Random, RoundRobin

RIVALS: Mapping[str, Callable[[], Policy]] = {
    "round robin": RoundRobin,
    "random": Random,
    "least request": LeastRequest,
    "power of two": PowerOfTwo,
    "Go picker 3:2:2": Blend,
    "Go picker, sticky": Sticky,
    "SGLang cache_aware": CacheAware,
    "SGLang least_load": LeastLoad,
    "Dynamo": LinearCost,
    "Dynamo, scale 2": partial(LinearCost, scale=2.0),
    "Dynamo, shortest first": ShortestFirst,
    "AIBrix prefix-cache": PrefixCache,
    "KubeAI CHWBL": BoundedHash,
    "Preble E2": ExploitExplore,
    "LMETRIC": Product,
    "Llumnix": MissesAndQueue,
    "production-stack prefixaware": PrefixAware,
}
