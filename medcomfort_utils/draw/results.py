"""Read a folder of results, as 01_rewrite and 03_evaluate leave it, into what figures and tables are drawn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from medcomfort_utils.paths import MedComfortError, existing, read_json, tidy
from medcomfort_utils.records import knowledge_metric

BASE = "base"
TUNED = ("sft", "sft-more", "dpo", "kto")  # what the claims speak of; all other models are recipes that were tried
PROFILE = "profile.yaml"  # the run's effective profile; a run by papermill alone has none
JUDGE = "judge.csv"  # only where a judge was asked

_COLUMNS = {
    "results.json": ("model", "method", "seed", "test_set", "emotion", "metric", "value", "low", "high", "n"),
    "claims.json": ("id", "statement", "origin", "metric", "test_set", "against", "test", "margin", "model",
                    "estimate", "low", "high", "p_value", "effect_size", "verdict", "reason"),
    "scores.parquet": ("model", "method", "seed", "test_set", "dialogue_id", "emotion", "comfort", "length"),
    "training.csv": ("model", "method", "seed", "step", "metric", "value"),
    "gates.csv": ("gate", "condition", "checked", "failed"),
    "cleaning.csv": ("reason", "count"),
    "adversarial.csv": ("model", "metric", "expected", "value", "holds"),
}  # fmt: skip
FILES = (*_COLUMNS, "run.json")  # what a folder of results holds beside the profile


@dataclass(frozen=True)
class Results:
    """One run: a table per result file (columns as in the files), `run` (run.json) and `profile` (profile.yaml or {}).

    `table`: results.json in the order of all tables, with each model's `group`: base, tuned, tried (recipes beside the
    claims' own), reference (answers that no model gave). Its rows for single emotions are `emotions`.
    """

    table: pd.DataFrame
    emotions: pd.DataFrame
    claims: pd.DataFrame
    scores: pd.DataFrame
    training: pd.DataFrame
    gates: pd.DataFrame
    cleaning: pd.DataFrame
    adversarial: pd.DataFrame
    judge: pd.DataFrame
    run: dict[str, Any]
    profile: dict[str, Any]

    @property
    def pooled(self) -> pd.DataFrame:
        """The rows over all seeds."""
        return self.table[self.table.seed.isna()]

    def values(self, metric: str, test_set: str = "emotional") -> pd.DataFrame:
        """`value`, `low`, `high`, `n` by model, over all seeds."""
        rows = self.pooled[(self.pooled.metric == metric) & (self.pooled.test_set == test_set)]
        return rows.set_index("model")[["value", "low", "high", "n"]]

    @property
    def knowledge(self) -> str:
        """The measure of knowledge that applies to the corpus, by the base's replies to emotional questions."""
        rows = self.pooled[(self.pooled.model == BASE) & (self.pooled.test_set == "emotional")]
        return knowledge_metric(rows.set_index("metric")["n"])

    @property
    def methods(self) -> dict[str, str]:
        """Model -> method, in the order of all tables."""
        return dict(zip(self.table.model, self.table.method, strict=True))

    def models(self, *groups: str) -> list[str]:
        """The models of these groups, in the order of all tables."""
        return list(self.table.model[self.table.group.isin(groups)].unique())

    @property
    def recipes(self) -> pd.DataFrame:
        """Parameters of the models that were evaluated, by model; `after`: what each starts from, "" for the base.

        `cell`: METHOD-TARGET-SHARE. `start`: "-from-base" for preference training without SFT before it, "-more" for
        SFT that goes on, else "".
        """
        models = {model: {"after": "", **given} for model, given in self.profile.get("models", {}).items()}
        table = pd.DataFrame.from_dict(models, orient="index", dtype=object)
        table = table.reindex(columns=list(dict.fromkeys(["method", "target", "neutral_fraction", "after", *table])))
        table = table[table.index.isin(self.table.model)]
        sft, first = table.method == "sft", table.after == ""
        cells = [f"{row.method}-{row.target}-{row.neutral_fraction:g}" for row in table.itertuples()]
        return table.assign(cell=cells, start=np.select([~sft & first, sft & ~first], ["-from-base", "-more"], ""))

    @property
    def synthetic(self) -> bool:
        """Whether the corpus is the made-up clinic, by what 01_rewrite was given, not by what a file is called."""
        return (self.profile.get("rewrite") or {}).get("source") == "clinic"


def read_results(results_dir: str | Path) -> Results:
    """Read the files of results that 03_evaluate and 01_rewrite leave: `FILES`, and profile.yaml if it is there.

    A MedComfortError names the file that is missing, unreadable, empty of results or lacks a column.
    """
    folder = existing(results_dir, "results_dir")
    table, *others = (_table(folder / name, columns) for name, columns in _COLUMNS.items())
    run = read_json(folder / "run.json", "run.json")
    if not isinstance(run, dict) or not run.keys() >= {"corpus", "base_model"}:
        raise MedComfortError(f"{tidy(folder / 'run.json')} lacks corpus or base_model; run 03_evaluate again.")
    if BASE not in set(table.model):
        raise MedComfortError(f"{tidy(folder / 'results.json')} has no row for the model base; run 03_evaluate again.")
    judge = pd.read_csv(folder / JUDGE) if (folder / JUDGE).is_file() else pd.DataFrame()
    profile = yaml.safe_load((folder / PROFILE).read_text()) if (folder / PROFILE).is_file() else {}
    table = _grouped(table)
    single = table.emotion.notna()
    return Results(table[~single], table[single], *others, judge, run, profile)


def _grouped(table: pd.DataFrame) -> pd.DataFrame:
    """The rows with their model's group, in the order of all tables."""
    group = table.method.where(table.method == "reference", "tried")
    group = group.mask(table.model.isin(TUNED), "tuned").mask(table.model == BASE, BASE)
    order = [BASE, *TUNED, *table.model[group == "tried"].unique(), *table.model[group == "reference"].unique()]
    return table.assign(group=group).sort_values("model", key=lambda names: names.map(order.index), kind="stable")


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    existing(path, path.name)
    read = {".json": pd.read_json, ".parquet": pd.read_parquet, ".csv": pd.read_csv}[path.suffix]
    try:
        table = read(path)
    except ValueError as error:  # also those of pandas and pyarrow
        raise MedComfortError(f"{tidy(path)} cannot be read as a table; run 03_evaluate again.") from error
    table = table if len(table.columns) else table.reindex(columns=list(columns))
    if absent := [column for column in columns if column not in table]:
        raise MedComfortError(f"{tidy(path)} has no column {', '.join(absent)}; run 03_evaluate again.")
    return table
