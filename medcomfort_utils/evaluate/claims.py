"""The claims of paper/claims.yaml as statistical tests on the scores of a run."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medcomfort_utils.evaluate.statistics import d_z, holm, interval, paired_difference, paired_permutation
from medcomfort_utils.paths import MedComfortError, existing, tidy
from medcomfort_utils.records import KNOWLEDGE, knowledge_metric

ALPHA = 0.05
FEWEST = 10  # questions: with fewer an interval means little
FIELDS = ("id", "model", "estimate", "low", "high", "p_value", "effect_size", "verdict", "reason")

Verdict = Literal["supported", "not supported", "inconclusive", "no verdict"]


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


def _claim(value: object, place: str) -> Claim:
    try:
        return Claim.model_validate(value)
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "the whole"
        raise MedComfortError(f"{place}: {field}: {problem['msg']}.") from error


def read(path: str | Path) -> list[Claim]:
    """The claims of a YAML file, in its order; a MedComfortError names the file, claim and field that do not fit."""
    found = existing(path, "claims")
    try:
        content = yaml.safe_load(found.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        line = f" at line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise MedComfortError(f"{tidy(found)} is not valid YAML{line}.") from error
    if not isinstance(content, list) or not content:
        raise MedComfortError(f"{tidy(found)} must hold a list of claims.")
    claims = [_claim(value, f"{tidy(found)}, claim {number}") for number, value in enumerate(content, start=1)]
    twice = [claim.id for number, claim in enumerate(claims) if claim.id in [c.id for c in claims[:number]]]
    if twice:
        raise MedComfortError(f"{tidy(found)}: the claim {twice[0]} stands there twice.")
    return claims


def _present(claim: Claim, scores: pd.DataFrame) -> list[str]:
    """The models of the claim that this run has; none if it lacks the one compared with."""
    have = set(scores["model"])
    return [model for model in claim.models if model in have] if claim.against in have else []


def _metric(claim: Claim, scores: pd.DataFrame) -> str:
    """The column that is tested; empty if no reply has a value."""
    names = KNOWLEDGE if claim.metric == "knowledge" else (claim.metric,)
    columns = [name for name in names if name in scores.columns]
    if not columns:
        raise MedComfortError(f"claim {claim.id}: the scores have no metric {claim.metric}.")
    if not all(pd.api.types.is_numeric_dtype(scores[name]) for name in columns):
        raise MedComfortError(f"claim {claim.id}: {columns[0]} is no number in the scores, so nothing can be tested.")
    asked = (scores["test_set"] == claim.test_set) & scores["model"].isin([claim.against, *claim.models])
    counts = scores.loc[asked, columns].notna().sum()
    return knowledge_metric(counts) if names is KNOWLEDGE else (columns[0] if counts.iloc[0] else "")


def _undecidable(claim: Claim, difference: np.ndarray, reference: float) -> str:
    """Why nothing can be said; empty if something can. `reference`: the mean of the model compared with."""
    by_question = difference.mean(axis=0)
    if by_question.size < FEWEST:
        return f"{by_question.size} questions, and it takes {FEWEST}"
    if np.ptp(by_question) < 1e-12:
        return f"all {by_question.size} questions differ by {by_question[0]:.4g}: without variance there is no interval"
    if claim.margin and reference < 2 * claim.margin:
        # A margin must leave at least half of what the reference has, or next to nothing counts as kept (our choice).
        return f"{claim.against} reaches {reference:.2g} only, less than twice the margin: nothing could be lost"
    return ""


def _superior(estimate: float, low: float, high: float, p_value: float) -> tuple[Verdict, str]:
    if p_value < ALPHA and low > 0:
        return "supported", ""
    if high <= 0 or estimate <= 0:
        return "not supported", "no gain"
    if p_value < ALPHA:
        return "inconclusive", "p is of these trained models alone; the interval over seeds too holds 0"
    return "inconclusive", "a gain that chance may have made"


def _not_inferior(low: float, high: float, margin: float) -> tuple[Verdict, str]:
    if low > -margin:
        return "supported", ""
    if high < -margin:
        return "not supported", f"more than {margin:g} is lost"
    return "inconclusive", f"a loss of {margin:g} lies within the interval"


def _results(claim: Claim, scores: pd.DataFrame) -> list[dict]:
    models, metric = _present(claim, scores), _metric(claim, scores)
    if not metric or not models:
        return []
    of_reference = scores[(scores["test_set"] == claim.test_set) & (scores["model"] == claim.against)]
    reference = of_reference.groupby("dialogue_id")[metric].mean().mean()
    rows, superior = [], claim.test == "superior"
    for model in models:
        difference, missing = paired_difference(scores, model, claim.against, metric, claim.test_set)
        reason = missing or _undecidable(claim, difference, reference)
        row = {"id": claim.id, "model": model, "p_value": np.nan, "reason": reason, "verdict": "no verdict"}
        row |= dict(zip(("estimate", "low", "high"), interval(difference, share=False), strict=True))
        row |= {"p_value": paired_permutation(difference)} if superior and not reason else {}
        rows.append({**row, "effect_size": d_z(difference)})
    for row, p_value in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        bounds = row["low"], row["high"]
        if not row["reason"]:
            tested = _superior(row["estimate"], *bounds, p_value) if superior else _not_inferior(*bounds, claim.margin)
            row["verdict"], row["reason"] = tested
        row["p_value"] = p_value
    return [{name: _plain(row[name]) for name in FIELDS} for row in rows]


def _plain(value: float | str) -> float | str | None:
    """As JSON has it: nan is null; 4 decimals; + 0.0 turns -0.0 into 0.0."""
    if isinstance(value, str):
        return value
    return None if np.isnan(value) else round(float(value), 4) + 0.0


def evaluate(path: str | Path, scores: pd.DataFrame) -> list[dict]:
    """The rows of claims.json, with `FIELDS`, by claim, then model.

    `scores`: the table of `evaluate.statistics`. `estimate` is the mean difference to the reference model with its 95 %
    interval. `p_value`, one-sided and adjusted over the claim's models by Holm, belongs to claims of superiority only.
    `effect_size` is Cohen's d_z over the dialogues. `reason` says why a claim is not supported. A model that the run
    lacks has no row, nor has a claim without any value in this corpus, or whose models this run did not train. Raises
    MedComfortError if a metric is not in the scores, or the models of no claim are.
    """
    claims = read(path)
    rows = [row for claim in claims for row in _results(claim, scores)]
    if not any(_present(claim, scores) for claim in claims):
        wanted, have = ", ".join(claims[0].models), ", ".join(scores["model"].unique())
        raise MedComfortError(
            f"claim {claims[0].id}: the scores hold not both {claims[0].against} and one of {wanted}; they hold {have}."
        )
    return rows


def table(claims: list[Claim], scores: pd.DataFrame) -> pd.DataFrame:
    """What is tested, a row a claim: `id, statement, origin, test, test_set, metric` (the one used) and `note`."""
    rows = []
    for claim in claims:
        used, note = _metric(claim, scores), ""
        if not _present(claim, scores):
            note = f"not tested: this run has not both {' or '.join(claim.models)} and {claim.against}"
        elif not used:
            note = "not tested: no value in this corpus"
        row = claim.model_dump(include={"id", "statement", "origin", "test", "test_set"})
        rows.append({**row, "metric": used or claim.metric, "note": note})
    return pd.DataFrame(rows)
