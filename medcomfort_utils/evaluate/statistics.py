"""Intervals and tests over questions and seeds.

All work on one wide table `scores`, a row a reply: `model`, `method`, `seed` (nullable integer), `test_set`,
`dialogue_id`, `emotion`, a float column for each metric (nan where it does not apply), and, where known, `start`: the
model whose seed of the same number this one's training went on from. The unit that is resampled is the dialogue:
emotional versions of one question share its medicine, so they are averaged before anything else.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # the quantile of Student's t
from scipy.stats import permutation_test


def _grid(values: np.ndarray) -> np.ndarray:
    """Values as [seeds, prompts], without the prompts that have none."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    return values[:, ~np.isnan(values).all(axis=0)]


def _standard_error(values: np.ndarray) -> tuple[float, float]:
    """Standard error of the mean of [seeds, prompts] and its degrees of freedom: (0, 0) where nothing varies.

    Prompts and seeds are crossed random effects; a component of variance that comes out negative counts as none.
    Source: Satterthwaite 1946, Biometrics Bull. 2(6).
    """
    seeds, prompts = values.shape
    values = np.where(np.isnan(values), np.nanmean(values, axis=0), values)  # a missing reply takes its prompt's mean
    by_seed, by_prompt = (values.mean(axis=axis, keepdims=True) - values.mean() for axis in (1, 0))
    rest = values - values.mean() - by_seed - by_prompt
    free = np.maximum([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)], 1)
    squares = np.array([(by_seed**2).sum() / seeds, (by_prompt**2).sum() / prompts, (rest**2).sum() / values.size])
    shares = squares / free
    variance = shares[2] + np.maximum(shares[:2] - shares[2], 0).sum()
    counted = np.where(shares > shares[2], shares, [0, 0, shares[2]])
    doubt = (counted**2 / free).sum()
    return (float(np.sqrt(variance)), float(variance**2 / doubt)) if doubt > 1e-30 else (0.0, 0.0)


def interval(values: np.ndarray, share: bool | None = None) -> tuple[float, float, float]:
    """Mean, and bounds of its 95 % interval, over prompts and, if there are several, seeds; three nans without a value.

    `values`: [seeds, prompts] or [prompts], nan where there is none. `share`: no value can lie outside 0 to 1, which
    the bounds then know; None takes values for shares where none does. Else it is the t interval of two crossed random
    effects: three seeds differ too little among each other, and say little about the next training run.
    Coverage, simulated: 0.92 to 0.98; 0.95 to 0.99 of shares near 0.99, and 0.91 where a few questions bear nearly all
    failures.
    """
    values = _grid(values)
    if not values.size:
        return np.nan, np.nan, np.nan
    mean, (error, free) = float(np.nanmean(values)), _standard_error(values)
    t = float(stdtrit(free if error else np.inf, 0.975))
    if share or (share is None and np.nanmin(values) >= 0 and np.nanmax(values) <= 1):
        return mean, *_share_bounds(mean, error, t, values.shape[1])
    return mean, mean - t * error, mean + t * error


def _share_bounds(mean: float, error: float, t: float, prompts: int) -> tuple[float, float]:
    """The score interval of a share, with as many independent answers as would give this standard error.

    Where nothing varies, each prompt counts for one. Source: Wilson 1927, J. Am. Stat. Assoc. 22(158).
    """
    spread = mean * (1 - mean)
    count = spread / error**2 if error and spread > 0 else prompts
    middle, half = mean + t**2 / (2 * count), t * np.sqrt(spread / count + t**2 / (4 * count**2))
    low, high = (float(bound / (1 + t**2 / count)) for bound in (middle - half, middle + half))
    return max(0.0, min(low, mean)), min(1.0, max(high, mean))  # a mean of 1 lies within, in spite of rounding


def summarise(scores: pd.DataFrame, metrics: Sequence[str]) -> list[dict]:
    """The rows of results.json: `{model, method, seed, test_set, metric, value, low, high, n}`, rounded to 4 decimals.

    For each model (in order of appearance) a row for each seed, then one over all seeds with `seed` None; a model
    without seeds has the latter only. `value` is the mean over dialogues, `low` and `high` its 95 % interval, `n` the
    number of replies with a value; where there is none, there is no row. The last rows have an `emotion` too: comfort
    on the emotional questions with this one, over all seeds.
    """
    rows = []
    for model, replies in scores.groupby("model", sort=False):
        of = {"model": model, "method": replies["method"].iloc[0]}
        for seed in [*sorted(replies["seed"].dropna().unique()), None]:
            chosen = replies if seed is None else replies[replies["seed"] == seed]
            rows += _rows({**of, "seed": seed if seed is None else int(seed)}, chosen, metrics)
    if "comfort" in metrics:
        asked = scores[scores["test_set"] == "emotional"]
        for (model, method, emotion), replies in asked.groupby(["model", "method", "emotion"], sort=False):
            of = {"model": model, "method": method, "seed": None}
            rows += [row | {"emotion": emotion} for row in _rows(of, replies, ["comfort"])]
    return rows


def _rows(of: dict, replies: pd.DataFrame, metrics: Sequence[str]) -> list[dict]:
    rows = []
    for test_set, chosen in replies.groupby("test_set"):
        means = chosen.groupby(["seed", "dialogue_id"], dropna=False)[list(metrics)].mean().astype(float)
        for metric in metrics:
            if count := int(chosen[metric].notna().sum()):
                bounds = interval(means[metric].dropna().unstack().to_numpy())
                values = (round(bound, 4) + 0.0 for bound in bounds)
                row = dict(zip(("value", "low", "high"), values, strict=True))
                rows.append({**of, "test_set": test_set, "metric": metric, **row, "n": count})
    return rows


def paired_permutation(difference: np.ndarray) -> float:
    """One-sided p-value of a sign-flip test of paired differences [prompts], symmetric about 0 if there is no effect.

    Exact up to 13 prompts, else over 9,999 draws. Source: Fisher 1935.
    """
    how = {"permutation_type": "samples", "alternative": "greater", "n_resamples": 9999, "rng": 0}
    return float(permutation_test((difference,), np.mean, **how).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them, in the order given (Holm 1979, Scand. J. Stat. 6(2)).

    A test without a p-value (nan) was meant to be made too: it counts among those adjusted for, and stays nan.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")  # nan comes last
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return adjusted.tolist()


def paired_difference(
    scores: pd.DataFrame, model: str, against: str, metric: str, test_set: str
) -> tuple[np.ndarray, str]:
    """(Values of `model` minus those of `against`: [seeds of the model, dialogues]; why they say nothing, or "").

    Seed k is compared with seed k where one went on from the other, or both from a third (`start`), else with the mean
    over the seeds of `against`. A question to which the metric applies for neither model has no part.
    """
    sides, starts = {}, {}
    for name in (model, against):
        replies = scores[(scores["model"] == name) & (scores["test_set"] == test_set)]
        keys = ["dialogue_id", "emotion"]
        seeds = replies.assign(seed=replies["seed"].astype("Int64").fillna(-1))
        sides[name] = seeds.pivot(index="seed", columns=keys, values=metric).astype(float)
        starts[name] = set(replies.get("start", pd.Series(dtype=object)).dropna())
    known = pd.concat(sides.values())
    applies = known.columns[known.notna().any()]
    ours, theirs = (side.reindex(columns=applies) for side in sides.values())
    related = against in starts[model] or model in starts[against] or starts[model] & starts[against]
    paired = related and set(ours.index) <= set(theirs.index)
    difference = ours - (theirs.loc[ours.index] if paired else theirs.mean())
    lacking = [name for name, side in ((model, ours), (against, theirs)) if side.isna().any(axis=None)]
    reason = f"{lacking[0]} lacks values of {metric} that it should have" if lacking else ""
    return difference.T.groupby(level="dialogue_id").mean().T.to_numpy(), reason
