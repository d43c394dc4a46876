from __future__ import annotations

from collections.abc import Sequence

from epp.scoring import Request


class SingleProfileHandler:
    """Runs every request through the one scheduling profile there is."""

    def choose(self, request: Request, profiles: Sequence[str]) -> str:
        return profiles[0]
