from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from epp.scoring import Candidates, Endpoint, FloatArray, Request
from scorers.sessions import DEFAULT_IDS, DEFAULT_TOKEN, SessionIds, Strategy, TokenHeader, session_index, sessions


class SessionAffinityScorer:
    """Prefers a session's endpoint: 1 for it, 0 for the others, 0 for all where the session is new.

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

    def score(self, request: Request, candidates: Candidates) -> FloatArray:
        scores = np.zeros(len(candidates))
        index = session_index(self._sessions, request, candidates)
        if index is not None:
            scores[index] = 1.0
        return scores

    def picked(self, request: Request, endpoint: Endpoint) -> None:
        self._sessions.picked(request, endpoint)

    def responded(self, request: Request, endpoint: Endpoint, headers: Mapping[str, str]) -> Mapping[str, str]:
        return self._sessions.answer_headers(endpoint)
