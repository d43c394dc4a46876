from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from epp.scoring import BoolArray, Candidates, Endpoint, Request
from scorers.sessions import DEFAULT_IDS, DEFAULT_TOKEN, SessionIds, Strategy, TokenHeader, session_index, sessions


class SessionAffinityFilter:
    """Pins a session to its endpoint for as long as that is a candidate; all stay for a new session.

    `strategy` encoded_endpoint_header: a token in the answer's header, which the client sends back, names the endpoint.
    session_id: the client sends an id of its own, and the endpoint is remembered here. `profile_name` is accepted and
    changes nothing: a request runs through one profile.
    """

    def __init__(
        self,
        *,
        strategy: Strategy = "encoded_endpoint_header",
        encoded_endpoint_header_config: TokenHeader = DEFAULT_TOKEN,
        session_id_config: SessionIds = DEFAULT_IDS,
        profile_name: str = "",
    ) -> None:
        self._sessions = sessions(strategy, encoded_endpoint_header_config, session_id_config)

    def filter(self, request: Request, candidates: Candidates) -> BoolArray:
        index = session_index(self._sessions, request, candidates)
        if index is None:
            return np.ones(len(candidates), dtype=np.bool_)
        kept = np.zeros(len(candidates), dtype=np.bool_)
        kept[index] = True
        return kept

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        self._sessions.picked(request, endpoint)

    def responded(self, request: Request, endpoint: Endpoint, headers: Mapping[str, str]) -> Mapping[str, str]:
        return self._sessions.answer_headers(endpoint)
