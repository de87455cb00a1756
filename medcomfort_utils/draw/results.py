"""Read a folder of results, as 01_rewrite and 03_evaluate leave it, into what figures and tables are drawn from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

from medcomfort_utils.paths import PAPER, MedComfortError, existing, read_json, resolve, tidy

BASE = "base"
TUNED = ("sft", "sft-more", "dpo", "kto")  # what the claims speak of; all other models are recipes that were tried
KNOWLEDGE = ("facts_kept", "facts_supported", "rouge_l")  # best measure first; a corpus may lack the earlier ones
PROFILE = "profile.yaml"  # the run's effective profile; a run by papermill alone has none

_COLUMNS = {
    "results.json": ("model", "method", "seed", "test_set", "metric", "value", "low", "high", "n"),
    "claims.json": ("id", "model", "estimate", "low", "high", "verdict"),
    "scores.parquet": ("model", "method", "seed", "test_set", "dialogue_id", "emotion", "comfort", "length"),
    "training.csv": ("model", "method", "seed", "step", "metric", "value"),
    "gates.csv": ("gate", "condition", "checked", "failed"),
    "cleaning.csv": ("reason", "count"),
    "adversarial.csv": ("model", "metric", "expected", "value", "holds"),
}
FILES = (*_COLUMNS, "run.json")  # what a folder of results holds beside the profile
# What a row of claims.json may lack. Most of it stands in the file of claims; `reason`: why there is no verdict.
_CLAIM = ("statement", "origin", "metric", "test_set", "against", "test", "margin", "p_value", "effect_size", "reason")


@dataclass(frozen=True)
class Results:
    """One run: a table per result file (columns as in the files), `run` (run.json) and `profile` (profile.yaml or {}).

    `table`: results.json without its rows for single emotions, which are `emotions`. `claims`: a row a claim and model,
    with what the file of claims says of it.
    """

    table: pd.DataFrame
    emotions: pd.DataFrame
    claims: pd.DataFrame
    scores: pd.DataFrame
    training: pd.DataFrame
    gates: pd.DataFrame
    cleaning: pd.DataFrame
    adversarial: pd.DataFrame
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
        """The first measure of knowledge that at least half of the base's replies have, else the one that most have.

        Half, as for the claims: a free text states a fact or two in the exact wording by chance.
        """
        rows = self.pooled[(self.pooled.model == BASE) & (self.pooled.test_set == "emotional")]
        replies = rows.groupby("metric")["n"].max()
        measured = [metric for metric in KNOWLEDGE if metric in replies.index]
        if not measured:
            raise MedComfortError(f"results.json: the base has none of {', '.join(KNOWLEDGE)}; run 03_evaluate again.")
        return max(measured, key=lambda metric: min(replies[metric], replies.max() / 2))

    @property
    def methods(self) -> dict[str, str]:
        """Model -> method, in the order of all tables: base, tuned models, recipes that were tried, baselines."""
        of = self.table.drop_duplicates("model").set_index("model")["method"].to_dict()
        first = [model for model in (BASE, *TUNED) if model in of]
        return {model: of[model] for model in [*first, *self.tried, *self.baselines]}

    @property
    def tuned(self) -> list[str]:
        """The models of `TUNED` that this run has."""
        return [model for model in TUNED if model in set(self.table.model)]

    @property
    def tried(self) -> list[str]:
        """The recipes beside the claims' own, in the order of the file."""
        trained = self.table[self.table.method != "reference"].model.unique()
        return [model for model in trained if model not in (BASE, *TUNED)]

    @property
    def baselines(self) -> list[str]:
        """The plain answer and the rewrite: answers that no model gave."""
        return list(self.table[self.table.method == "reference"].model.unique())

    @property
    def recipes(self) -> pd.DataFrame:
        """Parameters of the models that were evaluated, by model; `after`: what each starts from, "" for the base."""
        models = {model: {"after": "", **told} for model, told in self.profile.get("models", {}).items()}
        table = pd.DataFrame.from_dict(models, orient="index", dtype=object)
        return table[table.index.isin(self.table.model)]

    @property
    def synthetic(self) -> bool:
        """Whether the corpus is the made-up clinic, by what 01_rewrite was given, not by what a file is called."""
        return bool(self.run.get("synthetic", (self.profile.get("rewrite") or {}).get("source") == "clinic"))


def read_results(results_dir: str | Path) -> Results:
    """Read the files of results that 03_evaluate and 01_rewrite leave: `FILES`, and profile.yaml if it is there.

    A MedComfortError names the file that is missing, unreadable, empty of results or lacks a column.
    """
    folder = existing(results_dir, "results_dir")
    run = read_json(folder / "run.json", "run.json")
    absent = [key for key in ("corpus", "base_model") if not isinstance(run, dict) or key not in run]
    if absent:
        raise MedComfortError(f"{tidy(folder / 'run.json')} has no {' and no '.join(absent)}; run 03_evaluate again.")
    table, claims, *others = (_table(folder / name, columns) for name, columns in _COLUMNS.items())
    single = table.emotion.notna() if "emotion" in table else table.model.isna()
    if not (table.model == BASE).any():
        raise MedComfortError(f"{tidy(folder / 'results.json')} has no row for the model base; run 03_evaluate again.")
    return Results(table[~single], table[single], _claims(claims, run), *others, run, _profile(folder / PROFILE))


def _claims(rows: pd.DataFrame, run: dict[str, Any]) -> pd.DataFrame:
    """The rows with what the file of claims that the run names says of each; empty where neither says it."""
    path = resolve(run.get("parameters", {}).get("claims") or PAPER / "claims.yaml")
    told = pd.DataFrame(yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else [{"id": ""}])
    lacking = [name for name in _CLAIM if name not in rows]
    return rows.merge(told.reindex(columns=["id", *lacking]), on="id", how="left")


def _profile(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        if all(isinstance(model, dict) for model in told["models"].values()):
            return told
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        pass
    raise MedComfortError(f"{tidy(path)} is not the profile of a run; run `medcomfort reproduce` again.")


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    existing(path, path.name)
    try:
        if path.suffix == ".json":
            table = pd.DataFrame(read_json(path, path.name))
        else:
            table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, pa.ArrowException) as error:  # pandas' own errors are ValueErrors
        raise MedComfortError(f"{tidy(path)} cannot be read as a table; run 03_evaluate again.") from error
    if table.empty and path.suffix == ".json":
        table = table.reindex(columns=list(columns))
    absent = [column for column in columns if column not in table]
    if absent:
        raise MedComfortError(f"{tidy(path)} has no column {', '.join(absent)}; run 03_evaluate again.")
    return table
