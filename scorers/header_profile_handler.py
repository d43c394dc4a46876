from __future__ import annotations

from collections.abc import Sequence

from epp.scoring import Request


class HeaderProfileHandler:
    """Runs a request through the scheduling profile that a header of it names, else through the default one.

    A single profile runs whatever the header says. A name that is none of the profiles' gets the request refused.
    """

    def __init__(self, *, header_name: str = "EPP-Profile", default_profile: str = "decode") -> None:
        self._header = header_name.lower()
        self._default = default_profile

    def choose(self, request: Request, profiles: Sequence[str]) -> str:
        if len(profiles) == 1:
            return profiles[0]
        return request.headers.get(self._header, "").strip() or self._default
