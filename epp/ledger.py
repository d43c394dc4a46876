"""What we sent where and what is not over yet: requests and uncached prompt tokens in flight, by endpoint.

Scraped load is old the moment it arrives; what was picked is known at once. `Ledger` is the only writer of the columns
`in_flight`, `in_flight_prompts`, `in_flight_tokens`, `line_prompt`, `line_rate`, `line_s`, `picked_since_report` and `prefill_rate` of `Endpoints`. Requests are released by the exchange's end. Tokens are
released at the first piece of the answer where it is seen, and by estimate where it is hidden:

**The line.** Per endpoint all uncached prompt tokens sent there stand in one line, first come first served, and the server
works it off at the endpoint's prefill rate from the last point known: position(t) = served + rate·(t − served_s), never beyond
what was sent. A hidden entry's tokens leave when the position passes its end, whole, as they would at its first token. The
point is moved by whatever tells more: a first token that was seen (all before it is done), an entry that ended, a scrape.

**Scrapes.** prompt_tokens_total − cached_tokens_total grew by Δ since the last report: the line has come Δ further. If that is
further than believed, the point moves there. If it is less, the point moves back there, or half the way where the server counts a
prompt when its answer ends, not when it is prefilled; and of the entries believed done since the last report as many of the
latest as the server has waiting are held again. A server with nothing running or waiting has done all that was sent well before the scrape.

**The rate.** Ratio of sums over stretches in which the server was seen to be busy with prefill, forgetting old ones:
S ← S·τ/(τ+x) + n and X ← X·τ/(τ+x) + x for a stretch of n tokens in x seconds; rate = S/X within [100, 10^6] tokens/s. Before the
first stretch S/X is the start rate with the weight of `PRIOR_S` seconds. Stretches are: from taking to first token of an entry that
came to an empty line; from one first token to that of an entry that was in line by then; from one report to the next where
requests waited at both, or where more was done than the rate allows: then from when the first of it came, if that was earlier.
"""

from __future__ import annotations

import heapq
from collections import deque
from math import inf

import msgspec

from epp.endpoint import Endpoints, Report

START_RATE = 30_000.0
"""Prefill tokens per second of a server not seen yet: a 32B model on one A100 does 4,000, an 8B on an H100 40,000.

Rather too much than too little: who is believed too fast is put right by the next report, who is believed too slow only once it is
seen to be busy.
"""
PRIOR_S = 0.25
FORGET_S = 20.0
"""τ above, in seconds of busy time."""
LEAST_RATE, MOST_RATE = 100.0, 1e6
LEAST_SAMPLE_TOKENS = 256
"""A shorter stretch tells of a step's fixed cost (4–50 ms), not of the rate."""
SETTLE_S = 0.25
"""Age at which a request has surely reached the engine: before, it may be on the wire or being tokenised and is not counted."""
_GUESSES_KEPT = 256


class Mark(msgspec.Struct, frozen=True):
    """The moment a scrape was sent: `number` counts what the endpoint had been given by then."""

    incarnation: int
    number: int
    sent_s: float


class _Account:
    """One endpoint, as long as it keeps its slot. Positions and token sums are ints; only the line's point is a float."""

    __slots__ = (
        "after_mark",
        "answer_tokens",
        "base",
        "busy_s",
        "busy_tokens",
        "done_total",
        "due_s",
        "endpoints",
        "guessed",
        "hidden",
        "in_flight",
        "incarnation",
        "known",
        "known_s",
        "mark",
        "measured_s",
        "number",
        "picked",
        "prompt_total",
        "prompts",
        "rate",
        "reported_at",
        "reported_s",
        "seen",
        "sent",
        "served",
        "served_s",
        "slot",
        "tokens",
        "was_waiting",
    )

    def __init__(self, endpoints: Endpoints, slot: int, incarnation: int, rate: float) -> None:
        self.endpoints = endpoints
        self.slot = slot
        self.incarnation = incarnation
        # The columns.
        self.in_flight = 0
        self.prompts = 0
        self.tokens = 0
        self.answer_tokens = 0
        self.picked = 0
        # Entries are numbered; those after `base` are in `picked`, those after the last mark in `after_mark`.
        self.number = 0
        self.base = 0
        self.mark = 0
        self.after_mark = 0
        # The line. `hidden` are entries whose tokens are held, `guessed` those let go by estimate since the last report.
        self.sent = 0
        self.served = 0.0
        self.served_s = 0.0
        self.hidden: deque[Entry] = deque()
        self.guessed: deque[Entry] = deque(maxlen=_GUESSES_KEPT)
        self.due_s = inf
        # The rate. `seen` is the furthest first token, `known` where the next stretch begins.
        self.rate = rate
        self.busy_s = PRIOR_S
        self.busy_tokens = rate * PRIOR_S
        self.measured_s = 0.0
        self.seen = 0
        self.known = 0
        self.known_s = -inf
        # The last report: when, where the line was, what the counters said.
        self.reported_s = -inf
        self.reported_at = 0.0
        self.prompt_total = 0.0
        self.done_total = 0.0
        self.was_waiting = False

    def position(self, now_s: float) -> float:
        reached = self.served + (now_s - self.served_s) * self.rate
        return reached if reached < self.sent else float(self.sent)

    def place(self, position: float, now_s: float) -> None:
        self.served = position
        self.served_s = self.endpoints.line_s[self.slot] = now_s

    def sample(self, tokens: float, seconds: float) -> None:
        """Take a stretch of busy time into the rate. Place the line at the present time as well: it moves at the new rate."""
        kept = FORGET_S / (FORGET_S + seconds)
        self.busy_tokens = self.busy_tokens * kept + tokens
        self.busy_s = self.busy_s * kept + seconds
        self.measured_s = self.measured_s * kept + seconds
        self.rate = min(MOST_RATE, max(LEAST_RATE, self.busy_tokens / self.busy_s))


class Entry:
    """One request on one endpoint's account. The ledger alone changes it.

    `open`: in `in_flight`. `queued`: its first token was not seen. `held`: it is in `in_flight_prompts`, its tokens in
    `in_flight_tokens`.
    """

    __slots__ = (
        "account",
        "alone",
        "answer_tokens",
        "end",
        "held",
        "number",
        "open",
        "queued",
        "taken_s",
        "tokens",
        "visible",
    )

    def __init__(self, account: _Account, tokens: int, visible: bool, answer_tokens: int) -> None:
        self.account = account
        self.tokens = tokens
        self.answer_tokens = answer_tokens
        self.visible = visible
        self.open = True
        self.queued = True
        self.held = True
        self.alone = False
        self.end = 0
        self.number = 0
        self.taken_s = 0.0

    def __repr__(self) -> str:
        state = "open" if self.open else "over"
        return f"<Entry slot {self.account.slot}, {self.tokens} tokens{' held' if self.held else ''}, {state}>"


class Ledger:
    """Keeps the account of all endpoints of one pool. Times are seconds of one monotonic clock.

    `start_rate`: what a server is believed to prefill before it was seen to, uncached tokens per second.
    """

    def __init__(self, endpoints: Endpoints, start_rate: float = START_RATE) -> None:
        self._endpoints = endpoints
        self._start_rate = start_rate
        self._accounts: dict[int, _Account] = {}
        # (time, tie-break, account): when the first hidden entry of an account is due. An account's earlier or later wishes
        # stay in the heap and are passed over, so one entry costs one push.
        self._due: list[tuple[float, int, _Account]] = []
        self._pushes = 0

    def __repr__(self) -> str:
        live = [account for account in self._accounts.values() if self._lives(account)]
        requests, tokens = sum(a.in_flight for a in live), sum(a.tokens for a in live)
        return f"<Ledger {requests} requests, {tokens} tokens on {len(live)} endpoints>"

    def take(self, slot: int, uncached_tokens: int, now_s: float, *, sees_body: bool, answer_tokens: int = 0) -> Entry:
        """Count a request that was just picked for `slot`.

        `sees_body`: `first_token` will be called for it; otherwise its tokens are let go by estimate. `answer_tokens` count
        in `in_flight_tokens` too, until the request's end; they stand in no line.
        """
        entry = Entry(self._account(slot), max(0, uncached_tokens), sees_body, max(0, answer_tokens))
        self._enter(entry, now_s)
        return entry

    def first_token(self, entry: Entry, now_s: float) -> None:
        """The answer's first piece was seen: the prompt is prefilled. Only the first call counts."""
        account = entry.account
        if not (entry.open and entry.queued and self._lives(account)):
            return
        self._start(entry)
        self._let_go(entry)
        self._observe(entry, now_s)
        self._pass(account, now_s)

    def release(self, entry: Entry, now_s: float) -> None:
        """The request is over, however it ended. Harmless when repeated and after the endpoint is gone."""
        if not entry.open:
            return
        entry.open = False
        if self._lives(entry.account):
            self._leave(entry, now_s)

    def move(self, entry: Entry, slot: int, now_s: float) -> None:
        """Another endpoint than the picked one answers: the account is the other's from now on."""
        account = self._account(slot)
        if not entry.open or entry.account is account:
            return
        queued, held = entry.queued, entry.held
        if self._lives(entry.account):
            if held and not entry.visible:
                entry.account.hidden.remove(entry)
            self._leave(entry, now_s)
        entry.account, entry.queued, entry.held = account, queued, held
        self._enter(entry, now_s)

    def advance(self, now_s: float) -> None:
        """Let go the hidden tokens that are due by now. Call before reading `in_flight_tokens`; nothing due costs 0.1 µs."""
        due = self._due
        while due and due[0][0] <= now_s:
            wished_s, _, account = heapq.heappop(due)
            if wished_s == account.due_s and self._lives(account):
                account.due_s = inf
                self._pass(account, now_s)

    def report_sent(self, slot: int, now_s: float) -> Mark:
        """A scrape of `slot` goes out now. A later mark of the same endpoint takes the place of an earlier one."""
        account = self._account(slot)
        account.mark = account.number
        account.after_mark = 0
        return Mark(account.incarnation, account.number, now_s)

    def reported(self, slot: int, mark: Mark, report: Report, now_s: float) -> bool:
        """The scrape of `mark` was answered. True when its counters show that the server has restarted: its cache is cold."""
        account = self._account(slot)
        if mark.incarnation != account.incarnation:
            return False
        if mark.number == account.mark:
            account.base = mark.number
            account.picked = account.after_mark
            self._endpoints.picked_since_report[slot] = account.picked
        restarted = report.prompt_tokens_total is not None and self._count(account, report, now_s)
        if restarted:
            self._settle(account, mark.number, now_s, now_s)
        elif report.waiting == 0 and report.running == 0:
            self._settle(account, mark.number, mark.sent_s - SETTLE_S, now_s)
        self._pass(account, now_s)
        return restarted

    def prefill_rate(self, slot: int) -> float:
        """Uncached prompt tokens per second that the endpoint is believed to prefill; the start rate of one not seen yet."""
        return self._account(slot).rate

    def measured_s(self, slot: int) -> float:
        """Seconds of busy time that the rate rests on (old ones weigh less); 0.0 where it is a guess."""
        return self._account(slot).measured_s

    # --- one account -------------------------------------------------------------------------------------------------

    def _account(self, slot: int) -> _Account:
        account = self._accounts.get(slot)
        if account is None or self._endpoints.incarnation.item(slot) != account.incarnation:
            account = _Account(self._endpoints, slot, self._endpoints.incarnation.item(slot), self._start_rate)
            self._accounts[slot] = account
        return account

    def _lives(self, account: _Account) -> bool:
        """Whether the endpoint is still the one that the account was opened for; if not, its columns are another's."""
        return self._endpoints.incarnation.item(account.slot) == account.incarnation

    def _enter(self, entry: Entry, now_s: float) -> None:
        account = entry.account
        endpoints = self._endpoints
        slot = account.slot
        account.number += 1
        entry.number = account.number
        entry.taken_s = now_s
        empty = not account.in_flight or account.position(now_s) >= account.sent
        if empty:
            account.place(float(account.sent), now_s)
        entry.alone = empty and not account.tokens
        account.in_flight += 1
        endpoints.in_flight[slot] = account.in_flight
        if entry.queued:
            account.picked += 1
            account.after_mark += 1
            endpoints.picked_since_report[slot] = account.picked
        if entry.held:
            account.sent += entry.tokens
            account.tokens += entry.tokens
            account.prompts += 1
            endpoints.in_flight_prompts[slot] = account.prompts
        account.answer_tokens += entry.answer_tokens
        endpoints.in_flight_tokens[slot] = account.tokens + account.answer_tokens
        endpoints.line_prompt[slot] = account.tokens / account.prompts if account.prompts else 0.0
        entry.end = account.sent
        if entry.held and not entry.visible:
            account.hidden.append(entry)
            self._schedule(account)

    def _leave(self, entry: Entry, now_s: float) -> None:
        account = entry.account
        account.in_flight -= 1
        self._endpoints.in_flight[account.slot] = account.in_flight
        if entry.queued:
            self._start(entry)
        if entry.answer_tokens:
            account.answer_tokens -= entry.answer_tokens
            self._write_held(account)
        if not entry.held:
            return
        # Done or given up: either way the server has so much less before it.
        account.place(min(float(account.sent), account.position(now_s) + entry.tokens), now_s)
        self._let_go(entry)
        if account.hidden:
            self._pass(account, now_s)

    def _start(self, entry: Entry) -> None:
        """Not waiting any more."""
        entry.queued = False
        account = entry.account
        if entry.number > account.mark:
            account.after_mark -= 1
        if entry.number > account.base:
            account.picked -= 1
            self._endpoints.picked_since_report[account.slot] = account.picked

    def _let_go(self, entry: Entry) -> None:
        if entry.held:
            entry.held = False
            account = entry.account
            account.tokens -= entry.tokens
            account.prompts -= 1
            self._write_held(account)

    def _hold_again(self, entry: Entry) -> None:
        entry.held = True
        account = entry.account
        account.tokens += entry.tokens
        account.prompts += 1
        self._write_held(account)
        account.hidden.appendleft(entry)

    def _write_held(self, account: _Account) -> None:
        self._endpoints.in_flight_prompts[account.slot] = account.prompts
        self._endpoints.in_flight_tokens[account.slot] = account.tokens + account.answer_tokens
        self._endpoints.line_prompt[account.slot] = account.tokens / account.prompts if account.prompts else 0.0

    # --- the line ----------------------------------------------------------------------------------------------------

    def _pass(self, account: _Account, now_s: float) -> None:
        """Let go the hidden entries that the line has passed. The next report may take that back."""
        hidden = account.hidden
        if not hidden:
            return
        # Ends are ints: half a token is less than any, and far more than a float is off.
        reached = account.position(now_s) + 0.5
        while hidden and (not hidden[0].held or hidden[0].end <= reached):
            entry = hidden.popleft()
            if entry.held:
                self._let_go(entry)
                account.guessed.append(entry)
        if hidden:
            self._schedule(account)

    def _schedule(self, account: _Account) -> None:
        due_s = account.served_s + (account.hidden[0].end - account.served) / account.rate
        if due_s < account.due_s:
            account.due_s = due_s
            self._pushes += 1
            heapq.heappush(self._due, (due_s, self._pushes, account))

    def _observe(self, entry: Entry, now_s: float) -> None:
        """A first token was seen: everything up to the entry's end is done."""
        account = entry.account
        if entry.end <= account.seen:
            return
        account.seen = entry.end
        tokens, since_s = entry.end - account.known, account.known_s
        if entry.alone:
            tokens, since_s = entry.tokens, entry.taken_s
        if entry.taken_s > since_s:
            # The server may have been idle in between.
            account.known, account.known_s = entry.end, now_s
        elif tokens >= LEAST_SAMPLE_TOKENS:
            self._sample(account, tokens, now_s - since_s)
            account.known, account.known_s = entry.end, now_s
        account.place(float(entry.end), now_s)

    def _sample(self, account: _Account, tokens: float, seconds: float) -> None:
        account.sample(tokens, seconds)
        self._endpoints.prefill_rate[account.slot] = self._endpoints.line_rate[account.slot] = account.rate

    def _settle(self, account: _Account, number: int, until_s: float, now_s: float) -> None:
        """Hidden entries up to `number` that were taken before `until_s` are done."""
        hidden = account.hidden
        end = 0
        while hidden and hidden[0].number <= number and hidden[0].taken_s <= until_s:
            entry = hidden.popleft()
            end = entry.end
            self._let_go(entry)
        if end > account.position(now_s):
            account.place(float(end), now_s)

    # --- scrapes -----------------------------------------------------------------------------------------------------

    def _count(self, account: _Account, report: Report, now_s: float) -> bool:
        """Follow the server's counters; whether they fell."""
        assert report.prompt_tokens_total is not None
        done_total = report.prompt_tokens_total - (report.cached_tokens_total or 0.0)
        done = max(0.0, done_total - account.done_total)
        elapsed_s = now_s - account.reported_s
        first = account.reported_s == -inf
        restarted = report.prompt_tokens_total < account.prompt_total
        was_waiting, is_waiting = account.was_waiting, bool(report.waiting)
        account.prompt_total = report.prompt_tokens_total
        # Servers count a hit when a prompt is begun and the prompt when it is done: in between the difference falls.
        account.done_total = done_total if restarted else max(account.done_total, done_total)
        account.reported_s = now_s
        account.was_waiting = is_waiting
        if not (first or restarted):
            began_s = now_s - elapsed_s if was_waiting and is_waiting else self._began_s(account, now_s - elapsed_s)
            self._correct(account, account.reported_at + done, report, now_s)
            if (was_waiting and is_waiting) or done > account.rate * (now_s - began_s):
                self._sample(account, done, now_s - began_s)
        account.guessed.clear()
        account.reported_at = account.position(now_s)
        return restarted

    def _correct(self, account: _Account, measured: float, report: Report, now_s: float) -> None:
        """Move the line to where the counters have it, as far as entries that are not over leave it in doubt."""
        believed = account.position(now_s)
        measured = min(float(account.sent), max(measured, self._beyond_doubt(account)))
        if measured >= believed:
            account.place(measured, now_s)
            return
        account.place((measured + believed) / 2 if report.counts_late else measured, now_s)
        waiting = int(report.waiting or 0)
        guessed = account.guessed
        while waiting and guessed and guessed[-1].end > measured:
            entry = guessed.pop()
            if entry.open and entry.queued and entry.account is account:
                self._hold_again(entry)
                waiting -= 1
        if account.hidden and account.hidden[0].end <= account.position(now_s):
            account.place(measured, now_s)

    def _began_s(self, account: _Account, reported_s: float) -> float:
        """The earliest time at which the server may have begun with what it has counted since `reported_s`.

        A long prompt is counted whole when it is done, most of which may have been before the last report.
        """
        for entries in (account.guessed, account.hidden):
            for entry in entries:
                if entry.end > account.reported_at:
                    return min(reported_s, entry.taken_s)
        return reported_s

    def _beyond_doubt(self, account: _Account) -> float:
        """A position that the line has passed for sure."""
        for entries in (account.guessed, account.hidden):
            for entry in entries:
                if entry.open and entry.account is account:
                    return float(max(account.seen, entry.end - entry.tokens))
        return float(account.sent)
