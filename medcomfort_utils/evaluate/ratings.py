"""People as judges: a blinded sheet of answers to rate, its way back, and how far raters and a judge agree.

The sheet is a CSV file that any spreadsheet opens: the answers in an order drawn by seed, without a word of who gave
them. Which model gave which answer stands in the key, a file of its own that the raters do not get.
"""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import rankdata

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
    """Markdown that tells raters what to rate: the words that the model judges get."""
    criteria(rubric)
    lines = [
        "# How to rate",
        "",
        "Read the patient's message, then the answer. Fill in one number a column, each by itself; leave a cell",
        "empty where you cannot tell. You do not know who wrote an answer, and it does not matter. Length is no merit.",
        "Rate alone, in the order given, and take breaks: some messages are hard to read. Save as CSV.",
    ]
    for name, criterion in rubrics()[rubric].items():
        anchors = [f"- **{rating}** {meaning}" for rating, meaning in criterion.items() if rating != "asks"]
        lines += ["", f"## {name}", "", criterion["asks"], "", *anchors]
    return "\n".join(lines) + "\n"


def _table(path: Path) -> list[tuple[int, dict]]:
    """The rows of a CSV file with their line numbers, as spreadsheets save it.

    A semicolon may part the cells, a line `sep=,` may stand first, and empty rows of commas may stand anywhere.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise MedComfortError(f"{tidy(path)} is not UTF-8: save it as CSV UTF-8.") from error
    first, _, rest = text.partition("\n")
    named = re.fullmatch(r'"?sep=(.)"?[,;]*', first.strip())
    if named:
        text, first = rest, rest.partition("\n")[0]
    semicolons = first.count(";") > first.count(",")
    parted = named[1] if named else ";" if semicolons else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=parted)
    rows = [(reader.line_num + bool(named), row) for row in reader]
    return [(line, row) for line, row in rows if any(map(str.strip, filter(None, _cells(row))))]


def _cells(row: dict) -> list[str | None]:
    return [cell for value in row.values() for cell in (value if isinstance(value, list) else [value])]


def _rating(cell: str | None, allowed: Sequence[int], place: str) -> float:
    cell = (cell or "").strip()
    if not cell:
        return np.nan
    try:
        value = float(cell.replace(",", "."))
    except ValueError:
        value = np.nan
    if value not in allowed:
        raise MedComfortError(f"{place} must be one of {', '.join(map(str, allowed))} or empty, not '{cell[:20]}'.")
    return value


def read_sheet(path: str | Path, rubric: str = "medcomfort") -> pd.DataFrame:
    """The ratings of one rater: a float column a criterion (nan where empty), `item` as index.

    Raises MedComfortError naming file and line where a rating is none, an item stands twice, or a column or cell lacks.
    """
    found, scales, rows = existing(path, "rating sheet"), criteria(rubric), {}
    for line, row in _table(found):
        place = f"{tidy(found)}, line {line}"
        missing = next((name for name in ("item", *scales) if name not in row), None)
        if missing:
            raise MedComfortError(f"{tidy(found)} has no column {missing}: is it the sheet of another rubric?")
        if any(row.get(None) or []) or None in row.values():
            raise MedComfortError(f"{place}: has not as many cells as the heading; is a quotation mark or comma amiss?")
        # spreadsheets make 0007 a 7, or a 7.0
        item = row["item"].strip().removeprefix("'").removesuffix(".0").removesuffix(",0").zfill(4)
        if not item.strip("0"):
            raise MedComfortError(f"{place}: has no item number.")
        if item in rows:
            raise MedComfortError(f"{place}: the item {item} stands on an earlier line too.")
        rows[item] = {name: _rating(row[name], allowed, f"{place}: {name}") for name, allowed in scales.items()}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(scales), dtype=float).rename_axis("item")


def load(
    sheets: dict[str, str | Path], key: str | Path, rubric: str = "medcomfort"
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """The raters' ratings, and the key joined with their means (nan where nobody gave one), ready for statistics.

    `sheets`: rater -> file. The ratings: criterion -> table of a row a rater, a column an item.
    Raises MedComfortError if a sheet holds items that the key does not know, or none of it.
    """
    whose = pd.read_csv(existing(key, "key of the rating sheet"), encoding="utf-8-sig", dtype={"item": str})
    items = sorted(set(whose["item"]))
    given = {rater: read_sheet(path, rubric) for rater, path in sheets.items()}
    for rater, ratings in given.items():
        strange = sorted(set(ratings.index) - set(items))
        if strange or ratings.empty:
            which = f"the item {strange[0]}, which the key does not know" if strange else "no item"
            raise MedComfortError(f"The sheet of {rater} holds {which}: does it belong to this key?")
    tables = {
        name: pd.DataFrame({rater: ratings[name] for rater, ratings in given.items()}, index=items).T
        for name in criteria(rubric)
    }
    means = pd.DataFrame({name: table.mean() for name, table in tables.items()})
    return tables, whose.merge(means, left_on="item", right_index=True, how="left")


def krippendorff(ratings: pd.DataFrame | np.ndarray) -> float:
    """Krippendorff's ordinal alpha of [raters, items], nan where a rater gave none: 1 is agreement, 0 is chance.

    nan where nothing can be compared, or where all ratings are the same.
    Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    ratings = np.asarray(ratings, dtype=float)
    values = np.unique(ratings[~np.isnan(ratings)])
    counts = (ratings[:, :, None] == values).sum(axis=0).astype(float)  # [items, values]
    counts = counts[counts.sum(axis=1) > 1]  # an item rated once says nothing of agreement
    if not counts.size:
        return np.nan
    weighted = counts / (counts.sum(axis=1) - 1)[:, None]
    coincidences = weighted.T @ counts - np.diag(weighted.sum(axis=0))
    totals = coincidences.sum(axis=0)
    between = np.cumsum(totals) - totals / 2  # the distance of two values is the number of ratings between them
    apart = (between[:, None] - between[None]) ** 2
    by_chance = totals @ apart @ totals
    return float(1 - (totals.sum() - 1) * (coincidences * apart).sum() / by_chance) if by_chance else np.nan


def reliability(ratings: dict[str, pd.DataFrame], samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Ordinal alpha a criterion with its 95 % interval over items: columns criterion, raters, items, alpha, low, high.

    `items` counts those that two raters or more have rated.
    """
    rng, rows = np.random.default_rng(seed), []
    for name, table in ratings.items():
        given = table.to_numpy(dtype=float)
        drawn = rng.integers(0, given.shape[1], (samples, given.shape[1]))
        known = np.array([krippendorff(given[:, chosen]) for chosen in drawn])
        known = known[~np.isnan(known)]
        low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
        items = int(((~np.isnan(given)).sum(axis=0) > 1).sum())
        row = {"criterion": name, "raters": len(table), "items": items, "alpha": krippendorff(given)}
        rows.append({**row, "low": float(low), "high": float(high)})
    return pd.DataFrame(rows)


def quadratic_kappa(human: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights along the last axis (Cohen 1968, Psychol. Bull. 70(4)), or nan."""
    apart = ((human - judge) ** 2).mean(-1)
    by_chance = human.var(-1) + judge.var(-1) + (human.mean(-1) - judge.mean(-1)) ** 2
    return 1 - np.divide(apart, by_chance, out=np.full(np.shape(apart), np.nan), where=by_chance > 0)


def spearman(human: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; nan where one side is constant."""
    one, other = (rankdata(values, axis=-1) for values in (human, judge))
    one, other = (ranks - ranks.mean(-1, keepdims=True) for ranks in (one, other))
    length = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return np.divide((one * other).sum(-1), length, out=np.full(np.shape(length), np.nan), where=length > 0)


def agreement(human: pd.DataFrame, judge: pd.DataFrame, samples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How far the judge's ratings agree with people's, a row a criterion that both tables have.

    Both tables have one row an answer, with the same index; nan where there is no rating. Columns: `criterion`, `n`,
    `left_out` (answers without a rating on either side), `kappa` (quadratic weights) and `spearman`, each with its 95 %
    interval (percentile bootstrap over answers). Raises MedComfortError if the answers or all criteria
    differ, or a rating is no number.
    """
    shared = [name for name in human.columns if name in judge.columns and name not in ("reason", "problem")]
    if set(human.index) != set(judge.index) or not human.index.is_unique or not shared:
        raise MedComfortError("agreement needs the same answers, each once, and a common criterion in both tables.")
    rng, rows = np.random.default_rng(seed), []
    for name in shared:
        try:
            both = pd.DataFrame({"human": human[name], "judge": judge[name]}).astype(float).dropna()
        except ValueError as error:
            raise MedComfortError(f"agreement: the ratings of {name} must be numbers ({error}).") from error
        row = {"criterion": name, "n": len(both), "left_out": len(human) - len(both)}
        drawn = rng.integers(0, max(len(both), 1), (samples, len(both)))
        for measure, of in (("kappa", quadratic_kappa), ("spearman", spearman)):
            sides = both["human"].to_numpy(), both["judge"].to_numpy()
            resampled = of(*(side[drawn] for side in sides)) if len(both) > 1 else np.array([np.nan])
            known = resampled[~np.isnan(resampled)]
            low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
            row |= {measure: float(of(*sides)) if len(both) > 1 else np.nan}
            row |= {f"{measure}_low": float(low), f"{measure}_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)
