"""The model card beside each model: where it comes from, what it was trained on and how, what it scores and is for."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from medcomfort_utils.paths import MedComfortError, read_json, resolve, tidy, write_text

METHODS = {
    "sft": "Supervised fine-tuning (SFT): the loss falls on the answer's tokens only.",
    "dpo": "Direct preference optimisation (DPO; Rafailov et al., 2023), with an SFT term where sft_weight is above 0.",
    "kto": "Kahneman-Tversky optimisation (KTO; Ethayarajh et al., 2024).",
}
NOT_ADVICE = (
    "**Not for patients.** What this model says is not medical advice. It is a research model; no clinician has "
    "reviewed what it says, and it must not be used to diagnose, to treat or to decide whether to seek care."
)
CARD = """---
{head}---
# {name}

{not_advice}

## Intended use

Research on comfort and knowledge in answers to patients' questions: rerunning, testing and extending the experiments of
MedComfort. Anything that reaches a person who is ill is out of scope.

## Data

{data}. {examples} training examples. What the rewriter made was checked by rules, not by clinicians. The training data
keeps the licence of its corpus.

## Method

{method} Started from `{start}`. Engine: {engine}.

| parameter | value |
|:--|:--|
{parameters}

## Results

{results}

## Licence

{licence}
"""


def write(folder: str | Path) -> Path:
    """Write README.md into a model's folder, from training.json, history.csv and the evaluation, where there is one.

    The evaluation is `results.json` beside the folder of models; one older than the model is not its own, and left out.
    """
    folder = resolve(folder)
    told = read_json(folder / "training.json", "training.json")
    licence = licence_of(told["base"])
    head = {"license": licence or "other", "pipeline_tag": "text-generation"}
    head |= {} if resolve(told["base"]).exists() else {"base_model": told["base"]}  # the hub knows hub ids only
    head |= {"tags": ["medcomfort", told["method"], "research", "not-for-medical-use"]}
    shown = {key: value for key, value in told.items() if key not in ("data", "base", "start", "engine", "examples")}
    text = CARD.format(
        head=yaml.safe_dump(head, sort_keys=False),
        name=folder.name,
        not_advice=NOT_ADVICE,
        data=told["data"] or "Examples given by hand",
        examples=told["examples"],
        method=METHODS[told["method"]],
        start=told["start"],
        engine=told["engine"],
        parameters="\n".join(f"| {key} | {value} |" for key, value in shown.items()),
        results="\n\n".join([_training(folder), _evaluation(folder, told)]),
        licence=f"As the base model's: {licence}." if licence else "See the base model's card: its terms bind.",
    )
    return write_text(folder / "README.md", text)


def licence_of(base: str) -> str:
    """The licence that a local model's README.md states in its head; empty if none, or for a hub id."""
    card = resolve(base) / "README.md"
    if not card.is_file():
        return ""
    parts = card.read_text(encoding="utf-8").split("---\n")
    head = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
    return str(head.get("license", ""))


def renew(results_dir: str | Path) -> None:
    """Write the cards of the models below `results_dir`/models anew, now that results.json lies beside them."""
    for told in sorted((resolve(results_dir) / "models").glob("*/training.json")):
        write(told.parent)


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


def _training(folder: Path) -> str:
    """First and last value of each curve."""
    curves = pd.read_csv(folder / "history.csv")
    lines = ["| while training | first | last |", "|:--|--:|--:|"]
    for name, curve in curves.groupby("metric", sort=False):
        lines.append(f"| {name} | {curve['value'].iloc[0]:.4g} | {curve['value'].iloc[-1]:.4g} |")
    return "\n".join(lines)


def _evaluation(folder: Path, told: dict) -> str:
    found = folder.parent.parent / "results.json"
    if not found.is_file() or found.stat().st_mtime < (folder / "training.json").stat().st_mtime:
        return "Not evaluated yet: a falling loss says neither that it comforts nor that it kept its knowledge."
    rows = [r for r in read_json(found, "results.json") if (r["model"], r["seed"]) == (told["model"], told["seed"])]
    lines = ["| measure | questions | value | 95 % interval | n |", "|:--|:--|--:|:--|--:|"]
    lines += [
        f"| {r['metric']} | {r['test_set']} | {r['value']:.3f} | {r['low']:.3f} to {r['high']:.3f} | {r['n']} |"
        for r in rows
    ]
    return "\n".join(lines) if rows else f"{tidy(found)} does not hold this model."
