"""Intervals and tests: simulated where the truth is known, worked by hand where they are small."""

import json

import numpy as np
import pandas as pd
import pytest

from medcomfort_utils.evaluate.statistics import holm, interval, paired_difference, paired_permutation, summarise
from medcomfort_utils.paths import MedComfortError


def replies(model: str, values: dict[str, float], seed: int | None = None, test_set="emotional", emotion="fear"):
    """One reply a dialogue id."""
    frame = pd.DataFrame({"dialogue_id": list(values), "comfort": [float(value) for value in values.values()]})
    return frame.assign(model=model, method=model, seed=pd.array([seed] * len(frame), "Int64"), test_set=test_set,
                        emotion=emotion)  # fmt: skip


@pytest.mark.parametrize(("seeds", "prompts", "seed_sd"), [(1, 60, 0.0), (1, 200, 0.0), (3, 60, 0.1)])
def test_interval_covers_the_truth(seeds, prompts, seed_sd):
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(400):
        values = 2 + rng.normal(0, 1, (1, prompts)) + rng.normal(0, 0.5, (seeds, prompts))
        _, low, high = interval(values + rng.normal(0, seed_sd, (seeds, 1)))
        covered += low <= 2 <= high
    assert 0.90 <= covered / 400 <= 0.98


def test_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(0, 1, 400)
    mean, low, high = interval(values)
    assert mean == pytest.approx(values.mean())
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    assert interval(values) == (mean, low, high)


def test_seeds_that_differ_widen_the_interval():
    values = np.random.default_rng(0).normal(0, 0.1, (3, 50))
    _, low, high = interval(values + np.array([[-1], [0], [1]]))
    assert high - low > 1 > 0.2 > np.diff(interval(values)[1:]).item()


def test_seeds_and_prompts_are_drawn_independently():
    _, low, _ = interval(np.eye(3))
    assert low < 1 / 3


def test_missing_values_are_left_out():
    values = np.array([[1.0, np.nan, 3.0, np.nan], [1.0, 2.0, np.nan, np.nan]])
    mean, low, high = interval(values)
    assert mean == 7 / 4 and 1 <= low <= mean <= high <= 3
    assert interval([1.0, np.nan, 2.0]) == interval([1.0, 2.0])
    assert np.isnan(interval([np.nan])).all()


@pytest.mark.parametrize("prompts", [10, 40])
def test_permutation_p_is_uniform_without_a_difference(prompts):
    rng = np.random.default_rng(2)
    p_values = np.array([paired_permutation(rng.normal(0, 1, prompts), samples=999) for _ in range(1000)])
    assert 0.035 <= (p_values < 0.05).mean() <= 0.065
    assert p_values.mean() == pytest.approx(0.5, abs=0.03)


def test_permutation_finds_a_shift():
    rng = np.random.default_rng(3)
    p_values = np.array([paired_permutation(rng.normal(0.5, 1, 60), samples=999) for _ in range(200)])
    assert (p_values < 0.05).mean() > 0.9
    assert paired_permutation(rng.normal(-1, 1, 60)) > 0.99
    assert paired_permutation(rng.normal(-1, 1, 60), alternative="less") == pytest.approx(1 / 10001)


def test_permutation_by_hand():
    assert paired_permutation([1, 2, 3]) == 1 / 8
    assert paired_permutation([1, 2, -3]) == 5 / 8
    assert paired_permutation([1, 2, 3], alternative="two-sided") == 2 / 8
    assert paired_permutation([[1, 2, 3, np.nan], [1, 2, 3, np.nan]]) == 1 / 8
    assert paired_permutation([0.0] * 5) == 1 == paired_permutation([0.0] * 20)
    assert paired_permutation([0.1] * 20) == 1 / 10001


def test_permutation_counts_ties_in_spite_of_rounding():
    whole = np.array([3, 1, 0, -2, -2, -4])
    assert paired_permutation(whole / 10) == paired_permutation(whole)


def test_holm_by_hand():
    # 0.01 x 4, 0.02 x 3, 0.03 x 2 (raised to the one before), 0.04 x 1 (raised)
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.7]) == [1, 1] and holm([]) == []


@pytest.fixture
def scores():
    parts = [
        replies("sft", {"a": 3, "b": 5}, seed=1),
        replies("sft", {"a": 1, "b": 1}, seed=0),
        replies("base", {"b": 1, "a": 0}),
        replies("base", {"a": 0, "b": np.nan}, test_set="neutral", emotion=""),
    ]
    return pd.concat(parts, ignore_index=True).assign(empty=np.nan)


def test_summary_rows(scores):
    rows = summarise(scores, ["empty", "comfort"])
    assert [(r["model"], r["seed"], r["test_set"], r["value"], r["n"]) for r in rows] == [
        ("sft", 0, "emotional", 1.0, 2),
        ("sft", 1, "emotional", 4.0, 2),
        ("sft", None, "emotional", 2.5, 4),
        ("base", None, "emotional", 0.5, 2),
        ("base", None, "neutral", 0.0, 1),
    ]
    assert list(rows[0]) == ["model", "method", "seed", "test_set", "metric", "value", "low", "high", "n"]
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows == summarise(scores, ["empty", "comfort"])


def test_summary_does_not_mind_the_order_of_replies(scores):
    mixed = pd.concat([scores[scores["model"] == m].sample(frac=1, random_state=1) for m in ("sft", "base")])
    assert summarise(mixed, ["comfort"]) == summarise(scores, ["comfort"])


def test_emotions_of_a_dialogue_are_one_unit():
    rng = np.random.default_rng(0)
    once = {str(number): float(value) for number, value in enumerate(rng.normal(0, 1, 30))}
    one = summarise(replies("sft", once), ["comfort"])[0]
    five = summarise(pd.concat(replies("sft", once, emotion=e) for e in "abcde"), ["comfort"])[0]
    assert five == {**one, "n": 150}


def test_paired_difference(scores):
    assert paired_difference(scores, "sft", "base", "comfort", "emotional").tolist() == [[1, 0], [3, 4]]
    assert paired_difference(scores, "base", "sft", "comfort", "emotional").tolist() == [[-2, -2]]


def test_other_prompts_are_refused(scores):
    with pytest.raises(MedComfortError, match=r"sft \(seed 1\) and base answered different"):
        paired_difference(scores.drop(index=0), "sft", "base", "comfort", "emotional")
    with pytest.raises(MedComfortError, match="no reply of sft to neutral"):
        paired_difference(scores, "sft", "base", "comfort", "neutral")


def test_bad_scores_are_refused(scores):
    with pytest.raises(MedComfortError, match="no column warmth"):
        summarise(scores, ["warmth"])
    with pytest.raises(MedComfortError, match="infinite comfort"):
        summarise(scores.replace(5.0, np.inf), ["comfort"])
