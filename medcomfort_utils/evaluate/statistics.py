"""Intervals and tests over questions and seeds.

All work on one wide table `scores`, a row a reply: `model`, `method`, `seed` (nullable integer), `test_set`,
`dialogue_id`, `emotion`, a float column for each metric (nan where it does not apply), and, where known, `start`: the
model whose seed of the same number this one's training went on from. The unit that is resampled is the dialogue:
emotional versions of one question share its medicine, so they are averaged before anything else.
"""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # the quantile of Student's t

from medcomfort_utils.paths import MedComfortError

TEST_SETS = ("emotional", "neutral")
_KEYS = ("model", "method", "seed", "test_set", "dialogue_id", "emotion")
_NO_SEED = -1


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
    # A missing reply takes its prompt's mean here; prompts without any were left out before.
    values = np.where(np.isnan(values), np.nanmean(values, axis=0), values)
    by_seed, by_prompt = (values.mean(axis=axis, keepdims=True) - values.mean() for axis in (1, 0))
    rest = values - values.mean() - by_seed - by_prompt
    free = np.array([seeds - 1, prompts - 1, (seeds - 1) * (prompts - 1)])
    squares = np.array([(by_seed**2).sum() / seeds, (by_prompt**2).sum() / prompts, (rest**2).sum() / values.size])
    of_seeds, of_prompts, of_rest = shares = squares / np.maximum(free, 1)
    variance = max(of_seeds - of_rest, 0) + max(of_prompts - of_rest, 0) + of_rest
    counted = shares * (shares > of_rest)
    counted[2] = of_rest
    doubt = (counted**2 / np.maximum(free, 1)).sum()
    return (float(np.sqrt(variance)), float(variance**2 / doubt)) if doubt > 1e-30 else (0.0, 0.0)


def interval(values: np.ndarray, confidence: float = 0.95, share: bool | None = None) -> tuple[float, float, float]:
    """Mean, lower and upper bound over prompts and, if there are several, seeds; three nans if there is no value.

    `values`: [seeds, prompts] or [prompts], nan where there is none. `share`: no value can lie outside 0 to 1, which
    the bounds then know; None takes values for shares where none does. Else it is the t interval of two crossed random
    effects: three seeds differ too little among each other, and say little about the next training run.
    Coverage of 95 % intervals, simulated: 0.92 to 0.98; 0.95 to 0.99 of shares near 0.99, and 0.91 where a few
    questions bear nearly all failures.
    """
    values = _grid(values)
    if not values.size:
        return np.nan, np.nan, np.nan
    mean, (error, free) = float(np.nanmean(values)), _standard_error(values)
    t = float(stdtrit(free if error else np.inf, (1 + confidence) / 2))
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


def _checked(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The scores with seeds that can be sorted, or a MedComfortError about what they lack."""
    missing = [name for name in (*_KEYS, *metrics) if name not in scores.columns]
    if missing:
        raise MedComfortError(f"the scores have no column {missing[0]}; they have {', '.join(scores.columns)}.")
    for metric in metrics:
        if np.isinf(scores[metric].astype(float)).any():
            raise MedComfortError(f"the scores hold an infinite {metric}; give nan where it does not apply.")
    return scores.assign(seed=scores["seed"].astype("Int64").fillna(_NO_SEED))


def _by_dialogue(replies: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """A row for each seed and dialogue (both sorted), a column a metric: averages over the emotions of a dialogue."""
    return replies.groupby(["seed", "dialogue_id"])[list(metrics)].mean().astype(float)


def _grid_of(means: pd.Series) -> np.ndarray:
    """Means of `_by_dialogue` as [seeds, dialogues], without seeds and dialogues that have no value."""
    return means.dropna().unstack().to_numpy()


def _rows(replies: pd.DataFrame, seed: int | None, metrics: Sequence[str]) -> list[dict]:
    rows, of = [], {"model": replies["model"].iloc[0], "method": replies["method"].iloc[0], "seed": seed}
    for test_set in TEST_SETS:
        chosen = replies[replies["test_set"] == test_set]
        means, counts = _by_dialogue(chosen, metrics), chosen[list(metrics)].notna().sum()
        for metric in (metric for metric in metrics if counts[metric]):
            value, low, high = (round(bound, 4) + 0.0 for bound in interval(_grid_of(means[metric])))
            result = {"value": value, "low": low, "high": high, "n": int(counts[metric])}
            rows.append({**of, "test_set": test_set, "metric": metric, **result})
    return rows


def summarise(scores: pd.DataFrame, metrics: Sequence[str]) -> list[dict]:
    """The rows of results.json: `{model, method, seed, test_set, metric, value, low, high, n}`.

    For each model (in order of appearance) a row for each seed, then one over all seeds with `seed` None; a model
    without seeds has the latter only. `value` is the mean over dialogues, `low` and `high` its 95 % interval, `n` the
    number of replies with a value; where there is none, there is no row. Rounded to 4 decimals.
    Raises MedComfortError if a column is missing or a value infinite.
    """
    scores = _checked(scores, metrics)
    rows = []
    for model in scores["model"].unique():
        replies = scores[scores["model"] == model]
        for seed in sorted(set(replies["seed"]) - {_NO_SEED}):
            rows += _rows(replies[replies["seed"] == seed], int(seed), metrics)
        rows += _rows(replies, None, metrics)
    return rows


def paired_permutation(difference: np.ndarray, samples: int = 10000, seed: int = 0) -> float:
    """One-sided p-value of a sign-flip test of paired differences, symmetric about 0 if there is no effect.

    `difference`: [prompts] or [seeds, prompts]; seeds are averaged: the test is over prompts, for these trained models.
    Up to 12 prompts all signs are enumerated (exact), else p is (1 + count) / (1 + samples). nan if there is no value.
    Source: Fisher 1935; the added one: Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9(1).
    """
    values = _grid(difference)
    if not values.size:
        return np.nan
    means = np.nanmean(values, axis=0)
    exact = len(means) <= 12
    drawn = np.random.default_rng(seed).choice([1.0, -1.0], size=(samples, len(means)))
    flipped = (np.array(list(product((1.0, -1.0), repeat=len(means)))) if exact else drawn) @ means
    # Equal sums may differ in the last digit, by the order of adding.
    count = int((flipped >= means.sum() - 1e-9 * np.abs(means).sum()).sum())
    return count / len(flipped) if exact else (1 + count) / (1 + samples)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them, in the order given (Holm 1979, Scand. J. Stat. 6(2)).

    A test without a p-value (nan) was meant to be made too: it counts among those adjusted for, and stays nan.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")  # nan comes last
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return adjusted.tolist()


def _by_seed(scores: pd.DataFrame, model: str, metric: str, test_set: str) -> pd.DataFrame:
    """Values of a model: a row a seed, a column a prompt (dialogue, emotion)."""
    replies = scores[(scores["model"] == model) & (scores["test_set"] == test_set)]
    if replies.empty:
        raise MedComfortError(f"the scores hold no reply of {model} to {test_set} questions.")
    return replies.pivot(index="seed", columns=["dialogue_id", "emotion"], values=metric).astype(float)


def _paired(scores: pd.DataFrame, model: str, against: str) -> bool:
    """Whether seed k of one model went on from seed k of the other, or both from that of a third."""
    starts = {m: set(scores.loc[scores["model"] == m].get("start", pd.Series()).dropna()) for m in (model, against)}
    return against in starts[model] or model in starts[against] or bool(starts[model] & starts[against])


def paired_difference(
    scores: pd.DataFrame, model: str, against: str, metric: str, test_set: str
) -> tuple[np.ndarray, str]:
    """(Values of `model` minus those of `against`: [seeds of the model, dialogues]; why they say nothing, or "").

    Seed k is compared with seed k where one went on from the other (`start`), else with the mean over the seeds of
    `against`. Dialogues are in order of their ids; one to which the metric applies for neither model has no column.
    Raises MedComfortError if a column or a model is missing.
    """
    scores = _checked(scores, [metric])
    ours, theirs = (_by_seed(scores, name, metric, test_set) for name in (model, against))
    known = pd.concat([ours, theirs])
    applies = known.columns[known.notna().any()]
    ours, theirs = ours.reindex(columns=applies), theirs.reindex(columns=applies)
    lacking = next((name for name, part in ((model, ours), (against, theirs)) if part.isna().any(axis=None)), None)
    if _paired(scores, model, against) and set(ours.index) <= set(theirs.index):
        difference = ours - theirs.loc[ours.index]
    else:
        difference = ours - theirs.mean()
    difference = difference.T.groupby(level="dialogue_id").mean().T.to_numpy()
    if lacking:
        return difference, f"{lacking} lacks values of {metric} that it should have"
    return difference, ""


def d_z(difference: np.ndarray) -> float:
    """Cohen's d of paired differences: their mean over dialogues in units of their standard deviation.

    `difference`: [prompts] or [seeds, prompts]; seeds are averaged. nan below two values or where all are equal.
    Source: Cohen 1988, ch. 2.3; the name: Lakens 2013, Front. Psychol. 4:863.
    """
    values = _grid(difference)
    if values.shape[1] < 2:
        return np.nan
    means = np.nanmean(values, axis=0)
    spread = means.std(ddof=1)
    return float(means.mean() / spread) if spread > 1e-12 * np.abs(means).max() else np.nan
