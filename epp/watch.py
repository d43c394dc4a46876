"""Watches the event loop: from within, how late it is; from a thread, whether it still turns at all."""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable

from epp.pressure import BEAT_S, Patience, Pressure, Step

log = logging.getLogger("epp.watch")

HUNG_STATUS = 70
"""Exit status of a process whose loop hung: `EX_SOFTWARE` of sysexits.h, told apart from 1, could not start."""

_LOOKS = 10

_WORDS = {
    Step.FULL: "picks are made as configured again",
    Step.NO_PREFIX: "picks go without prefixes",
    Step.RANDOM: "picks take any endpoint that can be reached",
}


def end_with_stacks() -> None:
    """Write every thread's stack to standard error and end at once: a loop that hangs runs no cleaning up."""
    faulthandler.dump_traceback(file=sys.__stderr__ or 2, all_threads=True)
    os._exit(HUNG_STATUS)


class LoopWatch:
    """From `start` to `stop`: tells `pressure` of each beat, and calls `hung` once, from a thread, after about
    `hang_timeout_s` without one (0: never).

    Code that hangs inside C with the interpreter lock held stops the thread too; liveness probes see that. All methods
    belong to the running loop.
    """

    def __init__(
        self,
        pressure: Pressure,
        clock: Callable[[], float],
        hang_timeout_s: float,
        hung: Callable[[], None] = end_with_stacks,
    ) -> None:
        self._pressure = pressure
        self._clock = clock
        self._look_s = hang_timeout_s / _LOOKS
        self._hung = hung
        self._beats = 0
        self._timer: asyncio.TimerHandle | None = None
        self._over = threading.Event()

    def start(self) -> None:
        self._expect()
        if self._look_s:
            threading.Thread(target=self._look, name="watchdog", daemon=True).start()

    def stop(self) -> None:
        self._over.set()
        if self._timer is not None:
            self._timer.cancel()

    def _expect(self) -> None:
        due_s = self._clock() + BEAT_S
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self._beat, due_s)

    def _beat(self, due_s: float) -> None:
        now_s = self._clock()
        self._beats += 1
        if self._pressure.beat(max(0.0, now_s - due_s), now_s):
            step, lag_ms = self._pressure.step, self._pressure.lag_s * 1e3
            log.log(logging.WARNING if step else logging.INFO, "the loop is %.0f ms late: %s", lag_ms, _WORDS[step])
        self._expect()

    def _look(self) -> None:
        patience = Patience(_LOOKS)
        while not self._over.wait(self._look_s):
            if patience.lost(self._beats):
                log.critical("the event loop has not turned for %.0f s: ending", self._look_s * _LOOKS)
                self._hung()
                return
