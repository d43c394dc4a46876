from __future__ import annotations

import numpy as np

from epp.scoring import BoolArray, Candidates, Request

HEADER = "test-epp-endpoint-selection"


class HeaderBasedTestingFilter:
    """For conformance tests alone: keeps the endpoints that a request header names by IP or IP:port.

    Any client can steer with it. Without the header all stay; an address that nobody has leaves none.
    """

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        named = request.headers.get(HEADER)
        if named is None:
            return np.ones(len(candidates), dtype=np.bool_)
        wanted = {address.strip() for address in named.split(",")}
        return np.array([e.address in wanted or e.destination in wanted for e in candidates.members], dtype=np.bool_)
