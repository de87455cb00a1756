"""The blinded sheet there and back, sheets that do not fit, and Krippendorff's alpha on the published examples."""

import numpy as np
import pandas as pd
import pytest

from medcomfort_utils.evaluate.ratings import export, guide, krippendorff, load, read_sheet, reliability
from medcomfort_utils.paths import MedComfortError

N = np.nan
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units.
PUBLISHED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
]


@pytest.fixture
def replies():
    rows = [
        (model, f"d{i}", f"Question {i}?", f"{model} says {i}, really") for i in range(6) for model in ("sft", "base")
    ]
    return pd.DataFrame(rows, columns=["model", "dialogue_id", "question", "reply"])


def filled(sheet, mark) -> pd.DataFrame:
    """A sheet with `mark(answer)` in every cell."""
    table = pd.read_csv(sheet, dtype=str, encoding="utf-8-sig")
    for name in table.columns[3:]:
        table[name] = table["answer"].map(mark)
    return table


def test_a_sheet_goes_out_and_comes_back(replies, tmp_path):
    sheet, key = export(replies, tmp_path / "out")
    for rater, mark in (("a", 5), ("b", 3)):
        filled(sheet, lambda answer, mark=mark: mark if "sft" in answer else 1).to_csv(tmp_path / f"{rater}.csv")
    marks, scores = load({"a": tmp_path / "a.csv", "b": tmp_path / "b.csv"}, key)
    assert scores.groupby("model")["empathy"].mean().to_dict() == {"sft": 4, "base": 1}
    assert marks["safety"].shape == (2, 12) and len(scores) == 12
    merged = scores.merge(pd.read_csv(sheet, dtype=str), on="item")
    assert all(row.answer == f"{row.model} says {row.dialogue_id[1:]}, really" for row in merged.itertuples())


def test_the_sheet_is_blind_and_shuffled(replies, tmp_path):
    replies["reply"] = replies["reply"].str.replace("(sft|base) says", "answer", regex=True) + replies.index.astype(str)
    first, second, other = (export(replies, tmp_path / name, seed=seed)[0].read_text(encoding="utf-8-sig")
                            for name, seed in (("x", 0), ("y", 0), ("z", 1)))  # fmt: skip
    assert first == second != other
    assert "sft" not in first and "base" not in first and "d3" not in first
    items = pd.read_csv(tmp_path / "x/sheet.csv")
    assert items["answer"].tolist() != replies["reply"].tolist()
    assert sorted(items["answer"]) == sorted(replies["reply"])


def test_equal_answers_are_rated_once(replies, tmp_path):
    twins = pd.concat([replies, replies.assign(model="copy")])
    sheet, key = export(twins, tmp_path)
    assert len(pd.read_csv(sheet)) == 12 and len(pd.read_csv(key)) == 24


def test_a_spreadsheet_runs_nothing_of_a_patient_s(tmp_path):
    sheet, _ = export(pd.DataFrame({"question": ["=1+1"], "reply": ["@SUM(A1)"], "model": "m"}), tmp_path)
    assert pd.read_csv(sheet)[["question", "answer"]].values.tolist() == [["'=1+1", "'@SUM(A1)"]]


def test_a_key_is_not_overwritten(replies, tmp_path):
    export(replies, tmp_path)
    with pytest.raises(MedComfortError, match="key.csv is there already"):
        export(replies, tmp_path, seed=1)


def test_what_spreadsheets_do_to_a_sheet(replies, tmp_path):
    sheet, key = export(replies, tmp_path / "out")
    table = filled(sheet, lambda answer: "4")
    table["item"] = table["item"].astype(int)  # 0007 becomes 7
    table.loc[0, "empathy"], table.loc[1, "empathy"] = "3.0", ""
    table.to_csv(tmp_path / "saved.csv", sep=";", index=False, encoding="utf-8-sig")
    marks = read_sheet(tmp_path / "saved.csv")
    assert marks["empathy"].tolist()[:3] == pytest.approx([3, N, 4], nan_ok=True)
    assert load({"a": tmp_path / "saved.csv"}, key)[1]["empathy"].isna().sum() == 1


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("6", "line 2: empathy must be one of 1, 2, 3, 4, 5 or empty, not '6'"),
        ("good", "not 'good'"),
        ("3.5", "not '3.5'"),
    ],
)
def test_a_mark_that_is_none(replies, tmp_path, cell, message):
    table = filled(export(replies, tmp_path / "out")[0], lambda answer: "4")
    table.loc[0, "empathy"] = cell
    table.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(MedComfortError, match=message):
        read_sheet(tmp_path / "a.csv")


def test_sheets_that_do_not_fit(replies, tmp_path):
    sheet, key = export(replies, tmp_path / "out")
    table = filled(sheet, lambda answer: "4")
    pd.concat([table, table[:1]]).to_csv(tmp_path / "twice.csv", index=False)
    table.assign(item=[f"9{i:03}" for i in range(12)]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(MedComfortError, match="line 14: the item 0001 stands on an earlier line"):
        read_sheet(tmp_path / "twice.csv")
    with pytest.raises(MedComfortError, match="sheet of ann holds the item 9000"):
        load({"ann": tmp_path / "other.csv"}, key)
    with pytest.raises(MedComfortError, match="no column content: is it the sheet of another rubric"):
        read_sheet(sheet, rubric="soulchat")
    with pytest.raises(MedComfortError, match="without a reply"):
        export(replies.assign(reply=None), tmp_path / "new")
    with pytest.raises(MedComfortError, match="no column reply"):
        export(replies.drop(columns="reply"), tmp_path / "new")


@pytest.mark.parametrize("row", ['1,"open,3,3,3,3,3', "1,q,a,3", "1,q,a, with a comma,3,3,3,3,3"])
def test_a_row_with_cells_amiss_is_named(tmp_path, row):
    path = tmp_path / "a.csv"
    path.write_text(f"item,question,answer,knowledge,completeness,empathy,reassurance,safety\n{row}\n")
    with pytest.raises(MedComfortError, match="line 2: has not as many cells"):
        read_sheet(path)


def test_the_guide_explains_every_mark():
    text = guide("soulchat")
    assert all(f"## {name}" in text for name in ("content", "empathy", "helpfulness", "safety"))
    assert text.count("- **0**") == 4 and text.count("- **2**") == 3


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_the_published_one(level, alpha):
    assert krippendorff(PUBLISHED, level) == pytest.approx(alpha, abs=0.0005)


def test_alpha_of_the_published_binary_example():
    # section A: two observers, ten units, 0.095
    ratings = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert krippendorff(ratings, "nominal") == pytest.approx(0.095, abs=0.0005)


def test_alpha_at_its_ends():
    ratings = np.random.default_rng(0).integers(1, 6, (2, 4000)).astype(float)
    assert krippendorff(ratings) == pytest.approx(0, abs=0.05)
    assert krippendorff(ratings[[0, 0]]) == 1
    assert np.isnan(krippendorff([[3, 3], [3, 3]])) and np.isnan(krippendorff([[3, N], [N, 3]]))
    with pytest.raises(MedComfortError, match="level must be"):
        krippendorff(PUBLISHED, "ratio")


def test_reliability_has_an_interval():
    rows = reliability({"empathy": pd.DataFrame(PUBLISHED), "safety": pd.DataFrame([[3, 3], [3, 3]])})
    assert rows["items"].tolist() == [11, 2] and rows["raters"].tolist() == [4, 2]
    empathy = rows.iloc[0]
    assert empathy["alpha"] == pytest.approx(0.815, abs=0.0005) and empathy["low"] < 0.815 < empathy["high"] <= 1
    assert np.isnan(rows["alpha"][1])
