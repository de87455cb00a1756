"""Records of a file or a Hugging Face dataset, one after the other, so that a corpus may be larger than memory."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medcomfort_utils.paths import MedComfortError, existing, tidy

ROWS = 10_000  # of a table, read at a time
Place = str  # "line 812" of a file with a record a line, else "record 812"


@dataclass(frozen=True)
class Records:
    """A corpus that can be read more than once. `shown`: its name in messages; `name`: the one that dialogues carry."""

    shown: str
    name: str
    read: Callable[[], Iterator[tuple[Place, dict]]]

    def __iter__(self) -> Iterator[tuple[Place, dict]]:
        for where, record in self.read():
            if not isinstance(record, dict):
                raise MedComfortError(f"{self.shown}, {where}: a record must be an object with named fields.")
            yield where, record


def open_records(source: str, revision: str = "") -> Records:
    """The records of a JSON, JSONL, CSV or parquet file, of `hf:owner/name` (with `revision`) or of `hf:./folder`.

    A JSON list is read whole, all else piece by piece. Raises MedComfortError for what cannot be opened.
    """
    if source.startswith("hf:"):
        return _hub(source.removeprefix("hf:"), revision)
    path, readers = existing(source, "source"), {".json": _json, ".jsonl": _json, ".csv": _csv, ".parquet": _parquet}
    if path.is_dir():
        raise MedComfortError(f"source: {tidy(path)} is a folder; give a file, or hf: before the folder of a dataset.")
    if path.suffix.lower() not in readers:
        raise MedComfortError(f"source: {tidy(path)} must end in one of {', '.join(readers)}.")
    if path.stat().st_size == 0:
        raise MedComfortError(f"{tidy(path)} is empty.")
    reader = readers[path.suffix.lower()]
    return Records(tidy(path), path.stem, lambda: reader(path))


def _hub(name: str, revision: str) -> Records:
    from datasets import load_dataset  # takes seconds to import, and only this function needs it

    local = name.startswith((".", "/", "~"))
    path = existing(name, "source") if local else name
    if not local and not revision:
        raise MedComfortError(f"revision: hf:{name} needs one, a commit or tag of the dataset, so that a rerun agrees.")
    try:
        rows = load_dataset(str(path), split="train", revision=revision or None)
    except Exception as error:  # the library lets through whatever its network and file layers raise
        told = str(error).strip().splitlines() or [type(error).__name__]
        raise MedComfortError(f"source: hf:{name} could not be loaded: {told[0].rstrip('.')}.") from error
    shown, label = (tidy(path), path.name) if local else (f"hf:{name}", name)
    return Records(shown, label, lambda: _numbered(rows))


def _json(path: Path) -> Iterator[tuple[Place, dict]]:
    """A list of records, or one record a line: told by the content, since both are called .json."""
    try:
        with path.open("rb") as file:
            first = next((line for line in file if line.strip()), b"").removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
            file.seek(0)
            if first == b"[":
                yield from _numbered(_parse(path, _text(path, file.read(), ""), 1))
                return
            for number, line in enumerate(file, start=1):
                if line := line.rstrip():  # with its end, a record broken off would seem to break on the next line
                    yield f"line {number}", _parse(path, _text(path, line, f", line {number},"), number)
    except OSError as error:
        raise MedComfortError(f"{tidy(path)} could not be read: {error.strerror}.") from error


def _text(path: Path, content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MedComfortError(f"{tidy(path)}{where} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error


def _parse(path: Path, text: str, line: int) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line, told = line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", error)
        raise MedComfortError(f"{tidy(path)}, line {line}: this is not valid JSON ({told}).") from error


def _csv(path: Path) -> Iterator[tuple[Place, dict]]:
    try:
        with pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig", chunksize=ROWS) as tables:
            yield from _numbered(row for table in tables for row in _as_headed(path, table).to_dict("records"))
    except UnicodeDecodeError as error:
        raise MedComfortError(f"{tidy(path)} is not UTF-8; save it as UTF-8.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        told = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise MedComfortError(f"{tidy(path)} is not a readable CSV file: {told}.") from error


def _as_headed(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    """The table, unless pandas took the first fields of too long rows for names of the rows."""
    if not isinstance(table.index, pd.RangeIndex):
        raise MedComfortError(
            f"{tidy(path)} is not a readable CSV file: its rows have more fields than its first line has names; put "
            "texts that hold commas in double quotes."
        )
    return table


def _parquet(path: Path) -> Iterator[tuple[Place, dict]]:
    try:
        with pq.ParquetFile(path) as file:
            yield from _numbered(row for batch in file.iter_batches(ROWS) for row in batch.to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise MedComfortError(f"{tidy(path)} is not a readable parquet file.") from error


def _numbered(rows: Iterable[dict]) -> Iterator[tuple[Place, dict]]:
    for number, row in enumerate(rows, start=1):
        yield f"record {number}", row
