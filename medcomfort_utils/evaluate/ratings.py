"""People as judges: a blinded sheet of answers to rate, its way back, and how far raters agree.

The sheet is a CSV file that any spreadsheet opens: the answers in an order drawn by seed, without a word of who gave
them. Which model gave which answer stands in the key, a file of its own that the raters do not get.
"""

import io
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import yaml
from scipy.stats import spearmanr

from medcomfort_utils.paths import MedComfortError, existing, resolve, tidy, write_text

# Criterion -> what it asks, and the meaning of each mark.
RUBRIC = yaml.safe_load((Path(__file__).parent / "prompts" / "rubric_en.yaml").read_text(encoding="utf-8"))
GUIDE = """# How to rate

Read the patient's message, then the answer. Fill in one number a column, each by itself; leave a cell
empty where you cannot tell. You do not know who wrote an answer, and it does not matter. Length is no merit.
Rate alone, in the order given, and take breaks: some messages are hard to read. Save as CSV.
"""


def export(replies: pd.DataFrame, folder: str | Path, seed: int = 0) -> tuple[Path, Path]:
    """Write `sheet.csv`, `guide.md` (both for the raters) and `key.csv` (not for them); returns sheet and key.

    `replies`: a row an answer, with `question`, `reply` and whatever tells whose it is, which goes into the key.
    Equal answers to one question are one item. Raises MedComfortError if a key is there already: a new one would make
    the sheets that are out unreadable.
    """
    sheet_path, key_path = (resolve(folder) / name for name in ("sheet.csv", "key.csv"))
    if key_path.exists():
        raise MedComfortError(f"{tidy(key_path)} is there already: choose another folder, or delete it and its sheets.")
    items = replies[["question", "reply"]].drop_duplicates().sample(frac=1, random_state=seed)
    items.insert(0, "item", [f"{number:04}" for number in range(1, len(items) + 1)])
    key = replies.merge(items, on=["question", "reply"]).sort_values("item", kind="stable")
    key = key[["item", *replies.columns.difference(["question", "reply", "prompt", "soothing"], sort=False)]]
    for name in ("question", "reply"):  # a spreadsheet would run a cell that begins like a formula
        items[name] = items[name].str.replace(r"^([=+\-@\t\r])", r"'\1", regex=True)
    sheet = items.rename(columns={"reply": "answer"}).assign(**dict.fromkeys(RUBRIC, ""))
    parts = [GUIDE]
    for name, marks in RUBRIC.items():
        meanings = [f"- **{mark}** {meaning}" for mark, meaning in marks.items() if mark != "asks"]
        parts.append("\n".join([f"## {name}", "", marks["asks"], "", *meanings, ""]))
    write_text(sheet_path.with_name("guide.md"), "\n".join(parts))
    for path, table in ((sheet_path, sheet), (key_path, key)):  # the mark tells a spreadsheet that it is UTF-8
        write_text(path, "\ufeff" + table.to_csv(index=False, lineterminator="\r\n"))
    return sheet_path, key_path


def read_sheet(path: str | Path) -> pd.DataFrame:
    """The ratings of one rater: a float column a criterion (nan where empty), `item` as index.

    Reads what spreadsheets save: cells parted by semicolons, a line `sep=,` first, empty rows of commas, 0007 as 7.0.
    Raises MedComfortError naming file and item where a rating is none, an item stands twice, or a cell lacks.
    """
    found, ratings = existing(path, "rating sheet"), {}
    try:
        text = re.sub(r'\A"?sep=.[",;]*\r?\n', "", found.read_text(encoding="utf-8-sig"))
        mark = max(",;\t", key=text.partition("\n")[0].count)
        table = pd.read_csv(io.StringIO(text), sep=mark, dtype=str, keep_default_na=False, engine="python")
    except ValueError as error:  # pandas' own errors, and a text that is not UTF-8
        raise MedComfortError(f"{tidy(found)} is no table; save it as CSV UTF-8 ({str(error).strip()}).") from error
    if missing := [name for name in ("item", *RUBRIC) if name not in table]:
        raise MedComfortError(f"{tidy(found)} has no column {missing[0]}.")
    table = table[table.ne("").any(axis=1)]
    items = table["item"].str.strip().str.replace(r"^'|[.,]0$", "", regex=True).str.zfill(4)
    if items.duplicated().any():
        raise MedComfortError(f"{tidy(found)}: the item {items[items.duplicated()].iloc[0]} stands there twice.")
    for name, meanings in RUBRIC.items():
        marks = {str(mark): float(mark) for mark in meanings if mark != "asks"}
        given = table[name].str.strip().str.replace(r"[.,]0+$", "", regex=True).fillna("no cell")
        for item, cell in zip(items, given, strict=True):
            if cell and cell not in marks:
                place = f"{tidy(found)}, item {item}: {name}"
                raise MedComfortError(f"{place} must be one of {', '.join(marks)} or empty, not '{cell[:20]}'.")
        ratings[name] = given.map(marks).astype(float)
    return pd.DataFrame(ratings).set_axis(items.rename("item"))


def load(sheets: dict[str, str | Path], key: str | Path) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The ratings of each rater, as `read_sheet` gives them, and the key joined with their means by item.

    `sheets`: rater -> file. Raises MedComfortError if a sheet holds items that the key does not know, or none of it.
    """
    whose = pd.read_csv(existing(key, "key of the rating sheet"), encoding="utf-8-sig", dtype={"item": str})
    given = {rater: read_sheet(path) for rater, path in sheets.items()}
    for rater, ratings in given.items():
        strange = sorted(set(ratings.index) - set(whose["item"]))
        if strange or ratings.empty:
            which = f"the item {strange[0]}, which the key does not know" if strange else "no item"
            raise MedComfortError(f"The sheet of {rater} holds {which}: does it belong to this key?")
    means = pd.concat(given.values()).groupby("item").mean()
    return given, whose.merge(means, left_on="item", right_index=True, how="left")


def quadratic_kappa(one: np.ndarray, other: np.ndarray) -> float:
    """Cohen's kappa with quadratic weights (Cohen 1968, Psychol. Bull. 70(4)); nan where neither side varies."""
    by_chance = one.var() + other.var() + (one.mean() - other.mean()) ** 2
    return float(1 - ((one - other) ** 2).mean() / by_chance) if by_chance else np.nan


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's rank correlation; nan where one side does not vary."""
    return float(spearmanr(one, other).statistic) if np.ptp(one) and np.ptp(other) else np.nan


def agreement(ratings: dict[str, pd.DataFrame], samples: int = 999, seed: int = 0) -> pd.DataFrame:
    """How far each two raters agree, people or models: a row a criterion that both have and a pair of raters.

    `ratings`: rater -> a row an item (the index), a column a criterion, nan where there is no rating. Columns:
    `criterion`, `one`, `other`, `n` (items that both have rated), `kappa` (quadratic weights) and `spearman`, each with
    its 95 % interval `_low`, `_high` (percentile bootstrap over items); nan where nothing varies, or below two items.
    """
    rng, rows = np.random.default_rng(seed), []
    for (one, given), (other, theirs) in combinations(ratings.items(), 2):
        for name in given.columns.intersection(theirs.columns, sort=False):
            both = pd.concat([given[name], theirs[name]], axis=1).astype(float).dropna().to_numpy().T
            row = {"criterion": name, "one": one, "other": other, "n": both.shape[1]}
            drawn = rng.integers(0, max(both.shape[1], 1), (samples, both.shape[1]))
            for measure, of in (("kappa", quadratic_kappa), ("spearman", spearman)):
                value = of(*both) if both.shape[1] > 1 else np.nan
                known = [] if np.isnan(value) else [again for i in drawn if not np.isnan(again := of(*both[:, i]))]
                low, high = np.quantile(known, [0.025, 0.975]) if known else (np.nan, np.nan)
                row |= {measure: value, f"{measure}_low": low, f"{measure}_high": high}
            rows.append(row)
    return pd.DataFrame(rows)
