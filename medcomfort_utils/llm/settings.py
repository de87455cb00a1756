"""How to ask, and what it would cost."""

from dataclasses import dataclass

from medcomfort_utils.paths import MedComfortError

MODES = ("auto", "replay", "record")


@dataclass
class Settings:
    """How to ask. `mode`: auto (from the cache, else call), replay (cache only), record (call all and overwrite).

    `base_url` empty: from the environment. `concurrency`: calls at once. `timeout` in seconds, of a whole call.
    Prices are per million tokens. The limits a minute and the budget (`max_cost`, `max_tokens_total`, for the life
    of a client) are off at 0.
    """

    base_url: str = ""
    mode: str = "auto"
    concurrency: int = 16
    requests_per_minute: float = 0
    tokens_per_minute: float = 0
    timeout: float = 120.0
    retries: int = 6
    max_cost: float = 0.0
    max_tokens_total: int = 0
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self):
        if self.mode not in MODES:
            raise MedComfortError(f"mode must be one of {', '.join(MODES)}, not '{self.mode}'.")
        if self.concurrency < 1 or self.timeout <= 0:
            raise MedComfortError("concurrency must be at least 1, and timeout above 0.")
        limits = ("requests_per_minute", "tokens_per_minute", "retries", "max_cost", "max_tokens_total")
        for name in (*limits, "price_in", "price_out"):
            if getattr(self, name) < 0:
                raise MedComfortError(f"{name} must not be negative.")
        if self.max_cost and not (self.price_in or self.price_out):
            raise MedComfortError("max_cost needs price_in and price_out, the prices per million tokens.")


@dataclass(frozen=True)
class Estimate:
    """What is still to pay, at most: tokens by rule of thumb (four bytes a token), answers of the longest length."""

    calls: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float

    def __str__(self) -> str:
        return (
            f"{self.calls:,} calls to make ({self.cached:,} more are in the cache), about {self.prompt_tokens:,} "
            f"prompt and {self.completion_tokens:,} completion tokens, cost about {self.cost:.2f}"
        )
