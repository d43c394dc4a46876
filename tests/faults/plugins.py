"""A scorer that takes as long as a file says: how a test makes the picker's loop late, or hang."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from epp.endpoint import Candidates, FloatArray
from epp.request import Request


class Slow:
    """Blocks the loop for as many seconds as `control` holds; not at all where there is no such file. Judges nobody."""

    def __init__(self, control: str) -> None:
        self._control = Path(control)

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        if self._control.exists():
            time.sleep(float(self._control.read_text()))
        return np.zeros(len(candidates))
