"""Durations and quantities as Go and Kubernetes write them."""

from __future__ import annotations

import re
from decimal import Decimal

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
DURATION_PATTERN = r"^(0|((\d+(\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h))+)$"

_SUFFIX = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{suffix: Decimal(1000) ** power for power, suffix in enumerate(("k", "M", "G", "T", "P", "E"), 1)},
    **{suffix: Decimal(1024) ** power for power, suffix in enumerate(("Ki", "Mi", "Gi", "Ti", "Pi", "Ei"), 1)},
}
QUANTITY_PATTERN = r"^(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,2}|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"


def parse_duration(text: str) -> float:
    """Seconds of `200ms`, `1m30s`, `0`. Raises ValueError."""
    if not re.fullmatch(DURATION_PATTERN, text):
        raise ValueError(f"expected a duration such as 200ms or 1m30s, got {text!r}")
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(_PART, text))


def parse_quantity(text: str) -> int:
    """The whole number that `10Gi`, `1k`, `1e6` or `512` stand for. Raises ValueError."""
    match = re.fullmatch(QUANTITY_PATTERN, text)
    if match is None:
        raise ValueError(f"expected a quantity such as 1k or 10Gi, got {text!r}")
    number, suffix = Decimal(match[1]), match[3] or ""
    value = number.scaleb(int(suffix[1:])) if suffix[1:].lstrip("+-").isdigit() else number * _SUFFIX[suffix]
    if value != int(value):
        raise ValueError(f"expected a whole number, got {text!r}")
    return int(value)
