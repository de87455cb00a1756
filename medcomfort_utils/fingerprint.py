"""When is a step up to date? What it was made from, what it wrote, and the record of both."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from medcomfort_utils import paths
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.profile import Run, Step, read_notebook

PACKAGE = "medcomfort_utils"
OUTPUTS = ("results", "smoke")  # folders of data/ that hold what steps once wrote
LARGE = 64 * 2**20  # bytes; above it a file is known by size and time
OWN = {"notebooks", "steps", "profile.yaml", "versions.json"}  # what the flow itself writes into a run's folder


def shared() -> dict[str, str]:
    """Digests of what every step hangs on: the package with its data files, data/ but for OUTPUTS, the versions."""
    data = [p for p in files(paths.DATA) if p.suffix != ".md" and p.relative_to(paths.DATA).parts[0] not in OUTPUTS]
    return {"code": content(paths.ROOT / PACKAGE), "data": _digest({tidy(path): content(path) for path in data}),
            "versions": _digest(paths.package_versions())}  # fmt: skip


def made_from(step: Step, run: Run, common: dict[str, str]) -> dict[str, str]:
    """Digests of all that the step's results hang on; `common` is what `shared` gave.

    Needed steps are known by what they wrote: one that ran again to the same bytes changes nothing.
    """
    inputs = {tidy(p): content(p) for _, p in step.inputs() if p.exists() and not p.is_relative_to(run.folder)}
    needs = {name: (read_record(run, name) or {}).get("files") for name in step.needs}
    cells = [cell.source for cell in read_notebook(step.notebook).cells if cell.cell_type == "code"]
    parts = {"notebook": cells, "parameters": [run.threads, step.parameters], "input files": inputs,
             "needed steps": needs}  # fmt: skip
    return common | {part: _digest(value) for part, value in parts.items()}


def stale(made: dict[str, str], step: Step, run: Run) -> str:
    """Why the step must run again, in a few words; empty if it is up to date.

    A file that a later step wrote anew belongs to that step, and is compared with its record only.
    """
    record = read_record(run, step.name)
    if record is None:
        return "not done yet"
    if record["incomplete"]:
        return f"incomplete: {record['incomplete']}"
    changed = [part for part in made if made[part] != record["made_from"].get(part)]
    if changed:
        return f"changed: {', '.join(changed)}"
    theirs = claimed(run, run.steps[run.steps.index(step) + 1 :])
    for name, digest in record["files"].items():
        path = run.folder / name
        if name not in theirs and not (path.is_file() and content(path) == digest):
            return f"{tidy(path)} is missing or changed"
    return ""


def snapshot(run: Run) -> dict[str, int]:
    """When each file of the steps in the run's folder was last written, by relative path."""
    found = {path.relative_to(run.folder): path.stat().st_mtime_ns for path in files(run.folder)}
    return {path.as_posix(): time for path, time in found.items() if path.parts[0] not in OWN}


def written(before: dict[str, int], step: Step, run: Run) -> dict[str, str]:
    """Digests of the files that the step left: its models; or what changed since `before`, or is nobody's."""
    now = snapshot(run)
    if step.model:
        own = [path.relative_to(run.folder).as_posix() for path in step.written() if path.is_relative_to(run.folder)]
        names = [name for name in now if name.startswith(tuple(f"{folder}/" for folder in own))]
    else:
        theirs = claimed(run, [other for other in run.steps if other is not step])
        names = [name for name in now if now[name] != before.get(name) or name not in theirs]
    return {name: content(run.folder / name) for name in names}


def claimed(run: Run, steps: Iterable[Step]) -> set[str]:
    """The files that are in these steps' records."""
    return {name for step in steps for name in (read_record(run, step.name) or {"files": ()})["files"]}


def record_path(run: Run, name: str) -> Path:
    """Where the record of a finished step lies."""
    return run.folder / "steps" / f"{name}.json"


def read_record(run: Run, name: str) -> dict[str, Any] | None:
    """The record of a finished step, or None (also if somebody broke it)."""
    try:
        record = paths.read_json(record_path(run, name), "record")
        return record if {"made_from", "files", "seconds", "peak_mb", "incomplete"} <= record.keys() else None
    except (MedComfortError, AttributeError, UnicodeDecodeError):
        return None


def content(path: Path) -> str:
    """SHA-256 of a file, or of all the files in a folder; a file above 64 MB is known by size and time."""
    if path.is_dir():
        return _digest({p.relative_to(path).as_posix(): content(p) for p in files(path)})
    status = path.stat()
    if status.st_size > LARGE:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def files(folder: Path) -> list[Path]:
    """All files below a folder in a fixed order, but hidden ones and Python's caches."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__pycache__"]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    return sorted(found)


def code_cells(notebook: Path) -> Iterator[str]:
    """The code cells as plain Python: `%` and `!` lines become calls, as in IPython."""
    from IPython.core.inputtransformer2 import TransformerManager  # slow to import, and only tests read cells

    transform = TransformerManager().transform_cell
    yield from (transform(cell.source) for cell in read_notebook(notebook).cells if cell.cell_type == "code")


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
