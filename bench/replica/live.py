"""An engine in real time: requests come and go on the event loop, tokens appear when the measured latencies say so."""

from __future__ import annotations

import asyncio
import itertools
import math

import xxhash

from bench.replica.engine import Engine, FirstToken, Stats, Work
from bench.replica.kv import TOKEN_BYTES, block_hashes
from bench.replica.page import Observed
from bench.replica.profiles import Profile
from bench.replica.text import answer, token_count


class Generation:
    """One answer under way. `text` is the whole answer from the start; `tokens` of it are there."""

    __slots__ = (
        "_arrived",
        "cached_tokens",
        "done",
        "first_after_s",
        "id",
        "output_tokens",
        "prompt_tokens",
        "reason",
        "submitted_s",
        "text",
        "tokens",
        "wanted",
    )

    def __init__(self, work: Work, text: bytes, reason: str, submitted_s: float) -> None:
        self.id = work.id
        self.prompt_tokens = work.prompt_tokens
        self.output_tokens = work.output_tokens
        self.text = text
        self.reason = reason
        self.submitted_s = submitted_s
        self.first_after_s = 0.0
        self.cached_tokens = 0
        self.tokens = 0
        self.done = False
        self.wanted = 0
        self._arrived: asyncio.Future[None] | None = None

    async def reach(self, tokens: int) -> None:
        """Wait until at least `tokens` of the answer are there, or all of it."""
        self.wanted = tokens
        if not self._enough:
            self._arrived = asyncio.get_running_loop().create_future()
            await self._arrived

    def notify(self) -> None:
        """Wake who waits, if that many tokens are there."""
        arrived = self._arrived
        if arrived is not None and self._enough:
            self._arrived = None
            if not arrived.done():
                arrived.set_result(None)

    @property
    def _enough(self) -> bool:
        return self.done or (self.tokens >= self.wanted and self.wanted < self.output_tokens)


class LiveEngine:
    """Drives an engine by the running loop's clock, `time_scale` engine seconds to a second.

    Use it on one loop only. `stall` stops its time, `resume` lets it go on from there.
    """

    def __init__(self, profile: Profile, time_scale: float = 1.0) -> None:
        self.observed = Observed()
        self.profile = profile
        self._engine = Engine(profile)
        self._scale = time_scale
        self._loop = asyncio.get_running_loop()
        self._zero_s = self._loop.time()
        self._stalled_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._generations: dict[str, Generation] = {}
        self._ids = itertools.count()

    def generate(self, prompt: bytes, limit: int | None, *, adapter: str | None, salt: str, embed: bool) -> Generation:
        """Start an answer to `prompt`. Without a `limit` its length follows from the prompt: 32 to 287 tokens, less where
        the server's limit is near.

        Raises ValueError when prompt and answer are empty or longer than `profile.longest`.
        """
        prompt_tokens = token_count(prompt)
        seed = xxhash.xxh3_64_intdigest(prompt)
        natural = min(32 + seed % 256, max(1, self.profile.longest - prompt_tokens))
        output_tokens = 0 if embed else natural if limit is None else limit
        text = answer(seed >> 16, output_tokens)
        filled = prompt.ljust(prompt_tokens * TOKEN_BYTES, b"\0")
        cache = xxhash.xxh3_64_intdigest(f"{adapter}/{salt}".encode())
        hashes = block_hashes(filled + text, self.profile.block_size, cache)
        now_s = self._now_s()
        work = Work(str(next(self._ids)), prompt_tokens, output_tokens, hashes, adapter)
        self._engine.submit(work, now_s)
        generation = Generation(work, text, "stop" if limit is None else "length", now_s)
        self._generations[work.id] = generation
        self._schedule()
        return generation

    def give_up(self, generation: Generation) -> None:
        """Abort what is not done; no effect on what is."""
        if self._generations.pop(generation.id, None) is None:
            return
        self._engine.abort(generation.id)
        self.observed.ended["abort"] += 1
        self._schedule()

    @property
    def frontend_s(self) -> float:
        """Real seconds that pass before the scheduler sees a request."""
        return self.profile.frontend_s / self._scale

    def stats(self) -> Stats:
        return self._engine.stats()

    def forget_adapter(self, adapter: str) -> None:
        self._engine.forget_adapter(adapter)

    def stall(self) -> None:
        if self._stalled_s is None:
            self._stalled_s = self._loop.time()
            self.close()

    def resume(self) -> None:
        if self._stalled_s is not None:
            self._zero_s += self._loop.time() - self._stalled_s
            self._stalled_s = None
            self._schedule()

    def close(self) -> None:
        """Stop the timer. What is under way stays where it is."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _now_s(self) -> float:
        real_s = self._loop.time() if self._stalled_s is None else self._stalled_s
        return max(self._engine.now_s, (real_s - self._zero_s) * self._scale)

    def _schedule(self) -> None:
        self.close()
        next_s = self._engine.next_s
        if next_s < math.inf and self._stalled_s is None:
            self._timer = self._loop.call_at(self._zero_s + next_s / self._scale, self._tick)

    def _tick(self) -> None:
        self._timer = None
        for event in self._engine.advance(self._now_s()):
            generation = self._generations[event.id]
            generation.cached_tokens = event.cached_tokens
            if isinstance(event, FirstToken):
                generation.first_after_s = event.at_s - generation.submitted_s
                self.observed.first_token(generation.first_after_s)
            else:
                self._finish(generation, event.at_s)
        for generation in self._generations.values():
            generation.tokens = self._engine.generated(generation.id)
            generation.notify()
        self._schedule()

    def _finish(self, generation: Generation, at_s: float) -> None:
        del self._generations[generation.id]
        generation.tokens = generation.output_tokens
        generation.done = True
        generation.notify()
        whole_s = at_s - generation.submitted_s
        counts = generation.prompt_tokens, generation.output_tokens
        self.observed.end(generation.reason, *counts, generation.first_after_s, whole_s)
