"""Who competes: the picker with its default policy, and every baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from bench.lab.baseline import baseline
from bench.lab.picker import picker
from bench.lab.router import NewRouter
from bench.policies.table import RIVALS
from epp.configuration import load_default

DEFAULT = "epp"
"""The picker without a configuration file."""

CONTENDERS: Mapping[str, Callable[[], NewRouter]] = {
    DEFAULT: lambda: picker(load_default()),
    **{name: partial(baseline, policy) for name, policy in RIVALS.items()},
}
