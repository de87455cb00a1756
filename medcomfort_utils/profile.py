"""A run as its profile tells it: the steps in order, with every name, type, value and input checked beforehand."""

import ast
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from ruamel.yaml import YAML, AliasEvent, CollectionEndEvent, CollectionStartEvent, YAMLError

from medcomfort_utils import paths, schema
from medcomfort_utils.paths import MedComfortError, meant, tidy
from medcomfort_utils.schema import FILE_NAME

NOTEBOOKS = {"rewrite": "01_rewrite", "train": "02_finetune", "evaluate": "03_evaluate", "figures": "04_figures"}
# Parameters that name what a step reads. Those of MODELS may name a model of the hub too.
READ = ("source", "responses", "encoder", "rewrites", "base", "init_from", "dialogues", "models_dir", "claims",
        "judge_responses", "results_dir", "ablation_dir")  # fmt: skip
MODELS = ("base", "init_from", "encoder")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
DEEPEST, LARGEST = 20, 100_000  # nesting and bytes of a profile


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    description: str = ""
    threads: int = Field(1, ge=1)  # of each step; results hang on it, so it is no matter of the machine
    rewrite: dict[str, Any] | None = None
    train: dict[str, Any] = {}
    models: dict[str, dict[str, Any]] = {}
    evaluate: dict[str, Any] | None = None
    figures: dict[str, Any] | None = None


@dataclass
class Step:
    """One notebook to run once.

    `parameters`: all of them; `given`: those that differ from the notebook's defaults; `planned`: those that the plan
    fills in, folders above all. `model`: what 02 trains; `after`: the model it starts from.
    """

    name: str
    section: str
    needs: list[str]
    given: dict[str, Any]
    planned: dict[str, Any]
    model: str = ""
    after: str = ""
    parameters: dict[str, Any] | None = None

    @property
    def notebook(self) -> Path:
        return paths.NOTEBOOKS / f"{NOTEBOOKS[self.section]}.ipynb"

    def inputs(self) -> Iterator[tuple[str, Path]]:
        """(parameter, path) of the files and folders that the step reads; models of the hub are none."""
        for name in READ:
            value = self.parameters.get(name, "")
            generated = name == "source" and (value == "clinic" or value.startswith("hf:"))
            unused = name == "responses" and self.parameters.get("rewriter") != "llm"
            if not value or generated or unused or (name in MODELS and _from_hub(value)):
                continue
            for seed in self.parameters.get("seeds", [0]) if "{seed}" in value else [0]:
                yield name, paths.resolve(value.format(seed=seed) if name in MODELS else value)

    def written(self) -> list[Path]:
        """What the step leaves for others."""
        out = paths.resolve(self.parameters.get("out_dir", self.parameters.get("results_dir")))
        if self.model:
            return [out / f"{self.model}-seed{seed}" for seed in self.parameters["seeds"]]
        return [out / name for name in {"rewrite": ("dialogues.parquet", "rewrites.parquet"),
                                        "evaluate": ("results.json",)}.get(self.section, ())]  # fmt: skip


@dataclass
class Run:
    """The steps of a profile and the folder they write to; `profile` is the file, for messages."""

    name: str
    description: str
    threads: int
    profile: str
    folder: Path
    steps: list[Step]

    def select(self, name: str) -> list[Step]:
        """The step of that name, or all of that model, notebook or section; a MedComfortError if there are none."""
        found = [step for step in self.steps if step.name == name]
        found = found or [s for s in self.steps if name in (s.model, s.notebook.stem) or name == s.section]
        if not found:
            known = [short for s in self.steps for short in (s.name, s.model or s.section)]
            raise MedComfortError(f"{self.profile} has no step {name!r}{meant(name, known)}")
        return found

    def effective(self) -> dict[str, Any]:
        """The profile with every value spelled out but those that the plan fills in; it can be loaded as one."""
        told = {"name": self.name, "description": self.description, "threads": self.threads, "models": {}}
        for step in self.steps:
            own = {k: v for k, v in step.parameters.items() if k not in step.planned or step.planned[k] != v}
            if step.model:
                told["models"][step.model] = ({"after": step.after} if step.after else {}) | own
            else:
                told[step.section] = own
        return told


def load(profile: str | Path, settings: Sequence[str] = (), name: str | None = None) -> Run:
    """Read a profile by name or path, apply `STEP.PARAM=VALUE` settings, and check all of it.

    `name` is the run's, and its folder's under runs/; by default the profile's own.
    Raises MedComfortError for whatever is unknown, missing, of a wrong type or out of range.
    """
    path = _find(str(profile))
    told = _read(path)
    name = told.name if name is None else name
    for what, each in [("the run's name", name), *(("a model's name", model) for model in told.models)]:
        if not FILE_NAME.fullmatch(each):
            raise MedComfortError(
                f"{tidy(path)}: {what} {each!r} names files, so it may hold only letters, digits, '_', '-' and '.'."
            )
    run = Run(name, told.description, told.threads, tidy(path), paths.RUNS / name, [])
    run.steps = list(_steps(told, run.profile))
    defaults = {step.notebook: declared(step.notebook) for step in run.steps}
    for setting in settings:
        _apply(setting, run, defaults)
    for step in run.steps:
        step.planned = _planned(step, run)
        _complete(step, defaults[step.notebook], f"{run.profile}, step {step.name}")
    return run


def check_inputs(run: Run, chosen: list[Step]) -> None:
    """Make sure that what the `chosen` steps read is there, or is written by an earlier step.

    Raises MedComfortError, naming step, parameter and path.
    """
    written: list[Path] = []
    for step in run.steps:
        for name, path in step.inputs() if step in chosen else ():
            if not (path.exists() or any(path.is_relative_to(w) or w.is_relative_to(path) for w in written)):
                raise MedComfortError(
                    f"{run.profile}, step {step.name}: {name}: there is no file or folder {tidy(path)}, and no "
                    "earlier step writes one."
                )
        written += step.written()


def declared(notebook: Path) -> dict[str, Any]:
    """Name -> default from the notebook's cell tagged `parameters`; a MedComfortError if it cannot be read."""
    where = f"{tidy(notebook)}, parameters cell"
    tagged = [cell for cell in read_notebook(notebook).cells if "parameters" in cell.metadata.get("tags", [])]
    try:
        nodes = ast.parse(tagged[0].source if tagged else "").body
        return {node.target.id: ast.literal_eval(node.value) for node in nodes}
    except SyntaxError as error:
        raise MedComfortError(f"{where}, line {error.lineno}: {error.msg}.") from error
    except (AttributeError, TypeError, ValueError):
        raise MedComfortError(f"{where}: every line must be `name: type = value`, the value spelled out.") from None


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook (as format 4); a MedComfortError names the file if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, TypeError, nbformat.ValidationError) as error:
        raise MedComfortError(f"{tidy(path)} is not a readable notebook: {str(error).splitlines()[0]}.") from error


def read_yaml(text: str, where: str) -> Any:
    """Plain values from YAML 1.2; a MedComfortError, with the line, for what is broken, or made to hang a reader."""
    try:
        depth = 0
        for event in YAML(typ="safe", pure=True).parse(text):
            line = f"{where}, line {event.start_mark.line + 1}"
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if isinstance(event, AliasEvent):
                raise MedComfortError(f"{line}: aliases (*) are not read: `train` holds what models share.")
            if depth > DEEPEST:
                raise MedComfortError(f"{line}: it is nested more than {DEEPEST} deep.")
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark, problem = (getattr(error, name, None) for name in ("problem_mark", "problem"))
        line = f", line {mark.line + 1}" if mark else ""
        raise MedComfortError(f"{where}{line}: not valid YAML: {problem or str(error).splitlines()[0]}.") from None
    except (ValueError, TypeError, OverflowError, AttributeError, KeyError) as error:  # 2024-02-30, !!int abc
        raise MedComfortError(f"{where}: a value cannot be read: {str(error):.200}.") from None


def _find(profile: str) -> Path:
    by_path = os.sep in profile or profile.endswith((".yaml", ".yml"))
    path = Path(profile).expanduser().resolve() if by_path else paths.PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in paths.PROFILES.glob("*.yaml"))
        raise MedComfortError(f"There is no profile {profile!r}{meant(profile, known)}")
    return path


def _read(path: Path) -> _Profile:
    content, where = path.read_bytes()[: LARGEST + 1], tidy(path)
    if len(content) > LARGEST:
        raise MedComfortError(f"{where} is no profile: it has more than {LARGEST} bytes.")
    try:
        told = read_yaml(content.decode(), where)
        if not isinstance(told, dict):
            raise MedComfortError(f"{where} is no profile: it must hold a `name` and sections.")
        # `figures:` with nothing behind it is a section without values.
        return _Profile.model_validate({k: {} if v is None and k in NOTEBOOKS else v for k, v in told.items()})
    except UnicodeDecodeError:
        raise MedComfortError(f"{where} is not UTF-8 text.") from None
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        if problem["type"] == "extra_forbidden":
            raise MedComfortError(f"{where}: there is no key {place!r}{meant(place, _Profile.model_fields)}") from None
        raise MedComfortError(f"{where}: {place}: {problem['msg']}.") from None


def _steps(told: _Profile, profile: str) -> Iterator[Step]:
    """The steps with what the profile gives them; each needs what is before it, models only what they start from."""
    first = ["01_rewrite"] if told.rewrite is not None else []
    if told.rewrite is not None:
        yield Step("01_rewrite", "rewrite", [], told.rewrite, {})
    models: list[str] = []
    for model, own in told.models.items():
        given = {"method": model.partition("-")[0]} | told.train | own
        after = given.pop("after", "")
        if after and after not in models:
            raise MedComfortError(f"{profile}: {model}: after: {after!r} is no model that stands before it.")
        needs = first + ([f"02_finetune-{after}"] if after else [])
        yield Step(f"02_finetune-{model}", "train", needs, given, {}, model, after)
        models.append(model)
    trained = first + [f"02_finetune-{model}" for model in models]
    if told.evaluate is not None:
        yield Step("03_evaluate", "evaluate", trained, told.evaluate, {})
    if told.figures is not None:
        yield Step("04_figures", "figures", [*first, *(["03_evaluate"] if told.evaluate is not None else [])],
                   told.figures, {})  # fmt: skip


def _planned(step: Step, run: Run) -> dict[str, Any]:
    """What need not be written down: the folders between steps, and what follows from other sections."""
    folder, training = tidy(run.folder), run.select("train") if any(s.model for s in run.steps) else []
    if step.section == "rewrite":
        return {"out_dir": folder}
    if step.section == "train":
        start = f"{folder}/models/{step.after}-seed{{seed}}" if step.after else ""
        return {"name": step.model, "rewrites": f"{folder}/rewrites.parquet", "init_from": start,
                "out_dir": f"{folder}/models"}  # fmt: skip
    if step.section == "evaluate":
        base = {key: training[0].parameters[key] for key in ("base", "revision") if training}
        models = {} if "models_dir" in step.given else {"models": [s.model for s in training]}
        return base | models | {"dialogues": f"{folder}/dialogues.parquet", "rewrites": f"{folder}/rewrites.parquet",
                                "models_dir": f"{folder}/models", "out_dir": folder}  # fmt: skip
    return {"results_dir": folder, "ablation_dir": folder, "figures_dir": f"{folder}/figures",
            "tables_dir": f"{folder}/paper", "summary": f"{folder}/summary.md"}  # fmt: skip


def _complete(step: Step, defaults: dict[str, Any], where: str) -> None:
    """All parameters of the step, checked: given, else planned, else the notebook's default."""
    for name in step.given:
        if name not in defaults:
            raise MedComfortError(f"{where}: {tidy(step.notebook)} has no parameter {name!r}{meant(name, defaults)}")
    if "${run}" in str(step.given):
        raise MedComfortError(f"{where}: ${{run}} means nothing: folders between steps are not written down.")
    step.given = step.planned | step.given
    try:
        step.parameters = schema.check(step.notebook.stem, defaults | step.given)
    except MedComfortError as error:
        raise MedComfortError(f"{where}: {error}") from None
    step.given = {name: value for name, value in step.parameters.items() if value != defaults[name]}


def _apply(setting: str, run: Run, defaults: dict[Path, dict[str, Any]]) -> None:
    target, equals, text = setting.partition("=")
    name, dot, parameter = target.rpartition(".")
    if not (equals and dot and parameter):
        raise MedComfortError(f"--set {setting}: write it as STEP.PARAM=VALUE.")
    for step in run.select(name):
        step.given[parameter] = _typed(text, defaults[step.notebook].get(parameter), setting)


def _typed(text: str, default: Any, setting: str) -> Any:
    """What a person means who types `text`: text stays as typed but for quotes around it, all else is YAML.

    A relative path that exists where one stands becomes absolute: notebooks take paths from the repository's root.
    """
    if not isinstance(default, str):
        return read_yaml(text, f"--set {setting}")
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    here = ("/" in text or os.path.isfile(text)) and os.path.exists(text) and not os.path.exists(paths.ROOT / text)
    return os.path.abspath(text) if here else text


def _from_hub(model: str) -> bool:
    """Whether it can only be a hub id: a mistyped folder of this repository must not be asked of the hub."""
    return bool(HUB_ID.fullmatch(model)) and not paths.resolve(model.split("/")[0]).exists()
