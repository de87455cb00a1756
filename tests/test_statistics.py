"""Intervals, tests and claims: simulated where the truth is known, worked by hand where they are small."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy.stats import ttest_1samp

from medcomfort_utils.evaluate import claims
from medcomfort_utils.evaluate.statistics import holm, interval, paired_difference, paired_permutation, summarise
from medcomfort_utils.paths import PAPER, MedComfortError
from medcomfort_utils.records import knowledge_metric

CLAIM = {"id": "warmer", "statement": "It is warmer.", "origin": "our addition", "metric": "comfort",
         "test_set": "emotional", "models": ["sft", "dpo"], "against": "base", "test": "superior"}  # fmt: skip
KEPT = {**CLAIM, "id": "kept", "metric": "facts_kept", "test": "not_inferior", "margin": 0.05}


def rows(model: str, seed: int | None = None, start: str | None = None, test_set="emotional", **metrics):
    """One reply a dialogue, with these values."""
    frame = pd.DataFrame({name: np.asarray(values, dtype=float) for name, values in metrics.items()})
    seeds = pd.array([seed] * len(frame), "Int64")
    return frame.assign(model=model, method=model, seed=seeds, start=start, emotion="fear", test_set=test_set,
                        dialogue_id=[f"{n:03}" for n in range(len(frame))])  # fmt: skip


def table(*parts) -> pd.DataFrame:
    return pd.concat(parts, ignore_index=True)


def evaluated(claim: dict, scores: pd.DataFrame) -> list[dict]:
    return claims.evaluate([claims.Claim(**claim)], scores)


def coverage(draw, truth, runs=400) -> float:
    """How often the 95 % interval of what `draw(rng)` gives holds the truth."""
    rng = np.random.default_rng(4)
    bounds = [interval(draw(rng))[1:] for _ in range(runs)]
    return sum(low <= truth <= high for low, high in bounds) / runs


@pytest.mark.parametrize(
    ("seeds", "prompts", "prompt_sd", "seed_sd"), [(1, 60, 1, 0), (3, 60, 1, 0.1), (3, 60, 0, 1), (5, 60, 1, 1)]
)
def test_the_interval_covers_the_truth(seeds, prompts, prompt_sd, seed_sd):
    def draw(rng):
        by_prompt, by_seed = rng.normal(0, prompt_sd, (1, prompts)), rng.normal(0, seed_sd, (seeds, 1))
        return 20 + by_prompt + by_seed + rng.normal(0, 0.5, (seeds, prompts))

    assert 0.92 <= coverage(draw, 20) <= 0.98


@pytest.mark.parametrize("share", [0.99, 0.97])
@pytest.mark.parametrize(("seeds", "facts"), [(1, 1), (1, 5), (3, 5)])
def test_the_interval_of_a_share_covers_the_truth_near_1(share, seeds, facts):
    assert coverage(lambda rng: rng.binomial(facts, share, (seeds, 60)) / facts, share) >= 0.93


def test_a_share_s_bounds_are_wilson_s_and_know_0_and_1():
    _, low, high = interval([1.0] * 60)
    assert high == 1 and low == pytest.approx(1 / (1 + 1.96**2 / 60), abs=1e-3)
    _, low, high = interval([0.0] * 60)
    assert low == 0 and 0.05 < high < 0.07


def test_a_sign_flip_test_errs_once_in_twenty():
    rng = np.random.default_rng(5)
    p_values = np.array([paired_permutation(rng.normal(0, 1, 10)) for _ in range(400)])
    assert 0.03 <= (p_values < 0.05).mean() <= 0.07
    assert paired_permutation([1, 2, -3]) == 5 / 8 and paired_permutation([0.1] * 20) == 1 / 10000


def test_holm_counts_the_tests_without_a_value():
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.02, np.nan, np.nan]) == pytest.approx([0.06, np.nan, np.nan], nan_ok=True) and holm([]) == []


def test_summary_rows():
    scores = table(rows("sft", 1, comfort=[3, 5]), rows("sft", 0, comfort=[1, 1]), rows("base", comfort=[0, np.nan]))
    found = summarise(scores.assign(empty=np.nan), ["empty", "comfort"])
    assert [(r["model"], r["seed"], r["value"], r["n"]) for r in found if "emotion" not in r] == [
        ("sft", 0, 1.0, 2), ("sft", 1, 4.0, 2), ("sft", None, 2.5, 4), ("base", None, 0.0, 1)]  # fmt: skip
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    by_emotion = [(r["model"], r["seed"], r["emotion"], r["value"]) for r in found if "emotion" in r]
    assert by_emotion == [("sft", None, "fear", 2.5), ("base", None, "fear", 0.0)]


def test_emotions_of_a_dialogue_are_one_unit():
    once = rows("sft", comfort=np.random.default_rng(0).normal(0, 1, 30))
    five = table(*(once.assign(emotion=emotion) for emotion in "abcde"))
    assert summarise(five, ["comfort"])[0] == {**summarise(once, ["comfort"])[0], "n": 150}


def test_seeds_are_paired_where_one_goes_on_from_the_other():
    noise, gain = np.random.default_rng(0).normal(0, 1, (3, 1)), np.random.default_rng(1).normal(0.2, 0.05, (3, 40))
    sft = 2 + noise + np.zeros((3, 40))
    parts = [rows("sft", k, comfort=sft[k]) for k in range(3)]
    paired, apart = ([rows("dpo", k, start, comfort=sft[k] + gain[k]) for k in range(3)] for start in ("sft", None))
    difference, _ = paired_difference(table(*parts, *paired), "dpo", "sft", "comfort", "emotional")
    np.testing.assert_allclose(difference, gain)
    unpaired, _ = paired_difference(table(*parts, *apart), "dpo", "sft", "comfort", "emotional")
    assert interval(difference)[1] > 0.15 and interval(unpaired)[1] < 0
    more = [rows("sft-more", k, "sft", comfort=sft[k]) for k in range(3)]  # both go on from sft
    siblings, _ = paired_difference(table(*paired, *more), "dpo", "sft-more", "comfort", "emotional")
    np.testing.assert_allclose(siblings, gain)


def spread(mean: float, count=60, sd=0.1) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 1, count)
    return mean + sd * (noise - noise.mean())


@pytest.mark.parametrize(
    ("claim", "gain", "expected"),
    [
        (CLAIM, 0.5, "supported"), (CLAIM, 0.01, "inconclusive"), (CLAIM, -0.01, "not supported"),
        (KEPT, -0.01, "supported"), (KEPT, -0.045, "inconclusive"), (KEPT, -0.2, "not supported"),
    ],
)  # fmt: skip
def test_verdicts(claim, gain, expected):
    values = {"base": [0.9] * 60, "sft": spread(0.9 + gain)}
    (row,) = evaluated(claim, table(*(rows(model, **{claim["metric"]: values[model]}) for model in values)))
    assert row["verdict"] == expected and bool(row["reason"]) == (expected != "supported")
    assert (row["p_value"] is None) == (claim is KEPT) and row["statement"] == claim["statement"]
    assert row["effect_size"] == pytest.approx(ttest_1samp(spread(gain), 0).statistic / np.sqrt(60), abs=1e-4)
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(
    ("base", "sft", "reason"),
    [
        ([0.9] * 5, [0.9] * 5, "5 questions, and it takes 10"),
        ([0.9] * 30, [0.9] * 30, "all 30 questions differ by 0"),
        ([0.9] * 30, [*spread(0.9, 15), *[np.nan] * 15], "sft lacks values"),
        ([0.09] * 30, spread(0.09, 30, 0.001), "less than twice the margin"),
    ],
)
def test_no_verdict_says_why(base, sft, reason):
    (row,) = evaluated(KEPT, table(rows("base", facts_kept=base), rows("sft", 0, facts_kept=sft)))
    assert row["verdict"] == "no verdict" and reason in row["reason"]


def test_a_model_without_verdict_still_counts_for_holm():
    scores = table(rows("base", comfort=[1] * 12), rows("sft", 0, comfort=spread(1.2, 12)))
    alone = evaluated(CLAIM, scores)[0]["p_value"]
    both = evaluated(CLAIM, table(scores, rows("dpo", 0, comfort=[np.nan] * 6 + [1] * 6)))
    assert both[0]["p_value"] == pytest.approx(2 * alone, abs=1e-4) and both[1]["p_value"] is None


def test_the_measure_of_knowledge_that_applies():
    assert knowledge_metric({"facts_kept": 5, "facts_supported": 60, "rouge_l": 60}) == "facts_supported"
    assert knowledge_metric({"facts_kept": 30, "rouge_l": 60}) == "facts_kept" and knowledge_metric({}) == ""
    few = [0.9] * 2 + [np.nan] * 58
    scores = table(*(rows(m, facts_kept=few, rouge_l=v) for m, v in (("base", [0.8] * 60), ("sft", spread(0.8)))))
    (row,) = evaluated({**KEPT, "metric": "knowledge"}, scores)
    assert (row["verdict"], row["metric"]) == ("supported", "rouge_l")


def test_a_claim_about_what_the_run_lacks_is_not_tested():
    scores = table(rows("base", comfort=[1] * 20), rows("sft", 0, comfort=spread(2, 20)))
    scores = scores.assign(red_flags_kept=np.nan, facts_kept=0.5)
    tested = {row["id"] for row in claims.evaluate(claims.read(PAPER / "claims.yaml"), scores)}
    assert tested == {"comfort_superior", "knowledge_maintained"}
    with pytest.raises(MedComfortError, match="claim warmer: the scores have no metric warmth"):
        evaluated({**CLAIM, "metric": "warmth"}, scores)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([CLAIM, {**CLAIM, "metrics": "comfort"}], "claims.yaml, claim 2: metrics: Extra inputs"),
        ([{**CLAIM, "margin": 0.05}], "claim 1: .*margin belongs"),
        ([CLAIM, CLAIM], "the claim warmer stands there twice"),
        ({"id": "warmer"}, "claims.yaml: Input should be a valid list"),
    ],
)
def test_claim_files_that_do_not_fit(tmp_path, content, message):
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(MedComfortError, match=message):
        claims.read(tmp_path / "claims.yaml")
