"""How to ask, and the values that each setting may have."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medcomfort_utils.paths import MedComfortError


class _Ranged(BaseModel):
    """Raises MedComfortError, naming the setting, for a value out of its range."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    def __init__(self, **given):
        try:
            super().__init__(**given)
        except ValidationError as error:
            problem = error.errors()[0]
            told = problem["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
            name = ".".join(map(str, problem["loc"]))
            raise MedComfortError(f"{name} {told}, not {problem['input']!r}." if name else f"{told}.") from None


class Settings(_Ranged):
    """How to ask. `mode`: auto (from the cache, else call), replay (cache only), record (call all and overwrite).

    `base_url` empty: from the environment. `concurrency`: calls at once. `timeout` in seconds, of a whole call.
    Prices are per million tokens. The limits a minute and the budget (`max_cost`, `max_tokens_total`, for the life
    of a client) are off at 0.
    """

    base_url: str = ""
    mode: Literal["auto", "replay", "record"] = "auto"
    concurrency: int = Field(16, ge=1, le=4096)
    requests_per_minute: float = Field(0, ge=0)
    tokens_per_minute: float = Field(0, ge=0)
    timeout: float = Field(120.0, gt=0)
    retries: int = Field(6, ge=0)
    max_cost: float = Field(0.0, ge=0)
    max_tokens_total: int = Field(0, ge=0)
    price_in: float = Field(0.0, ge=0)
    price_out: float = Field(0.0, ge=0)

    @model_validator(mode="after")
    def _priced(self):
        if self.max_cost and not (self.price_in or self.price_out):
            raise ValueError("max_cost needs price_in and price_out, the prices per million tokens")
        return self


class Sampling(_Ranged):
    """What a request's `sampling` may hold: these in their ranges, and whatever else the server knows."""

    model_config = ConfigDict(extra="allow")
    temperature: float = Field(1.0, ge=0, le=2)
    max_tokens: int = Field(1, ge=1)
