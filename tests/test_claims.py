"""Claims: each verdict of each test, the measure that stands in, and claim files that do not fit."""

import json

import numpy as np
import pandas as pd
import pytest
import yaml

from medcomfort_utils.evaluate import claims
from medcomfort_utils.paths import PAPER, MedComfortError

CLAIM = {"id": "warmer", "statement": "It is warmer.", "origin": "our addition", "metric": "comfort",
         "test_set": "emotional", "models": ["sft", "dpo"], "against": "base", "test": "superior"}  # fmt: skip
KEPT = {**CLAIM, "id": "kept", "metric": "facts_kept", "test": "not_inferior", "margin": 0.05}


def table_of(model: str, seed: int | None, **metrics) -> pd.DataFrame:
    values = {name: np.asarray(value, dtype=float) for name, value in metrics.items()}
    frame = pd.DataFrame(values)
    return frame.assign(model=model, method=model, seed=pd.array([seed] * len(frame), "Int64"), emotion="fear",
                        test_set="emotional", dialogue_id=[f"{n:03}" for n in range(len(frame))])  # fmt: skip


def run(tmp_path, claim: dict, difference, spread=0.1, base=0.9, dialogues=60) -> dict:
    """The row of a claim about `sft`, which lies `difference` above the base on average."""
    noise = np.random.default_rng(0).normal(0, 1, dialogues)
    tuned = base + difference + spread * (noise - noise.mean())
    scores = [table_of("base", None, **{claim["metric"]: [base] * dialogues}),
              table_of("sft", 0, **{claim["metric"]: tuned})]  # fmt: skip
    return claims.evaluate(written(tmp_path, [claim]), pd.concat(scores, ignore_index=True))[0]


def written(tmp_path, content) -> str:
    path = tmp_path / "claims.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(0.5, "supported"), (0.01, "inconclusive"), (-0.01, "not supported"), (-0.5, "not supported")],
)
def test_superior(tmp_path, difference, verdict):
    row = run(tmp_path, CLAIM, difference)
    assert row["verdict"] == verdict and row["estimate"] == pytest.approx(difference)
    fields = ["id", "model", "estimate", "low", "high", "p_value", "verdict", "effect_size", "effect_size_kind"]
    assert list(row) == fields and row["effect_size_kind"] == "d_z"
    assert row["effect_size"] == pytest.approx(difference / 0.1, rel=0.2)  # the spread of `run` is 0.1
    assert json.loads(json.dumps(row, allow_nan=False)) == row


@pytest.mark.parametrize(
    ("difference", "verdict"),
    [(0.1, "supported"), (-0.01, "supported"), (-0.045, "inconclusive"), (-0.06, "inconclusive"),
     (-0.2, "not supported")],
)  # fmt: skip
def test_not_inferior(tmp_path, difference, verdict):
    row = run(tmp_path, KEPT, difference)
    assert row["verdict"] == verdict and row["low"] < difference < row["high"]
    assert (row["p_value"] < 0.05) == (verdict == "supported")


def test_a_superior_claim_needs_the_adjusted_p(tmp_path):
    row = run(tmp_path, CLAIM, 0.03, spread=0.1)
    assert row["p_value"] < 0.05 and row["verdict"] == "supported"
    assert claims._superior(0.03, 0.01, 0.05, p_value=0.06) == "inconclusive"


def test_nothing_to_lose_is_no_proof(tmp_path):
    assert run(tmp_path, KEPT, 0.0, spread=0.001, base=0.09)["verdict"] == "inconclusive"
    assert run(tmp_path, KEPT, 0.0, spread=0.001, base=0.11)["verdict"] == "supported"


def test_four_dialogues_decide_nothing(tmp_path):
    assert run(tmp_path, KEPT, 0.0, dialogues=4)["verdict"] == "inconclusive"
    assert run(tmp_path, CLAIM, 1.0, dialogues=4)["verdict"] == "inconclusive"
    assert run(tmp_path, CLAIM, 1.0, dialogues=5)["verdict"] == "supported"


@pytest.fixture
def scores():
    """Six dialogues: exact facts in two of them, no red flags; two seeds of sft, no kto."""
    few, none = [0.9, 0.8, *[np.nan] * 4], [np.nan] * 6
    parts = [("base", None, 0), ("dpo", 0, 1), ("sft", 0, 2), ("sft", 1, 3)]
    return pd.concat(
        [
            table_of(m, s, comfort=[w] * 6, facts_kept=few, facts_supported=[0.8] * 6, rouge_l=[0.5] * 6,
                     red_flags_kept=none)
            for m, s, w in parts
        ],
        ignore_index=True,
    )  # fmt: skip


def test_models_in_order_with_p_adjusted_over_them(tmp_path, scores):
    rows = claims.evaluate(written(tmp_path, [{**CLAIM, "models": ["sft", "kto", "dpo"]}]), scores)
    assert [(r["model"], r["estimate"], r["p_value"]) for r in rows] == [("sft", 2.5, 0.0312), ("dpo", 1, 0.0312)]
    alone = claims.evaluate(written(tmp_path, [{**CLAIM, "models": ["dpo"]}]), scores)
    assert alone[0]["p_value"] == 0.0156
    assert alone[0]["effect_size"] is None  # all dialogues differ alike


def test_another_measure_stands_in_where_few_facts_are_exact(tmp_path, scores):
    path = written(tmp_path, [{**KEPT, "otherwise": ["facts_supported", "rouge_l"]}])
    assert claims.table(claims.read(path), scores)[["metric", "note"]].values.tolist() == [
        ["facts_supported", "facts_kept does not apply to this corpus"]
    ]
    assert claims.evaluate(path, scores)[0]["verdict"] == "supported"
    scores["facts_supported"] = np.nan
    assert claims.table(claims.read(path), scores)["metric"].item() == "rouge_l"
    scores["facts_kept"] = scores["facts_kept"].where(scores["dialogue_id"] != "002", 0.7)
    assert claims.table(claims.read(path), scores)["metric"].item() == "facts_kept"


def test_no_red_flags_no_row_but_a_note(tmp_path, scores):
    path = written(tmp_path, [{**KEPT, "metric": "red_flags_kept"}])
    assert claims.evaluate(path, scores) == []
    assert "not tested" in claims.table(claims.read(path), scores)["note"].item()


def test_the_paper_s_claims_can_be_evaluated(scores):
    neutral = scores.assign(test_set="neutral", emotion="")
    rows = claims.evaluate(PAPER / "claims.yaml", pd.concat([scores, neutral], ignore_index=True))
    compared = {"comfort_superior": 2, "preference_adds_comfort": 1, "knowledge_maintained": 2}
    compared |= {"knowledge_maintained_neutral": 2}
    assert [row["id"] for row in rows] == [name for name, models in compared.items() for _ in range(models)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([{**CLAIM, "metrics": "comfort"}], "claims.yaml, claim 1: metrics: Extra inputs"),
        ([CLAIM, {k: v for k, v in KEPT.items() if k != "metric"}], "claim 2: metric: Field required"),
        ([{**CLAIM, "test": "better"}], "claim 1: test: Input should be 'superior'"),
        ([{**CLAIM, "margin": 0.05}], "claim 1: the whole: .*margin belongs"),
        ([{**KEPT, "margin": -0.05}], "claim 1: margin: Input should be greater than 0"),
        ([CLAIM, CLAIM], "the claim warmer stands there twice"),
        (["warmer"], "claim 1: the whole: Input should be a valid dictionary"),
        ({"id": "warmer"}, "must hold a list of claims"),
        ("", "must hold a list of claims"),
        ("- id: a\n  margin: [1\n", "not valid YAML at line 3"),
    ],
)
def test_claim_files_that_do_not_fit(tmp_path, content, message):
    with pytest.raises(MedComfortError, match=message):
        claims.read(written(tmp_path, content))


def test_a_claim_about_models_of_another_run_is_not_tested(tmp_path, scores):
    path = written(tmp_path, [CLAIM, {**CLAIM, "id": "other", "models": ["orpo"]}])
    assert {row["id"] for row in claims.evaluate(path, scores)} == {CLAIM["id"]}
    assert "not both orpo and base" in claims.table(claims.read(path), scores)["note"].iloc[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "warmth"}, "claim warmer: the scores have no metric warmth"),
        ({"otherwise": ["warmth"]}, "claim warmer: the scores have no metric warmth"),
        ({"metric": "method"}, "claim warmer: method is no number in the scores"),
        ({"test": "not_inferior", "margin": float("inf")}, "margin: Input should be a finite number"),
        ({"models": ["orpo"]}, "claim warmer: the scores hold none of orpo; they hold base, dpo, sft"),
        ({"against": "bass"}, "claim warmer: the scores hold no model bass"),
    ],
)
def test_claims_that_do_not_fit_the_scores(tmp_path, scores, change, message):
    with pytest.raises(MedComfortError, match=message):
        claims.evaluate(written(tmp_path, [{**CLAIM, **change}]), scores)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(MedComfortError, match="nowhere.yaml"):
        claims.read(tmp_path / "nowhere.yaml")
