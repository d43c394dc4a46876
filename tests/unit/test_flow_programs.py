"""Program-aware fairness: its formula, what it remembers, and what it costs."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from epp.flow.control import FlowControl
from epp.flow.programs import PROGRAMS_KEPT, ProgramAware
from epp.flow.settings import BandSettings, FlowSettings, Policies, Programs
from epp.flow.ticket import Ticket

HALF_LIFE_S = 60.0


def control(**more: float) -> FlowControl[str]:
    policies = Policies(fairness="program-aware", programs=msgspec.structs.replace(Programs(), **more))
    return FlowControl(FlowSettings(default=BandSettings(policies=policies)), 0.0)


def wait(flow: FlowControl[str], program: str, now_s: float) -> None:
    flow.submit(Ticket(program, fairness_id=program), now_s)


def turn(flow: FlowControl[str], now_s: float) -> str:
    settled = flow.next(0.0, now_s)
    assert settled is not None
    return settled.ticket.payload


def test_who_was_served_least_goes_first() -> None:
    flow = control()
    flow.served(0, "much", 1000, 1.0)
    flow.passes(0, 0.0, 1.0)
    flow.served(0, "much", 1000, 1.0)
    flow.served(0, "some", 300, 1.0)
    for program in ("much", "some", "nothing"):
        wait(flow, program, 2.0)
    assert [turn(flow, 3.0) for _ in range(3)] == ["nothing", "some", "much"]


def test_a_long_wait_makes_up_for_a_little_service() -> None:
    flow = control()
    flow.passes(0, 0.0, 0.0)
    flow.served(0, "most", 1000, 0.0)
    flow.served(0, "waits", 100, 0.0)
    wait(flow, "waits", 1.0)
    wait(flow, "most", 5.0)
    wait(flow, "new", 10.0)
    # Service counts for 0.72 of 0.8 and the wait for all of 0.2, against 0.8 and nothing.
    assert turn(flow, 11.0) == "waits"


@pytest.mark.parametrize("tokens", [(0, 100, 500, 1000), (0, 0, 0, 0)], ids=["by service", "by wait"])
def test_who_takes_the_place_of_one_that_left_keeps_its_own(tokens: tuple[int, ...]) -> None:
    flow = control()
    flow.passes(0, 0.0, 0.0)
    tickets = []
    for number, served in enumerate(tokens):
        flow.served(0, str(number), served, 0.0)
        tickets.append(Ticket(str(number), fairness_id=str(number)))
        flow.submit(tickets[-1], float(number))
    # It has looked at their waits once.
    assert turn(flow, 5.0) == "0"
    tickets.append(Ticket("4", fairness_id="4"))
    flow.served(0, "4", 2 * tokens[-1], 5.0)
    flow.submit(tickets[-1], 5.0)
    flow.cancel(tickets[1], 5.0)
    assert [turn(flow, 6.0) for _ in range(3)] == ["2", "3", "4"]


def test_service_halves_with_time() -> None:
    flow = control()
    flow.passes(0, 0.0, 0.0)
    flow.served(0, "early", 1000, 0.0)
    flow.served(0, "late", 600, HALF_LIFE_S)
    assert flow.attained(HALF_LIFE_S) == pytest.approx({"early": 500, "late": 600})
    for program in ("late", "early"):
        wait(flow, program, HALF_LIFE_S)
    assert turn(flow, HALF_LIFE_S) == "early"


def test_without_a_half_life_nothing_is_forgiven() -> None:
    flow = control(half_life_s=0.0)
    flow.passes(0, 0.0, 0.0)
    flow.served(0, "early", 1000, 0.0)
    assert flow.attained(1e9) == {"early": 1000}


def test_years_do_not_overflow() -> None:
    flow = control()
    for year in range(3):
        flow.passes(0, 0.0, year * 3e7)
        flow.served(0, "a", 100, year * 3e7)
    assert flow.attained(6e7) == pytest.approx({"a": 100})


def test_programs_without_requests_are_forgotten_in_time_and_never_too_many() -> None:
    turns: ProgramAware[str] = ProgramAware(Policies(fairness="program-aware"))
    turns.served("old", 1, 0.0)
    open_flow = turns.open("open")
    turns.served("open", 1, 0.0)
    turns.served("new", 1, 3700.0)
    assert set(turns.attained(3700.0)) == {"open", "new"}
    for number in range(20_000):
        turns.served(f"invented {number}", number, 3701.0)
    assert len(turns.attained(3701.0)) <= 2 * PROGRAMS_KEPT + 1
    assert "invented 19999" in turns.attained(3701.0)
    turns.close(open_flow)


def test_programs_that_wait_do_not_make_each_serving_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("epp.flow.programs.PROGRAMS_KEPT", 4)
    turns: ProgramAware[str] = ProgramAware(Policies(fairness="program-aware"))
    sweeps: list[float] = []
    monkeypatch.setattr(turns, "_sweep", sweeps.append)
    for number in range(20):
        turns.open(str(number)).line.add(Ticket("", fairness_id=str(number)))
    for number in range(28):
        turns.served(str(number), 1.0, 1.0)
    assert sweeps == []
    turns.served("one more", 1.0, 1.0)
    assert sweeps == [1.0]


Step = tuple[str, str, float]


@given(
    st.lists(
        st.tuples(st.sampled_from(["wait", "turn", "serve", "leave"]), st.sampled_from("abcde"), st.floats(0.0, 90.0)),
        max_size=60,
    )
)
def test_every_turn_is_the_formulas(steps: list[Step]) -> None:
    flow = control()
    now_s = 50.0
    flow.passes(0, 0.0, now_s)
    service = dict.fromkeys("abcde", 0.0)
    lines: dict[str, list[Ticket[str]]] = {}

    def norm(values: dict[str, float]) -> dict[str, float]:
        least, most = min(values.values()), max(values.values())
        return {name: (value - least) / (most - least) if most > least else 0.0 for name, value in values.items()}

    for what, program, amount in steps:
        now_s += amount
        service = {name: value * 0.5 ** (amount / HALF_LIFE_S) for name, value in service.items()}
        if what == "wait":
            ticket = Ticket(program, fairness_id=program, max_wait_s=1e9)
            if not flow.submit(ticket, now_s):
                lines.setdefault(program, []).append(ticket)
        elif what == "serve":
            flow.served(0, program, 10 * amount, now_s)
            service[program] += 10 * amount
        elif what == "leave" and program in lines:
            flow.cancel(lines[program].pop(), now_s)
        elif what == "turn" and any(lines.values()):
            waiting = {name: tickets for name, tickets in lines.items() if tickets}
            served = norm({name: service[name] for name in waiting})
            waited = norm({name: now_s - tickets[0].enqueued_s for name, tickets in waiting.items()})
            score = {name: 0.8 * (1.0 - served[name]) + 0.2 * waited[name] for name in waiting}
            gone = turn(flow, now_s)
            assert score[gone] >= max(score.values()) - 1e-6
            assert flow.requests == sum(map(len, lines.values())) - 1
            lines[gone].pop(0)
        lines = {name: tickets for name, tickets in lines.items() if tickets}
