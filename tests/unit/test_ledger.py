"""The ledger: whatever happens in whatever order, the columns are the sum of what is live, and nothing at the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from epp.endpoint import MOST_PREFILLED, Endpoint, Endpoints, Report
from epp.ledger import LEAST_RATE, LEAST_SAMPLE_TOKENS, MOST_RATE, SETTLE_S, Entry, Ledger, Mark

START_RATE = 10_000.0


def endpoint(number: int, port: int = 8000) -> Endpoint:
    return Endpoint(name=f"e{number}", address=f"10.0.0.{number}", port=port)


def pool(size: int = 4) -> tuple[Endpoints, Ledger]:
    endpoints = Endpoints(capacity=2)
    endpoints.replace([endpoint(number) for number in range(size)])
    return endpoints, Ledger(endpoints, START_RATE)


def tokens(endpoints: Endpoints, slot: int) -> float:
    return endpoints.in_flight_tokens.item(slot)


def page(
    prompt: float, cached: float = 0.0, *, waiting: float = 0.0, running: float = 1.0, late: bool = False
) -> Report:
    return Report(
        waiting=waiting, running=running, prompt_tokens_total=prompt, cached_tokens_total=cached, counts_late=late
    )


class Life:
    """What the test knows of one entry, without looking into it."""

    def __init__(self, entry: Entry, slot: int, incarnation: int, count: int, hidden: bool) -> None:
        self.entry = entry
        self.slot = slot
        self.incarnation = incarnation
        self.tokens = count
        self.hidden = hidden
        self.first = False
        self.over = False


class AnyOrder(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.endpoints, self.ledger = pool()
        self.members = dict.fromkeys(range(4), 8000)
        self.now_s = 100.0
        self.lives: list[Life] = []
        self.counters = dict.fromkeys(range(64), (0.0, 0.0))
        self.marks: list[tuple[int, Mark]] = []

    def slot(self, index: int) -> int:
        return int(self.endpoints.slots[index % len(self.endpoints)])

    @rule(by_s=st.sampled_from([0.0, 0.001, 0.1, 3.0]))
    def pass_time(self, by_s: float) -> None:
        self.now_s += by_s
        self.ledger.advance(self.now_s)

    @precondition(lambda self: len(self.endpoints) > 0)
    @rule(index=st.integers(0, 9), count=st.sampled_from([0, 1, 300, 5000]), hidden=st.booleans())
    def take(self, index: int, count: int, hidden: bool) -> None:
        slot = self.slot(index)
        entry = self.ledger.take(slot, count, self.now_s, sees_body=not hidden)
        self.lives.append(Life(entry, slot, self.endpoints.incarnation.item(slot), count, hidden))

    @precondition(lambda self: self.lives)
    @rule(index=st.integers(0, 99))
    def first_token(self, index: int) -> None:
        life = self.lives[index % len(self.lives)]
        self.ledger.first_token(life.entry, self.now_s)
        life.first = life.first or (not life.over and self.alive(life))

    @precondition(lambda self: self.lives)
    @rule(index=st.integers(0, 99))
    def release(self, index: int) -> None:
        life = self.lives[index % len(self.lives)]
        self.ledger.release(life.entry, self.now_s)
        life.over = True

    @precondition(lambda self: bool(self.lives) and len(self.endpoints) > 0)
    @rule(index=st.integers(0, 99), to=st.integers(0, 9))
    def move(self, index: int, to: int) -> None:
        life = self.lives[index % len(self.lives)]
        slot = self.slot(to)
        self.ledger.move(life.entry, slot, self.now_s)
        if not life.over:
            life.slot, life.incarnation = slot, self.endpoints.incarnation.item(slot)

    @rule(number=st.integers(0, 7), port=st.sampled_from([0, 8000, 8001]))
    def change_membership(self, number: int, port: int) -> None:
        if port:
            self.members[number] = port
        else:
            self.members.pop(number, None)
        self.endpoints.replace([endpoint(*member) for member in self.members.items()])

    @precondition(lambda self: len(self.endpoints) > 0)
    @rule(index=st.integers(0, 9))
    def send_scrape(self, index: int) -> None:
        slot = self.slot(index)
        self.marks.append((slot, self.ledger.report_sent(slot, self.now_s)))

    @precondition(lambda self: self.marks)
    @rule(
        last=st.booleans(),
        prompt=st.sampled_from([0, 1, 400, 9000]),
        cached=st.sampled_from([0, 1, 500]),
        waiting=st.sampled_from([None, 0, 1, 5]),
        running=st.sampled_from([None, 0, 2]),
        restart=st.booleans(),
    )
    def answer_scrape(
        self, last: bool, prompt: int, cached: int, waiting: int | None, running: int | None, restart: bool
    ) -> None:
        slot, mark = self.marks.pop(-1 if last else 0)
        seen, hit = (0.0, 0.0) if restart else self.counters[slot]
        self.counters[slot] = seen + prompt, hit + cached
        report = Report(
            waiting=waiting, running=running, prompt_tokens_total=seen + prompt, cached_tokens_total=hit + cached
        )
        self.ledger.reported(slot, mark, report, self.now_s)

    def alive(self, life: Life) -> bool:
        return self.endpoints.incarnation.item(life.slot) == life.incarnation

    def live(self, slot: int) -> list[Life]:
        return [life for life in self.lives if not life.over and life.slot == slot and self.alive(life)]

    @invariant()
    def columns_are_the_sum_of_what_is_live(self) -> None:
        for slot in range(self.endpoints.capacity):
            live = self.live(slot)
            assert self.endpoints.in_flight.item(slot) == len(live)
            assert tokens(self.endpoints, slot) == sum(life.tokens for life in live if life.entry.held)
            assert self.endpoints.in_flight_prompts.item(slot) == sum(life.entry.held for life in live)
            assert 0 <= self.endpoints.picked_since_report.item(slot) <= len(live)

    @invariant()
    def seen_answers_hold_their_tokens_exactly_until_the_first_token(self) -> None:
        for life in self.lives:
            if not life.hidden and not life.over and self.alive(life):
                assert life.entry.held == (not life.first)

    @invariant()
    def rates_are_within_bounds(self) -> None:
        for slot in self.endpoints.slots.tolist():
            assert LEAST_RATE <= self.ledger.prefill_rate(slot) <= MOST_RATE

    @invariant()
    def of_the_front_no_more_is_believed_done_than_time_and_a_mean_prompt_allow(self) -> None:
        e = self.endpoints
        for slot, left in zip(e.slots.tolist(), e.candidates(self.now_s).backlog.tolist(), strict=True):
            assert e.line_s.item(slot) <= self.now_s
            assert e.line_rate.item(slot) in (0.0, self.ledger.prefill_rate(slot))
            told, prompts = e.in_flight_tokens.item(slot), max(1.0, e.in_flight_prompts.item(slot))
            assert e.line_prompt.item(slot) == pytest.approx(tokens(e, slot) / prompts)
            moved = (self.now_s - e.line_s.item(slot)) * e.line_rate.item(slot)
            assert left == pytest.approx(told - min(moved, MOST_PREFILLED * e.line_prompt.item(slot)))
            assert 0 <= left <= told

    def teardown(self) -> None:
        for life in random.Random(len(self.lives)).sample(self.lives, len(self.lives)):
            self.ledger.release(life.entry, self.now_s)
            self.ledger.first_token(life.entry, self.now_s)
            self.ledger.release(life.entry, self.now_s)
        self.ledger.advance(self.now_s + 1e9)
        e = self.endpoints
        for column in (e.in_flight, e.in_flight_prompts, e.in_flight_tokens, e.picked_since_report):
            assert not column.any()
        assert not self.ledger._due


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def test_the_line_is_seen_to_move_by_first_tokens_and_when_it_begins() -> None:
    endpoints, ledger = pool()
    first = ledger.take(0, 4000, 10.0, sees_body=True)
    second = ledger.take(0, 2000, 10.1, sees_body=True)
    assert (endpoints.line_s.item(0), endpoints.line_rate.item(0)) == (10.0, 0.0)
    ledger.first_token(first, 10.5)
    assert endpoints.line_s.item(0) == 10.5
    assert endpoints.line_rate.item(0) == ledger.prefill_rate(0)
    # 0.1 s of its 0.2 or so, of 2,000 tokens.
    assert endpoints.candidates(10.6).backlog.item(0) == pytest.approx(2000 - 0.1 * ledger.prefill_rate(0))
    ledger.release(second, 10.7)
    assert endpoints.candidates(11.0).backlog.item(0) == 0
    endpoints.replace([endpoint(number) for number in range(1, 4)])
    assert (endpoints.line_s.item(0), endpoints.line_rate.item(0)) == (0.0, 0.0)


def test_a_seen_answer() -> None:
    endpoints, ledger = pool()
    entry = ledger.take(1, 700, 1.0, sees_body=True)
    other = ledger.take(1, 300, 1.0, sees_body=True)
    assert (endpoints.in_flight.item(1), tokens(endpoints, 1), endpoints.picked_since_report.item(1)) == (2, 1000, 2)
    ledger.advance(1000.0)
    assert tokens(endpoints, 1) == 1000
    ledger.first_token(entry, 1001.0)
    ledger.first_token(entry, 1002.0)
    assert (endpoints.in_flight.item(1), tokens(endpoints, 1), endpoints.picked_since_report.item(1)) == (2, 300, 1)
    ledger.release(entry, 1003.0)
    ledger.release(entry, 1004.0)
    ledger.release(other, 1005.0)
    assert (endpoints.in_flight.item(1), tokens(endpoints, 1), endpoints.picked_since_report.item(1)) == (0, 0, 0)


def test_a_hidden_answer_drains_at_the_rate_first_come_first_served() -> None:
    endpoints, ledger = pool()
    for count in (10_000, 20_000):
        ledger.take(0, count, 5.0, sees_body=False)
    seen = []
    for now_s in (5.9, 6.01, 7.9, 8.01):
        ledger.advance(now_s)
        seen.append(tokens(endpoints, 0))
    assert seen == [30_000, 20_000, 20_000, 0]
    assert endpoints.in_flight.item(0) == 2


def test_the_line_starts_when_the_first_comes() -> None:
    endpoints, ledger = pool()
    ledger.take(0, 1000, 1.0, sees_body=False)
    ledger.advance(50.0)
    ledger.take(0, 10_000, 50.0, sees_body=False)
    ledger.advance(50.9)
    assert tokens(endpoints, 0) == 10_000
    ledger.advance(51.01)
    assert tokens(endpoints, 0) == 0


def test_a_first_token_shows_that_all_before_it_is_done() -> None:
    endpoints, ledger = pool()
    ledger.take(0, 50_000, 1.0, sees_body=False)
    seen = ledger.take(0, 100, 1.0, sees_body=True)
    ledger.take(0, 50_000, 1.0, sees_body=False)
    ledger.first_token(seen, 1.5)
    assert tokens(endpoints, 0) == 50_000


def test_an_entry_that_ends_makes_room_for_those_behind_it() -> None:
    endpoints, ledger = pool()
    first = ledger.take(0, 50_000, 1.0, sees_body=False)
    ledger.take(0, 10_000, 1.0, sees_body=False)
    ledger.release(first, 1.5)
    assert tokens(endpoints, 0) == 10_000
    ledger.advance(2.01)
    assert tokens(endpoints, 0) == 0


def test_a_served_elsewhere_entry_moves_with_its_tokens() -> None:
    endpoints, ledger = pool()
    entry = ledger.take(0, 700, 1.0, sees_body=True)
    ledger.move(entry, 2, 1.1)
    assert (endpoints.in_flight.item(0), tokens(endpoints, 0), endpoints.picked_since_report.item(0)) == (0, 0, 0)
    assert (endpoints.in_flight.item(2), tokens(endpoints, 2), endpoints.picked_since_report.item(2)) == (1, 700, 1)
    ledger.first_token(entry, 1.2)
    ledger.move(entry, 3, 1.3)
    assert (endpoints.in_flight.item(3), tokens(endpoints, 3), endpoints.picked_since_report.item(3)) == (1, 0, 0)


def test_nothing_reaches_the_next_tenant_of_a_slot() -> None:
    endpoints, ledger = pool(1)
    old = ledger.take(0, 700, 1.0, sees_body=False)
    endpoints.replace([endpoint(9)])
    assert endpoints.slot_of("default/e9") == 0
    ledger.take(0, 50, 1.0, sees_body=True)
    ledger.advance(100.0)
    ledger.first_token(old, 100.0)
    ledger.release(old, 100.0)
    assert (endpoints.in_flight.item(0), tokens(endpoints, 0), endpoints.picked_since_report.item(0)) == (1, 50, 1)


def test_a_scrape_sent_to_the_former_tenant_is_ignored() -> None:
    endpoints, ledger = pool(1)
    mark = ledger.report_sent(0, 1.0)
    endpoints.replace([endpoint(9)])
    ledger.take(0, 50, 1.0, sees_body=True)
    assert not ledger.reported(0, mark, page(0.0, waiting=0.0, running=0.0), 2.0)
    assert endpoints.picked_since_report.item(0) == 1


def test_picks_since_the_report_are_those_after_the_scrape_was_sent() -> None:
    endpoints, ledger = pool()
    before = [ledger.take(0, 1, 1.0, sees_body=True) for _ in range(3)]
    mark = ledger.report_sent(0, 1.0)
    after = [ledger.take(0, 1, 1.0, sees_body=True) for _ in range(2)]
    assert endpoints.picked_since_report.item(0) == 5
    ledger.reported(0, mark, Report(waiting=3.0), 1.5)
    assert endpoints.picked_since_report.item(0) == 2
    ledger.release(before[0], 1.6)
    assert endpoints.picked_since_report.item(0) == 2
    ledger.first_token(after[0], 1.6)
    assert endpoints.picked_since_report.item(0) == 1


def test_a_lost_scrape_is_made_good_by_the_next() -> None:
    endpoints, ledger = pool()
    ledger.take(0, 1, 1.0, sees_body=True)
    lost = ledger.report_sent(0, 1.0)
    ledger.take(0, 1, 2.0, sees_body=True)
    mark = ledger.report_sent(0, 2.0)
    ledger.reported(0, lost, Report(), 2.1)
    assert endpoints.picked_since_report.item(0) == 2
    ledger.reported(0, mark, Report(), 2.2)
    assert endpoints.picked_since_report.item(0) == 0


def test_an_idle_server_has_done_what_was_sent_well_before_the_scrape() -> None:
    endpoints, ledger = pool()
    ledger.take(0, 90_000, 1.0, sees_body=False)
    ledger.take(0, 80_000, 1.0 + SETTLE_S, sees_body=False)
    mark = ledger.report_sent(0, 1.0 + 1.5 * SETTLE_S)
    ledger.take(0, 70_000, 1.0 + 1.5 * SETTLE_S, sees_body=False)
    ledger.reported(0, mark, Report(waiting=0.0, running=0.0), 1.6)
    assert tokens(endpoints, 0) == 150_000


def test_counters_ahead_of_the_estimate_let_go() -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 0.9), page(5000, 1000), 1.0)
    for _ in range(4):
        ledger.take(0, 10_000, 1.0, sees_body=False)
    ledger.reported(0, ledger.report_sent(0, 1.1), page(45_000, 11_000), 1.2)
    assert tokens(endpoints, 0) == 10_000
    assert ledger.prefill_rate(0) > START_RATE


def test_counters_behind_the_estimate_hold_again_what_the_server_has_waiting() -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 1.0), page(0), 1.0)
    entries = [ledger.take(0, 1000, 1.0, sees_body=False) for _ in range(6)]
    ledger.advance(2.0)
    assert tokens(endpoints, 0) == 0
    ledger.reported(0, ledger.report_sent(0, 2.0), page(2000, waiting=3.0), 2.0)
    assert [entry.held for entry in entries] == [False, False, False, True, True, True]
    assert tokens(endpoints, 0) == 3000
    ledger.release(entries[5], 2.0)
    assert tokens(endpoints, 0) == 2000


def test_what_is_over_or_was_seen_to_start_is_not_held_again() -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 1.0), page(0), 1.0)
    entries = [ledger.take(0, 1000, 1.0, sees_body=False) for _ in range(4)]
    ledger.advance(2.0)
    ledger.release(entries[3], 2.0)
    ledger.first_token(entries[2], 2.0)
    ledger.move(entries[1], 1, 2.0)
    ledger.reported(0, ledger.report_sent(0, 2.0), page(0, waiting=4.0), 2.0)
    assert not any(entry.held for entry in entries[1:])
    assert tokens(endpoints, 1) == 0


def test_a_counter_that_fell_means_a_restart() -> None:
    endpoints, ledger = pool()
    assert not ledger.reported(0, ledger.report_sent(0, 1.0), page(90_000), 1.0)
    ledger.take(0, 50_000, 1.0, sees_body=False)
    mark = ledger.report_sent(0, 2.0)
    ledger.take(0, 60_000, 2.0, sees_body=False)
    assert ledger.reported(0, mark, page(10), 2.0)
    assert tokens(endpoints, 0) == 60_000
    assert not ledger.reported(0, ledger.report_sent(0, 3.0), page(20), 3.0)


def test_the_first_report_of_a_server_that_has_long_been_running_is_no_evidence() -> None:
    endpoints, ledger = pool()
    ledger.take(0, 50_000, 1.0, sees_body=False)
    ledger.reported(0, ledger.report_sent(0, 1.0), page(1e9), 1.1)
    assert tokens(endpoints, 0) == 50_000
    assert ledger.prefill_rate(0) == START_RATE
    assert ledger.measured_s(0) == 0.0


def test_a_report_without_counters_changes_no_line() -> None:
    endpoints, ledger = pool()
    ledger.take(0, 50_000, 1.0, sees_body=False)
    ledger.reported(0, ledger.report_sent(0, 1.0), Report(waiting=1.0, running=1.0), 1.1)
    assert tokens(endpoints, 0) == 50_000


@pytest.mark.parametrize("rate", [2_000.0, 50_000.0])
def test_the_rate_is_found_out_from_first_tokens_one_at_a_time(rate: float) -> None:
    _, ledger = pool()
    now_s = 0.0
    for _ in range(60):
        entry = ledger.take(0, 4000, now_s, sees_body=True)
        now_s += 4000 / rate
        ledger.first_token(entry, now_s)
        now_s += 3.0
        ledger.release(entry, now_s)
    assert ledger.prefill_rate(0) == pytest.approx(rate, rel=0.1)
    assert ledger.prefill_rate(1) == START_RATE


@pytest.mark.parametrize("rate", [2_000.0, 50_000.0])
def test_the_rate_is_found_out_in_a_queue_where_few_answers_are_seen(rate: float) -> None:
    _, ledger = pool()
    rng = random.Random(3)
    done_s = 0.0
    firsts = []
    for number in range(200):
        count = rng.randrange(100, 3000)
        entry = ledger.take(0, count, number * 1e-4, sees_body=number % 10 == 0)
        done_s += count / rate
        firsts.append((done_s, entry))
    for done_s, entry in firsts:
        ledger.advance(done_s)
        if entry.visible:
            ledger.first_token(entry, done_s)
    assert ledger.prefill_rate(0) == pytest.approx(rate, rel=0.15)


@pytest.mark.parametrize("rate", [2_000.0, 50_000.0])
def test_the_rate_is_found_out_from_counters_alone(rate: float) -> None:
    _, ledger = pool()
    done = 0.0
    for second in range(60):
        for _ in range(4):
            ledger.take(0, 2000, float(second), sees_body=False)
        ledger.reported(0, ledger.report_sent(0, second), page(done, waiting=3.0), float(second))
        done += rate
    assert ledger.prefill_rate(0) == pytest.approx(rate, rel=0.1)


def test_a_small_prompt_says_nothing_about_the_rate() -> None:
    _, ledger = pool()
    for number in range(20):
        entry = ledger.take(0, LEAST_SAMPLE_TOKENS - 1, number, sees_body=True)
        ledger.first_token(entry, number + 0.9)
    assert ledger.prefill_rate(0) == START_RATE


def test_idle_time_between_two_first_tokens_is_not_busy_time() -> None:
    _, ledger = pool()
    for number in range(10):
        pair = [ledger.take(0, 1000, number * 100.0, sees_body=True) for _ in range(2)]
        ledger.first_token(pair[0], number * 100.0 + 0.1)
        ledger.first_token(pair[1], number * 100.0 + 0.2)
    assert ledger.prefill_rate(0) == pytest.approx(10_000, rel=0.01)


def test_an_unknown_token_count_below_zero_counts_as_none() -> None:
    endpoints, ledger = pool()
    ledger.take(0, -5, 0.0, sees_body=True)
    assert tokens(endpoints, 0) == 0


def test_what_is_due_costs_no_more_than_what_was_taken() -> None:
    _, ledger = pool()
    now_s = 0.0
    for _ in range(2000):
        now_s += 0.01
        ledger.advance(now_s)
        ledger.release(ledger.take(1, 50, now_s, sees_body=False), now_s)
    assert len(ledger._due) < 10


def test_wishes_that_were_overtaken_leave_the_heap() -> None:
    endpoints, ledger = pool()
    now_s = 0.0
    for _ in range(50):
        seen = ledger.take(0, 1000, now_s, sees_body=True)
        hidden = ledger.take(0, 1000, now_s, sees_body=False)
        now_s += 0.01
        ledger.first_token(seen, now_s)
        ledger.release(hidden, now_s)
    ledger.take(0, 10**9, now_s, sees_body=False)
    ledger.advance(now_s + 100.0)
    assert tokens(endpoints, 0) == 10**9
    assert len(ledger._due) == 1


def test_a_moved_hidden_entry_waits_in_its_new_line_only() -> None:
    endpoints, ledger = pool()
    ledger.take(0, 40_000, 1.0, sees_body=False)
    moved = ledger.take(0, 10_000, 1.0, sees_body=False)
    ledger.take(1, 50_000, 1.0, sees_body=False)
    ledger.move(moved, 1, 1.1)
    seen = ledger.take(0, 90_000, 1.1, sees_body=True)
    ledger.take(0, 10, 1.1, sees_body=False)
    ledger.first_token(seen, 1.2)
    ledger.advance(1.3)
    assert tokens(endpoints, 1) == 60_000


def test_an_account_with_nothing_in_flight_has_an_empty_line() -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 1.0), page(0), 1.0)
    over = ledger.take(0, 10_000, 1.0, sees_body=False)
    ledger.advance(2.0)
    ledger.reported(0, ledger.report_sent(0, 2.0), page(0), 2.0)
    ledger.release(over, 2.0)
    ledger.take(0, 10_000, 2.0, sees_body=False)
    ledger.advance(3.01)
    assert tokens(endpoints, 0) == 0


def test_idle_time_before_an_entry_behind_a_hidden_one_is_not_busy_time() -> None:
    _, ledger = pool()
    ledger.first_token(ledger.take(0, 1000, 1.0, sees_body=True), 1.1)
    ledger.take(0, 1000, 50.0, sees_body=False)
    ledger.first_token(ledger.take(0, 1000, 50.0, sees_body=True), 50.2)
    assert ledger.prefill_rate(0) == pytest.approx(10_000, rel=0.01)


@pytest.mark.parametrize(("late", "done_s"), [(False, 4.0), (True, 3.5)])
def test_counters_behind_move_the_line_back_half_the_way_where_they_count_late(late: bool, done_s: float) -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 1.0), page(0, late=late), 1.0)
    ledger.take(0, 20_000, 1.0, sees_body=False)
    ledger.reported(0, ledger.report_sent(0, 2.0), page(0, late=late), 2.0)
    ledger.advance(done_s - 0.05)
    assert tokens(endpoints, 0) == 20_000
    ledger.advance(done_s + 0.05)
    assert tokens(endpoints, 0) == 0


def test_counters_behind_raise_no_doubt_of_what_is_over() -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 1.0), page(0), 1.0)
    over = ledger.take(0, 10_000, 1.0, sees_body=False)
    ledger.advance(2.0)
    ledger.take(0, 10_000, 2.0, sees_body=False)
    ledger.release(over, 2.0)
    ledger.reported(0, ledger.report_sent(0, 2.5), page(0), 2.5)
    ledger.advance(3.55)
    assert tokens(endpoints, 0) == 0


def test_first_tokens_out_of_order_do_not_move_the_line_back() -> None:
    endpoints, ledger = pool()
    early, late = (ledger.take(0, 10_000, 1.0, sees_body=True) for _ in range(2))
    ledger.take(0, 10_000, 1.0, sees_body=False)
    ledger.first_token(late, 1.5)
    ledger.first_token(early, 2.0)
    ledger.advance(2.6)
    assert tokens(endpoints, 0) == 0


def test_only_the_next_report_takes_back_a_guess() -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 1.0), page(0), 1.0)
    ledger.take(0, 10_000, 1.0, sees_body=False)
    ledger.advance(2.0)
    ledger.reported(0, ledger.report_sent(0, 2.0), page(0), 2.0)
    ledger.reported(0, ledger.report_sent(0, 2.1), page(0, waiting=1.0), 2.1)
    assert tokens(endpoints, 0) == 0


def test_a_long_prompt_counted_whole_is_no_burst_of_speed() -> None:
    """Ten seconds' work that comes into the counters within one."""
    _, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 0.0), page(0), 0.0)
    ledger.take(0, 100_000, 0.0, sees_body=False)
    for at_s in range(1, 10):
        ledger.reported(0, ledger.report_sent(0, at_s), page(0), float(at_s))
    ledger.reported(0, ledger.report_sent(0, 10.0), page(100_000), 10.0)
    assert ledger.prefill_rate(0) == START_RATE


def test_hits_that_are_counted_before_their_prompt_are_not_work() -> None:
    endpoints, ledger = pool()
    ledger.reported(0, ledger.report_sent(0, 0.0), page(100_000), 0.0)
    ledger.take(0, 1000, 0.0, sees_body=False)
    ledger.reported(0, ledger.report_sent(0, 1.0), page(100_000, cached=90_000), 1.0)
    ledger.reported(0, ledger.report_sent(0, 2.0), page(191_000, cached=90_000), 2.0)
    assert ledger.prefill_rate(0) == START_RATE
    assert tokens(endpoints, 0) == 0
