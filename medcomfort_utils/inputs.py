"""The files and models that steps read: there already, or written by an earlier step of the same run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medcomfort_utils import paths, schema
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.profile import Run, Step

MODELS = ("base", "init_from", "encoder")  # parameters that may name a model of the hub too
READ = {
    "01_rewrite": ("source", "responses", "encoder"),
    "02_finetune": ("rewrites", "base", "init_from"),
    "03_evaluate": ("dialogues", "rewrites", "models_dir", "base", "claims"),
    "04_figures": ("results_dir", "ablation_dir"),
}
WRITTEN = {"01_rewrite": ("dialogues.parquet", "rewrites.parquet"), "03_evaluate": ("results.json",)}
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")


def check(run: Run, chosen: list[Step]) -> None:
    """Make sure that what the `chosen` steps read will be there, and no model that this run does not train.

    Raises MedComfortError, naming step, parameter and path, for what neither exists nor is written by an earlier step,
    and for models that earlier settings left among those that are to be evaluated.
    """
    written: list[Path] = []
    for step in run.steps:
        given = run.filled(step.parameters)
        for name, path in _read(step.notebook.stem, given) if step in chosen else ():
            if not (path.exists() or any(path.is_relative_to(w) or w.is_relative_to(path) for w in written)):
                raise MedComfortError(
                    f"{run.profile}, step {step.name}: {name}: there is no file or folder {paths.tidy(path)}, and no "
                    "earlier step writes one."
                )
        if step in chosen and "models_dir" in given:
            _no_strangers(paths.resolve(given["models_dir"]), written)
        written += _written(step.notebook.stem, given, run.folder)


def _no_strangers(models: Path, written: list[Path]) -> None:
    """Models of other seeds are no strangers: 02_finetune removes them."""
    known = {path.name.rpartition("-seed")[0] for path in written if path.parent == models}
    there = sorted(told.parent for told in models.glob("[!.]*/training.json"))
    strangers = [folder for folder in there if known and folder.name.rpartition("-seed")[0] not in known]
    if strangers:
        raise MedComfortError(
            f"{paths.tidy(strangers[0])} is of an earlier run by other settings and would be evaluated with the models "
            "of this one: remove it, or give this run a --name of its own."
        )


def _read(notebook: str, given: dict[str, Any]) -> Iterator[tuple[str, Path]]:
    """(parameter, path) of what a step of that notebook reads."""
    for name in READ[notebook] if schema.model_of(notebook, given) else ():
        value = given[name]
        generated = name == "source" and (value == "clinic" or value.startswith("hf:"))
        unused = name == "responses" and given["rewriter"] != "llm"
        if not value or generated or unused or (name in MODELS and _from_hub(value)):
            continue
        for seed in given.get("seeds", [0]):
            yield name, paths.resolve(value.format(seed=seed) if name in MODELS else value)


def _from_hub(model: str) -> bool:
    """Whether it can only be a hub id: a mistyped folder of this repository must not be asked of the hub."""
    return bool(HUB_ID.fullmatch(model)) and not paths.resolve(model.split("/")[0]).exists()


def _written(notebook: str, given: dict[str, Any], folder: Path) -> list[Path]:
    """What a step of that notebook leaves for others; a notebook that is not ours may write anything into the run."""
    if not schema.model_of(notebook, given):
        return [folder]
    names = WRITTEN.get(notebook, ())
    if notebook == "02_finetune":
        names = [f"{given['name'] or given['method']}-seed{seed}" for seed in given["seeds"]]
    return [paths.resolve(given["out_dir"]) / name for name in names]
