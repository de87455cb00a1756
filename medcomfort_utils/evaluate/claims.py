"""The claims of paper/claims.yaml as statistical tests on the scores of a run."""

from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from medcomfort_utils.evaluate.statistics import holm, interval, paired_difference, paired_permutation
from medcomfort_utils.paths import MedComfortError, existing, tidy
from medcomfort_utils.records import KNOWLEDGE, knowledge_metric

ALPHA = 0.05
FEWEST = 10  # questions: with fewer an interval means little


class Claim(BaseModel):
    """One claim: `models` compared with the model `against`, by `metric`, on one test set.

    `metric`: a column of the scores, or `knowledge`, the measure of it that applies to the corpus. `margin`: the loss,
    in units of the metric, that still counts as not inferior.
    """

    model_config = ConfigDict(extra="forbid")
    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    statement: str = Field(min_length=1)
    origin: Literal["from the paper's abstract", "our addition"]
    metric: str
    test_set: Literal["emotional", "neutral"]
    models: list[str] = Field(min_length=1)
    against: str
    test: Literal["superior", "not_inferior"]
    margin: float | None = Field(default=None, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _margin_where_it_belongs(self):
        if (self.test == "not_inferior") != (self.margin is not None):
            raise ValueError("a margin belongs to the test not_inferior, and only there")
        return self


def read(path: str | Path) -> list[Claim]:
    """The claims of a YAML file, in its order; a MedComfortError names the file, claim and field that do not fit."""
    found = existing(path, "claims")
    try:
        content = yaml.safe_load(found.read_text(encoding="utf-8"))
        claims = TypeAdapter(Annotated[list[Claim], Field(min_length=1)]).validate_python(content)
    except ValidationError as error:
        problem = error.errors()[0]
        number, *field = [*problem["loc"], ""]
        place = f", claim {number + 1}: {'.'.join(map(str, field)).strip('.')}" if problem["loc"] else ""
        raise MedComfortError(f"{tidy(found)}{place}: {problem['msg']}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise MedComfortError(f"{tidy(found)} is not valid YAML: {' '.join(str(error).split())}.") from error
    ids = [claim.id for claim in claims]
    if twice := [name for name in ids if ids.count(name) > 1]:
        raise MedComfortError(f"{tidy(found)}: the claim {twice[0]} stands there twice.")
    return claims


def evaluate(claims: list[Claim], scores: pd.DataFrame) -> list[dict]:
    """The rows of claims.json, by claim, then model: what is claimed, and how the test came out.

    `scores`: the table of `evaluate.statistics`. `metric` is the column that was tested, `estimate` the mean difference
    to the model `against` with its 95 % interval, `effect_size` Cohen's d_z over dialogues (Lakens 2013, Front.
    Psychol. 4:863). `p_value`, one-sided and adjusted over the claim's models by Holm, belongs to claims of
    superiority; it is of the trained models, seeds averaged. `reason` says why a claim is not
    supported. What this run lacks (a model, or any value of the metric) has no row. Raises MedComfortError if the
    scores have no such metric.
    """
    return [row for claim in claims for row in _results(claim, scores)]


def _results(claim: Claim, scores: pd.DataFrame) -> list[dict]:
    metric, have = _metric(claim, scores), set(scores["model"])
    models = [model for model in claim.models if {model, claim.against} <= have]
    if not metric:
        return []
    of_reference = scores[(scores["test_set"] == claim.test_set) & (scores["model"] == claim.against)]
    reference = of_reference.groupby("dialogue_id")[metric].mean().mean()
    rows, superior = [], claim.test == "superior"
    told = claim.model_dump(exclude={"models"}) | {"metric": metric}
    for model in models:
        difference, missing = paired_difference(scores, model, claim.against, metric, claim.test_set)
        by_question = difference.mean(axis=0)  # of these trained models
        row = dict(zip(("estimate", "low", "high"), interval(difference, share=False), strict=True))
        row |= {"p_value": np.nan, "effect_size": np.nan}
        row["reason"] = missing or _undecidable(claim, by_question, reference)
        if not row["reason"]:
            row["p_value"] = paired_permutation(by_question) if superior else np.nan
            row["effect_size"] = by_question.mean() / by_question.std(ddof=1)
        rows.append({**told, "model": model, **row})
    for row, p_value in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row |= {"p_value": p_value, "verdict": "no verdict"}
        if not row["reason"]:
            row["verdict"], row["reason"] = _verdict(claim, row)
    return [{name: _plain(value) for name, value in row.items()} for row in rows]


def _metric(claim: Claim, scores: pd.DataFrame) -> str:
    """The column that is tested; empty if no reply has a value."""
    names = KNOWLEDGE if claim.metric == "knowledge" else (claim.metric,)
    columns = [name for name in names if name in scores.columns]
    if not all(pd.api.types.is_numeric_dtype(scores[name]) for name in columns) or not columns:
        raise MedComfortError(f"claim {claim.id}: the scores have no metric {claim.metric}.")
    asked = (scores["test_set"] == claim.test_set) & scores["model"].isin([claim.against, *claim.models])
    counts = scores.loc[asked, columns].notna().sum()
    return knowledge_metric(counts) if names is KNOWLEDGE else (columns[0] if counts.iloc[0] else "")


def _undecidable(claim: Claim, by_question: np.ndarray, reference: float) -> str:
    """Why nothing can be said; empty if something can. `reference`: the mean of the model compared with."""
    if by_question.size < FEWEST:
        return f"{by_question.size} questions, and it takes {FEWEST}"
    if np.ptp(by_question) < 1e-12:
        return f"all {by_question.size} questions differ by {by_question[0]:.4g}: without variance there is no interval"
    if claim.margin and reference < 2 * claim.margin:
        # A margin must leave at least half of what the reference has, or next to nothing counts as kept (our choice).
        return f"{claim.against} reaches {reference:.2g} only, less than twice the margin: nothing could be lost"
    return ""


def _verdict(claim: Claim, row: dict) -> tuple[str, str]:
    low, high, significant = row["low"], row["high"], row["p_value"] < ALPHA
    if claim.margin:
        if low > -claim.margin:
            return "supported", ""
        if high < -claim.margin:
            return "not supported", f"more than {claim.margin:g} is lost"
        return "inconclusive", f"a loss of {claim.margin:g} lies within the interval"
    if significant and low > 0:
        return "supported", ""
    if row["estimate"] <= 0:
        return "not supported", "no gain"
    alone = "p is of these trained models alone; the interval over seeds too holds 0"
    return "inconclusive", alone if significant else "a gain that chance may have made"


def _plain(value: object) -> object:
    """As JSON has it: nan is null; 4 decimals; + 0.0 turns -0.0 into 0.0."""
    if not isinstance(value, float):
        return value
    return None if np.isnan(value) else round(float(value), 4) + 0.0
