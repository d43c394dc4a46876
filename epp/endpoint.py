"""Endpoints as columns: who can be picked, and one array per thing known about them.

`Endpoints` is the only owner of these arrays. Discovery replaces the membership, signals write what servers report,
the ledger writes what is in flight, and a pick reads all of it through `Candidates`. Every endpoint has a slot, an
index into all arrays, for as long as it is a member; a slot freed by one endpoint may be given to another later, and
`incarnation` tells the two apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import xxhash
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
IntArray = NDArray[np.intp]

MOST_PREFILLED = 0.75
"""Of a mean prompt in line, the part that is believed done at most: a long one takes longer a token than the rate says."""
_ODD = np.uint64(0x9E3779B97F4A7C15)
_REPORTS_COMPARED = 30
"""Reports of each member over which requests are compared: half a minute by the usual interval."""
_ALONE = 0.8
"""Of what the servers tell of, what is ours at least if nobody else sends any: a report is older than our own account."""
NEVER = -np.inf
"""`updated_s` of an endpoint that has not been scraped yet."""


def host_port(host: str, port: int) -> str:
    """`host:port` as Envoy's headers spell it: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One pod × one target port. `address` is an IP (no brackets) or a DNS name; `metrics_port` None means `port`."""

    name: str
    namespace: str = "default"
    address: str
    port: int
    labels: Mapping[str, str] = {}
    metrics_address: str | None = None
    metrics_port: int | None = None

    @property
    def key(self) -> str:
        """`namespace/name`: unique within a pool."""
        return f"{self.namespace}/{self.name}"

    @property
    def destination(self) -> str:
        """The value for `x-gateway-destination-endpoint`."""
        return host_port(self.address, self.port)


class Change(msgspec.Struct, frozen=True):
    """What `Endpoints.replace` did, as (slot, endpoint): the caller starts and stops scrapers by it.

    `changed` are members that stayed what they are but are described anew: labels, or where their metrics are.
    """

    added: tuple[tuple[int, Endpoint], ...]
    removed: tuple[tuple[int, Endpoint], ...]
    changed: tuple[tuple[int, Endpoint], ...] = ()


class CacheConfig(msgspec.Struct, frozen=True):
    """What a server says of its KV cache: tokens per block and number of blocks."""

    block_size: int
    num_blocks: int

    @property
    def tokens(self) -> int:
        return self.block_size * self.num_blocks


class Adapters(msgspec.Struct, frozen=True):
    """LoRA adapters a server reports: loaded for running requests, waited for, and how many fit at once."""

    running: frozenset[str]
    waiting: frozenset[str]
    max_lora: int


NO_ADAPTERS = Adapters(frozenset(), frozenset(), 0)

ADAPTER_WAITING = 1
ADAPTER_RUNNING = 2
"""Values of `Candidates.adapter`; 0 is an endpoint that has nothing to do with the adapter."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """One scrape of one server. None means that the page did not have it; the last known value stays.

    `running_is_total`: `running` counts all requests since the server started, not those of now. `idles_late`: it may be above 0 for
    half a minute after the last of them.
    `prompt_tokens_total` and `cached_tokens_total` are the server's own counters since it started (prompt tokens
    seen; of them, found in its prefix cache); where it `counts_late`, a prompt is in them when its answer ends, else with
    its first token. `custom` holds `customMetrics` by attribute key.
    """

    waiting: float | None = None
    running: float | None = None
    running_is_total: bool = False
    idles_late: bool = False
    kv_usage: float | None = None
    adapters: Adapters | None = None
    cache: CacheConfig | None = None
    prompt_tokens_total: float | None = None
    cached_tokens_total: float | None = None
    counts_late: bool = False
    custom: Mapping[str, float] = {}


class Holdings(NamedTuple):
    """What the endpoints are believed to have of one prompt; arrays by slot, of one length, and slots beyond it have nothing.

    `hit_blocks`: leading blocks held. `churn`: how soon a block is missed that a new one pushes out, [0, 1]. `demand`: how often
    the longest beginning that anybody holds was asked for lately, ≥ 0.
    """

    hit_blocks: FloatArray
    churn: FloatArray
    demand: float

    def widened(self, slots: int) -> Holdings:
        nothing = np.zeros(slots - len(self.hit_blocks))
        return Holdings(np.concatenate([self.hit_blocks, nothing]), np.concatenate([self.churn, nothing]), self.demand)


class Endpoints:
    """The members of one pool and all that is known about them, one array value per slot.

    `stale_after_s`: age in seconds at which a report no longer describes the queue, and the ledger stands in.
    """

    def __init__(self, *, stale_after_s: float = 2.0, capacity: int = 16) -> None:
        self.stale_after_s = stale_after_s
        self.generation = 0
        self._by_slot: list[Endpoint | None] = [None] * capacity
        self._slot_of: dict[str, int] = {}
        self._slot_by_destination: dict[str, int] = {}
        self._free = list(range(capacity - 1, -1, -1))
        self.incarnation: NDArray[np.int64] = np.zeros(capacity, dtype=np.int64)
        self.identity: NDArray[np.uint64] = np.zeros(capacity, dtype=np.uint64)
        # Reported by the server. NaN: never reported.
        self.waiting: FloatArray = np.full(capacity, np.nan)
        self.running: FloatArray = np.full(capacity, np.nan)
        self.kv_usage: FloatArray = np.full(capacity, np.nan)
        self.updated_s: FloatArray = np.full(capacity, NEVER)
        self.unreachable: BoolArray = np.zeros(capacity, dtype=np.bool_)
        # Known by ourselves, written by the ledger alone.
        self.in_flight: FloatArray = np.zeros(capacity)
        self.in_flight_prompts: FloatArray = np.zeros(capacity)
        self.in_flight_tokens: FloatArray = np.zeros(capacity)
        self.picked_since_report: FloatArray = np.zeros(capacity)
        self.prefill_rate: FloatArray = np.full(capacity, np.nan)
        # The line of waiting prompts: uncached tokens of one in the mean, when it was last known to move, and its tokens a second since,
        # 0 until that was measured.
        self.line_prompt: FloatArray = np.zeros(capacity)
        self.line_s: FloatArray = np.zeros(capacity)
        self.line_rate: FloatArray = np.zeros(capacity)
        self.adapters: list[Adapters] = [NO_ADAPTERS] * capacity
        # True until a server says otherwise: vLLM names its slots only after its first request for an adapter.
        self.adapter_room: BoolArray = np.ones(capacity, dtype=np.bool_)
        self._adapter_columns: dict[str, NDArray[np.int8]] = {}
        self.cache: list[CacheConfig | None] = [None] * capacity
        self.custom: dict[str, FloatArray] = {}
        self._derived: dict[Callable[[Endpoint], float], FloatArray] = {}
        # Requests told of and our own of them, as sums that forget.
        self._told = self._own = 0.0
        self.shared = False
        """Whether the servers tell of clearly more requests than were ours, lately: others send them some as well."""
        self.by_reports: dict[Callable[[Candidates], FloatArray], FloatArray] = {}
        """What `Candidates.by_reports` remembers until the next report."""
        self.slots: IntArray = np.empty(0, dtype=np.intp)
        """Slots of the members, in the order in which discovery named them."""
        self.members: tuple[Endpoint, ...] = ()
        """The members, in the order of `slots`."""
        self.population: tuple[IntArray, tuple[Endpoint, ...]] = (self.slots, self.members)
        self.destinations: list[str] = [""] * capacity
        """By slot, what Envoy is told: `Endpoint.destination`."""
        self.reachable = self.slots
        """Slots of the members that take connections; all of them where none does."""
        # Members with a NaN among waiting, running and KV use; no member's report is older than `_oldest_s`.
        self._blank: set[int] = set()
        self._oldest_s = NEVER

    def __len__(self) -> int:
        return len(self._slot_of)

    def __repr__(self) -> str:
        return f"<Endpoints {len(self)} members, generation {self.generation}>"

    @property
    def capacity(self) -> int:
        """Length of every column. Grows, never shrinks; a column taken before `replace` may be outgrown after it."""
        return len(self._by_slot)

    def at(self, slot: int) -> Endpoint | None:
        return self._by_slot[slot]

    def slot_of(self, key: str) -> int | None:
        """The slot of `namespace/name`."""
        return self._slot_of.get(key)

    def slot_by_destination(self, destination: str) -> int | None:
        """The slot of `ip:port` as Envoy spells it."""
        return self._slot_by_destination.get(destination)

    def replace(self, wanted: Iterable[Endpoint]) -> Change:
        """Make `wanted` the membership. An endpoint whose address or port changed is a new one (its cache is cold).

        Raises ValueError when two of `wanted` share a key; nothing has changed then.
        """
        by_key: dict[str, Endpoint] = {}
        for endpoint in wanted:
            key = endpoint.key
            if key in by_key:
                raise ValueError(f"two endpoints are named {key}")
            by_key[key] = endpoint
        removed: list[tuple[int, Endpoint]] = []
        for key, slot in list(self._slot_of.items()):
            old = self._by_slot[slot]
            assert old is not None
            new = by_key.get(key)
            # Of a thousand members a few are others: most are the very objects that were there before.
            if new is old:
                continue
            if new is None or new.destination != old.destination:
                removed.append((slot, old))
                del self._slot_of[key]
                self._vacate(slot)
        added: list[tuple[int, Endpoint]] = []
        changed: list[tuple[int, Endpoint]] = []
        for key, endpoint in by_key.items():
            kept = self._slot_of.get(key)
            if kept is not None:
                before = self._by_slot[kept]
                if before is not endpoint and before != endpoint:
                    self._by_slot[kept] = endpoint
                    changed.append((kept, endpoint))
                continue
            slot = self._occupy(endpoint)
            self._slot_of[key] = slot
            added.append((slot, endpoint))
        self.slots = np.fromiter((self._slot_of[key] for key in by_key), dtype=np.intp, count=len(by_key))
        self.members = tuple(by_key.values())
        self.population = self.slots, self.members
        self._follow_destinations(removed, added)
        self._select_reachable()
        self._oldest_s = NEVER
        self._derived.clear()
        self.generation += 1
        return Change(tuple(added), tuple(removed), tuple(changed))

    def _follow_destinations(
        self, removed: Iterable[tuple[int, Endpoint]], added: Iterable[tuple[int, Endpoint]]
    ) -> None:
        for _, endpoint in removed:
            self._slot_by_destination.pop(endpoint.destination, None)
        for slot, endpoint in added:
            self._slot_by_destination[endpoint.destination] = slot
        if len(self._slot_by_destination) < len(self.members):
            # Two members at one destination: the later one counts.
            self._slot_by_destination = {one.destination: self._slot_of[one.key] for one in self.members}

    def report(self, slot: int, report: Report, now_s: float) -> None:
        """Take in what the server in `slot` said of itself at `now_s`."""
        told = 0.0
        if report.waiting is not None:
            told += report.waiting
            self.waiting[slot] = report.waiting
        if report.running is not None:
            told += report.running
            self.running[slot] = report.running
        if report.kv_usage is not None:
            told += report.kv_usage
            self.kv_usage[slot] = report.kv_usage
        self._compare(slot, report)
        if report.adapters is not None and self._says_more(slot, report.adapters):
            self._set_adapters(slot, report.adapters)
        if report.cache is not None:
            self.cache[slot] = report.cache
        for key, value in report.custom.items():
            column = self.custom.get(key)
            if column is None:
                column = self.custom[key] = np.full(self.capacity, np.nan)
            column[slot] = value
        if slot in self._blank or told != told:
            self._note_blank(slot)
        self.updated_s[slot] = now_s
        self.by_reports.clear()
        self.set_unreachable(slot, False)

    def _compare(self, slot: int, report: Report) -> None:
        if report.running is None or report.waiting is None or report.running_is_total:
            return
        own = self.in_flight.item(slot)
        # What it tells of may be ours, over by now: below the knee a picker alone would take itself for one of several.
        if report.idles_late and not own:
            return
        kept = 1.0 - 1.0 / (_REPORTS_COMPARED * max(1, len(self._slot_of)))
        self._told = self._told * kept + report.running + report.waiting
        self._own = self._own * kept + own
        self.shared = self._own < _ALONE * self._told

    def complete(self) -> bool:
        """Whether every member has said how many requests wait and run and how much KV memory is in use. O(1)."""
        return not self._blank

    def described(self, now_s: float) -> bool:
        """Whether every member is `complete` and its last report young enough to describe the queue. O(1) nearly always."""
        if self._blank:
            return False
        oldest_s = now_s - self.stale_after_s
        if self._oldest_s < oldest_s:
            # Reports only grow younger, so that the least of them stays a bound until the membership changes.
            self._oldest_s = self.updated_s[self.slots].min().item() if len(self.slots) else NEVER
        return self._oldest_s >= oldest_s

    def _note_blank(self, slot: int) -> None:
        told = self.waiting.item(slot) + self.running.item(slot) + self.kv_usage.item(slot)
        if told == told:
            self._blank.discard(slot)
        else:
            self._blank.add(slot)

    def fresh(self, slot: int, now_s: float) -> bool:
        """Whether the member in `slot` has reported lately."""
        return self.updated_s.item(slot) >= now_s - self.stale_after_s

    def set_unreachable(self, slot: int, unreachable: bool) -> None:
        """Say that the server in `slot` takes no connections (or does again). It stays a member."""
        if self.unreachable[slot] != unreachable:
            self.unreachable[slot] = unreachable
            self._select_reachable()

    def candidates(self, now_s: float, holdings: Holdings | None = None, slots: IntArray | None = None) -> Candidates:
        """Those of `slots` (all members by default) that can be reached, as a pick sees them; all where none can.

        Trying a server that seems dead beats refusing. `holdings` are what all endpoints are believed to
        have of the prompt; without them, nothing.
        """
        if slots is None:
            chosen = self.reachable
        elif self.reachable is self.slots:
            chosen = slots
        else:
            reachable = slots[~self.unreachable[slots]]
            chosen = reachable if len(reachable) else slots
        if holdings is not None and len(holdings.hit_blocks) < len(self._by_slot):
            holdings = holdings.widened(self.capacity)
        return Candidates(self, chosen, now_s, holdings)

    def derived(self, of: Callable[[Endpoint], float]) -> FloatArray:
        """`of(endpoint)` by slot (NaN where no member is), computed once for a membership."""
        column = self._derived.get(of)
        if column is None:
            column = np.full(self.capacity, np.nan)
            column[self.slots] = [of(endpoint) for endpoint in self.members]
            self._derived[of] = column
        return column

    def adapter(self, name: str) -> NDArray[np.int8] | None:
        """By slot: `ADAPTER_RUNNING`, `ADAPTER_WAITING` or 0. None where no endpoint reports the adapter."""
        return self._adapter_columns.get(name)

    def _says_more(self, slot: int, adapters: Adapters) -> bool:
        known = self.adapters[slot]
        return known is NO_ADAPTERS or known != adapters

    def _set_adapters(self, slot: int, adapters: Adapters) -> None:
        old = self.adapters[slot]
        self.adapters[slot] = adapters
        self.adapter_room[slot] = len(adapters.running) + len(adapters.waiting) < adapters.max_lora
        for name in (old.running | old.waiting) - adapters.running - adapters.waiting:
            column = self._adapter_columns[name]
            column[slot] = 0
            if not column.any():
                del self._adapter_columns[name]
        for name in adapters.waiting - adapters.running:
            self._adapter_column(name)[slot] = ADAPTER_WAITING
        for name in adapters.running:
            self._adapter_column(name)[slot] = ADAPTER_RUNNING

    def _adapter_column(self, name: str) -> NDArray[np.int8]:
        column = self._adapter_columns.get(name)
        if column is None:
            column = self._adapter_columns[name] = np.zeros(self.capacity, dtype=np.int8)
        return column

    def _select_reachable(self) -> None:
        self.by_reports.clear()
        down = self.unreachable[self.slots]
        self.reachable = self.slots[~down] if down.any() and not down.all() else self.slots

    def _occupy(self, endpoint: Endpoint) -> int:
        if not self._free:
            self._grow()
        slot = self._free.pop()
        self._by_slot[slot] = endpoint
        self.destinations[slot] = endpoint.destination
        self.identity[slot] = xxhash.xxh3_64_intdigest(endpoint.destination.encode())
        self._blank.add(slot)
        return slot

    def _vacate(self, slot: int) -> None:
        self._by_slot[slot] = None
        self._blank.discard(slot)
        self.incarnation[slot] += 1
        for unknown in (self.waiting, self.running, self.kv_usage, *self.custom.values()):
            unknown[slot] = np.nan
        self.prefill_rate[slot] = np.nan
        self.line_prompt[slot] = self.line_s[slot] = self.line_rate[slot] = 0.0
        for nothing in (self.in_flight, self.in_flight_prompts, self.in_flight_tokens, self.picked_since_report):
            nothing[slot] = 0.0
        self.updated_s[slot] = NEVER
        self.unreachable[slot] = False
        self._set_adapters(slot, NO_ADAPTERS)
        self.adapter_room[slot] = True
        self.cache[slot] = None
        self._free.append(slot)

    def _grow(self) -> None:
        old = self.capacity
        self._by_slot.extend([None] * old)
        self.destinations.extend([""] * old)
        self._free.extend(range(2 * old - 1, old - 1, -1))
        self.adapters.extend([NO_ADAPTERS] * old)
        self.cache.extend([None] * old)
        self.incarnation = np.concatenate([self.incarnation, np.zeros(old, dtype=np.int64)])
        self.identity = np.concatenate([self.identity, np.zeros(old, dtype=np.uint64)])
        self.waiting, self.running, self.kv_usage = (
            np.concatenate([column, np.full(old, np.nan)]) for column in (self.waiting, self.running, self.kv_usage)
        )
        self.updated_s = np.concatenate([self.updated_s, np.full(old, NEVER)])
        self.unreachable = np.concatenate([self.unreachable, np.zeros(old, dtype=np.bool_)])
        self.in_flight, self.in_flight_prompts, self.in_flight_tokens, self.picked_since_report = (
            np.concatenate([column, np.zeros(old)])
            for column in (self.in_flight, self.in_flight_prompts, self.in_flight_tokens, self.picked_since_report)
        )
        self.prefill_rate = np.concatenate([self.prefill_rate, np.full(old, np.nan)])
        self.line_prompt, self.line_s, self.line_rate = (
            np.concatenate([column, np.zeros(old)]) for column in (self.line_prompt, self.line_s, self.line_rate)
        )
        self.adapter_room = np.concatenate([self.adapter_room, np.ones(old, dtype=np.bool_)])
        self._adapter_columns = {
            name: np.concatenate([column, np.zeros(old, dtype=np.int8)])
            for name, column in self._adapter_columns.items()
        }
        self.custom = {key: np.concatenate([column, np.full(old, np.nan)]) for key, column in self.custom.items()}


class Candidates:
    """n endpoints that may be picked, as columns of n values in one order. Read-only for plugins.

    A column is gathered when first asked for, so a pick pays only for what its plugins look at.

    `demand`: how often the longest beginning of the prompt that anybody has was asked for lately (`Holdings.demand`). `shared`:
    whether others send requests to these servers as well, such as a second picker, which knows nothing of ours.
    """

    __slots__ = ("_cache", "_endpoints", "_holdings", "demand", "now_s", "shared", "slots")

    def __init__(self, endpoints: Endpoints, slots: IntArray, now_s: float, holdings: Holdings | None) -> None:
        self._endpoints = endpoints
        self.slots = slots
        self.now_s = now_s
        self.shared = endpoints.shared
        self._holdings = holdings
        self.demand = 0.0 if holdings is None else holdings.demand
        self._cache: dict[str, FloatArray] = {}

    def __len__(self) -> int:
        return len(self.slots)

    def __getitem__(self, index: int) -> Endpoint:
        endpoint = self._endpoints.at(int(self.slots[index]))
        assert endpoint is not None, "candidates outlived a change of membership"
        return endpoint

    @property
    def members(self) -> Sequence[Endpoint]:
        """The n endpoints. O(n) unless these are all members of the pool."""
        if self.slots is self._endpoints.slots:
            return self._endpoints.members
        return [self[i] for i in range(len(self))]

    def keep(self, mask: BoolArray) -> Candidates:
        """Those where `mask` (n booleans) is true."""
        return Candidates(self._endpoints, self.slots[mask], self.now_s, self._holdings)

    # The columns of the default policy are gathered without a further call: that would cost more than gathering does.

    def _gather(self, name: str) -> FloatArray:
        column = self._cache.get(name)
        if column is None:
            source: FloatArray = getattr(self._endpoints, name)
            # Indexing takes 0.2 µs at 8 endpoints where `take` takes 0.35; at 1000 they are equal.
            column = self._cache[name] = source[self.slots]
        return column

    @property
    def in_flight(self) -> FloatArray:
        """Requests that we sent there and that have not ended."""
        column = self._cache.get("in_flight")
        if column is None:
            column = self._cache["in_flight"] = self._endpoints.in_flight[self.slots]
        return column

    @property
    def in_flight_prompts(self) -> FloatArray:
        """Of those in flight, the requests whose prompt is not known to be prefilled yet."""
        column = self._cache.get("in_flight_prompts")
        if column is None:
            column = self._cache["in_flight_prompts"] = self._endpoints.in_flight_prompts[self.slots]
        return column

    @property
    def in_flight_tokens(self) -> FloatArray:
        """Uncached prompt tokens that we sent there and that are not known to be prefilled yet."""
        column = self._cache.get("in_flight_tokens")
        if column is None:
            column = self._cache["in_flight_tokens"] = self._endpoints.in_flight_tokens[self.slots]
        return column

    @property
    def backlog(self) -> FloatArray:
        """`in_flight_tokens` less what the prompt in front of the line has behind it by now.

        That is believed by the rate that was measured, since the line was last known to move, and of a prompt as long as the mean
        in line no more than `MOST_PREFILLED`: whose prompt is done, begins to answer.
        """
        endpoints, slots, tokens = self._endpoints, self.slots, self.in_flight_tokens
        done = self.now_s - endpoints.line_s[slots]
        done *= endpoints.line_rate[slots]
        left: FloatArray = tokens - np.minimum(done, MOST_PREFILLED * self.line_prompt)
        return left

    @property
    def line_prompt(self) -> FloatArray:
        """Uncached tokens of a prompt that waits there, in the mean; 0 where none does."""
        column = self._cache.get("line_prompt")
        if column is None:
            column = self._cache["line_prompt"] = self._endpoints.line_prompt[self.slots]
        return column

    @property
    def prefill_rate(self) -> FloatArray:
        """Uncached prompt tokens a second that each was seen to prefill; NaN where that was not seen yet."""
        return self._gather("prefill_rate")

    @property
    def updated_s(self) -> FloatArray:
        """When each last reported, in seconds of the loop's clock; -inf where never."""
        return self._gather("updated_s")

    @property
    def fresh(self) -> BoolArray:
        """Whether the last report is young enough to describe the queue."""
        result: BoolArray = self.updated_s >= self.now_s - self._endpoints.stale_after_s
        return result

    @property
    def described(self) -> bool:
        """Whether every member of the pool has a fresh report, with nothing missing that any of the columns needs. O(1) nearly always."""
        return self._endpoints.described(self.now_s)

    @property
    def waiting(self) -> FloatArray:
        """Requests waiting for the engine: as reported, plus what we sent since that report.

        Where the report is stale or never came, our own requests in flight stand in.
        """
        column = self._cache.get("waiting_now")
        if column is None:
            endpoints, slots = self._endpoints, self.slots
            column = endpoints.waiting[slots] + endpoints.picked_since_report[slots]
            if not endpoints.described(self.now_s):
                column = self._or_in_flight(column)
            self._cache["waiting_now"] = column
        return column

    @property
    def running(self) -> FloatArray:
        """Requests in the engine's batch as reported; our own in flight where stale or never reported."""
        column = self._cache.get("running_now")
        if column is None:
            column = self._gather("running")
            if not self._endpoints.described(self.now_s):
                column = self._or_in_flight(column)
            self._cache["running_now"] = column
        return column

    def _or_in_flight(self, reported: FloatArray) -> FloatArray:
        return np.where(self.fresh & ~np.isnan(reported), reported, self.in_flight)

    @property
    def kv_usage(self) -> FloatArray:
        """Share of KV memory in use, [0, 1]. The last value known; the others' mean where none is (0 if none at all)."""
        column = self._cache.get("kv_usage_now")
        if column is None:
            column = self._endpoints.kv_usage[self.slots]
            if not self._endpoints.complete():
                unknown = np.isnan(column)
                known = column[~unknown]
                column = np.where(unknown, known.mean() if len(known) else 0.0, column)
            self._cache["kv_usage_now"] = column
        return column

    @property
    def hit_blocks(self) -> FloatArray:
        """Leading prompt blocks (of `BLOCK_BYTES`) that each is believed to have cached."""
        column = self._cache.get("hit_blocks")
        if column is None:
            held = self._holdings
            column = np.zeros(len(self.slots)) if held is None else held.hit_blocks[self.slots]
            self._cache["hit_blocks"] = column
        return column

    @property
    def churn(self) -> FloatArray:
        """How soon a block is missed that a new one pushes out of the prefix cache, beside the others': [0, 1], 0 where there is room."""
        column = self._cache.get("churn")
        if column is None:
            held = self._holdings
            column = np.zeros(len(self.slots)) if held is None else held.churn[self.slots]
            self._cache["churn"] = column
        return column

    def home(self, fingerprint: int) -> int:
        """The index of the one where a prompt with this next block begins, if nothing else speaks for another.

        By rendezvous hashing (Thaler and Ravishankar, 1998) over destinations: the same in every picker of the pool, each as often, and
        when an endpoint comes or goes, prompts move only to it or from it.
        """
        drawn = self._endpoints.identity[self.slots] ^ np.uint64(fingerprint)
        drawn *= _ODD
        return int(drawn.argmax())

    def adapters(self, index: int) -> Adapters:
        """What endpoint `index` reports of LoRA."""
        return self._endpoints.adapters[int(self.slots[index])]

    def adapter(self, name: str) -> NDArray[np.int8] | None:
        """`ADAPTER_RUNNING`, `ADAPTER_WAITING` or 0, by what each reports of the adapter `name`; None: nobody does."""
        column = self._endpoints.adapter(name)
        return None if column is None else column[self.slots]

    @property
    def adapter_room(self) -> BoolArray:
        """Whether each could load one more adapter without unloading another; True where nothing is known."""
        room: BoolArray = self._endpoints.adapter_room[self.slots]
        return room

    def derive(self, of: Callable[[Endpoint], float]) -> FloatArray:
        """`of(endpoint)` for each, from its description alone (labels, address).

        Remembered by `of` until the membership changes, so `of` must be the same function or bound method each time.
        """
        return self._endpoints.derived(of).take(self.slots)

    def by_reports(self, of: Callable[[Candidates], FloatArray]) -> FloatArray:
        """`of(self)`, for what depends on nothing but the servers' reports and their descriptions. Not to be changed.

        Remembered by `of` until the next report, so `of` must be the same function or bound method each time.
        """
        endpoints = self._endpoints
        if self.slots is not endpoints.reachable:
            return of(self)
        column = endpoints.by_reports.get(of)
        if column is None:
            column = endpoints.by_reports[of] = of(self)
            column.setflags(write=False)
        return column

    def find(self, key: str) -> int | None:
        """The index of `namespace/name`, or None where it is no candidate."""
        slot = self._endpoints.slot_of(key)
        if slot is None:
            return None
        found = np.flatnonzero(self.slots == slot)
        return int(found[0]) if len(found) else None

    @property
    def population(self) -> tuple[IntArray, tuple[Endpoint, ...]]:
        """All members of the pool as (slots, endpoints) in one order, for whoever outlives this pick. O(1)."""
        return self._endpoints.population

    def custom(self, attribute: str) -> FloatArray:
        """A custom metric by its attribute key; NaN where unknown."""
        source = self._endpoints.custom.get(attribute)
        return np.full(len(self.slots), np.nan) if source is None else source.take(self.slots)
