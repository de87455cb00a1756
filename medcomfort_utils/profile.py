"""A run as its profile tells it: the steps in order, with every name, type, value and input checked beforehand."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from ruamel.yaml import YAML, AliasEvent, CollectionEndEvent, CollectionStartEvent, YAMLError

from medcomfort_utils import paths, schema
from medcomfort_utils.paths import MedComfortError, meant, tidy

SECTIONS = {"01_rewrite": "rewrite", "02_finetune": "train", "03_evaluate": "evaluate", "04_figures": "figures"}
# Parameters that name what a step reads. Those of MODELS may name a model of the hub too.
READ = ("source", "responses", "rewrites", "base", "init_from", "dialogues", "models_dir", "claims", "judge_responses",
        "results_dir", "ablation_dir")  # fmt: skip
MODELS = ("base", "init_from")
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
DEEPEST, LARGEST = 20, 100_000  # nesting and bytes of a profile
FileName = Annotated[str, Field(pattern=f"^{schema.FILE_NAME}$")]


class _Profile(schema.Ranged):
    kind: ClassVar[str] = "section"
    name: FileName
    description: str = ""
    threads: int = Field(1, ge=1)  # of each step; results hang on it, so it is no matter of the machine
    rewrite: dict[str, Any] | None = None
    train: dict[str, Any] = {}
    models: dict[FileName, dict[str, Any]] = {}
    evaluate: dict[str, Any] | None = None
    figures: dict[str, Any] | None = None


@dataclass
class Step:
    """One notebook to run once, called by the notebook, and by the model if it trains one.

    `needs`: the steps whose work it reads. `parameters`: all of them; `given`: those that differ from the notebook's
    defaults; `told`: those that do not follow from other sections, and `after`, the model it starts from.
    """

    name: str
    needs: list[str]
    parameters: dict[str, Any]
    given: dict[str, Any]
    told: dict[str, Any]

    @property
    def model(self) -> str:
        return self.name.partition("-")[2]

    @property
    def notebook(self) -> Path:
        return paths.NOTEBOOKS / f"{self.name.partition('-')[0]}.ipynb"

    def inputs(self) -> Iterator[tuple[str, Path]]:
        """(parameter, path) of the files and folders that the step reads; models of the hub are none."""
        for name in READ:
            value = self.parameters.get(name, "")
            generated = name == "source" and (value == "clinic" or value.startswith("hf:"))
            unused = name == "responses" and self.parameters.get("rewriter") != "llm"
            # A mistyped folder of this repository must not be asked of the hub.
            hub = name in MODELS and HUB_ID.fullmatch(value) and not paths.resolve(value.split("/")[0]).exists()
            if value and not (generated or unused or hub):
                for seed in self.parameters["seeds"] if "{seed}" in value else [0]:
                    yield name, paths.resolve(value.format(seed=seed) if name in MODELS else value)

    def written(self) -> list[Path]:
        """What the step leaves for others."""
        out = paths.resolve(self.parameters.get("out_dir", ""))
        if self.model:
            return [out / f"{self.model}.json", *(out / f"{self.model}-seed{n}" for n in self.parameters["seeds"])]
        names = {"01_rewrite": ("dialogues.parquet", "rewrites.parquet"), "03_evaluate": ("results.json",)}
        return [out / name for name in names.get(self.name, ())]


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
        names = _select([step.name for step in self.steps], name, self.profile)
        return [step for step in self.steps if step.name in names]

    def effective(self) -> dict[str, Any]:
        """The profile with every value spelled out but those that the plan fills in; it can be loaded as one."""
        told = {SECTIONS[step.name]: step.told for step in self.steps if not step.model}
        models = {step.model: step.told for step in self.steps if step.model}
        return {"name": self.name, "description": self.description, "threads": self.threads, "models": models} | told

    def check_inputs(self, chosen: list[Step]) -> None:
        """Raise MedComfortError unless all that the `chosen` steps read is there, or written by an earlier step."""
        written: list[Path] = []
        for step in self.steps:
            for name, path in step.inputs() if step in chosen else ():
                if not (path.exists() or any(path.is_relative_to(w) or w.is_relative_to(path) for w in written)):
                    raise MedComfortError(
                        f"{self.profile}, step {step.name}: {name}: there is no file or folder {tidy(path)}, and no "
                        "earlier step writes one."
                    )
            written += step.written()


def load(profile: str | Path, settings: Sequence[str] = (), name: str | None = None) -> Run:
    """Read a profile by name or path, apply `STEP.PARAM=VALUE` settings, and check all of it.

    `name` is the run's, and its folder's under runs/; by default the profile's own.
    Raises MedComfortError for whatever is unknown, missing, of a wrong type or out of range.
    """
    path = _find(str(profile))
    told, where = _read(path, name), tidy(path)
    sections = {"01_rewrite": told.rewrite}
    for model, own in told.models.items():
        sections[f"02_finetune-{model}"] = {"method": model.partition("-")[0]} | told.train | own
    sections |= {"03_evaluate": told.evaluate, "04_figures": told.figures}
    sections = {step: section for step, section in sections.items() if section is not None}
    for setting in settings:
        _apply(setting, sections, where)
    run = Run(told.name, told.description, told.threads, where, paths.RUNS / told.name, [])
    for step, section in sections.items():
        run.steps.append(_step(step, section, run))
    return run


def _step(name: str, section: dict[str, Any], run: Run) -> Step:
    """A step from its section, with what need not be written there, all of it checked."""
    where, notebook = f"{run.profile}, step {name}", name.partition("-")[0]
    before, cell = [step.name for step in run.steps], schema.declared(notebook)
    after = section.pop("after", "") if notebook == "02_finetune" else ""
    if after and f"02_finetune-{after}" not in before:
        raise MedComfortError(f"{where}: after: {after!r} is no model that stands before it.")
    for key in section.keys() - cell.keys():
        raise MedComfortError(f"{where}: there is no parameter {key!r}{meant(str(key), cell)}")
    planned = {key: value for key, value in _planned(name, after, section, run).items() if key in cell}
    try:
        parameters = schema.check(notebook, planned | section)
    except MedComfortError as error:
        raise MedComfortError(f"{where}: {error}") from None
    given = {key: value for key, value in parameters.items() if value != cell[key][1]}
    told = {key: value for key, value in parameters.items() if key not in planned or planned[key] != value}
    read = {"02_finetune": ["01_rewrite", f"02_finetune-{after}"], "04_figures": ["01_rewrite", "03_evaluate"]}
    needs = [step for step in before if step in read.get(notebook, before)]
    return Step(name, needs, parameters, given, ({"after": after} if after else {}) | told)


def _planned(name: str, after: str, section: dict[str, Any], run: Run) -> dict[str, Any]:
    """The folders between steps, and what follows from other sections."""
    folder, models = tidy(run.folder), [step for step in run.steps if step.model]
    planned = {"out_dir": folder, "rewrites": f"{folder}/rewrites.parquet", "dialogues": f"{folder}/dialogues.parquet",
               "models_dir": f"{folder}/models", "results_dir": folder, "ablation_dir": folder,
               "figures_dir": f"{folder}/figures", "tables_dir": f"{folder}/paper",
               "summary": f"{folder}/summary.md"}  # fmt: skip
    if name == "03_evaluate" and models:
        planned |= {key: models[0].parameters[key] for key in ("base", "revision")}
        planned["models"] = [] if "models_dir" in section else [step.model for step in models]
    if name.startswith("02_finetune"):
        start = f"{folder}/models/{after}-seed{{seed}}" if after else ""
        planned |= {"name": name.partition("-")[2], "init_from": start, "out_dir": f"{folder}/models"}
    return planned


def _select(steps: Sequence[str], name: str, profile: str) -> list[str]:
    """The steps of a step's, model's, notebook's or section's name."""
    names = {}
    for step in steps:
        notebook, _, model = step.partition("-")
        names[step] = [step, model or SECTIONS[notebook], notebook, SECTIONS[notebook]]
    if found := [step for step in steps if name in names[step]]:
        return found
    known = [short for each in names.values() for short in each[:2]]
    raise MedComfortError(f"{profile} has no step {name!r}{meant(name, known)}")


def _apply(setting: str, sections: dict[str, dict[str, Any]], profile: str) -> None:
    """Put what `--set` says into the sections that it names."""
    target, equals, text = setting.partition("=")
    name, dot, parameter = target.rpartition(".")
    if not (equals and dot and parameter):
        raise MedComfortError(f"--set {setting}: write it as STEP.PARAM=VALUE.")
    for step in _select(list(sections), name, profile):
        kind, _ = schema.declared(step.partition("-")[0]).get(parameter, (None, None))
        sections[step][parameter] = _typed(text) if kind is str else read_yaml(text, f"--set {setting}")


def _typed(text: str) -> str:
    """What a person means who types text for a text: it stays as typed, but for quotes around it.

    A relative path that exists where one stands becomes absolute: notebooks take paths from the repository's root.
    """
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    here = ("/" in text or os.path.isfile(text)) and os.path.exists(text) and not os.path.exists(paths.ROOT / text)
    return os.path.abspath(text) if here else text


def read_yaml(text: str, where: str) -> Any:
    """Plain values from YAML 1.2; a MedComfortError, with the line, for what is broken, or made to hang a reader."""
    reader = YAML(typ="safe", pure=True)
    try:
        depth = 0
        for event in reader.parse(text):
            line = f"{where}, line {event.start_mark.line + 1}"
            depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
            if isinstance(event, AliasEvent):
                raise MedComfortError(f"{line}: aliases (*) are not read: `train` holds what models share.")
            if depth > DEEPEST:
                raise MedComfortError(f"{line}: it is nested more than {DEEPEST} deep.")
        return reader.load(text)
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


def _read(path: Path, name: str | None) -> _Profile:
    content, where = path.read_bytes()[: LARGEST + 1], tidy(path)
    if len(content) > LARGEST:
        raise MedComfortError(f"{where} is no profile: it has more than {LARGEST} bytes.")
    try:
        told = read_yaml(content.decode(), where)
    except UnicodeDecodeError:
        raise MedComfortError(f"{where} is not UTF-8 text.") from None
    if not isinstance(told, dict):
        raise MedComfortError(f"{where} is no profile: it must hold a `name` and sections.")
    # `figures:` with nothing behind it is a section without values.
    sections = {str(key): {} if value is None and key != "name" else value for key, value in told.items()}
    try:
        return _Profile(**(sections if name is None else sections | {"name": name}))
    except MedComfortError as error:
        raise MedComfortError(f"{where}: {error}") from None
