"""What values the notebooks' parameters may have: types and ranges, checked once, before a run's first step.

Names, defaults and comments stand in the notebooks' cells tagged `parameters`; a test holds that the two agree.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medcomfort_utils.paths import MedComfortError, meant
from medcomfort_utils.records import EMOTIONS, REJECTED, check_pairs

FILE_NAME = re.compile(r"\w[\w.-]*")
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
Filled = Annotated[str, Field(min_length=1)]
Natural = Annotated[int, Field(ge=0)]  # 0 usually means: no limit
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Ranged(BaseModel):
    """A table of values; one out of range, or unknown, raises MedComfortError, which names it and what is allowed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())

    def __init__(self, **given):
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise MedComfortError(self._sentence(error.errors()[0])) from None

    @classmethod
    def _sentence(cls, problem: Mapping[str, Any]) -> str:
        """What is wrong, in words: `neutral_fraction must be less than or equal to 1, not 2.0.`"""
        name = str(problem["loc"][0])
        if problem["type"] == "extra_forbidden":
            return f"there is no parameter {name!r}{meant(name, cls.model_fields)}"
        if problem["type"] in ("too_short", "string_too_short"):
            return f"{name} must not be empty."
        allowed = problem["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
        return f"{name} {allowed}, not {problem['input']!r:.200}."


class Sampling(Ranged):
    """What a request's `sampling` may hold: these in their ranges, and whatever else the server knows."""

    model_config = ConfigDict(extra="allow")
    temperature: float = Field(1.0, ge=0, le=2)
    max_tokens: Positive = 1


class Settings(Ranged):
    """How to ask a language model. `mode`: auto (the cache, else a call), replay (cache only), record (call all anew).

    `base_url` empty: from the environment. `concurrency`: calls at once. `timeout` in seconds, of a whole call.
    Prices are per million tokens. The limits a minute and the budget (`max_cost`, `max_tokens_total`, for the life
    of a client) are off at 0.
    """

    base_url: str = ""
    mode: Literal["auto", "replay", "record"] = "auto"
    concurrency: int = Field(16, ge=1, le=4096)
    requests_per_minute: Amount = 0.0
    tokens_per_minute: Amount = 0.0
    timeout: float = Field(120.0, gt=0)
    retries: Natural = 6
    max_cost: Amount = 0.0
    max_tokens_total: Natural = 0
    price_in: Amount = 0.0
    price_out: Amount = 0.0

    @model_validator(mode="after")
    def _sound(self):
        if self.max_cost and not (self.price_in or self.price_out):
            raise MedComfortError("max_cost needs price_in and price_out, the prices per million tokens.")
        if any(mark in self.base_url for mark in "@?#"):  # before it is printed, or stored in a notebook
            raise MedComfortError("base_url must hold no key or password: set MEDCOMFORT_API_KEY in the environment.")
        return self


class Rewriting(Settings, Sampling):
    """Parameters of 01_rewrite."""

    model_config = ConfigDict(extra="ignore")
    source: Filled
    revision: str
    question_field: str
    answer_field: str
    facts_field: str
    limit: Natural
    per_condition: Positive
    emotions: int = Field(ge=1, le=len(EMOTIONS))
    seed: int = Field(ge=0, le=MAX_SEED)
    rewriter: Literal["llm", "template"]
    model: str
    responses: str
    cache: str
    encoder: str
    encoder_revision: str
    out_dir: Filled


class Hyper(Ranged):
    """Every hyper-parameter that shapes a run, for both engines. Units are optimiser steps unless said otherwise."""

    learning_rate: float = Field(gt=0)
    max_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)  # examples a device
    accumulation: int = Field(1, gt=0)
    beta: float = Field(0.1, gt=0)  # DPO and KTO: how strongly the reference model holds
    sft_weight: Amount = 0.0  # DPO: weight of the SFT term on the chosen answer
    desirable_weight: Amount = 1.0  # KTO; 0 is computed from the data: `data.kto_weights`
    undesirable_weight: Amount = 1.0  # KTO; 0 likewise
    warmup_ratio: float = Field(0.1, ge=0, lt=1)  # share of the steps
    weight_decay: Amount = 0.0
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: Natural = 512  # tokens of prompt and answer; 0 is planned from the data: `data.prepare`
    too_long: float = Field(0.01, ge=0, lt=1)  # share of the examples that may be longer, and are left out
    save_steps: int = Field(100, gt=0)
    dtype: Dtype = "float32"
    save_dtype: Literal["", Dtype] = ""  # of the saved model; empty takes dtype
    lora_rank: Natural = 0  # 0 trains all weights
    lora_alpha: int = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)


class Finetuning(Hyper):
    """Parameters of 02_finetune; what `more` names stands beside them."""

    model_config = ConfigDict(extra="ignore")
    method: Literal["sft", "dpo", "kto"]
    name: str
    rewrites: Filled
    base: Filled
    revision: str
    init_from: str
    engine: Literal["auto", "unsloth", "trl"]
    seeds: list[int] = Field(min_length=1)
    neutral_fraction: float = Field(ge=0, le=1)
    target: str
    against: list[Literal[REJECTED]] = Field(min_length=1)
    more: dict[str, Any]
    report_to: str
    push_to_hub: str
    out_dir: Filled

    @model_validator(mode="before")
    @classmethod
    def _with_more(cls, given: dict[str, Any]) -> dict[str, Any]:
        more = given["more"] if isinstance(given["more"], dict) else {}
        for name in more.keys() - Hyper.model_fields.keys():
            raise MedComfortError(f"more: there is no hyper-parameter {name!r}{meant(str(name), Hyper.model_fields)}")
        return given | more

    @field_validator("name")
    @classmethod
    def _names_files(cls, name: str) -> str:
        if name and not FILE_NAME.fullmatch(name):
            raise ValueError("must hold only letters, digits, '_', '-' and '.', since it names files")
        return name

    @field_validator("base", "init_from", "push_to_hub")
    @classmethod
    def _only_the_seed(cls, path: str) -> str:
        try:
            path.format(seed=0)
        except (KeyError, IndexError, ValueError, AttributeError):
            raise ValueError("must have no other braces than {seed}") from None
        return path

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) < len(seeds) or not all(0 <= seed <= MAX_SEED for seed in seeds):
            raise ValueError(f"must be different numbers between 0 and {MAX_SEED}")
        return seeds

    @model_validator(mode="after")
    def _suit_the_method(self):
        check_pairs(self.target, self.neutral_fraction, None if self.method == "sft" else self.against)
        if self.method == "kto" and self.batch_size < 2:
            raise MedComfortError(f"batch_size must be at least 2 for KTO, not {self.batch_size}.")
        return self


class Evaluating(Ranged):
    """Parameters of 03_evaluate."""

    model_config = ConfigDict(extra="ignore")
    dialogues: Filled
    rewrites: Filled
    models_dir: Filled
    models: list[str]
    base: Filled
    revision: str
    claims: Filled
    judge: str
    judge_responses: str
    limit: Natural
    max_new_tokens: Positive
    batch_size: Positive
    workers: Positive
    out_dir: Filled


class Drawing(Ranged):
    """Parameters of 04_figures."""

    model_config = ConfigDict(extra="ignore")
    results_dir: Filled
    ablation_dir: Filled
    figures_dir: Filled
    tables_dir: Filled
    summary: Filled


MODELS: dict[str, type[Ranged]] = {
    "01_rewrite": Rewriting,
    "02_finetune": Finetuning,
    "03_evaluate": Evaluating,
    "04_figures": Drawing,
}


def check(notebook: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters of a notebook, given by its stem, after all were checked; an int given for a float becomes one.

    Raises MedComfortError, naming the parameter, its value and what is allowed; names that are unknown pass.
    """
    checked = MODELS[notebook](**parameters)
    return {name: getattr(checked, name, value) for name, value in parameters.items()}
