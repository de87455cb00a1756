"""When is a step up to date? What it was made from, what it wrote, and the record of both.

Nothing is executed to find out: imports are read from the syntax tree, so one made under a computed name is not seen.
"""

import ast
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from IPython.core.inputtransformer2 import TransformerManager

from medcomfort_utils import paths
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.profile import Run, Step, read_notebook

PACKAGE = "medcomfort_utils"
OUTPUTS = ("results", "smoke")  # folders of data/ that hold what steps once wrote
CACHE = ".sqlite"  # recorded responses: a step adds to them as it runs, and what it asks is in its parameters
LARGE = 64 * 2**20  # bytes; above it a file is known by size and time
# What the pipeline itself writes into a run's folder.
OWN = {"notebooks", "steps", "profile.yaml", "versions.json"}
# Where earlier results wait while their step is run anew, by number, and the list of where each belongs.
ASIDE, PLACES = ".aside", "places.json"


def made_from(step: Step, run: Run, shared: dict[str, str]) -> dict[str, Any]:
    """Digests of all that the step's results hang on; `shared` is what `shared_inputs` gave.

    The steps it needs are known by their records, which name the moment: if one ran again, so does this.
    """
    parameters = run.filled(step.parameters)
    cells = list(code_cells(step.notebook))
    modules = {tidy(path): content(path) for path in imported_modules(cells)}
    files = {tidy(path): content(path) for path in _paths(parameters, run.folder) if path.is_file()}
    needs = {name: content(record_path(run, name)) for name in step.needs if record_path(run, name).exists()}
    made = {"notebook": cells, "parameters": parameters, "code": modules, "files": files, "needed steps": needs}
    return {part: _digest(value) for part, value in made.items()} | {"folders": folders(step, run)} | shared


def folders(step: Step, run: Run) -> str:
    """Digest of the folders outside the run's own that parameters point at.

    The step may write there, so its record tells how it left them, whereas files are told as it found them.
    """
    given = _paths(run.filled(step.parameters), run.folder)
    return _digest({tidy(path): content(path) for path in given if path.is_dir()})


def shared_inputs() -> dict[str, str]:
    """What every step hangs on: the package's data files, those of data/ but for OUTPUTS, and the versions."""
    files = [p for p in _files(paths.ROOT / PACKAGE) if p.suffix != ".py"]
    files += [p for p in _files(paths.DATA) if p.suffix != ".md" and p.relative_to(paths.DATA).parts[0] not in OUTPUTS]
    return {
        "data": _digest({tidy(path): content(path) for path in files}),
        "versions": _digest(paths.package_versions()),
    }


def stale(made: dict[str, Any], step: Step, run: Run) -> str | None:
    """Why the step must run again, in a few words; None if it is up to date.

    A file that a later step wrote anew belongs to that step, and is compared with its record only.
    """
    record = read_record(run, step.name)
    if record is None:
        return "not done yet"
    changed = [part for part in made if made[part] != record["made_from"].get(part)]
    if changed:
        return f"changed: {', '.join(changed)}"
    theirs = _claimed(run, run.steps[run.steps.index(step) + 1 :])
    for name, digest in record["files"].items():
        path = run.folder / name
        if name not in theirs and not (path.is_file() and content(path) == digest):
            return f"{tidy(path)} is missing or changed"
    return None


def snapshot(run: Run) -> dict[str, tuple[int, int]]:
    """Size and time of every file that steps have written into the run's folder, by relative path."""
    found = {p.relative_to(run.folder): p.stat() for p in _files(run.folder)}
    return {p.as_posix(): (s.st_size, s.st_mtime_ns) for p, s in found.items() if p.parts[0] not in OWN}


def written(before: dict[str, tuple[int, int]], step: Step, run: Run) -> dict[str, str]:
    """Digests of the files the step wrote or rewrote.

    What no other step claims is its too: an attempt that was cut short may have left it, and this one kept it.
    """
    theirs = _claimed(run, [other for other in run.steps if other is not step])
    now = snapshot(run)
    return {name: content(run.folder / name) for name in now if now[name] != before.get(name) or name not in theirs}


@contextmanager
def set_aside(step: Step, run: Run) -> Iterator[None]:
    """Have out of the way what the step wrote the last time it finished; it comes back if the block ends by an error.

    If the process is killed meanwhile, `put_back` does it later. What other steps claim too stays where it is.
    """
    aside, claimed = run.folder / ASIDE, _claimed(run, [other for other in run.steps if other is not step])
    own = (read_record(run, step.name) or {"files": {}})["files"].keys() - claimed
    places = [*_topmost(own, run), record_path(run, step.name).relative_to(run.folder).as_posix()]
    paths.write_json(aside / PLACES, places)
    try:
        for number, place in enumerate(places):
            if (run.folder / place).exists():
                os.replace(run.folder / place, aside / str(number))
        yield
    except BaseException:
        put_back(run)
        raise
    _forget(aside)


def put_back(run: Run) -> None:
    """Give the earlier results of a step that was run anew, and did not finish, their places again."""
    aside = run.folder / ASIDE
    for number, place in enumerate(paths.read_json(aside / PLACES, "places") if (aside / PLACES).exists() else ()):
        if (aside / str(number)).exists():
            paths.remove(run.folder / place)
            (run.folder / place).parent.mkdir(parents=True, exist_ok=True)
            os.replace(aside / str(number), run.folder / place)
    _forget(aside)


def _forget(aside: Path) -> None:
    paths.remove(aside / PLACES)  # first: without it nothing comes back
    paths.remove(aside)


def _topmost(own: Iterable[str], run: Run) -> list[str]:
    """These files of a run; a folder in place of them where it holds nothing else."""
    strange = {parent for name in snapshot(run).keys() - own for parent in PurePosixPath(name).parents}
    strange.add(PurePosixPath("."))
    lines = [[*reversed(PurePosixPath(name).parents), PurePosixPath(name)] for name in own]
    return sorted({next(path for path in line if path not in strange).as_posix() for line in lines})


def record_path(run: Run, name: str) -> Path:
    """Where the record of a finished step lies."""
    return run.folder / "steps" / f"{name}.json"


def read_record(run: Run, name: str) -> dict[str, Any] | None:
    """The record of a finished step, or None (also if somebody broke it)."""
    try:
        record = paths.read_json(record_path(run, name), "record")
        return record if {"made_from", "files", "seconds", "peak_mb"} <= record.keys() else None
    except (MedComfortError, AttributeError, UnicodeDecodeError):
        return None


def content(path: Path) -> str:
    """SHA-256 of a file, or of all the files in a folder; a file above 64 MB is known by size and time."""
    if path.is_dir():
        return _digest({p.relative_to(path).as_posix(): content(p) for p in _files(path)})
    status = path.stat()
    if status.st_size > LARGE:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def code_cells(notebook: Path) -> Iterator[str]:
    """The code cells as plain Python: `%` and `!` lines become calls, as in IPython."""
    transform = TransformerManager().transform_cell
    for cell in read_notebook(notebook).cells:
        if cell.cell_type == "code":
            yield transform(cell.source)


def imported_modules(cells: Iterable[str]) -> list[Path]:
    """The files of the package that the cells import, and that those import, parent packages included."""
    found: dict[str, Path] = {}
    todo = {name for cell in cells for name in _imports(cell, "")}
    while todo:
        name = todo.pop()
        path = _module_file(name)
        if path and name not in found:
            found[name] = path
            package = name if path.name == "__init__.py" else name.rpartition(".")[0]
            todo |= _imports(path.read_text(encoding="utf-8"), package) | {name.rpartition(".")[0]}
    return sorted(found.values())


def _imports(code: str, package: str) -> set[str]:
    """Dotted names below the package that the code may import; `from a import b` gives both a and a.b."""
    names = set()
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError:
        return names  # the step itself will say so, with the cell
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (package or not node.level):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name for name in names if name.partition(".")[0] == PACKAGE}


def _module_file(name: str) -> Path | None:
    path = paths.ROOT.joinpath(*name.split(".")) if name else paths.ROOT
    candidates = (path.with_name(f"{path.name}.py"), path / "__init__.py")
    return next((file for file in candidates if name and file.is_file()), None)


def _paths(value: Any, folder: Path) -> Iterator[Path]:
    """What string parameters point at, outside the run's folder: text with a slash, or the name of a file."""
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _paths(item, folder)
    elif isinstance(value, str):
        path = Path(os.path.abspath(paths.ROOT / os.path.expanduser(value)))
        around = paths.ROOT.is_relative_to(path) or path.is_relative_to(folder)
        if not around and path.suffix != CACHE and os.path.exists(path) and ("/" in value or path.is_file()):
            yield path


def _claimed(run: Run, steps: list[Step]) -> set[str]:
    records = [read_record(run, step.name) for step in steps]
    return {name for record in records if record for name in record["files"]}


def _files(folder: Path) -> list[Path]:
    """All files below a folder in a fixed order, but hidden ones and Python's caches."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
