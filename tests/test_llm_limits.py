"""Pace, waits and budget, on a clock that the test winds."""

import asyncio
import random
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from medcomfort_utils.llm.limits import LONGEST_WAIT, Budget, Pace, backoff, retry_after
from medcomfort_utils.llm.requests import Stopped


class Clock:
    """Sleeping takes no time: it only moves the hand."""

    now = 100.0

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.now += seconds
        await asyncio.sleep(0)


def departures(per_minute, turns):
    """The times at which `turns`, a list of units, may go."""
    clock, times = Clock(), []

    async def go(pace, units):
        await pace.turn(units)
        times.append(clock.now - 100)

    async def all_go():
        pace = Pace(per_minute, clock, clock.sleep)
        await asyncio.gather(*[go(pace, units) for units in turns])

    asyncio.run(all_go())
    return times


def test_requests_a_minute_are_spread_so_that_no_minute_holds_more():
    times = departures(30, [1] * 100)
    assert times == sorted(times)
    assert all(later - earlier == pytest.approx(60) for earlier, later in zip(times, times[30:], strict=False))
    assert times[-1] == pytest.approx(99 * 2)


def test_tokens_a_minute_make_the_next_wait_for_as_long_as_the_last_was_large():
    assert departures(6000, [1000, 3000, 100, 100]) == pytest.approx([0, 10, 40, 41])


def test_tokens_that_were_not_used_shorten_the_wait():
    async def with_refund():
        clock = Clock()
        pace = Pace(6000, clock, clock.sleep)
        await pace.turn(1000)
        pace.give_back(900)
        await pace.turn(1000)
        return clock.now - 100

    assert asyncio.run(with_refund()) == pytest.approx(1)


def test_no_limit_waits_for_nothing_but_a_pause_the_server_asked_for():
    assert departures(0, [1] * 10) == [0] * 10

    async def held():
        clock = Clock()
        pace = Pace(0, clock, clock.sleep)
        pace.hold(7)
        await pace.turn()
        await pace.turn()
        return clock.now - 100

    assert asyncio.run(held()) == 7


def test_waits_double_with_jitter_up_to_a_longest():
    rng = random.Random(0)
    for attempt, expected in ((0, 0.5), (1, 1.0), (4, 8.0), (30, LONGEST_WAIT)):
        waits = [backoff(attempt, rng) for _ in range(200)]
        assert expected * 0.5 <= min(waits) < expected * 0.6
        assert expected * 1.4 < max(waits) <= expected * 1.5


def test_retry_after_is_read_as_seconds_milliseconds_or_date():
    assert retry_after({"retry-after": "3"}) == 3
    assert retry_after({"retry-after": "1.5"}) == 1.5
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    assert 27 < retry_after({"retry-after": soon}) <= 30
    assert retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert retry_after({"retry-after": "-5"}) == 0


@pytest.mark.parametrize("headers", [{}, {"retry-after": "soon"}, {"retry-after": ""}])
def test_a_retry_after_that_says_nothing_is_none(headers):
    assert retry_after(headers) is None


def test_a_budget_counts_tokens_and_cost():
    budget = Budget(price_in=2.0, price_out=8.0)
    budget.book(1_000_000, 500_000)
    budget.book(500_000, 0)
    assert (budget.calls, budget.prompt_tokens, budget.completion_tokens) == (2, 1_500_000, 500_000)
    assert budget.cost == pytest.approx(7.0)
    assert str(budget) == "2 calls, 2,000,000 tokens, cost 7.0000"


@pytest.mark.parametrize("limit", [{"max_tokens": 100}, {"max_cost": 1e-4, "price_in": 1.0, "price_out": 1.0}])
def test_a_budget_is_never_overrun_but_used_up(limit):
    """Each call may take 30 tokens and takes 20: three fit at once, and 100 tokens hold four and a rest below 30."""

    async def spend(budget):
        async def call():
            await budget.reserve(10, 20)
            await asyncio.sleep(0)
            budget.book(10, 10)
            budget.release(10, 20)

        return await asyncio.gather(*[call() for _ in range(10)], return_exceptions=True)

    async def run():
        budget = Budget(**limit)
        outcomes = await spend(budget)
        stops = [outcome for outcome in outcomes if outcome is not None]
        assert all(isinstance(stop, Stopped) and next(iter(limit)) in str(stop) for stop in stops)
        return budget, len(stops)

    budget, stopped = asyncio.run(run())
    assert (budget.calls, stopped) == (4, 6)
