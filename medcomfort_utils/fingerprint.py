"""When is a step up to date? What it was made from, what it wrote, and the record of both."""

import contextlib
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from medcomfort_utils import paths, schema
from medcomfort_utils.paths import tidy
from medcomfort_utils.profile import Run, Step

OUTPUTS = ("results", "smoke")  # folders of data/ that hold what steps once wrote
LARGE = 64 * 2**20  # bytes; above it a file is known by size and time
CACHES = "__pycache__"
OWN = {"notebooks", "steps", "profile.yaml", "versions.json"}  # what the flow itself writes into a run's folder


def shared() -> dict[str, str]:
    """Digests of what every step hangs on: the package with its data files, data/ but for OUTPUTS, the versions."""
    data = [p for p in files(paths.DATA) if p.suffix != ".md" and p.relative_to(paths.DATA).parts[0] not in OUTPUTS]
    return {"code": content(paths.ROOT / "medcomfort_utils"), "data": _digest({tidy(p): content(p) for p in data}),
            "versions": _digest(paths.package_versions())}  # fmt: skip


def made_from(step: Step, run: Run, common: dict[str, str]) -> dict[str, str]:
    """Digests of all that the step's results hang on; `common` is what `shared` gave.

    Needed steps are known by what they wrote: one that ran again to the same bytes changes nothing.
    """
    inputs = {tidy(p): content(p) for _, p in step.inputs() if p.exists() and not p.is_relative_to(run.folder)}
    parts = {"notebook": [cell["source"] for cell in schema.code_cells(step.notebook)],
             "parameters": [run.threads, step.parameters], "input files": inputs,
             "needed steps": {name: (read_record(run, name) or {}).get("files") for name in step.needs}}  # fmt: skip
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
    found = {}
    for path in files(run.folder):
        if path.relative_to(run.folder).parts[0] not in OWN:
            with contextlib.suppress(FileNotFoundError):  # a step at work beside this one has removed it
                found[path.relative_to(run.folder).as_posix()] = path.stat().st_mtime_ns
    return found


def written(before: dict[str, int], step: Step, run: Run) -> dict[str, str]:
    """Digests of the files that the step left: its models; or what changed since `before`, or is nobody's."""
    now, theirs = snapshot(run), claimed(run, [other for other in run.steps if other is not step])
    if step.model:
        names = [name for name in now if any((run.folder / name).is_relative_to(own) for own in step.written())]
    else:  # what a killed run of the step left, and it found good, is nobody's
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
        record = json.loads(record_path(run, name).read_text(encoding="utf-8"))
        return record if {"made_from", "files", "seconds", "peak_mb", "incomplete"} <= record.keys() else None
    except (OSError, ValueError, AttributeError):
        return None


def content(path: Path) -> str:
    """SHA-256 of a file, or of all the files in a folder; a file above 64 MB is known by size and time."""
    if path.is_dir():
        return _digest({p.relative_to(path).as_posix(): content(p) for p in files(path)})
    status = path.stat()
    if status.st_size > LARGE:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> list[Path]:
    """All files below a folder in a fixed order, but hidden ones and Python's caches."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    hidden = {path for path in found for part in path.relative_to(folder).parts if part[0] == "." or part == CACHES}
    return sorted(set(found) - hidden)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
