"""How many tokens a prompt has, from its bytes."""

from __future__ import annotations

import math

from msgspec import Struct

BYTES_PER_TOKEN = 4.0
"""Before a model's servers have said anything: English text under the tokenizers in use has 3.5 to 4.5."""

MIN_BYTES_PER_TOKEN = 0.5
MAX_BYTES_PER_TOKEN = 16.0


class _Totals(Struct, gc=False):
    prompt_bytes: float
    prompt_tokens: float


class TokenEstimator:
    """Bytes per token for each model, learned from what servers report as `usage`.

    The ratio is that of two running totals, so a long prompt weighs more than a short one; each report takes
    1/`memory` off what went before. A model starts with `prior_tokens` tokens at `BYTES_PER_TOKEN`. The `max_models` models
    that reported last are remembered.
    """

    def __init__(self, *, memory: int = 64, prior_tokens: int = 500, max_models: int = 1_000) -> None:
        self._kept = 1.0 - 1.0 / memory
        self._prior_tokens = float(prior_tokens)
        self._max_models = max_models
        self._totals: dict[str, _Totals] = {}

    def __len__(self) -> int:
        """Models remembered."""
        return len(self._totals)

    def bytes_per_token(self, model: str) -> float:
        totals = self._totals.get(model)
        return BYTES_PER_TOKEN if totals is None else totals.prompt_bytes / totals.prompt_tokens

    def tokens(self, model: str, prompt_bytes: int) -> int:
        """The estimate, rounded up: 0 only for no bytes."""
        totals = self._totals.get(model)
        if totals is None:
            return math.ceil(prompt_bytes / BYTES_PER_TOKEN)
        return math.ceil(prompt_bytes / (totals.prompt_bytes / totals.prompt_tokens))

    def learn(self, model: str, prompt_bytes: int, prompt_tokens: int) -> None:
        """Take in that a server counted `prompt_tokens` in a prompt of `prompt_bytes`. A count of 0 teaches nothing.

        A count beyond `MIN_BYTES_PER_TOKEN` or `MAX_BYTES_PER_TOKEN` counts as that limit, so one absurd report cannot
        spoil the ratio.
        """
        if prompt_bytes <= 0 or prompt_tokens <= 0:
            return
        totals = self._totals.pop(model, None)
        if totals is None:
            totals = _Totals(self._prior_tokens * BYTES_PER_TOKEN, self._prior_tokens)
        totals.prompt_bytes = totals.prompt_bytes * self._kept + prompt_bytes
        totals.prompt_tokens = totals.prompt_tokens * self._kept + min(
            max(prompt_tokens, prompt_bytes / MAX_BYTES_PER_TOKEN), prompt_bytes / MIN_BYTES_PER_TOKEN
        )
        self._totals[model] = totals
        if len(self._totals) > self._max_models:
            del self._totals[next(iter(self._totals))]
