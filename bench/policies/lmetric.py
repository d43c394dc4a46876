"""LMETRIC: multiplication instead of weights (Zhang et al., OSDI 2026, arXiv 2603.15202)."""

from __future__ import annotations

from bench.policies import Asked, View
from bench.policies.choosing import least
from bench.policies.counting import Counting


class Product(Counting):
    """argmin of P · B: P the prompt tokens to be prefilled there if it came, those of this request that are not cached and those sent
    before without a first token; B the requests in flight there with this one, so that an idle server is not worth 0 whatever it lacks.

    What is cached is what the server really has.
    """

    def pick(self, request: Asked, view: View) -> int:
        uncached = {
            server: max(1, request.prompt_tokens - view.cached_tokens(server, request)) for server in view.servers
        }
        server = least(
            view.servers, lambda one: (self.tokens[one] + uncached[one]) * (self.requests[one] + 1), view.rng
        )
        self.charge(request, uncached[server])
        return server
