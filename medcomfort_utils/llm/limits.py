"""How fast, how often and how much: the pace of calls, waits between retries, and the budget."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from medcomfort_utils.llm.requests import Stopped

FIRST_WAIT = 0.5  # seconds before the first retry; doubles with each
LONGEST_WAIT = 60.0  # seconds between two retries of our own accord


class Pace:
    """At most `per_minute` units (requests or tokens) a minute, evenly spaced, so without a burst in any window.

    0 sets no limit. Whoever comes first goes first. `hold` keeps everybody back for a while.
    """

    def __init__(
        self,
        per_minute: float = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable] = asyncio.sleep,
    ):
        self.seconds_each = 60 / per_minute if per_minute else 0.0
        self._clock, self._sleep = clock, sleep
        self._free = clock()  # when the next may go
        self._queue = asyncio.Lock()

    async def turn(self, units: float = 1) -> None:
        """Wait until `units` more fit."""
        async with self._queue:
            while (wait := self._free - self._clock()) > 0:
                await self._sleep(wait)
            self._free = max(self._free, self._clock()) + units * self.seconds_each

    def give_back(self, units: float) -> None:
        """Units taken that turned out not to be needed (or, if negative, that were used on top)."""
        self._free -= units * self.seconds_each

    def hold(self, seconds: float) -> None:
        """Nobody goes for so long: the server asked for a pause."""
        self._free = max(self._free, self._clock() + seconds)


def backoff(attempt: int, rng: random.Random) -> float:
    """Seconds to wait after failed attempt 0, 1, 2, ...: exponential, with jitter of half to one and a half times.

    Jitter keeps many clients from coming back all at once; it shapes when, never what, so the seed is free.
    """
    return min(LONGEST_WAIT, FIRST_WAIT * 2**attempt) * rng.uniform(0.5, 1.5)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` as a number or a date (RFC 9110, 10.2.3).

    None if it does not ask, or not in a way that can be understood.
    """
    milliseconds, asked = headers.get("retry-after-ms"), headers.get("retry-after")
    for text, unit in ((milliseconds, 0.001), (asked, 1.0)):
        try:
            return max(0.0, float(text) * unit)
        except (TypeError, ValueError):
            continue
    try:
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None


@dataclass
class Budget:
    """What may be spent and what was: tokens, and cost at prices per million tokens. A limit of 0 is none.

    A call reserves the most it can cost before it is made, so that the limits are not overrun by calls under way;
    what it really took is booked after. Calls that fail are not counted: the server does not tell their tokens.
    """

    max_cost: float = 0.0
    max_tokens: int = 0
    price_in: float = 0.0
    price_out: float = 0.0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self):
        self._reserved_tokens, self._reserved_cost, self._under_way = 0, 0.0, 0
        self.changed = asyncio.Event()  # an event belongs to one loop: each run of the client sets a new one

    @property
    def priced(self) -> bool:
        """Whether there is a price, so that a cost means something."""
        return bool(self.price_in or self.price_out)

    @property
    def cost(self) -> float:
        """Spent so far, in the currency of the prices."""
        return self.cost_of(self.prompt_tokens, self.completion_tokens)

    def cost_of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of so many tokens."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6

    async def reserve(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Set aside the most a call can take; waits for calls under way where that decides. Raises Stopped."""
        tokens, cost = prompt_tokens + completion_tokens, self.cost_of(prompt_tokens, completion_tokens)
        while over := self._over(tokens, cost):
            if not self._under_way:
                raise Stopped(
                    f"The budget is used up: the next call could go over {over} (spent so far: {self}). All "
                    "responses are kept; start again, with a new budget, to go on where this stopped."
                )
            self.changed.clear()
            await self.changed.wait()
        self._under_way += 1
        self._reserved_tokens += tokens
        self._reserved_cost += cost

    def _over(self, tokens: int, cost: float) -> str:
        """The limit that `tokens` and `cost` more would break, or nothing."""
        spent = self.prompt_tokens + self.completion_tokens + self._reserved_tokens
        if self.max_tokens and spent + tokens > self.max_tokens:
            return f"max_tokens_total = {self.max_tokens}"
        if self.max_cost and self.cost + self._reserved_cost + cost > self.max_cost:
            return f"max_cost = {self.max_cost:g}"
        return ""

    def release(self, prompt_tokens: int, completion_tokens: int) -> None:
        """End a reservation made with the same numbers."""
        self._under_way -= 1
        self._reserved_tokens -= prompt_tokens + completion_tokens
        self._reserved_cost -= self.cost_of(prompt_tokens, completion_tokens)
        self.changed.set()

    def book(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count an answered call."""
        self.calls += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def __str__(self) -> str:
        tokens = self.prompt_tokens + self.completion_tokens
        return f"{self.calls:,} calls, {tokens:,} tokens" + (f", cost {self.cost:.4f}" if self.priced else "")
