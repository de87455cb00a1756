"""Intervals and tests over prompts and seeds.

All work on one wide table `scores`, a row a reply: `model`, `method`, `seed` (nullable integer), `test_set`,
`dialogue_id`, `emotion`, and a float column for each metric (nan where it does not apply). The unit that is resampled
is the dialogue: emotional versions of one question share its medicine, so they are averaged before anything else.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Literal

import numpy as np
import pandas as pd

from medcomfort_utils.paths import MedComfortError

TEST_SETS = ("emotional", "neutral")
_KEYS = ("model", "method", "seed", "test_set", "dialogue_id", "emotion")
_NO_SEED = -1


@lru_cache(maxsize=32)
def _resamples(axis: int, size: int, samples: int, seed: int) -> np.ndarray:
    """How often each of `size` units is drawn in each bootstrap sample: [samples, size], every row sums to `size`."""
    rng = np.random.default_rng([seed, axis, size])
    return rng.multinomial(size, np.full(size, 1 / size), size=samples).astype(float)


def _grid(values: np.ndarray) -> np.ndarray:
    """Values as [seeds, prompts], without the prompts that have none."""
    values = np.atleast_2d(np.asarray(values, dtype=float))
    return values[:, ~np.isnan(values).all(axis=0)]


def interval(
    values: np.ndarray, confidence: float = 0.95, samples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Mean, lower and upper bound by a percentile bootstrap over prompts and, if there are several, seeds.

    `values`: [seeds, prompts] or [prompts], nan where there is none. Prompts and seeds are drawn independently of each
    other (crossed), because all seeds answer the same prompts. Three nans if there is no value at all.

    Coverage of the 95 % interval, simulated on normal data with 60 prompts: 0.94 with one seed; with three seeds 0.96
    where prompts and replies vary much more than seeds do, over 0.99 where only single replies vary, but 0.81 where
    seeds vary as much as prompts, 0.78 where only seeds do: three are too few to judge how much training runs differ.
    Source: Efron & Tibshirani 1993, ch. 13; crossed resampling: Owen 2007, Ann. Appl. Stat. 1(2).
    """
    values = _grid(values)
    seeds, prompts = values.shape
    if not prompts:
        return np.nan, np.nan, np.nan
    drawn = _resamples(1, prompts, samples, seed)
    drawn_seeds = _resamples(0, seeds, samples, seed)
    # einsum, not @: such thin products gain nothing from the threads of BLAS, which stall on a busy machine.
    total, count = (
        (np.einsum("bp,sp->bs", drawn, part) * drawn_seeds).sum(axis=1)
        for part in (np.nan_to_num(values), (~np.isnan(values)).astype(float))
    )
    means = total[count > 0] / count[count > 0]
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(np.nanmean(values)), float(low), float(high)


def _checked(scores: pd.DataFrame, metrics: Sequence[str]) -> pd.DataFrame:
    """The scores with seeds that can be sorted, or a MedComfortError about what they lack."""
    missing = [name for name in (*_KEYS, *metrics) if name not in scores.columns]
    if missing:
        raise MedComfortError(f"the scores have no column {missing[0]}; they have {', '.join(scores.columns)}.")
    for metric in metrics:
        if np.isinf(scores[metric].astype(float)).any():
            raise MedComfortError(f"the scores hold an infinite {metric}; give nan where it does not apply.")
    return scores.assign(seed=scores["seed"].astype("Int64").fillna(_NO_SEED))


def _by_seed(replies: pd.DataFrame, metric: str) -> pd.DataFrame:
    """One row a seed, one column a dialogue (both sorted), values averaged over the emotions of a dialogue."""
    return replies.groupby(["seed", "dialogue_id"])[metric].mean().unstack().astype(float)


def _rows(replies: pd.DataFrame, seed: int | None, metrics: Sequence[str]) -> list[dict]:
    rows = []
    for test_set, metric in product(TEST_SETS, metrics):
        chosen = replies[replies["test_set"] == test_set].dropna(subset=metric)
        if len(chosen):
            value, low, high = (round(bound, 4) + 0.0 for bound in interval(_by_seed(chosen, metric).to_numpy()))
            of = {"model": chosen["model"].iloc[0], "method": chosen["method"].iloc[0], "seed": seed}
            result = {"value": value, "low": low, "high": high, "n": len(chosen)}
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


def _flips(prompts: int, samples: int, seed: int) -> np.ndarray:
    """Signs, [samples, prompts]: all of them for up to 12 prompts, else drawn."""
    if prompts <= 12:
        return np.array(list(product((1.0, -1.0), repeat=prompts)))
    return np.random.default_rng(seed).choice([1.0, -1.0], size=(samples, prompts))


def paired_permutation(
    difference: np.ndarray,
    samples: int = 10000,
    seed: int = 0,
    alternative: Literal["greater", "less", "two-sided"] = "greater",
) -> float:
    """p-value of a sign-flip test that paired differences are symmetric about 0.

    `difference`: [prompts] or [seeds, prompts]; seeds are averaged: the test is over prompts, for these trained models.
    Up to 12 prompts all signs are enumerated (exact), else p is (1 + count) / (1 + samples). nan if there is no value.
    Source: Fisher 1935; the added one: Phipson & Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9(1).
    """
    values = _grid(difference)
    if not values.size:
        return np.nan
    means = np.nanmean(values, axis=0)
    side = {"greater": np.positive, "less": np.negative, "two-sided": np.abs}[alternative]
    flipped = side(_flips(len(means), samples, seed) @ means)
    # Equal sums may differ in the last digit, by the order of adding.
    count = int((flipped >= side(means.sum()) - 1e-9 * np.abs(means).sum()).sum())
    return count / len(flipped) if len(means) <= 12 else (1 + count) / (1 + len(flipped))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for testing all of them, in the order given (Holm 1979, Scand. J. Stat. 6(2))."""
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1)).clip(max=1)
    return adjusted.tolist()


def _prompts(replies: pd.DataFrame) -> set[tuple[str, str]]:
    return set(zip(replies["dialogue_id"], replies["emotion"], strict=True))


def paired_difference(scores: pd.DataFrame, model: str, against: str, metric: str, test_set: str) -> np.ndarray:
    """Values of `model` minus those of `against` on the same dialogues: [seeds of the model, dialogues].

    The reference is averaged over its seeds. Dialogues are in order of their ids.
    Raises MedComfortError if a model is missing or has not answered the same prompts as the reference, in any seed.
    """
    scores = _checked(scores, [metric])
    replies, reference = (scores[(scores["model"] == m) & (scores["test_set"] == test_set)] for m in (model, against))
    asked = _prompts(reference)
    for name, part in ((model, replies), (against, reference)):
        if part.empty:
            raise MedComfortError(f"the scores hold no reply of {name} to {test_set} questions.")
        for seed, of_seed in part.groupby("seed"):
            if _prompts(of_seed) != asked:
                which = name if seed == _NO_SEED else f"{name} (seed {seed})"
                raise MedComfortError(
                    f"{which} and {against} answered different {test_set} questions; generate their replies again."
                )
    return _by_seed(replies, metric).to_numpy() - _by_seed(reference, metric).mean(axis=0).to_numpy()
