"""What the calls still to make will cost, told before the first of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from medcomfort_utils.llm.cache import CHUNK, Cache
from medcomfort_utils.llm.limits import Budget
from medcomfort_utils.llm.requests import FAILED, Request, Response, estimated_tokens
from medcomfort_utils.schema import Settings

SHARE = 0.34  # tokens of an answer for each token of its prompt: so long are the responses of MedComfort-mini
ENOUGH = 20  # recorded responses that tell better than SHARE how long answers are


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
    requests, known, missing = iter(requests), Budget(), Budget()
    longest = 0
    while chunk := list(islice(requests, CHUNK)):
        found = {} if settings.mode == "record" else cache.get_many(request.key for request in chunk)
        for request in chunk:
            response = found.get(request.key)
            if response is None or response.finish_reason == FAILED:
                missing.book(request.prompt_tokens, 0)
                longest += request.completion_tokens
            else:
                known.book(request.prompt_tokens, tokens(request, response)[1])
    if known.calls >= ENOUGH:
        share = known.completion_tokens / known.prompt_tokens
    expected = min(longest, round(missing.prompt_tokens * share))
    prices = Budget(price_in=settings.price_in, price_out=settings.price_out)
    costs = (
        prices.cost_of(missing.prompt_tokens, completion) if prices.priced else None
        for completion in (expected, longest)
    )
    return Estimate(missing.calls, known.calls, missing.prompt_tokens, expected, longest, *costs)


def tokens(request: Request, response: Response) -> tuple[int, int]:
    """Tokens of prompt and answer: as recorded, else estimated (a response may have come from no server)."""
    return response.prompt_tokens or request.prompt_tokens, response.completion_tokens or estimated_tokens(
        response.text
    )
