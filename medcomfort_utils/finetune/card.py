"""The model card beside each model: where it comes from, what it was trained on and how, what it scores and is for."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from medcomfort_utils.finetune.engine import explained
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import read_json, resolve, tidy, write_text

CARD = """---
{{ card_data }}
---
# {{ training.model }}-seed{{ training.seed }}

**Not for patients.** What this model says is not medical advice. It is a research model; no clinician has reviewed what
it says, and it must not be used to diagnose, to treat or to decide whether to seek care.

Intended use: research on comfort and knowledge in answers to patients' questions. Anything that reaches a person who is
ill is out of scope.

## Data

{{ training.data or "Examples given by hand" }}. {{ training.examples }} training examples. What the rewriter made was
checked by rules, not by clinicians. The training data keeps the licence of its corpus.

## Method

{{ method.description }} Started from `{{ training.start }}`. Engine: {{ training.engine }}.

| parameter | value |
|:--|:--|
{% for name, value in training.items() if name not in ("data", "base", "start", "engine", "examples") -%}
| {{ name }} | {{ value }} |
{% endfor %}
## Results

While training: {% for metric, first, last in curves -%}
{{ metric }} {{ "%.4g" % first }} to {{ "%.4g" % last }}{{ "." if loop.last else ", " }}{% endfor %}

{% if results -%}
| measure | questions | value | 95 % interval | n |
|:--|:--|--:|:--|--:|
{% for row in results -%}
| {{ row.metric }} | {{ row.test_set }} | {{ "%.3f" % row.value }} | {{ "%.3f to %.3f" % (row.low, row.high) }} | {{ row.n }} |
{% endfor %}
{%- else -%}
Not evaluated yet: a falling loss says neither that it comforts nor that it kept its knowledge.
{% endif %}
## Licence

{% if licence %}As the base model's: {{ licence }}.{% else %}See the base model's card: its terms bind.{% endif %}
"""  # noqa: E501


def text(training: dict[str, Any], history: pd.DataFrame, results: Sequence[dict] = ()) -> str:
    """A card's text, of what training.json holds, the curves, and the model's own rows of results.json."""
    from huggingface_hub import ModelCard, ModelCardData

    local, readme = resolve(training["base"]), resolve(training["base"]) / "README.md"
    licence = ModelCard.load(readme).data.license if readme.is_file() else None  # as the base's card says
    tags = ["medcomfort", training["method"], "research", "not-for-medical-use"]
    base = None if local.exists() else training["base"]  # the hub knows hub ids only
    data = ModelCardData(license=licence or "other", pipeline_tag="text-generation", base_model=base, tags=tags)
    values = history.groupby("metric", sort=False)["value"].agg(["first", "last"]).itertuples()
    told = {"curves": list(values), "results": results, "licence": licence, "method": METHODS[training["method"]]}
    return ModelCard.from_template(data, template_str=CARD, training=training, **told).content


def signatures(models_dir: str | Path) -> dict[str, str]:
    """Which models lie in a folder: the signature of each training by the name of its folder."""
    found = resolve(models_dir).glob("[!.]*/training.json")
    return {path.parent.name: str(read_json(path, "training.json").get("signature")) for path in found}


def add_results(results_dir: str | Path, evaluated: Mapping[str, str]) -> None:
    """Write what results.json says on the cards of the models in `results_dir`/models that were `evaluated`.

    `evaluated`: `signatures` of the models whose replies were scored; one that was trained otherwise keeps its card.
    """
    rows, models_dir = read_json(resolve(results_dir) / "results.json", "results.json"), resolve(results_dir) / "models"
    for name, _ in sorted(evaluated.items() & signatures(models_dir).items()):
        training = read_json(models_dir / name / "training.json", "training.json")
        own = [row for row in rows if (row["model"], row["seed"]) == (training["model"], training["seed"])]
        if own:
            history = pd.read_csv(models_dir / name / "history.csv")
            write_text(models_dir / name / "README.md", text(training, history, own))


def push(folder: str | Path, repository: str) -> str:
    """Upload a model's folder to a private hub repository (`owner/name`), made if need be; returns its address."""
    from huggingface_hub import HfApi

    kept = f"; the model is saved in {tidy(resolve(folder))}, and the same run again only pushes it"
    with explained(f"push_to_hub: {repository} could not be written", kept):
        address = HfApi().create_repo(repo_id=repository, private=True, exist_ok=True)
        HfApi().upload_folder(repo_id=repository, folder_path=str(resolve(folder)), commit_message="Add the model")
    return str(address)
