"""How fast a run may ask, what it may cost and did cost, and what is still to pay."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import NamedTuple

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.schema import Settings

PATIENCE = 120.0  # seconds of nothing but "slow down": two of the windows in which most servers count
LONGEST_PAUSE = 600.0  # seconds that a server may ask to wait before it is better to stop


class Stopped(MedComfortError):  # noqa: N818 - a state, not a mistake
    """No more calls are made: the budget is used up, the server refuses them all, or a response is not recorded."""


class Pace:
    """When the next call may go: one by one, within the limits a minute, and no faster than the server grants.

    A refusal (429) sets the gap between calls to about the time that an answer has taken on average so far, and keeps
    all back for an eighth of it or of the silence; each answer narrows the gap, the more slowly the longer the pause.
    """

    def __init__(self, settings: Settings, pause: Callable[[float], Awaitable]):
        self._clock, self._pause, self._queue = asyncio.get_running_loop().time, pause, asyncio.Lock()
        limits = settings.requests_per_minute, settings.tokens_per_minute
        self._least, self._each_token = (60 / limit if limit else 0.0 for limit in limits)
        self.gap, self._calm = self._least, 0.0
        self._next = self._tokens = self._held = self._refused = self._clock()
        self._granted = deque([self._clock()], maxlen=1000)

    async def turn(self, tokens: int) -> float:
        """Wait until a call of so many tokens may go, first come, first served; returns when it goes."""
        async with self._queue:
            while (wait := max(self._next, self._tokens) - self._clock()) > 0:
                await self._pause(wait)
            now = self._clock()
            self._next = max(self._next, now - self.gap / 4) + self.gap
            self._tokens = max(self._tokens, now) + tokens * self._each_token
            return now

    def granted(self, unused: int) -> None:
        """A call was not refused for its haste; `unused` of its tokens were not needed."""
        self._granted.append(self._clock())
        self._tokens -= max(0, unused) * self._each_token
        self._calm -= 1
        if self._calm < 0:
            self.gap = max(self._least, self.gap * (0.995 if self._calm > -40 else 0.97))

    def refused(self, left: float, wait: float) -> bool:
        """The call that went at `left` was too early; returns whether the silence has been too long to go on."""
        now = self._clock()
        if left >= self._refused:  # a call that left before the last refusal was heard says nothing new
            self._refused = now
            granted = (now - self._granted[0]) / len(self._granted)
            self.gap = max(self._least, granted * 0.8, min(self.gap * 1.05, granted * 2))
            hold = max(self.gap, now - self._granted[-1]) / 8
            self._calm = 10 * max(hold, wait) / self.gap if self.gap else 0
            self._next = max(self._next, now + hold)
        if wait:
            self._held = max(self._held, now + wait)
            self._next = max(self._next, self._held)
        return wait > LONGEST_PAUSE or now - max(self._granted[-1], self._held) > PATIENCE


class Budget:
    """What may be spent and what was: tokens, and cost at prices per million tokens.

    A call reserves the most it can take, so that calls under way overrun no limit; what it took is booked after. Calls
    that bring no answer are not counted: the server does not say what they took.
    """

    def __init__(self, settings: Settings):
        self._settings, self.priced = settings, bool(settings.price_in or settings.price_out)
        self.calls = self.prompt_tokens = self.completion_tokens = 0
        self._reserved: list[tuple[int, float]] = []  # (tokens, cost) of each call under way

    @property
    def cost(self) -> float:
        return self.cost_of(self.prompt_tokens, self.completion_tokens)

    def cost_of(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self._settings.price_in + completion_tokens * self._settings.price_out) / 1e6

    @asynccontextmanager
    async def room(self, prompt_tokens: int, completion_tokens: int) -> AsyncIterator[None]:
        """Reserve the most that a call can take; waits for calls under way where that decides. Raises Stopped."""
        most = prompt_tokens + completion_tokens, self.cost_of(prompt_tokens, completion_tokens)
        while over := self._over(*most):
            if not self._reserved:
                why = f"the next call could go over {over} (spent so far: {self})"
                raise Stopped(f"The budget is used up: {why}. All responses are kept; start again to go on.")
            await asyncio.sleep(0.05)
        self._reserved.append(most)
        try:
            yield
        finally:
            self._reserved.remove(most)

    def _over(self, tokens: int, cost: float) -> str:
        """The limit that `tokens` and `cost` more would break, or nothing."""
        limit, reserved = self._settings, [(self.prompt_tokens + self.completion_tokens, self.cost), *self._reserved]
        if limit.max_tokens_total and tokens + sum(each for each, _ in reserved) > limit.max_tokens_total:
            return f"max_tokens_total = {limit.max_tokens_total}"
        if limit.max_cost and cost + sum(each for _, each in reserved) > limit.max_cost:
            return f"max_cost = {limit.max_cost:g}"
        return ""

    def book(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count an answered call."""
        self.calls += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def __str__(self) -> str:
        tokens = self.prompt_tokens + self.completion_tokens
        return f"{self.calls:,} calls, {tokens:,} tokens" + (f", cost {self.cost:.4f}" if self.priced else "")


class Estimate(NamedTuple):
    """What is still to pay; `longest_tokens` and `highest_cost`: were each answer as long as `max_tokens` allows."""

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    longest_tokens: int
    cost: float | None  # without a price
    highest_cost: float | None

    def __str__(self) -> str:
        priced = self.cost is not None
        cost = f"cost about {self.cost:.2f} (at most {self.highest_cost:.2f})" if priced else "no price was given"
        return (
            f"{self.calls:,} calls to make ({self.cached:,} more are in the cache), about {self.prompt_tokens:,} "
            f"prompt and {self.completion_tokens:,} completion tokens (at most {self.longest_tokens:,}), {cost}"
        )
