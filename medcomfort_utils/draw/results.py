"""Read a folder of results, as 03_evaluate leaves it, into tables that figures and tables are drawn from."""

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
import pyarrow as pa
import yaml

from medcomfort_utils.paths import MedComfortError, existing, read_json, tidy

BASE = "base"
TUNED = ("sft", "dpo", "kto")  # the models that the claims speak of
BASELINES = ("original", "template")  # the plain answer and the template rewrite, not models
KNOWLEDGE = ("facts_kept", "facts_supported", "rouge_l")  # best measure first; a corpus may lack the earlier ones

_COLUMNS = {
    "results.json": ("model", "method", "seed", "test_set", "metric", "value", "low", "high", "n"),
    "claims.json": ("id", "model", "estimate", "low", "high", "p_value", "verdict", "effect_size"),
    "scores.parquet": ("model", "method", "seed", "test_set", "dialogue_id", "emotion", "comfort"),
    "training.csv": ("model", "method", "seed", "step", "metric", "value"),
    "gates.csv": ("gate", "condition", "checked", "failed", "share"),
    "cleaning.csv": ("reason", "count"),
    "adversarial.csv": ("model", "metric", "expected", "value", "bound", "holds"),
}
PROFILE = "profile.yaml"  # the run's effective profile; a run by papermill alone has none
FILES = (*_COLUMNS, "run.json")  # all else that a folder of results holds


@dataclass(frozen=True)
class Results:
    """One run: a table per result file (columns as in the files), and `run`, what the run was made of.

    `recipes`: the parameters of 02_finetune by model, from profile.yaml; empty where there is none.
    """

    table: pd.DataFrame
    claims: pd.DataFrame
    scores: pd.DataFrame
    training: pd.DataFrame
    gates: pd.DataFrame
    cleaning: pd.DataFrame
    adversarial: pd.DataFrame
    run: dict
    recipes: pd.DataFrame = field(default_factory=pd.DataFrame)

    def pooled(self, metric: str, test_set: str) -> pd.DataFrame:
        """`value`, `low`, `high`, `n` by model, over all seeds."""
        rows = self.table[(self.table.metric == metric) & (self.table.test_set == test_set) & self.table.seed.isna()]
        return rows.set_index("model")[["value", "low", "high", "n"]]

    def by_seed(self, metric: str, test_set: str) -> pd.Series:
        """`value` by (model, seed)."""
        rows = self.table[(self.table.metric == metric) & (self.table.test_set == test_set) & self.table.seed.notna()]
        return rows.set_index(["model", "seed"])["value"]

    @property
    def knowledge(self) -> str:
        """The first measure of knowledge that at least half of the base's replies have, else the one that most have.

        Half, as for the claims: a free text states a fact or two in the exact wording by chance.
        """
        rows = self.table[(self.table.model == BASE) & (self.table.test_set == "emotional") & self.table.seed.isna()]
        replies = rows.groupby("metric")["n"].max()
        measured = [metric for metric in KNOWLEDGE if metric in replies.index]
        if not measured:
            raise MedComfortError(f"results.json: the base has none of {', '.join(KNOWLEDGE)}; run 03_evaluate again.")
        return max(measured, key=lambda metric: min(replies[metric], replies.max() / 2))

    @property
    def trials(self) -> list[str]:
        """The recipes beside the claims' own, in the order of the file."""
        known = {BASE, *TUNED, *BASELINES}
        return [model for model in self.table.model.unique() if model not in known]

    @property
    def models(self) -> list[str]:
        """The base, the tuned models and the baselines that this run has, in that order."""
        present = set(self.table.model)
        return [model for model in (BASE, *TUNED, *BASELINES) if model in present]

    def method(self, model: str) -> str:
        """The method that trained `model`."""
        return self.table.loc[self.table.model == model, "method"].iloc[0]


def read_results(results_dir: str | Path) -> Results:
    """Read the files of results that 03_evaluate and 01_rewrite leave: `FILES`.

    profile.yaml is read too, if it is there. A MedComfortError names the file that is missing, unreadable, empty of
    results or lacks a column.
    """
    folder = existing(results_dir, "results_dir")
    run = read_json(folder / "run.json", "run.json")
    absent = [key for key in ("corpus", "base_model") if not isinstance(run, dict) or key not in run]
    if absent:
        raise MedComfortError(f"{tidy(folder / 'run.json')} has no {' and no '.join(absent)}; run 03_evaluate again.")
    results = Results(*(_table(folder / name, columns) for name, columns in _COLUMNS.items()), run, _recipes(folder))
    if not (results.table.model == BASE).any():
        raise MedComfortError(f"{tidy(folder / 'results.json')} has no row for the model base; run 03_evaluate again.")
    return results


def read_profile(path: Path) -> list[dict]:
    """`name`, `after` and `parameters` of each step of a run's effective profile; a MedComfortError if it is not one."""
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
        if "steps" in told:  # of a run before profiles had sections
            return [{"name": step["name"], "parameters": dict(step["parameters"])} for step in told["steps"]]
        steps = {f"02_finetune-{model}": {"name": model} | given for model, given in told["models"].items()}
        steps |= {f"{n:02}_{key}": told[key] for n, key in ((1, "rewrite"), (3, "evaluate"), (4, "figures")) if key in told}
        return [{"name": name, "parameters": dict(steps[name])} for name in sorted(steps)]
    except (yaml.YAMLError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise MedComfortError(f"{tidy(path)} is not the profile of a run; run `medcomfort reproduce` again.") from error


def _recipes(folder: Path) -> pd.DataFrame:
    if not (folder / PROFILE).is_file():
        return pd.DataFrame()
    told = [step["parameters"] for step in read_profile(folder / PROFILE) if "method" in step["parameters"]]
    for recipe in told:  # `after` says what `init_from` said
        after = recipe.pop("after", "")
        recipe.setdefault("init_from", f"{after}-seed{{seed}}" if after else "")
    return pd.DataFrame(told, index=[recipe.get("name") or recipe["method"] for recipe in told])


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
