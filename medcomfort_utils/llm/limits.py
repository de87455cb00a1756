"""How fast a run may ask, what it may cost and did cost, and what is still to pay."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from medcomfort_utils.llm.cache import FAILED, Cache, Request, Response, estimated_tokens
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.schema import Settings

ABSURD = 30 * 86400.0  # seconds; a longer wait is a mistake of the server
PATIENCE = 120.0  # seconds of nothing but "slow down": two of the windows in which most servers count
SHARE = 0.13  # tokens of an answer for each token of its prompt: so long are the responses of MedComfort-mini
ENOUGH = 20  # recorded responses that say better than SHARE how long answers are


class Stopped(MedComfortError):  # noqa: N818 - a state, not a mistake
    """No more calls are made: the budget is used up, the server refuses them all, or a response is not recorded."""


class Pace:
    """When the next call may go: one by one, within the limits a minute, and no faster than the server grants.

    A refusal (429) sets the gap between calls to about the time that an answer has taken on average so far, and keeps
    all back for an eighth of it or of the silence; each answer narrows the gap, the more slowly the longer the pause.
    """

    def __init__(self, settings: Settings, pause: Callable[[float], Awaitable]):
        self._clock, self._pause = asyncio.get_running_loop().time, pause
        self._least, self._each_token = (
            60 / limit if limit else 0.0 for limit in (settings.requests_per_minute, settings.tokens_per_minute)
        )
        self.gap, self.answers, self._calm, self._queue = self._least, 0, 0.0, asyncio.Lock()
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

    def answered(self, unused: int) -> None:
        """A call was answered; `unused` of its tokens were not needed."""
        self.answers += 1
        self._tokens -= max(0, unused) * self._each_token
        self._calm -= 1
        if self._calm < 0:
            self.gap = max(self._least, self.gap * (0.995 if self._calm > -40 else 0.97))

    def granted(self) -> None:
        """A call was not refused for its haste, whatever else became of it."""
        self._granted.append(self._clock())

    def refused(self, left: float, wait: float | None) -> bool:
        """The call that went at `left` was too early; returns whether the silence has been too long to go on."""
        now = self._clock()
        if left >= self._refused:  # a call that left before the last refusal was heard says nothing new
            self._refused = now
            granted = (now - self._granted[0]) / len(self._granted)
            self.gap = max(self._least, granted * 0.8, min(self.gap * 1.05, granted * 2))
            hold = max(self.gap, now - self._granted[-1]) / 8
            self._calm = 10 * max(hold, wait or 0) / self.gap if self.gap else 0
            self._next = max(self._next, now + hold)
        if wait:
            self._held = max(self._held, now + wait)
            self._next = max(self._next, self._held)
        return now - max(self._granted[-1], self._held) > PATIENCE


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: `retry-after-ms`, or `Retry-After` as a number or a date (RFC 9110, 10.2.3).

    None if it does not ask, or not in a way that can be meant.
    """
    asked = headers.get("Retry-After", "")
    for seconds in (
        lambda: float(headers.get("Retry-After-Ms", "")) / 1000,
        lambda: float(asked),
        lambda: (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds(),
    ):
        with suppress(TypeError, ValueError, OverflowError):
            return max(0.0, seconds()) if seconds() < ABSURD else None
    return None


@dataclass
class Budget:
    """What may be spent and what was: tokens, and cost at prices per million tokens. A limit of 0 is none.

    A call reserves the most it can cost before it is made, so that the limits are not overrun by calls under way;
    what it really took is booked after. Calls that bring no answer are not counted: the server does not say what
    they took.
    """

    max_cost: float = 0.0
    max_tokens: int = 0
    price_in: float = 0.0
    price_out: float = 0.0
    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self):
        self._under_way, self._tokens, self._cost = 0, 0, 0.0  # set aside
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

    @asynccontextmanager
    async def room(self, prompt_tokens: int, completion_tokens: int) -> AsyncIterator[None]:
        """Set the most aside that a call can take; waits for calls under way where that decides. Raises Stopped."""
        tokens, cost = prompt_tokens + completion_tokens, self.cost_of(prompt_tokens, completion_tokens)
        while over := self._over(tokens, cost):
            if not self._under_way:
                raise Stopped(
                    f"The budget is used up: the next call could go over {over} (spent so far: {self}). All "
                    "responses are kept; start again, with a new budget, to go on where this stopped."
                )
            self.changed.clear()
            await self.changed.wait()
        self._under_way, self._tokens, self._cost = self._under_way + 1, self._tokens + tokens, self._cost + cost
        try:
            yield
        finally:
            self._under_way, self._tokens, self._cost = self._under_way - 1, self._tokens - tokens, self._cost - cost
            self.changed.set()

    def _over(self, tokens: int, cost: float) -> str:
        """The limit that `tokens` and `cost` more would break, or nothing."""
        spent = self.prompt_tokens + self.completion_tokens + self._tokens
        if self.max_tokens and spent + tokens > self.max_tokens:
            return f"max_tokens_total = {self.max_tokens}"
        if self.max_cost and self.cost + self._cost + cost > self.max_cost:
            return f"max_cost = {self.max_cost:g}"
        return ""

    def book(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count an answered call."""
        self.calls += 1
        self.prompt_tokens += prompt_tokens
        self.completion_tokens += completion_tokens

    def __str__(self) -> str:
        tokens = self.prompt_tokens + self.completion_tokens
        return f"{self.calls:,} calls, {tokens:,} tokens" + (f", cost {self.cost:.4f}" if self.priced else "")


@dataclass(frozen=True)
class Estimate:
    """What is still to pay. `longest_tokens` and `highest_cost`: were each answer as long as `max_tokens` allows.

    Costs are None where no price was given.
    """

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    longest_tokens: int
    cost: float | None
    highest_cost: float | None

    def __str__(self) -> str:
        cost = "no price was given"
        if self.cost is not None:
            cost = f"cost about {self.cost:.2f} (at most {self.highest_cost:.2f})"
        return (
            f"{self.calls:,} calls to make ({self.cached:,} more are in the cache), about {self.prompt_tokens:,} "
            f"prompt and {self.completion_tokens:,} completion tokens (at most {self.longest_tokens:,}), {cost}"
        )


def estimate(requests: Iterable[Request], cache: Cache, settings: Settings, share: float = SHARE) -> Estimate:
    """What these requests would still cost, read lazily; a request that stands there twice counts twice.

    Prompts have about a token for four bytes. Answers are expected to be as long, against their prompts, as those of
    the requests that are on record; where fewer than `ENOUGH` are, `share` is taken. Retries and repairs come on top.
    """
    prices = {"price_in": settings.price_in, "price_out": settings.price_out}
    known, missing, longest = Budget(), Budget(**prices), 0
    for request in requests:
        response = None if settings.mode == "record" else cache.get(request.key)
        if response is None or response.finish_reason == FAILED:
            missing.book(request.prompt_tokens, 0)
            longest += request.completion_tokens
        else:
            known.book(request.prompt_tokens, tokens(request, response)[1])
    if known.calls >= ENOUGH:
        share = known.completion_tokens / known.prompt_tokens
    expected = min(longest, round(missing.prompt_tokens * share))
    costs = [missing.cost_of(missing.prompt_tokens, n) if missing.priced else None for n in (expected, longest)]
    return Estimate(missing.calls, known.calls, missing.prompt_tokens, expected, longest, *costs)


def tokens(request: Request, response: Response) -> tuple[int, int]:
    """Tokens of prompt and answer: as recorded, else estimated (a response may have come from no server)."""
    written = response.completion_tokens or estimated_tokens(response.text)
    return response.prompt_tokens or request.prompt_tokens, written
