"""Intervals and tests: simulated where the truth is known, worked by hand where they are small."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, permutation_test, ttest_1samp

from medcomfort_utils.evaluate.statistics import (
    cliffs_delta,
    d_z,
    holm,
    interval,
    paired_difference,
    paired_permutation,
    summarise,
)
from medcomfort_utils.paths import MedComfortError


def replies(model: str, values: dict[str, float], seed: int | None = None, test_set="emotional", emotion="fear"):
    """One reply a dialogue id."""
    frame = pd.DataFrame({"dialogue_id": list(values), "comfort": [float(value) for value in values.values()]})
    return frame.assign(model=model, method=model, seed=pd.array([seed] * len(frame), "Int64"), test_set=test_set,
                        emotion=emotion)  # fmt: skip


def coverage(seeds, prompts, prompt_sd, seed_sd, reply_sd, runs=1000) -> float:
    """How often the 95 % interval of simulated scores with mean 2 holds the 2."""
    rng, covered = np.random.default_rng(4), 0
    for _ in range(runs):
        values = 2 + rng.normal(0, prompt_sd, (1, prompts)) + rng.normal(0, reply_sd, (seeds, prompts))
        _, low, high = interval(values + rng.normal(0, seed_sd, (seeds, 1)), samples=1000)
        covered += low <= 2 <= high
    return covered / runs


@pytest.mark.parametrize(
    ("seeds", "prompts", "prompt_sd", "seed_sd"),
    [(1, 60, 1, 0), (1, 200, 1, 0), (3, 60, 1, 0), (3, 60, 1, 0.1), (3, 60, 0, 1), (3, 30, 1, 0.1), (5, 60, 1, 1)],
)
def test_interval_covers_the_truth(seeds, prompts, prompt_sd, seed_sd):
    assert 0.93 <= coverage(seeds, prompts, prompt_sd, seed_sd, reply_sd=0.5) <= 0.97


def test_three_seeds_that_vary_as_much_as_prompts_are_the_hardest_case():
    # Three values leave it open whether they differ by much: here the interval is a little too narrow, never far off.
    assert 0.90 <= coverage(3, 60, 1, 1, reply_sd=0.5) <= 0.97


def test_interval_covers_a_share_of_skewed_answers():
    rng, covered = np.random.default_rng(5), 0
    for _ in range(2000):
        share = rng.beta(3.6, 0.4, 60)  # most facts are nearly always given: mean 0.9
        _, low, high = interval((rng.random((3, 60)) < share).astype(float), samples=1000)
        covered += low <= 0.9 <= high
    assert 0.93 <= covered / 2000 <= 0.97


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
    assert mean == 7 / 4 and low <= mean <= high
    assert interval([1.0, np.nan, 2.0]) == interval([1.0, 2.0])
    assert np.isnan(interval([np.nan])).all()


@pytest.mark.parametrize("prompts", [10, 40])
def test_permutation_p_is_uniform_without_a_difference(prompts):
    rng = np.random.default_rng(2)
    p_values = np.array([paired_permutation(rng.normal(0, 1, prompts), samples=999) for _ in range(1000)])
    assert 0.035 <= (p_values < 0.05).mean() <= 0.065
    assert p_values.mean() == pytest.approx(0.5, abs=0.03)


def test_a_loss_of_the_margin_passes_as_not_inferior_at_the_stated_rate():
    rng, by_interval, by_test = np.random.default_rng(6), 0, 0
    for _ in range(1000):
        difference = rng.normal(-0.05, 0.1, 60)  # the truth is the margin itself
        by_interval += interval(difference, samples=1000)[1] > -0.05
        by_test += paired_permutation(difference + 0.05, samples=999) < 0.05
    assert 0.015 <= by_interval / 1000 <= 0.035  # one side of 95 %
    assert 0.035 <= by_test / 1000 <= 0.065


def test_p_alone_speaks_of_these_seeds_and_the_interval_of_others_too():
    rng, by_p, by_both = np.random.default_rng(7), 0, 0
    for _ in range(600):
        difference = rng.normal(0, 1, (3, 60)) + rng.normal(0, 0.3, (3, 1))  # no difference, but seeds vary
        significant = paired_permutation(difference, samples=499) < 0.05
        by_p += significant
        by_both += significant and interval(difference, samples=800)[1] > 0
    assert 0.18 <= by_p / 600 <= 0.28 and by_both / 600 <= 0.065


def test_permutation_agrees_with_scipy():
    values = np.random.default_rng(8).normal(0.3, 1, 10)
    for side in ("greater", "less", "two-sided"):
        exact = permutation_test((values,), np.sum, permutation_type="samples", n_resamples=np.inf, alternative=side)
        assert paired_permutation(values, alternative=side) == pytest.approx(exact.pvalue)


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


def test_holm_errs_once_in_twenty_over_all_tests():
    p_values = np.random.default_rng(9).random((20000, 3))
    assert np.mean([min(holm(row)) < 0.05 for row in p_values]) == pytest.approx(1 - (1 - 0.05 / 3) ** 3, abs=0.004)
    assert (p_values.min(axis=1) < 0.05).mean() > 0.13  # what it protects from


def test_d_z_is_the_t_statistic_over_the_root_of_n():
    values = np.random.default_rng(1).normal(0.4, 1, 50)
    assert d_z(values) == pytest.approx(ttest_1samp(values, 0).statistic / np.sqrt(50))
    assert d_z([1, 2, 3]) == d_z([[0, 2, 2, np.nan], [2, 2, 4, np.nan]]) == 2
    assert np.isnan(d_z([0.1, 0.1, 0.1])) and np.isnan(d_z([1.0])) and np.isnan(d_z([np.nan]))


def test_cliffs_delta_is_the_rescaled_u_statistic():
    values, reference = np.random.default_rng(1).integers(0, 7, (2, 40)) + np.array([[1], [0]])
    u = mannwhitneyu(values, reference).statistic
    assert cliffs_delta(values, reference) == pytest.approx(2 * u / 1600 - 1)
    assert cliffs_delta([4, 5], [1, 2, 3]) == 1 == -cliffs_delta([1, 2, 3], [4, 5])
    assert cliffs_delta([1, 2, np.nan], [2, 1]) == 0 and np.isnan(cliffs_delta([], [1]))


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
