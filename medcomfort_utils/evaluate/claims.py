"""The claims of paper/claims.yaml as statistical tests on the scores of a run."""

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from medcomfort_utils.evaluate.statistics import d_z, holm, interval, paired_difference, paired_permutation
from medcomfort_utils.paths import MedComfortError, existing, tidy

ALPHA = 0.05
# With fewer, no sign-flip test can reach p < 0.05 (2 ** -4 is 0.06), and an interval means little.
FEWEST_DIALOGUES = 5

Verdict = Literal["supported", "not supported", "inconclusive"]


class Claim(BaseModel):
    """One claim: `models` compared with the model `against`, by `metric`, on one test set.

    `otherwise`: the measures to use, in order, where `metric` does not apply to the corpus. `margin`: the loss, in
    units of the metric, that still counts as not inferior.
    """

    model_config = ConfigDict(extra="forbid")
    id: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    statement: str = Field(min_length=1)
    origin: Literal["from the paper's abstract", "our addition"]
    metric: str
    otherwise: list[str] = []
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


def _complain(claim: Claim, scores: pd.DataFrame) -> None:
    have = ", ".join(scores["model"].unique())
    if claim.against not in set(scores["model"]):
        raise MedComfortError(
            f"claim {claim.id}: the scores hold no model {claim.against} to compare with; they hold {have}."
        )
    raise MedComfortError(f"claim {claim.id}: the scores hold none of {', '.join(claim.models)}; they hold {have}.")


def _metric(claim: Claim, scores: pd.DataFrame) -> str | None:
    """The first measure that at least half of the replies have, else the one that most have; None if none has a value.

    Half, because a free text states a fact or two in the exact wording by chance: such a rest would decide nothing.
    """
    baselines = [claim.metric, *claim.otherwise]
    for metric in baselines:
        if metric not in scores.columns:
            raise MedComfortError(f"claim {claim.id}: the scores have no metric {metric}.")
        if not pd.api.types.is_numeric_dtype(scores[metric]):
            raise MedComfortError(f"claim {claim.id}: {metric} is no number in the scores, so nothing can be tested.")
    asked = (scores["test_set"] == claim.test_set) & scores["model"].isin([claim.against, *claim.models])
    share = scores.loc[asked, baselines].notna().mean()
    best = max(baselines, key=lambda metric: min(share[metric], 0.5))
    return best if share[best] > 0 else None


def _superior(estimate: float, low: float, high: float, p_value: float) -> Verdict:
    if p_value < ALPHA and low > 0:
        return "supported"
    return "not supported" if high <= 0 or estimate <= 0 else "inconclusive"


def _not_inferior(low: float, high: float, margin: float) -> Verdict:
    if low > -margin:
        return "supported"
    return "not supported" if high < -margin else "inconclusive"


def _verdict(claim: Claim, result: dict, dialogues: int, reference: float) -> Verdict:
    """`reference`: the mean of the model compared with."""
    if dialogues < FEWEST_DIALOGUES:
        return "inconclusive"
    estimate, low, high = result["estimate"], result["low"], result["high"]
    if claim.test == "superior":
        return _superior(estimate, low, high, result["p_value"])
    # A margin must leave at least half of what the reference has, or next to nothing counts as kept (our choice).
    return "inconclusive" if reference < 2 * claim.margin else _not_inferior(low, high, claim.margin)


def _reference(claim: Claim, metric: str, scores: pd.DataFrame) -> float:
    asked = (scores["test_set"] == claim.test_set) & (scores["model"] == claim.against)
    return scores.loc[asked].groupby("dialogue_id")[metric].mean().mean()


def _results(claim: Claim, scores: pd.DataFrame) -> list[dict]:
    models, metric = _present(claim, scores), _metric(claim, scores)
    if metric is None or not models:
        return []
    differences = {model: paired_difference(scores, model, claim.against, metric, claim.test_set) for model in models}
    differences = {model: values for model, values in differences.items() if not np.isnan(values).all()}
    p_values = holm([paired_permutation(values + (claim.margin or 0)) for values in differences.values()])
    rows = []
    for (model, difference), p_value in zip(differences.items(), p_values, strict=True):
        estimate, low, high = interval(difference)
        result = {"estimate": estimate, "low": low, "high": high, "p_value": p_value}
        dialogues = int((~np.isnan(difference).all(axis=0)).sum())
        verdict = _verdict(claim, result, dialogues, _reference(claim, metric, scores))
        # + 0.0 turns -0.0 into 0.0.
        shown = {name: round(value, 4) + 0.0 for name, value in result.items()}
        size = d_z(difference)
        effect = {"effect_size": None if np.isnan(size) else round(size, 4) + 0.0, "effect_size_kind": "d_z"}
        rows.append({"id": claim.id, "model": model, **shown, "verdict": verdict, **effect})
    return rows


def evaluate(path: str | Path, scores: pd.DataFrame) -> list[dict]:
    """The rows of claims.json, by claim, then model.

    `{id, model, estimate, low, high, p_value, verdict, effect_size, effect_size_kind}`.

    `scores`: the table of `evaluate.statistics`. `estimate` is the mean difference to the reference model with its 95 %
    interval; `p_value` is one-sided (for not_inferior: of a loss as large as the margin), adjusted over the models by
    Holm; `verdict` is supported, not supported or inconclusive; `effect_size` is Cohen's d_z over the dialogues, None
    where all of them differ alike. A model that the run lacks has no row, nor has a claim
    without any value in this corpus, or whose models this run did not train. Raises MedComfortError if a metric is
    not in the scores, or the models of no claim are.
    """
    claims = read(path)
    rows = [row for claim in claims for row in _results(claim, scores)]
    if not any(_present(claim, scores) for claim in claims):
        _complain(claims[0], scores)
    return rows


def _note(claim: Claim, used: str | None, models: list[str]) -> str:
    if not models:
        return f"not tested: this run has not both {' or '.join(claim.models)} and {claim.against}"
    if used is None:
        return "not tested: no value in this corpus"
    return "" if used == claim.metric else f"{claim.metric} does not apply to this corpus"


def table(claims: list[Claim], scores: pd.DataFrame) -> pd.DataFrame:
    """What is tested, a row a claim: `id, statement, origin, test, test_set, metric` (the one used) and `note`."""
    rows = []
    for claim in claims:
        used = _metric(claim, scores)
        row = claim.model_dump(include={"id", "statement", "origin", "test", "test_set"})
        rows.append({**row, "metric": used or claim.metric, "note": _note(claim, used, _present(claim, scores))})
    return pd.DataFrame(rows)
