"""What values the notebooks' parameters may have, beyond their types: told once, checked before a run's first step.

`MODELS` has a table for each notebook; a parameter that it does not name may be anything of its type.
"""

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from medcomfort_utils.paths import MedComfortError, meant
from medcomfort_utils.records import EMOTIONS, REJECTED, check_pairs

FILE_NAME = re.compile(r"\w[\w.-]*")
WHOLE_NUMBER = re.compile(r"[-+]?\d+")
Told = Annotated[str, Field(min_length=1)]
MAX_SEED = 2**32 - 1  # NumPy takes no larger one


class Ranged(BaseModel):
    """A table of values; one out of range, or unknown, raises MedComfortError, which names it and what is allowed."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

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
        told = problem["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
        return f"{name} {told}, not {problem['input']!r}."


class Sampling(Ranged):
    """What a request's `sampling` may hold: these in their ranges, and whatever else the server knows."""

    model_config = ConfigDict(extra="allow")
    temperature: float = Field(1.0, ge=0, le=2)
    max_tokens: int = Field(1, ge=1)


class Settings(Ranged):
    """How to ask a language model. `mode`: auto (the cache, else a call), replay (cache only), record (call all anew).

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
            raise MedComfortError("max_cost needs price_in and price_out, the prices per million tokens.")
        return self

    @model_validator(mode="after")
    def _keyless(self):
        """Before it is printed, or stored in a notebook."""
        if any(mark in self.base_url for mark in "@?#"):
            raise MedComfortError("base_url must hold no key or password: set MEDCOMFORT_API_KEY in the environment.")
        return self


class Rewriting(Settings, Sampling):
    """Parameters of 01_rewrite."""

    model_config = ConfigDict(extra="ignore")
    source: Told
    limit: int = Field(ge=0)
    per_condition: int = Field(ge=1)
    emotions: int = Field(ge=1, le=len(EMOTIONS))
    seed: int = Field(ge=0, le=MAX_SEED)
    rewriter: Literal["llm", "template"]
    out_dir: Told


class Hyper(Ranged):
    """Every hyper-parameter that shapes a run, for both engines. Units are optimiser steps unless said otherwise."""

    learning_rate: float = Field(gt=0)
    max_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)  # examples a device
    accumulation: int = Field(1, gt=0)
    beta: float = Field(0.1, gt=0)  # DPO and KTO: how strongly the reference model holds
    sft_weight: float = Field(0.0, ge=0)  # DPO: weight of the SFT term on the chosen answer
    desirable_weight: float = Field(1.0, ge=0)  # KTO; 0 is computed from the data: `checks.kto_weights`
    undesirable_weight: float = Field(1.0, ge=0)  # KTO; 0 likewise
    warmup_ratio: float = Field(0.1, ge=0, lt=1)  # share of the steps
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(512, ge=0)  # tokens of prompt and answer; 0 is planned from the data: `checks.ready`
    too_long: float = Field(0.01, ge=0, lt=1)  # share of the examples that may be longer, and are left out
    save_steps: int = Field(100, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    save_dtype: Literal["", "float32", "bfloat16", "float16"] = ""  # of the saved model; empty takes dtype
    lora_rank: int = Field(0, ge=0)  # 0 trains all weights
    lora_alpha: int = Field(32, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)


class Finetuning(Hyper):
    """Parameters of 02_finetune; what `more` names stands beside them."""

    model_config = ConfigDict(extra="ignore")
    method: Literal["sft", "dpo", "kto"]
    name: str
    rewrites: Told
    base: Told
    init_from: str
    engine: Literal["auto", "unsloth", "trl"]
    seeds: list[int] = Field(min_length=1)
    neutral_fraction: float = Field(ge=0, le=1)
    target: str
    against: list[Literal[REJECTED]] = Field(min_length=1)
    out_dir: Told

    @model_validator(mode="before")
    @classmethod
    def _with_more(cls, given: dict[str, Any]) -> dict[str, Any]:
        for name in given["more"].keys() - Hyper.model_fields.keys():
            raise MedComfortError(f"more: there is no hyper-parameter {name!r}{meant(str(name), Hyper.model_fields)}")
        return given | given["more"]

    @field_validator("name")
    @classmethod
    def _names_files(cls, name: str) -> str:
        if name and not FILE_NAME.fullmatch(name):
            raise ValueError("must hold only letters, digits, '_', '-' and '.', since it names files")
        return name

    @field_validator("base", "init_from")
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
    dialogues: Told
    rewrites: Told
    models_dir: Told
    base: Told
    claims: Told
    limit: int = Field(ge=0)
    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    workers: int = Field(ge=1)
    out_dir: Told


class Drawing(Ranged):
    """Parameters of 04_figures."""

    model_config = ConfigDict(extra="ignore")
    results_dir: Told
    ablation_dir: Told
    figures_dir: Told
    tables_dir: Told
    summary: Told


MODELS: dict[str, type[Ranged]] = {
    "01_rewrite": Rewriting,
    "02_finetune": Finetuning,
    "03_evaluate": Evaluating,
    "04_figures": Drawing,
}


def model_of(notebook: str, parameters: dict[str, Any]) -> type[Ranged] | None:
    """The table of a notebook, given by its stem; None for one that is not ours, even if it has the name of ours."""
    model = MODELS.get(notebook)
    needed = {name for name, field in model.model_fields.items() if field.is_required()} if model else set()
    return model if needed <= parameters.keys() else None


def check(notebook: str, parameters: dict[str, Any]) -> None:
    """Make sure that all parameters of a notebook are of the values they may have; types are taken as right.

    Raises MedComfortError, naming the parameter, its value and what is allowed.
    """
    if model := model_of(notebook, parameters):
        model(**parameters)


def typed(text: str, annotation: str) -> Any:
    """The value that a person means who types `text` for a parameter of that type: YAML, where that does not mislead.

    Text stays as it is typed (`no`, `01`, nothing at all) but for quotes around it; 010 is ten, and 1e-4 a number.
    Raises yaml.YAMLError for what is neither.
    """
    wants_text = annotation.startswith("str")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        if wants_text:
            return text
        raise
    if wants_text and not (value is None and "None" in annotation):
        return value if isinstance(value, str) and text.startswith(('"', "'")) else text
    if annotation == "int" and WHOLE_NUMBER.fullmatch(text):
        return int(text)
    return float(value) if annotation == "float" and is_number(value) else value


def is_number(value: Any) -> bool:
    """Whether it is text that spells a finite number."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False
