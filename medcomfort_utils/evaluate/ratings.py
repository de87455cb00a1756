"""People as judges: a blinded sheet of answers to mark, its way back, and how far the raters agree.

The sheet is a CSV file that any spreadsheet opens: the answers in an order drawn by seed, without a word of who gave
them. Which model gave which answer stands in the key, a file of its own that the raters do not get.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from medcomfort_utils.evaluate.judge import criteria, rubrics
from medcomfort_utils.paths import MedComfortError, existing, resolve, tidy, write_text

TEXTS = ["item", "question", "answer"]
_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would run a cell that begins like this


def _safe(text: str) -> str:
    return f"'{text}" if text.startswith(_FORMULA) else text


def _csv(table: pd.DataFrame) -> str:
    return "\ufeff" + table.to_csv(index=False, lineterminator="\r\n")  # the mark tells a spreadsheet that it is UTF-8


def export(replies: pd.DataFrame, folder: str | Path, rubric: str = "medcomfort", seed: int = 0) -> tuple[Path, Path]:
    """Write `sheet.csv`, `guide.md` (both for the raters) and `key.csv` (not for them); returns sheet and key.

    `replies`: a row an answer, with `question`, `reply` and whatever tells whose it is, which goes into the key.
    Equal answers to one question are one item. Raises MedComfortError if a column is missing or a key is there already:
    a new one would make the sheets that are out unreadable.
    """
    missing = {"question", "reply"} - set(replies.columns)
    if missing:
        raise MedComfortError(f"the replies to be rated have no column {min(missing)}.")
    if replies[["question", "reply"]].isna().any(axis=None):
        raise MedComfortError("the replies to be rated have rows without a question or without a reply.")
    sheet_path, key_path = (resolve(folder) / name for name in ("sheet.csv", "key.csv"))
    if key_path.exists():
        raise MedComfortError(
            f"{tidy(key_path)} is there already: choose another folder, or delete it with its sheets."
        )
    items = replies[["question", "reply"]].drop_duplicates().sample(frac=1, random_state=seed).reset_index(drop=True)
    items.insert(0, "item", [f"{number:04}" for number in range(1, len(items) + 1)])
    whose = [name for name in replies.columns if name not in ("question", "reply", "prompt", "soothing")]
    key = replies.merge(items, on=["question", "reply"])[["item", *whose]].sort_values("item", kind="stable")
    texts = pd.DataFrame({"item": items["item"], "question": items["question"].map(_safe)})
    sheet = texts.assign(answer=items["reply"].map(_safe), **dict.fromkeys(criteria(rubric), ""))
    write_text(sheet_path.with_name("guide.md"), guide(rubric))
    write_text(sheet_path, _csv(sheet))
    write_text(key_path, _csv(key))
    return sheet_path, key_path


def guide(rubric: str = "medcomfort") -> str:
    """Markdown that tells raters what to mark: the words that the model judges get."""
    criteria(rubric)
    lines = [
        "# How to mark",
        "",
        "Read the patient's message, then the answer. Fill in one number a column, each by itself; leave a cell",
        "empty where you cannot tell. You do not know who wrote an answer, and it does not matter. Length is no merit.",
        "Rate alone, in the order given, and take breaks: some messages are hard to read. Save as CSV.",
    ]
    for name, criterion in rubrics()[rubric].items():
        marks = [f"- **{mark}** {meaning}" for mark, meaning in criterion.items() if mark != "asks"]
        lines += ["", f"## {name}", "", criterion["asks"], "", *marks]
    return "\n".join(lines) + "\n"


def _table(path: Path) -> list[tuple[int, dict]]:
    """The rows of a CSV file with their line numbers; a semicolon may part the cells, as some spreadsheets save it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MedComfortError(f"{tidy(path)} is not UTF-8: save it as CSV UTF-8.") from error
    semicolons = text.partition("\n")[0].count(";") > text.partition("\n")[0].count(",")
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=";" if semicolons else ",")
    return [(reader.line_num, row) for row in reader]


def _mark(cell: str | None, marks: Sequence[int], place: str) -> float:
    cell = (cell or "").strip()
    if not cell:
        return np.nan
    if cell.removesuffix(".0").removesuffix(",0") not in map(str, marks):
        raise MedComfortError(f"{place} must be one of {', '.join(map(str, marks))} or empty, not '{cell[:20]}'.")
    return float(cell.partition(".")[0].partition(",")[0])


def read_sheet(path: str | Path, rubric: str = "medcomfort") -> pd.DataFrame:
    """The marks of one rater: a float column a criterion (nan where empty), `item` as index.

    Raises MedComfortError naming file and line where a mark is none, an item stands twice, or a column or cell lacks.
    """
    found, marks, rows = existing(path, "rating sheet"), criteria(rubric), {}
    for line, row in _table(found):
        place = f"{tidy(found)}, line {line}"
        missing = next((name for name in ("item", *marks) if name not in row), None)
        if missing:
            raise MedComfortError(f"{tidy(found)} has no column {missing}: is it the sheet of another rubric?")
        if None in row or None in row.values():
            raise MedComfortError(f"{place}: has not as many cells as the heading; is a quotation mark or comma amiss?")
        item = row["item"].strip().removeprefix("'").zfill(4)  # spreadsheets make 0007 a 7
        if item in rows:
            raise MedComfortError(f"{place}: the item {item} stands on an earlier line too.")
        rows[item] = {name: _mark(row[name], allowed, f"{place}: {name}") for name, allowed in marks.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(marks), dtype=float).rename_axis("item")


def load(
    sheets: dict[str, str | Path], key: str | Path, rubric: str = "medcomfort"
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The raters' marks, and the key joined with their mean marks (nan where nobody gave one), ready for statistics.

    `sheets`: rater -> file. The marks: criterion -> table of a row a rater, a column an item.
    Raises MedComfortError if a sheet holds items that the key does not know, or none of it.
    """
    whose = pd.read_csv(existing(key, "key of the rating sheet"), encoding="utf-8-sig", dtype={"item": str})
    items = sorted(set(whose["item"]))
    given = {rater: read_sheet(path, rubric) for rater, path in sheets.items()}
    for rater, marks in given.items():
        strange = sorted(set(marks.index) - set(items))
        if strange or marks.empty:
            which = f"the item {strange[0]}, which the key does not know" if strange else "no item"
            raise MedComfortError(f"The sheet of {rater} holds {which}: does it belong to this key?")
    tables = {
        name: pd.DataFrame({rater: marks[name] for rater, marks in given.items()}, index=items).T
        for name in criteria(rubric)
    }
    means = pd.DataFrame({name: table.mean() for name, table in tables.items()})
    return tables, whose.merge(means, left_on="item", right_index=True, how="left")


def krippendorff(ratings: pd.DataFrame | np.ndarray, level: str = "ordinal") -> float:
    """Krippendorff's alpha of [raters, items], nan where a rater gave no mark: 1 is agreement, 0 is chance.

    `level`: nominal, ordinal or interval. nan where nothing can be compared, or where all marks are the same.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    ratings = np.asarray(ratings, dtype=float)
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0).astype(float)  # [items, values]
    counts = counts[counts.sum(axis=1) > 1]  # an item marked once says nothing of agreement
    if not counts.size:
        return np.nan
    given = counts.sum(axis=1)
    coincidences = (counts / (given - 1)[:, None]).T @ counts - np.diag((counts / (given - 1)[:, None]).sum(axis=0))
    totals = coincidences.sum(axis=0)
    apart = _distance(values, totals, level)
    by_chance = totals @ apart @ totals
    return float(1 - (totals.sum() - 1) * (coincidences * apart).sum() / by_chance) if by_chance else np.nan


def _distance(values: np.ndarray, totals: np.ndarray, level: str) -> np.ndarray:
    """Squared differences between values; on the ordinal level they count the marks that lie between."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level not in ("ordinal", "interval"):
        raise MedComfortError(f"level must be nominal, ordinal or interval, not '{level}'.")
    at = values if level == "interval" else np.cumsum(totals) - totals / 2
    return (at[:, None] - at[None]) ** 2


def reliability(marks: dict[str, pd.DataFrame], samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Ordinal alpha a criterion with its 95 % interval over items: columns criterion, raters, items, alpha, low, high.

    `items` counts those that two raters or more have marked.
    """
    rng, rows = np.random.default_rng(seed), []
    for name, table in marks.items():
        ratings = table.to_numpy(dtype=float)
        drawn = rng.integers(0, ratings.shape[1], (samples, ratings.shape[1]))
        known = np.array([krippendorff(ratings[:, chosen]) for chosen in drawn])
        known = known[~np.isnan(known)]
        low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
        items = int(((~np.isnan(ratings)).sum(axis=0) > 1).sum())
        row = {"criterion": name, "raters": len(table), "items": items, "alpha": krippendorff(ratings)}
        rows.append({**row, "low": float(low), "high": float(high)})
    return pd.DataFrame(rows)
