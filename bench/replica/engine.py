"""vLLM's engine under virtual time: continuous batching, chunked prefill, paged KV with prefix cache, preemption, LoRA.

It knows no clock. Whoever drives it says how far time has come (`advance`) and gets what happened until then; in between,
`next_s` says when something will. A replay jumps from event to event, an HTTP server follows the wall clock.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from collections.abc import Sequence

import msgspec

from bench.replica.kv import BlockPool
from bench.replica.lora import AdapterSlots
from bench.replica.profiles import Profile


class Work(msgspec.Struct, frozen=True):
    """One request to an engine. `id` is unique among those in the engine.

    `hashes` has one value for each leading full block of prompt and answer (`kv.block_hashes`); blocks beyond are
    computed but never found again. `output_tokens` is the length of the answer, 0 for an embedding.
    """

    id: str
    prompt_tokens: int
    output_tokens: int
    hashes: Sequence[int] = ()
    adapter: str | None = None


class FirstToken(msgspec.Struct, frozen=True):
    """The prompt is computed and the first token there. `cached_tokens` of the prompt were found in the cache."""

    id: str
    at_s: float
    cached_tokens: int


class Finished(msgspec.Struct, frozen=True):
    """The whole answer is there, all memory released. `cached_tokens` as in `FirstToken`."""

    id: str
    at_s: float
    cached_tokens: int


Event = FirstToken | Finished


class Stats(msgspec.Struct, frozen=True, kw_only=True):
    """An engine at one moment. Totals count since it was made.

    Queries and hits count tokens, each request once, when it is first admitted, as vLLM's counters do;
    `prompt_tokens` counts with the first token.
    """

    running: int
    waiting: int
    kv_usage: float
    running_adapters: tuple[str, ...]
    waiting_adapters: tuple[str, ...]
    prompt_tokens: int
    generated_tokens: int
    queried_tokens: int
    hit_tokens: int
    preemptions: int
    finished: int
    aborted: int
    steps: int


class _Running:
    """A request in the engine. `tokens` are known (prompt and answer so far), of which `computed` have their KV in `blocks`."""

    __slots__ = ("blocks", "cached_tokens", "computed", "goal", "gone", "named", "ready_s", "tokens", "work")

    def __init__(self, work: Work, ready_s: float) -> None:
        self.work = work
        self.ready_s = ready_s
        self.tokens = work.prompt_tokens
        self.goal = work.prompt_tokens + work.output_tokens
        self.computed = 0
        self.blocks: list[int] = []
        self.named = 0
        self.cached_tokens = -1
        self.gone = False

    def copy(self) -> _Running:
        twin = copy.copy(self)
        twin.blocks = self.blocks.copy()
        return twin


class _Step:
    """A step under way. `steady`: the next one will be the same but for longer contexts, unless something happens. `coast` is there once
    such have passed."""

    __slots__ = ("chunks", "coast", "end_s", "steady")

    def __init__(self, chunks: list[tuple[_Running, int]], end_s: float, steady: bool) -> None:
        self.chunks = chunks
        self.end_s = end_s
        self.steady = steady
        self.coast: _Coast | None = None


class _Coast:
    """Steady steps that have passed, of which the sequences do not know yet: each has `steps` more tokens than it says.

    At most `most` may; then one sequence is at its end. `by_phase` are the sequences by how far they were within a block.
    """

    __slots__ = ("by_phase", "context_tokens", "most", "steps")

    def __init__(self, running: Sequence[_Running], size: int) -> None:
        self.steps = 0
        self.context_tokens = 0
        self.by_phase: list[list[_Running]] = [[] for _ in range(size)]
        self.most = running[0].goal - running[0].tokens - 1
        for entry in running:
            tokens = entry.tokens
            self.context_tokens += tokens
            self.by_phase[entry.computed % size].append(entry)
            if entry.goal - tokens <= self.most:
                self.most = entry.goal - tokens - 1


class Engine:
    """One model server's engine. `now_s` is how far it has come: from 0.0 on, never back."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.now_s = 0.0
        self._submitted_s = 0.0
        self._latency = profile.latency()
        self._pool = BlockPool(profile.num_blocks)
        self._slots = AdapterSlots(profile.max_loras, profile.lora_load_s)
        self._by_id: dict[str, _Running] = {}
        self._arriving: deque[_Running] = deque()
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._step: _Step | None = None
        # What the first in the queue would have to find in the cache to need fewer blocks, if it waits for blocks.
        self._hoped_for: int | None = None
        self._prompt_tokens = self._generated_tokens = self._queried_tokens = self._hit_tokens = 0
        self._preemptions = self._finished = self._aborted = self._steps = 0

    def __repr__(self) -> str:
        return f"<Engine {self.profile.name}: {len(self._running)} running, {len(self._waiting)} waiting, {self._pool}>"

    def copy(self) -> Engine:
        """An engine in the same state that goes on from here by itself: what would happen if."""
        self._settle()
        twin = copy.copy(self)
        twin._pool = self._pool.copy()
        twin._slots = self._slots.copy()
        twins = {id(entry): entry.copy() for entry in self._by_id.values()}
        twin._by_id = {name: twins[id(entry)] for name, entry in self._by_id.items()}
        twin._arriving = deque(twins[id(entry)] for entry in self._arriving)
        twin._waiting = deque(twins[id(entry)] for entry in self._waiting)
        twin._running = [twins[id(entry)] for entry in self._running]
        if self._step is not None:
            # Those given up during the step are nowhere else.
            chunks = [(twins.get(id(entry), entry), count) for entry, count in self._step.chunks]
            twin._step = _Step(chunks, self._step.end_s, self._step.steady)
        return twin

    def submit(self, work: Work, now_s: float) -> None:
        """Take in a request that arrives at `now_s`.

        Raises ValueError when time goes back, when its id is in the engine, or when it could never fit
        (`Profile.longest`).
        """
        if now_s < max(self.now_s, self._submitted_s):
            raise ValueError(f"submitted at {now_s}, but it is {max(self.now_s, self._submitted_s)}")
        if work.id in self._by_id:
            raise ValueError(f"request {work.id} is in the engine")
        total = work.prompt_tokens + work.output_tokens
        if not 0 < work.prompt_tokens <= total <= self.profile.longest:
            raise ValueError(f"{total} tokens do not fit: at least 1 and at most {self.profile.longest} do")
        self._submitted_s = now_s
        entry = _Running(work, now_s + self.profile.frontend_s)
        self._by_id[work.id] = entry
        self._arriving.append(entry)

    def abort(self, id: str) -> bool:
        """Give up a request and release its memory at once. False when it is not in the engine."""
        entry = self._by_id.pop(id, None)
        if entry is None:
            return False
        self._settle()
        entry.gone = True
        for place in (self._arriving, self._waiting, self._running):
            if entry in place:
                place.remove(entry)
        self._pool.release(entry.blocks)
        self._aborted += 1
        if self._step is not None:
            self._step.steady = False
        return True

    @property
    def unanswered(self) -> set[str]:
        """Ids of the requests that have no token of their answer yet."""
        self._settle()
        return {id for id, entry in self._by_id.items() if entry.tokens == entry.work.prompt_tokens}

    def generated(self, id: str) -> int:
        """Tokens of the answer so far. Raises KeyError when the request is not in the engine."""
        entry = self._by_id[id]
        self._settle()
        return entry.tokens - entry.work.prompt_tokens

    def cached_tokens(self, hashes: Sequence[int]) -> int:
        """Tokens in the blocks that `hashes` begins with and that are in the cache now. Changes nothing."""
        return len(self._pool.lookup(hashes, len(hashes))) * self.profile.block_size

    @property
    def next_s(self) -> float:
        """When to call `advance` next, if nothing is submitted: the end of the step under way. inf: never."""
        if self._step is not None:
            return self._step.end_s
        return self._next_start_s()

    def advance(self, until_s: float) -> list[Event]:
        """Let time pass. Returns what happened, in order. In how many pieces time passes makes no difference.

        Until inf: until nothing is left to do, and no further.
        """
        events: list[Event] = []
        while True:
            if self._step is None:
                start_s = self._next_start_s()
                if start_s > until_s or start_s == math.inf:
                    break
                self._step = self._begin(start_s)
            if self._step.steady:
                self._coast(self._step, until_s)
            if self._step.end_s > until_s:
                break
            self._settle()
            self._end(self._step, events)
            self._step = None
        if until_s < math.inf:
            self.now_s = max(self.now_s, until_s)
        return events

    def forget_adapter(self, adapter: str) -> None:
        """Free the slot of an adapter that was unloaded."""
        self._slots.forget(adapter)

    def stats(self) -> Stats:
        return Stats(
            running=len(self._running),
            waiting=len(self._waiting),
            kv_usage=self._pool.usage,
            running_adapters=_adapters(self._running),
            waiting_adapters=_adapters(self._waiting),
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            queried_tokens=self._queried_tokens,
            hit_tokens=self._hit_tokens,
            preemptions=self._preemptions,
            finished=self._finished,
            aborted=self._aborted,
            steps=self._steps,
        )

    def _next_start_s(self) -> float:
        if self._running or self._waiting:
            return self.now_s
        return max(self.now_s, self._arriving[0].ready_s) if self._arriving else math.inf

    def _begin(self, start_s: float) -> _Step:
        """Compose a step as vLLM does: those running first, in order, then the queue, within the token budget."""
        self.now_s = start_s
        while self._arriving and self._arriving[0].ready_s <= start_s:
            self._waiting.append(self._arriving.popleft())
        chunks, preempted = self._continue_running()
        adapters = dict.fromkeys(entry.work.adapter for entry, _ in chunks if entry.work.adapter)
        continued = len(chunks)
        if not preempted:
            self._admit_waiting(chunks, adapters)
        load_s = self._slots.use(adapters)
        duration_s, decodes = self._duration(chunks)
        steady = decodes == continued == len(chunks) == len(self._running) and not preempted
        self._steps += 1
        return _Step(chunks, start_s + load_s + duration_s, steady)

    def _continue_running(self) -> tuple[list[tuple[_Running, int]], bool]:
        """(chunks, whether anything was preempted): last come, first preempted, until blocks suffice."""
        chunks: list[tuple[_Running, int]] = []
        budget, size = self.profile.max_num_batched_tokens, self.profile.block_size
        preempted = False
        while len(chunks) < len(self._running) and budget:
            entry = self._running[len(chunks)]
            computed = entry.computed
            count = min(entry.tokens - computed, budget)
            # One token within a block needs no memory and fills nothing: nearly all of the work there is.
            if count > 1 or (computed + 1) % size < 2:
                if self._missing_blocks(entry, count) > self._pool.free:
                    self._preempt(self._running.pop())
                    preempted = True
                    continue
                self._extend(entry, count)
            chunks.append((entry, count))
            budget -= count
        return chunks, preempted

    def _admit_waiting(self, chunks: list[tuple[_Running, int]], adapters: dict[str, None]) -> None:
        """Admit from the queue in order; who needs an adapter that does not fit is passed by, who needs blocks is not."""
        budget = self.profile.max_num_batched_tokens - sum(count for _, count in chunks)
        passed_by: list[_Running] = []
        self._hoped_for = None
        while self._waiting and budget and len(self._running) < self.profile.max_num_seqs:
            entry = self._waiting[0]
            adapter = entry.work.adapter
            if adapter and not self._slots.fits(adapter, adapters):
                passed_by.append(self._waiting.popleft())
                continue
            if not self._claim_prefix(entry):
                break
            self._running.append(self._waiting.popleft())
            if adapter:
                adapters[adapter] = None
            count = min(entry.tokens - entry.computed, budget)
            self._extend(entry, count)
            chunks.append((entry, count))
            budget -= count
        self._waiting.extendleft(reversed(passed_by))

    def _claim_prefix(self, entry: _Running) -> bool:
        """Refer to the cached prefix, if all known tokens fit into memory with it.

        The last token is always computed, for the sake of what follows it, so its block is never a hit.
        """
        size = self.profile.block_size
        limit = (entry.tokens - 1) // size
        hits = self._pool.lookup(entry.work.hashes, limit)
        if -(-entry.tokens // size) - len(hits) + self._pool.idle(hits) > self._pool.free:
            hashes = entry.work.hashes
            self._hoped_for = hashes[len(hits)] if len(hits) < min(limit, len(hashes)) else None
            return False
        self._pool.refer(hits)
        entry.blocks = hits
        entry.named = len(hits)
        entry.computed = len(hits) * size
        if entry.cached_tokens < 0:
            entry.cached_tokens = entry.computed
            self._queried_tokens += entry.tokens
            self._hit_tokens += entry.computed
        return True

    def _missing_blocks(self, entry: _Running, count: int) -> int:
        return -(-(entry.computed + count) // self.profile.block_size) - len(entry.blocks)

    def _extend(self, entry: _Running, count: int) -> None:
        """Make room for `count` more tokens. Blocks that they fill can be found at once, within this very step."""
        missing = self._missing_blocks(entry, count)
        if missing > 0:
            entry.blocks.extend(self._pool.take(missing))
        hashes = entry.work.hashes
        full = min((entry.computed + count) // self.profile.block_size, len(hashes))
        for i in range(entry.named, full):
            self._pool.name(entry.blocks[i], hashes[i])
        entry.named = max(entry.named, full)

    def _preempt(self, entry: _Running) -> None:
        """Back to the head of the queue, to be computed anew, answer so far included."""
        self._pool.release(entry.blocks)
        entry.blocks = []
        entry.named = entry.computed = 0
        self._waiting.appendleft(entry)
        self._preemptions += 1

    def _duration(self, chunks: list[tuple[_Running, int]]) -> tuple[float, int]:
        """(seconds, how many of the chunks decode)."""
        prefill_tokens = attended = decodes = context_tokens = 0
        for entry, count in chunks:
            if entry.computed == entry.tokens - 1 >= entry.work.prompt_tokens:
                decodes += 1
                context_tokens += entry.tokens
            else:
                prefill_tokens += count
                attended += count * (count + 2 * entry.computed)
        return self._latency.step_s(prefill_tokens, attended, len(chunks), decodes, context_tokens), decodes

    def _end(self, step: _Step, events: list[Event]) -> None:
        self.now_s = step.end_s
        for entry, count in step.chunks:
            if entry.gone:
                continue
            entry.computed += count
            tokens = entry.tokens
            if entry.computed < tokens:
                continue
            if tokens < entry.goal:
                if tokens == entry.work.prompt_tokens:
                    self._prompt_tokens += tokens
                    events.append(FirstToken(entry.work.id, self.now_s, entry.cached_tokens))
                entry.tokens = tokens = tokens + 1
                self._generated_tokens += 1
            if tokens == entry.goal:
                self._finish(entry, events)

    def _finish(self, entry: _Running, events: list[Event]) -> None:
        if not entry.work.output_tokens:
            self._prompt_tokens += entry.tokens
        self._running.remove(entry)
        self._pool.release(entry.blocks)
        del self._by_id[entry.work.id]
        self._finished += 1
        events.append(Finished(entry.work.id, self.now_s, entry.cached_tokens))

    def _coast(self, step: _Step, until_s: float) -> None:
        """Run through steady decode steps until one would finish a request, meet an arrival, lack blocks, or fill
        the block that the head of the queue hopes for. Leaves `step` as the last one begun.

        Does what `_end` and `_begin` would do for each step, at about 1 µs a step instead of 1 µs a step and sequence.
        """
        arrival_s = self._arriving[0].ready_s if self._arriving else math.inf
        if step.end_s > until_s or step.end_s >= arrival_s:
            return
        size, pool = self.profile.block_size, self._pool
        coast = step.coast
        if coast is None:
            coast = step.coast = _Coast(self._running, size)
        batch, by_phase = len(self._running), coast.by_phase
        before = steps = coast.steps
        while steps < coast.most and step.end_s <= until_s and step.end_s < arrival_s:
            ahead = steps + 1
            growing, filling = by_phase[-ahead % size], by_phase[(-ahead - 1) % size]
            if len(growing) > pool.free or self._fills_hope(filling, ahead):
                break
            for entry in growing:
                entry.blocks.extend(pool.take(1))
            self._name_filled(filling, ahead)
            step.end_s += self._latency.step_s(0, 0, batch, batch, coast.context_tokens + ahead * batch)
            steps = ahead
        coast.steps = steps
        self._generated_tokens += (steps - before) * batch
        self._steps += steps - before

    def _settle(self) -> None:
        """Let the sequences know of the steps in which they coasted."""
        step = self._step
        if step is not None and step.coast is not None:
            steps, step.coast = step.coast.steps, None
            for entry in self._running:
                entry.computed += steps
                entry.tokens += steps

    def _fills_hope(self, filling: list[_Running], ahead: int) -> bool:
        """Whether one of these fills, `ahead` steps from now, the block that the head of the queue hopes for."""
        if self._hoped_for is None:
            return False
        size = self.profile.block_size
        return any(
            self._hoped_for in entry.work.hashes[(i := (entry.computed + ahead) // size) : i + 1] for entry in filling
        )

    def _name_filled(self, filling: list[_Running], ahead: int) -> None:
        size = self.profile.block_size
        for entry in filling:
            i = (entry.computed + ahead) // size
            if i < len(entry.work.hashes):
                self._pool.name(entry.blocks[i], entry.work.hashes[i])
                entry.named = i + 1


def _adapters(entries: Sequence[_Running] | deque[_Running]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(entry.work.adapter for entry in entries if entry.work.adapter))
