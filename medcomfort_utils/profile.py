"""A run as its profile tells it: the steps in order, every name, type and value checked before anything runs."""

import ast
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import nbformat
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from medcomfort_utils import paths, schema
from medcomfort_utils.paths import MedComfortError, meant, tidy
from medcomfort_utils.schema import FILE_NAME

ANNOTATIONS = {"str", "int", "float", "bool", "list", "dict", "None"}


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    notebook: str
    name: str | None = None
    needs: list[str] | None = None
    parameters: dict[str, Any] = {}
    matrix: dict[str, Annotated[list, Field(min_length=1)]] = {}


class _Profile(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    description: str = ""
    steps: Annotated[list[_Entry], Field(min_length=1)]


class _Loader(yaml.SafeLoader):
    """YAML in which a key that stands twice in one mapping is an error; PyYAML takes the last one without a word."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands there twice", key.start_mark)
            seen.add((key.tag, str(key.value)))
        return node


@dataclass
class Step:
    """One notebook to run once. `given`: what the profile and --set say; `parameters`: with the notebook's defaults."""

    name: str
    notebook: Path
    needs: list[str] | None
    given: dict[str, Any]
    varied: set[str]
    parameters: dict[str, Any] = field(default_factory=dict)


@dataclass
class Run:
    """The steps of a profile and the folder they write to; `profile` is the file, for messages."""

    name: str
    description: str
    profile: str
    folder: Path
    steps: list[Step]

    def filled(self, value: Any) -> Any:
        """The value with `${run}` in its strings replaced by the run's folder (relative to the repository's root)."""
        if isinstance(value, str):
            return value.replace("${run}", tidy(self.folder))
        if isinstance(value, dict):
            return {key: self.filled(item) for key, item in value.items()}
        return [self.filled(item) for item in value] if isinstance(value, list) else value

    def select(self, name: str) -> list[Step]:
        """The step of that name, or else all steps of the notebook of that name; a MedComfortError if none."""
        found = [step for step in self.steps if step.name == name]
        found = found or [step for step in self.steps if step.notebook.stem == name]
        if not found:
            raise MedComfortError(f"{self.profile} has no step {name!r}{meant(name, [s.name for s in self.steps])}")
        return found


def load(profile: str | Path, settings: Sequence[str] = (), name: str | None = None) -> Run:
    """Read a profile by name or path, apply `STEP.PARAM=VALUE` settings, and check all of it against the notebooks.

    `name` is the run's, and its folder's under runs/; by default the profile's own.
    Raises MedComfortError for whatever is unknown, missing, of a wrong type or out of range.
    """
    path = _find(str(profile))
    told = _read(path)
    name = _file_name(told.name if name is None else name, f"{tidy(path)}: the run's name")
    steps = [step for entry in told.steps for step in _steps(entry, path)]
    run = Run(name, told.description, tidy(path), paths.RUNS / name, steps)
    _expand_needs(run)
    declarations = {step.notebook: declared(step.notebook) for step in steps}
    for setting in settings:
        _apply(setting, run, declarations)
    for step in steps:
        step.parameters = _checked(step, declarations[step.notebook], run.profile)
        step.given = {key: step.parameters[key] for key in step.given}
        try:
            schema.check(step.notebook.stem, run.filled(step.parameters))
        except MedComfortError as error:
            raise MedComfortError(f"{run.profile}, step {step.name}: {error}") from None
    return run


def read_notebook(path: Path) -> nbformat.NotebookNode:
    """Read a notebook (as format 4); a MedComfortError names the file if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except (ValueError, AttributeError, TypeError, nbformat.ValidationError) as error:
        raise MedComfortError(f"{tidy(path)} is not a readable notebook: {str(error).splitlines()[0]}.") from error


def declared(notebook: Path) -> dict[str, tuple[str, Any]]:
    """Name -> (annotation, default) from the cell tagged `parameters`; empty if there is none.

    Read from the syntax tree, as papermill's own inspection knows neither `str | None` nor the defaults' values.
    """
    cells = [c for c in read_notebook(notebook).cells if "parameters" in c.metadata.get("tags", [])]
    source = cells[0].source if cells else ""
    where = f"{tidy(notebook)}, parameters cell"
    try:
        return dict(_declaration(node, where) for node in ast.parse(source).body)
    except SyntaxError as error:
        raise MedComfortError(f"{where}, line {error.lineno}: {error.msg}.") from error


def _declaration(node: ast.stmt, where: str) -> tuple[str, tuple[str, Any]]:
    try:
        known = {n.id for n in ast.walk(node.annotation) if isinstance(n, ast.Name)} <= ANNOTATIONS
        declaration = node.target.id, (ast.unparse(node.annotation), ast.literal_eval(node.value))
    except (AttributeError, TypeError, ValueError):
        known = False
    if not known:
        raise MedComfortError(
            f"{where}, line {node.lineno}: write `name: type = value`, the value spelled out and the type made of "
            f"{', '.join(sorted(ANNOTATIONS))}."
        )
    return declaration


def _find(profile: str) -> Path:
    if os.sep in profile or profile.endswith((".yaml", ".yml")):
        path = Path(profile).expanduser().resolve()
    else:
        path = paths.PROFILES / f"{profile}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in paths.PROFILES.glob("*.yaml"))
        raise MedComfortError(f"There is no profile {profile!r}{meant(profile, known)}")
    return path


def _read(path: Path) -> _Profile:
    try:
        told = _Loader(path.read_text(encoding="utf-8")).get_single_data()
        if not isinstance(told, dict):
            raise MedComfortError(f"{tidy(path)} is no profile: it must hold a `name` and `steps`.")
        return _Profile.model_validate(told)
    except UnicodeDecodeError:
        raise MedComfortError(f"{tidy(path)} is not UTF-8 text.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise MedComfortError(f"{tidy(path)}{line}: not valid YAML: {getattr(error, 'problem', error)}.") from error
    except ValidationError as error:
        problem = error.errors()[0]
        # Steps are counted from 1, as people do.
        where = ".".join(str(part + 1 if isinstance(part, int) else part) for part in problem["loc"]) or "profile"
        unknown = problem["type"] == "extra_forbidden"
        reason = "there is no such key" if unknown else problem["msg"]
        raise MedComfortError(f"{tidy(path)}: {where}: {reason}.") from error


def _steps(entry: _Entry, profile: Path) -> list[Step]:
    """One step for each combination of the matrix' values."""
    in_place = os.sep in entry.notebook or entry.notebook.endswith(".ipynb")
    notebook = profile.parent / entry.notebook if in_place else paths.NOTEBOOKS / f"{entry.notebook}.ipynb"
    notebook, steps = notebook.resolve(), []
    if not notebook.is_file():
        raise MedComfortError(f"{tidy(profile)}: there is no notebook {tidy(notebook)}.")
    for key in sorted(entry.matrix.keys() & entry.parameters.keys()):
        raise MedComfortError(f"{tidy(profile)}: {key} of {entry.notebook} stands in both matrix and parameters.")
    for varied in itertools.product(*entry.matrix.values()):
        name = "-".join([entry.name or notebook.stem, *map(str, varied)])
        _file_name(name, f"{tidy(profile)}: the step's name")
        given = entry.parameters | dict(zip(entry.matrix, varied, strict=True))
        steps.append(Step(name, notebook, entry.needs, given, set(entry.matrix)))
    return steps


def _expand_needs(run: Run) -> None:
    """Step names are unique; notebook names in `needs` become step names; the default is all earlier steps."""
    earlier: list[str] = []
    for step in run.steps:
        if step.name in earlier:
            raise MedComfortError(f"{run.profile}: two steps are called {step.name}; give one another `name`.")
        needs = earlier if step.needs is None else [s.name for need in step.needs for s in run.select(need)]
        for late in [need for need in needs if need not in earlier]:
            raise MedComfortError(f"{run.profile}, step {step.name}: it needs {late}, which does not come before it.")
        step.needs = list(dict.fromkeys(needs))
        earlier.append(step.name)


def _apply(setting: str, run: Run, declarations: dict[Path, dict[str, tuple[str, Any]]]) -> None:
    target, equals, text = setting.partition("=")
    name, dot, parameter = target.rpartition(".")
    if not (equals and dot and parameter):
        raise MedComfortError(f"--set {setting}: write it as STEP.PARAM=VALUE.")
    for step in run.select(name):
        if parameter in step.varied:
            raise MedComfortError(f"--set {setting}: {parameter} is what the matrix varies; choose a step by --only.")
        annotation = declarations[step.notebook].get(parameter, ("", None))[0]
        try:
            step.given[parameter] = _from_here(schema.typed(text, annotation))
        except yaml.YAMLError as error:
            raise MedComfortError(f"--set {setting}: the value is not valid YAML.") from error


def _from_here(value: Any) -> Any:
    """A relative path that exists where one stands, made absolute: notebooks take paths from the repository's root."""
    if isinstance(value, str) and ("/" in value or os.path.isfile(value)) and os.path.exists(value):
        return value if os.path.exists(paths.ROOT / value) else os.path.abspath(value)
    return value


def _checked(step: Step, known: dict[str, tuple[str, Any]], profile: str) -> dict[str, Any]:
    """All parameters of the step, the notebook's defaults included; an int given for a float becomes one."""
    where = f"{profile}, step {step.name}"
    strict = ConfigDict(strict=True, extra="forbid", validate_default=True, protected_namespaces=())
    try:
        return create_model("Parameters", __config__=strict, **known)(**step.given).model_dump()
    except ValidationError as error:
        problem = error.errors()[0]
    name, value = problem["loc"][0], problem["input"]
    if problem["type"] == "extra_forbidden":
        raise MedComfortError(f"{where}: {tidy(step.notebook)} has no parameter {name!r}{meant(name, known)}")
    annotation = known[name][0]
    hint = _hint(annotation, value) if len(problem["loc"]) == 1 else ""
    raise MedComfortError(f"{where}: {name} must be {annotation}, not {value!r}{hint}.")


def _hint(annotation: str, value: object) -> str:
    """YAML 1.1 reads `5e-6` as text, for want of a point, and a list wants brackets."""
    if "float" in annotation and schema.is_number(value):
        return f"; write {yaml.safe_dump(float(value)).split()[0]}"
    if annotation.startswith("list") and isinstance(value, str | int) and not isinstance(value, bool):
        return f"; write [{value}]"
    return ""


def _file_name(name: str, what: str) -> str:
    if not FILE_NAME.fullmatch(name):
        raise MedComfortError(f"{what} {name!r} names files, so it may hold only letters, digits, '_', '-' and '.'.")
    return name
