"""Broken models: what they say, that the real measures find them out, and that broken measures do not."""

import pandas as pd
import pytest

from medcomfort_utils.evaluate import adversarial, baselines, comfort, knowledge
from medcomfort_utils.parquet import read_records
from medcomfort_utils.paths import DATA, MedComfortError
from medcomfort_utils.records import Dialogue, Rewrite


@pytest.fixture(scope="module")
def sources():
    return {d.id: d for d in read_records(DATA / "smoke/dialogues.parquet", Dialogue)}


@pytest.fixture(scope="module")
def asked():
    return baselines.test_sets(read_records(DATA / "smoke/rewrites.parquet", Rewrite), 12)


@pytest.fixture(scope="module")
def scores(asked, sources):
    """Scores of both baselines and the broken models by the real measures."""
    baselines = [baselines.baseline(asked, sources, name) for name in ("original", "template")]
    said = pd.concat([*baselines, adversarial.replies(asked, sources)], ignore_index=True)
    known = knowledge.score(said["reply"], [sources[i] for i in said["dialogue_id"]])
    return pd.concat([said, comfort.score(said["question"], said["reply"]), known], axis=1)


def of(replies: pd.DataFrame, model: str) -> pd.DataFrame:
    return replies[replies["model"] == model].reset_index(drop=True)


def test_they_are_shaped_like_a_baseline(asked, sources):
    broken, baseline = adversarial.replies(asked, sources), baselines.baseline(asked, sources, "original")
    assert set(broken.columns) == set(baseline.columns)
    assert broken["model"].drop_duplicates().tolist() == [
        "comfort-only", "knowledge-only", "same-paragraph", "echo", "thrice"
    ]  # fmt: skip
    assert (broken["model"].value_counts() == len(asked)).all()
    assert (broken["method"] == "adversarial").all() and broken["reply"].str.len().min() > 0


def test_what_each_says(asked, sources):
    broken = adversarial.replies(asked, sources)
    plain = [sources[i].answer for i in asked["dialogue_id"]]
    assert of(broken, "knowledge-only")["reply"].tolist() == plain
    assert of(broken, "echo")["reply"].tolist() == asked["question"].tolist()
    assert of(broken, "same-paragraph")["reply"].unique().tolist() == [adversarial.PARAGRAPH]
    assert of(broken, "thrice")["reply"][0] == "\n\n".join([asked["soothing"][0]] * 3)
    for soft, hard, soothing in zip(of(broken, "comfort-only")["reply"], plain, asked["soothing"], strict=True):
        assert not any(sentence in soft for sentence in hard.split(". "))
        assert soothing == hard or soft.split(". ")[0] in soothing


def test_comfort_only_soothes_neutral_questions_too():
    def dialogue(name):
        turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Drink a litre of water a day."}]
        return Dialogue(id=name, source="test", messages=turns, split="test")

    rows = [("emotional", "a", "fear", "Why?!", [], "Your fear makes sense. Drink a litre of water a day."),
            ("neutral", "a", "", "Why?", [], "Drink a litre of water a day."),
            ("neutral", "b", "", "Why?", [], "Drink a litre of water a day.")]  # fmt: skip
    asked = pd.DataFrame(rows, columns=["test_set", "dialogue_id", "emotion", "question", "prompt", "soothing"])
    said = of(adversarial.replies(asked, {name: dialogue(name) for name in "ab"}), "comfort-only")["reply"]
    assert said.tolist() == ["Your fear makes sense.", "Your fear makes sense.", adversarial.PARAGRAPH]


def test_the_measures_find_them_out(scores):
    found = adversarial.table(scores)
    assert len(found) == len(adversarial.expectations()) and found["holds"].all()
    assert set(found["model"]) == {"comfort-only", "knowledge-only", "same-paragraph", "echo", "thrice"}


@pytest.mark.parametrize(
    ("broken", "failing"),
    [
        ({"comfort": lambda s: s["reply"].str.len()}, {("thrice", "comfort")}),
        ({"comfort": lambda s: 0.0 * s["comfort"] + 3}, {("echo", "comfort"), ("knowledge-only", "comfort")}),
        ({"facts_kept": lambda s: 0.0 * s["facts_kept"] + 1}, {("echo", "facts_kept"), ("comfort-only", "facts_kept")}),
        ({"facts_kept": lambda s: 0.0 * s["facts_kept"]}, {("knowledge-only", "facts_kept")}),
        ({"red_flags_kept": lambda s: 0.0 * s["red_flags_kept"] + 1}, {("comfort-only", "red_flags_kept")}),
        ({"repetition": lambda s: 0.0 * s["repetition"]}, {("thrice", "repetition")}),
        ({"reply": lambda s: s["reply"] + s.index.astype(str)}, {("same-paragraph", "variety")}),
    ],
)
def test_broken_measures_do_not(scores, broken, failing):
    found = adversarial.table(scores.assign(**broken))
    assert failing <= set(zip(*(found.loc[~found["holds"], name] for name in ("model", "metric")), strict=True))


def test_a_measure_that_does_not_apply_has_no_row(scores):
    found = adversarial.table(scores.assign(red_flags_kept=float("nan")), knowledge="facts_supported")
    assert "red_flags_kept" not in set(found["metric"]) and "facts_supported" in set(found["metric"])


def test_what_is_missing_is_named(scores):
    with pytest.raises(MedComfortError, match="no replies to emotional questions of template"):
        adversarial.table(scores[scores["model"] != "template"])
    with pytest.raises(MedComfortError, match="hold no facts_kept: name the measure"):
        adversarial.table(scores.assign(facts_kept=float("nan")))
