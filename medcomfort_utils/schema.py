"""What values the notebooks' parameters may have; all are checked once, before a run's first step.

Names, types, defaults and comments stand in the notebooks' cells tagged `parameters`; here are the ranges.
"""

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, create_model, model_validator

from medcomfort_utils import paths
from medcomfort_utils.paths import MedComfortError, meant, tidy
from medcomfort_utils.records import EMOTIONS, REJECTED, check_pairs

FILE_NAME = r"\w[\w.-]*"
MAX_SEED = 2**32 - 1  # NumPy takes no larger one
TYPES = {"str": str, "int": int, "float": float, "bool": bool, "dict": dict[str, Any], "list[int]": list[int],
         "list[str]": list[str]}  # fmt: skip
Filled = Annotated[str, Field(min_length=1)]
Natural = Annotated[int, Field(ge=0)]  # 0 usually means: no limit
Positive = Annotated[int, Field(ge=1)]
Amount = Annotated[float, Field(ge=0)]
Dtype = Literal["float32", "bfloat16", "float16"]


class Ranged(BaseModel):
    """A table of values; one out of range, or unknown, raises MedComfortError, which names it and what is allowed."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    kind: ClassVar[str] = "parameter"

    def __init__(self, **given):
        try:
            super().__init__(**given)
        except ValidationError as error:
            raise MedComfortError(self._sentence(error.errors()[0])) from None

    @classmethod
    def _sentence(cls, problem: Mapping[str, Any]) -> str:
        """What is wrong, in words: `neutral_fraction must be less than or equal to 1, not 2.0.`"""
        name = ".".join(part for part in problem["loc"] if isinstance(part, str))
        if problem["type"] == "extra_forbidden":
            return f"there is no {cls.kind} {name!r}{meant(name, cls.model_fields)}"
        if problem["type"] in ("too_short", "string_too_short", "missing"):
            return f"{name} must not be empty."
        allowed = problem["msg"].removeprefix("Value error, ").replace("Input should", "must", 1)
        if problem["type"] == "string_pattern_mismatch":
            allowed = "must hold only letters, digits, '_', '-' and '.', since it names files"
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

    method: Literal["sft", "dpo", "kto"]

    @model_validator(mode="before")
    @classmethod
    def _with_more(cls, given: dict[str, Any]) -> dict[str, Any]:
        more = given["more"] if isinstance(given["more"], dict) else {}
        for name in more.keys() - Hyper.model_fields.keys():
            raise MedComfortError(f"more: there is no hyper-parameter {name!r}{meant(str(name), Hyper.model_fields)}")
        return given | more

    @model_validator(mode="after")
    def _suit_the_method(self):
        check_pairs(self.target, self.neutral_fraction, None if self.method == "sft" else self.against)
        if self.method == "kto" and self.batch_size < 2:
            raise MedComfortError(f"batch_size must be at least 2 for KTO, not {self.batch_size}.")
        return self


def _only_the_seed(path: str) -> str:
    try:
        path.format(seed=0)
    except (KeyError, IndexError, ValueError, AttributeError):
        raise ValueError("must have no other braces than {seed}") from None
    return path


def _distinct(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds) or not all(0 <= seed <= MAX_SEED for seed in seeds):
        raise ValueError(f"must be different numbers between 0 and {MAX_SEED}")
    return seeds


Start = Annotated[str, AfterValidator(_only_the_seed)]
BASES = {"01_rewrite": (Settings, Sampling), "02_finetune": (Finetuning,)}
# Narrower than the type that the cell declares; a parameter means the same in all notebooks.
RANGES: dict[str, Any] = {
    **dict.fromkeys(["source", "rewrites", "dialogues", "models_dir", "claims", "out_dir", "results_dir",
                     "ablation_dir", "figures_dir", "tables_dir", "summary"], Filled),
    **dict.fromkeys(["per_condition", "max_new_tokens", "batch_size", "workers"], Positive),
    "limit": Natural,
    "emotions": Annotated[int, Field(ge=1, le=len(EMOTIONS))],
    "seed": Annotated[int, Field(ge=0, le=MAX_SEED)],
    "rewriter": Literal["llm", "template"],
    "engine": Literal["auto", "unsloth", "trl"],
    "neutral_fraction": Annotated[float, Field(ge=0, le=1)],
    "against": Annotated[list[Literal[REJECTED]], Field(min_length=1)],
    "seeds": Annotated[list[int], Field(min_length=1), AfterValidator(_distinct)],
    "name": Annotated[str, Field(pattern=f"^({FILE_NAME})?$")],
    "base": Annotated[Start, Field(min_length=1)],
    "init_from": Start,
    "push_to_hub": Start,
}  # fmt: skip


def code_cells(notebook: Path) -> list[dict[str, Any]]:
    """The code cells of a notebook, their sources as text; a MedComfortError names the file if it is none."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        return [cell | {"source": "".join(cell["source"])} for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError):
        raise MedComfortError(f"{tidy(notebook)} is not a readable notebook.") from None


def declared(notebook: str) -> dict[str, tuple[Any, Any]]:
    """Name -> (type, default) from a notebook's cell tagged `parameters`; a MedComfortError if it cannot be read."""
    file = paths.NOTEBOOKS / f"{notebook}.ipynb"
    where = f"{tidy(file)}, parameters cell"
    tagged = [cell["source"] for cell in code_cells(file) if "parameters" in cell["metadata"].get("tags", [])]
    try:
        return {node.target.id: (TYPES[ast.unparse(node.annotation)], ast.literal_eval(node.value))
                for node in ast.parse("".join(tagged)).body}  # fmt: skip
    except SyntaxError as error:
        raise MedComfortError(f"{where}, line {error.lineno}: {error.msg}.") from error
    except (AttributeError, KeyError, TypeError, ValueError):
        known = ", ".join(TYPES)
        raise MedComfortError(f"{where}: every line must be `name: type = value`, of {known}, spelled out.") from None


def check(notebook: str, given: dict[str, Any]) -> dict[str, Any]:
    """All parameters of a notebook (by its stem), given or else its default; an int given for a float becomes one.

    Raises MedComfortError, naming the parameter, its value and what is allowed; names that are unknown pass.
    """
    cell, bases = declared(notebook), BASES.get(notebook, (Ranged,))
    known = set().union(*(base.model_fields for base in bases))
    own = {name: (RANGES.get(name, kind), ...) for name, (kind, _) in cell.items() if name not in known}
    values = {name: default for name, (_, default) in cell.items()} | given
    checked = create_model(notebook, __base__=bases, **own)(**{name: values[name] for name in cell})
    return {name: getattr(checked, name, value) for name, value in values.items()}
