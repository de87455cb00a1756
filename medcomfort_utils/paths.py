"""Where things lie, and how files are written so that a crash never leaves half of one."""

import difflib
import errno
import glob
import json
import os
import platform
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:  # else whoever asks the command for help waits for it
    import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
PROFILES = NOTEBOOKS / "profiles"
FIGURES = ROOT / "figures"
PAPER = ROOT / "paper"
RUNS = ROOT / "runs"
NANO_BASE = DATA / "nano_base"


class MedComfortError(Exception):
    """Bad input or a step that cannot go on, told in one sentence: what, where, and what to do."""

    def _render_traceback_(self) -> list[str]:
        """Shown by IPython in place of a traceback, so that a notebook prints the sentence alone."""
        return [f"MedComfortError: {self}"]


def meant(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: whether the known one most like it was meant, or which there are."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(known) or 'none'}."


def resolve(path: str | Path) -> Path:
    """Absolute path; a relative one is taken from the repository root, whatever the working directory.

    papermill runs a notebook in the caller's directory and nbval in the notebook's own.
    """
    path = Path(path).expanduser()
    return path.resolve() if path.is_absolute() else (ROOT / path).resolve()


def existing(path: str | Path, what: str) -> Path:
    """`resolve(path)`, or a MedComfortError that names `what` (a parameter or file) if nothing is there."""
    found = resolve(path)
    if not found.exists():
        raise MedComfortError(f"{what}: there is no file or folder {tidy(found)}.")
    return found


def tidy(path: str | Path) -> str:
    """The path as a person should read it: relative to the repository root where it lies inside."""
    path = Path(path)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.as_posix()


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary sibling (file or folder) to write; it takes the place of `path` only if all went well."""
    path = resolve(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        try:
            yield temporary
            if temporary.is_dir() and path.is_dir():
                shutil.rmtree(path)
            os.replace(temporary, path)
        finally:
            remove(temporary)
    except OSError as error:
        raise not_written(path, error) from error


def not_written(path: str | Path, error: OSError) -> MedComfortError:
    """The sentence about a file that could not be written, with what to do if the disk is full."""
    hint = "; make room and run the same command again" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return MedComfortError(f"{tidy(path)} could not be written: {error.strerror or error}{hint}.")


def _sweep(path: Path) -> None:
    """Remove what killed processes left half-written for `path`."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp{path.suffix}"):
        pid = left.name.removeprefix(f".{path.name}.").split(".")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            remove(left)


def remove(path: str | Path) -> None:
    """Delete a file or a folder; nothing happens if there is none."""
    path = Path(path)
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> Path:
    """Write UTF-8 text atomically (temporary name, then rename); returns the absolute path."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return resolve(path)


def write_json(path: str | Path, value: object) -> Path:
    """Write JSON atomically, indented, key order kept, so that equal results are equal bytes."""
    return write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def read_json(path: str | Path, what: str) -> object:
    """Read JSON; a MedComfortError names `what` and the line where it is broken."""
    found = existing(path, what)
    try:
        return json.loads(found.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise MedComfortError(
            f"{what}: {tidy(found)} is not valid JSON at line {error.lineno}: {error.msg}."
        ) from error


def write_frame(path: str | Path, frame: "pd.DataFrame") -> Path:
    """Write a DataFrame to parquet, atomically."""
    with replacing(path) as temporary:
        frame.to_parquet(temporary, index=False)
    return resolve(path)


def effective_parameters(namespace: dict) -> dict:
    """The values of what a notebook's parameters cell declares (`name: type = value`), from its `globals()`."""
    return {name: namespace[name] for name in namespace["__annotations__"]}


def package_versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that shape a result, for saving beside it."""
    names = ("torch", "transformers", "trl", "peft", "datasets", "tokenizers", "unsloth", "papermill", "medcomfort")
    installed = {distribution.name: distribution.version for distribution in metadata.distributions()}
    return {"python": platform.python_version(), **{name: installed[name] for name in names if name in installed}}
