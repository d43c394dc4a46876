"""Ctrl-C, SIGTERM and a closed terminal, all of which end the demo in order.

Imports nothing that takes time: it is in place before the rest is loaded.
"""

from __future__ import annotations

import os
import signal
from asyncio import Task
from types import FrameType
from typing import Any, NoReturn

STATUS = 130
"""Exit status after an interruption, as a shell has it for SIGINT."""

FAREWELL = b"interrupted: nothing is left running\n"


class Interrupt:
    """Before a task is in charge a signal ends the process at once; then the first one cancels that task, others do nothing."""

    def __init__(self) -> None:
        self._task: Task[Any] | None = None
        self._told = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._receive)

    def cancels(self, task: Task[Any]) -> None:
        """From now on a signal cancels `task`, which owns all that needs an end and ends the process when it is through."""
        self._task = task

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._task is None:
            leave()
        if not self._told and not self._task.done():
            self._told = True
            # Not cancel() alone: a loop that sleeps must be woken.
            self._task.get_loop().call_soon_threadsafe(self._task.cancel)


def leave() -> NoReturn:
    """End the process with one line, whatever it was doing."""
    os.write(2, FAREWELL)
    os._exit(STATUS)
