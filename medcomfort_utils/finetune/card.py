"""The model card beside each model: where it comes from, what it was trained on and how, what it scores and is for."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import MedComfortError, read_json, resolve, tidy, write_text

CARD = """---
{{ card_data }}
---
# {{ name }}

**Not for patients.** What this model says is not medical advice. It is a research model; no clinician has reviewed what
it says, and it must not be used to diagnose, to treat or to decide whether to seek care.

## Intended use

Research on comfort and knowledge in answers to patients' questions: rerunning, testing and extending the experiments of
MedComfort. Anything that reaches a person who is ill is out of scope.

## Data

{{ data }}. {{ examples }} training examples. What the rewriter made was checked by rules, not by clinicians. The
training data keeps the licence of its corpus.

## Method

{{ method }} Started from `{{ start }}`. Engine: {{ engine }}.

| parameter | value |
|:--|:--|
{{ parameters }}

## Results

{{ curves }}

{{ results }}

## Licence

{{ licence }}
"""
NOT_EVALUATED = "Not evaluated yet: a falling loss says neither that it comforts nor that it kept its knowledge."


def text(training: dict[str, Any], history: pd.DataFrame, results: Sequence[dict] = ()) -> str:
    """A card's text, of what training.json holds, the curves, and the model's own rows of results.json."""
    from huggingface_hub import ModelCard, ModelCardData

    licence = licence_of(training["base"])
    data = ModelCardData(
        license=licence or "other",
        pipeline_tag="text-generation",
        base_model=None if resolve(training["base"]).exists() else training["base"],  # the hub knows hub ids only
        tags=["medcomfort", training["method"], "research", "not-for-medical-use"],
    )
    shown = {k: v for k, v in training.items() if k not in ("data", "base", "start", "engine", "examples")}
    return ModelCard.from_template(
        data,
        template_str=CARD,
        name=f"{training['model']}-seed{training['seed']}",
        data=training["data"] or "Examples given by hand",
        examples=training["examples"],
        method=METHODS[training["method"]].description,
        start=training["start"],
        engine=training["engine"],
        parameters="\n".join(f"| {key} | {value} |" for key, value in shown.items()),
        curves=_curves(history),
        results=_table(results) if results else NOT_EVALUATED,
        licence=f"As the base model's: {licence}." if licence else "See the base model's card: its terms bind.",
    ).content


def licence_of(base: str) -> str:
    """The licence that a local model's README.md states in its head; empty if none, or for a hub id."""
    from huggingface_hub import ModelCard

    readme = resolve(base) / "README.md"
    return str(ModelCard.load(readme).data.license or "") if readme.is_file() else ""


def signatures(models_dir: str | Path) -> dict[str, str]:
    """Which models lie in a folder: the signature of each training by the name of its folder."""
    found = resolve(models_dir).glob("[!.]*/training.json")
    return {path.parent.name: str(read_json(path, "training.json").get("signature")) for path in found}


def add_results(results_dir: str | Path, evaluated: Mapping[str, str]) -> None:
    """Write what results.json says on the cards of the models in `results_dir`/models that were `evaluated`.

    `evaluated`: `signatures` of the models whose replies were scored. A model of the same name that was trained
    otherwise, or lies elsewhere, keeps its card.
    """
    rows = read_json(resolve(results_dir) / "results.json", "results.json")
    models_dir = resolve(results_dir) / "models"
    for name, _ in sorted(evaluated.items() & signatures(models_dir).items()):
        folder = models_dir / name
        training = read_json(folder / "training.json", "training.json")
        own = [row for row in rows if (row["model"], row["seed"]) == (training["model"], training["seed"])]
        if own:
            write_text(folder / "README.md", text(training, pd.read_csv(folder / "history.csv"), own))


def check_push(repository: str, seeds: Sequence[int]) -> None:
    """Raise MedComfortError, before training, for a push that would fail: no token, no such name, one place for all."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not os.environ.get("HF_TOKEN"):
        raise MedComfortError("push_to_hub: set HF_TOKEN in the environment to a token that may write.")
    if len({repository.format(seed=seed) for seed in seeds}) < len(seeds):
        raise MedComfortError(f"push_to_hub: '{repository}' is one repository for all seeds; write {{seed}} into it.")
    try:
        validate_repo_id(repository.format(seed=seeds[0]))
    except HFValidationError as error:
        raise MedComfortError(f"push_to_hub: '{repository}' is no repository's name ({error}).") from None


def push(folder: str | Path, repository: str) -> str:
    """Upload a model's folder to a private hub repository (`owner/name`), made if need be; returns its address.

    The token comes from the environment (HF_TOKEN). Raises MedComfortError if the hub refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        hub = HfApi()
        address = hub.create_repo(repo_id=repository, private=True, exist_ok=True)
        hub.upload_folder(repo_id=repository, folder_path=str(resolve(folder)), commit_message="Add the model")
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
        raise MedComfortError(
            f"push_to_hub: {repository} could not be written ({reason[0].rstrip('.')}); the model is saved in "
            f"{tidy(resolve(folder))}, and the same run again only pushes it."
        ) from None
    return str(address)


def _curves(history: pd.DataFrame) -> str:
    """First and last value of each curve."""
    ends = history.groupby("metric", sort=False)["value"].agg(["first", "last"])
    rows = [f"| {row.Index} | {row.first:.4g} | {row.last:.4g} |" for row in ends.itertuples()]
    return "\n".join(["| while training | first | last |", "|:--|--:|--:|", *rows])


def _table(results: Sequence[dict]) -> str:
    row = "| {metric} | {test_set} | {value:.3f} | {low:.3f} to {high:.3f} | {n} |"
    head = ["| measure | questions | value | 95 % interval | n |", "|:--|:--|--:|:--|--:|"]
    return "\n".join([*head, *(row.format(**result) for result in results)])
