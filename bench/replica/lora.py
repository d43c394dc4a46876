"""Adapter slots on the GPU: how many different adapters one step may use, and what bringing one in costs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection


class AdapterSlots:
    """The adapters on the GPU, least recently used first.

    One slot's adapter is replaced only by an adapter that a step needs, never one that the same step needs. vLLM keeps no more
    adapters in host memory than it has slots (its default), so a replaced one is read again in full: `load_s`.
    """

    def __init__(self, slots: int, load_s: float) -> None:
        self.slots = slots
        self._load_s = load_s
        self._resident: OrderedDict[str, None] = OrderedDict()

    @property
    def resident(self) -> tuple[str, ...]:
        """Adapters on the GPU, least recently used first."""
        return tuple(self._resident)

    def fits(self, adapter: str, in_step: Collection[str]) -> bool:
        """Whether a step that uses the adapters `in_step` may use `adapter` as well."""
        return adapter in in_step or len(in_step) < self.slots

    def use(self, adapters: Collection[str]) -> float:
        """Bring in what a step needs. Returns the seconds that this holds the step up."""
        missing = [adapter for adapter in adapters if adapter not in self._resident]
        for adapter in adapters:
            self._resident[adapter] = None
            self._resident.move_to_end(adapter)
        while len(self._resident) > self.slots:
            self._resident.popitem(last=False)
        return self._load_s * len(missing)

    def copy(self) -> AdapterSlots:
        twin = AdapterSlots(self.slots, self._load_s)
        twin._resident = self._resident.copy()
        return twin

    def forget(self, adapter: str) -> None:
        """Drop an adapter that was unloaded; no effect if it is not on the GPU."""
        self._resident.pop(adapter, None)
