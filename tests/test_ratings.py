"""The blinded sheet there and back, what spreadsheets do to it, and agreement against known results."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import cohen_kappa_score

from medcomfort_utils.evaluate.ratings import agreement, export, load, read_sheet
from medcomfort_utils.paths import MedComfortError


@pytest.fixture
def sheet(tmp_path):
    made = [(m, f"d{i}", f"Question {i}?", f"{m} says {i}, really") for i in range(6) for m in ("sft", "base")]
    return export(pd.DataFrame(made, columns=["model", "dialogue_id", "question", "reply"]), tmp_path / "out")


def filled(sheet, rating) -> pd.DataFrame:
    """A sheet with `rating(answer)` in every cell."""
    table = pd.read_csv(sheet[0], dtype=str, encoding="utf-8-sig")
    for name in table.columns[3:]:
        table[name] = table["answer"].map(rating)
    return table


def test_a_sheet_goes_out_blind_and_comes_back(sheet, tmp_path):
    assert "d3" not in sheet[0].read_text(encoding="utf-8-sig")
    assert not pd.read_csv(sheet[0])["question"].is_monotonic_increasing
    for rater, rating in (("a", 5), ("b", 3)):
        made = filled(sheet, lambda answer, rating=rating: rating if "sft" in answer else 1)
        made.to_csv(tmp_path / f"{rater}.csv", index=False)
    ratings, scores = load({"a": tmp_path / "a.csv", "b": tmp_path / "b.csv"}, sheet[1])
    assert scores.groupby("model")["empathy"].mean().to_dict() == {"sft": 4, "base": 1}
    assert agreement(ratings)[["one", "other", "n", "spearman"]].iloc[0].tolist() == ["a", "b", 12, pytest.approx(1)]
    with pytest.raises(MedComfortError, match="key.csv is there already"):
        export(scores.assign(reply=""), tmp_path / "out", seed=1)


def test_a_spreadsheet_runs_nothing_of_a_patient_s(tmp_path):
    path, _ = export(pd.DataFrame({"question": ["=1+1"], "reply": ["@SUM(A1)"], "model": "m"}), tmp_path)
    assert pd.read_csv(path)[["question", "answer"]].values.tolist() == [["'=1+1", "'@SUM(A1)"]]


@pytest.mark.parametrize(("mark", "first"), [(";", ""), (",", "sep=,\r\n"), (";", '"sep=;"\r\n'), (",", "sep=,,,,\n")])
def test_what_spreadsheets_do_to_a_sheet(sheet, tmp_path, mark, first):
    table = filled(sheet, lambda answer: "4.0").astype({"item": float})  # 0007 becomes 7.0
    table.loc[0, "empathy"], table.loc[1, "empathy"] = "3", ""
    empty = mark * (len(table.columns) - 1) + "\n"
    (tmp_path / "saved.csv").write_text(first + table.to_csv(sep=mark, index=False) + empty * 3 + "\n", "utf-8-sig")
    assert read_sheet(tmp_path / "saved.csv")["empathy"].tolist()[:3] == pytest.approx([3, np.nan, 4], nan_ok=True)
    assert load({"a": tmp_path / "saved.csv"}, sheet[1])[1]["empathy"].isna().sum() == 1


def test_sheets_that_do_not_fit(sheet, tmp_path):
    table = filled(sheet, lambda answer: "4")
    table.assign(item=[f"9{i:03}" for i in range(12)]).to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(MedComfortError, match="sheet of ann holds the item 9000"):
        load({"ann": tmp_path / "other.csv"}, sheet[1])
    pd.concat([table, table[:1]]).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(MedComfortError, match="the item 0001 stands there twice"):
        read_sheet(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_text(sheet[0].read_text("utf-8-sig").replace('really",,', 'really"'))
    with pytest.raises(MedComfortError, match="or empty, not 'no cell'"):
        read_sheet(tmp_path / "b.csv")
    for cell in ("6", "good", "3.5"):
        table.loc[0, "empathy"] = cell
        table.to_csv(tmp_path / "a.csv", index=False)
        with pytest.raises(MedComfortError, match=f"item 0001: empathy must be one of 1, .*, 5 or empty, not '{cell}'"):
            read_sheet(tmp_path / "a.csv")


def test_kappa_and_spearman_are_those_of_the_libraries():
    rng = np.random.default_rng(0)
    human = rng.integers(1, 6, 80)
    given = np.clip(human + rng.integers(-1, 2, 80), 1, 5)
    row = agreement({"ann": pd.DataFrame({"empathy": human}), "judge": pd.DataFrame({"empathy": given})}).iloc[0]
    assert row["kappa"] == pytest.approx(cohen_kappa_score(human, given, weights="quadratic"))
    assert row["spearman"] == pytest.approx(spearmanr(human, given).statistic)
    assert row["kappa_low"] < row["kappa"] < row["kappa_high"] < 1
