from __future__ import annotations

from collections.abc import Sequence

from epp.scoring import Request


class HeaderProfileHandler:
    """Runs a request through the scheduling profile that its header `header_name` names, else through `default_profile`.

    A single profile runs whatever the header says.
    """

    def __init__(self, *, header_name: str = "EPP-Profile", default_profile: str = "decode") -> None:
        self._header = header_name.lower()
        self._default = default_profile

    def choose(self, request: Request, profiles: Sequence[str]) -> str:
        if len(profiles) == 1:
            return profiles[0]
        return request.headers.get(self._header, "").strip() or self._default
