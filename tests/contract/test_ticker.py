"""The timer of flow control on a real loop: when it calls, not how soon."""

from __future__ import annotations

import asyncio

from epp.ticker import Ticker
from tests.waiting import PATIENCE_S


class Pump:
    """Says that somebody waits for the first `rounds` calls."""

    def __init__(self, rounds: int = 0, *, fails: bool = False) -> None:
        self.calls = 0
        self.rounds = rounds
        self.fails = fails
        self.idle = asyncio.Event()

    def __call__(self, now_s: float) -> bool:
        assert now_s <= asyncio.get_running_loop().time()
        self.calls += 1
        if self.fails and self.calls == 1:
            raise ZeroDivisionError("as told")
        if self.calls >= self.rounds:
            self.idle.set()
        return self.calls < self.rounds


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_it_rests_until_it_is_woken_and_runs_once_a_turn() -> None:
    pump = Pump()
    ticker = Ticker(pump)
    await turns()
    assert pump.calls == 0
    for _ in range(10):
        ticker.wake()
    assert pump.calls == 0
    await turns()
    assert pump.calls == 1
    ticker.close()


async def test_it_goes_on_for_as_long_as_somebody_waits() -> None:
    pump = Pump(4)
    ticker = Ticker(pump)
    ticker.wake()
    await asyncio.wait_for(pump.idle.wait(), PATIENCE_S)
    await asyncio.sleep(0.05)
    assert pump.calls == 4
    ticker.close()


async def test_a_pump_that_fails_is_called_again() -> None:
    errors: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context["exception"]))
    pump = Pump(2, fails=True)
    ticker = Ticker(pump)
    ticker.wake()
    await asyncio.wait_for(pump.idle.wait(), PATIENCE_S)
    assert [type(error) for error in errors] == [ZeroDivisionError]
    ticker.close()


async def test_it_never_calls_after_its_end() -> None:
    pump = Pump(1000)
    ticker = Ticker(pump)
    ticker.wake()
    await turns()
    assert pump.calls == 1
    ticker.wake()
    ticker.close()
    ticker.wake()
    await asyncio.sleep(0.03)
    assert pump.calls == 1
