"""Records of a file or a Hugging Face dataset, one after the other, so that a corpus may be larger than memory."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medcomfort_utils.paths import MedComfortError, existing, tidy
from medcomfort_utils.rewrite.layouts import is_record

ROWS = 10_000  # of a table, read at a time
SNIFFED = 65_536  # characters of a table from which its delimiter is told
Place = str  # "line 812" of a file with a record a line, else "record 812"


@dataclass(frozen=True)
class Records:
    """A corpus that can be read more than once. `shown`: its name in messages; `name`: the one that dialogues carry."""

    shown: str
    name: str
    read: Callable[[], Iterator[tuple[Place, object]]]

    def __iter__(self) -> Iterator[tuple[Place, object]]:
        return self.read()


def open_records(source: str, revision: str = "", split: str = "", config: str = "") -> Records:
    """The records of a JSON, JSONL, CSV, TSV or parquet file, of `hf:owner/name` (with `revision`) or `hf:./folder`.

    `split` (by default "train") and `config` are those of a hub dataset. JSON is read whole, all else piece by piece.
    Raises MedComfortError for what cannot be opened.
    """
    if source.startswith("hf:"):
        return _hub(source.removeprefix("hf:"), revision, split, config)
    for parameter, value in {"split": split, "config": config}.items():
        if value:
            raise MedComfortError(f"{parameter}: only a dataset (hf:...) has one, not {source}.")
    path = existing(source, "source")
    readers = {".json": _json, ".jsonl": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if path.is_dir():
        raise MedComfortError(f"source: {tidy(path)} is a folder; give a file, or hf: before the folder of a dataset.")
    if path.suffix.lower() not in readers:
        raise MedComfortError(f"source: {tidy(path)} must end in one of {', '.join(readers)}.")
    if path.stat().st_size == 0:
        raise MedComfortError(f"{tidy(path)} is empty.")
    reader = readers[path.suffix.lower()]
    name = path.name if path.stem == "clinic" else path.stem  # "clinic" alone is the made-up one
    return Records(tidy(path), name, lambda: reader(path))


def _hub(name: str, revision: str, split: str, config: str) -> Records:
    from datasets import load_dataset  # takes seconds to import, and only this function needs it

    local = name.startswith((".", "/", "~"))
    path = existing(name, "source") if local else name
    if not local and not revision:
        raise MedComfortError(f"revision: hf:{name} needs one, a commit or tag of the dataset, so that a rerun agrees.")
    try:
        rows = load_dataset(str(path), config or None, split=split or "train", revision=revision or None)
    except Exception as error:  # the library lets through whatever its network and file layers raise
        told = str(error).strip().splitlines() or [type(error).__name__]
        choices = _choices(str(path), revision, config)
        raise MedComfortError(f"source: hf:{name} could not be loaded: {told[0].rstrip('.')}.{choices}") from error
    shown = tidy(path) if local else f"hf:{name}"
    return Records(shown, f"hf:{path.name}" if local else name, lambda: _numbered(rows))


def _choices(path: str, revision: str, config: str) -> str:
    """Which configurations and splits a dataset has, as far as it can be asked."""
    from datasets import get_dataset_config_names, get_dataset_split_names

    try:
        configs = get_dataset_config_names(path, revision=revision or None)
        if len(configs) > 1 and config not in configs:
            return f" Set config to one of {', '.join(configs)}."
        splits = get_dataset_split_names(path, config or configs[0], revision=revision or None)
        return f" Set split to one of {', '.join(map(str, splits))}."
    except Exception:  # whatever made the loading fail may make this fail too
        return ""


def _json(path: Path) -> Iterator[tuple[Place, object]]:
    """One record a line, or one JSON value that holds all: told by the content, since both are called .json."""
    try:
        with path.open("rb") as file:
            lines = [line for line, _ in zip((line for line in file if line.strip()), range(2), strict=False)]
            if len(lines) < 2 or not _is_json(lines[0]):
                file.seek(0)
                yield from _numbered(unwrapped(_parse(path, _text(path, file.read(), ""), 1)))
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line := line.rstrip():  # with its end, a record broken off would seem to break on the next line
                    yield f"line {number}", _parse(path, _text(path, line, f", line {number},"), number)
    except OSError as error:
        raise MedComfortError(f"{tidy(path)} could not be read: {error.strerror}.") from error


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return False
    return True


def unwrapped(value: object) -> list:
    """The records in a JSON value: a list, a map of records, one record, or a wrapper around any of them."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    if is_record(value):
        return [value]
    if len(value) > 1 and all(isinstance(each, dict) for each in value.values()):
        return list(value.values())
    inner = [each for each in value.values() if isinstance(each, dict) or _records(each)]
    return unwrapped(inner[0]) if len(inner) == 1 else [value]


def _records(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _text(path: Path, content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MedComfortError(f"{tidy(path)}{where} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error


def _parse(path: Path, text: str, line: int) -> object:
    if not text.strip():
        return []
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line, told = line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", error)
        raise MedComfortError(f"{tidy(path)}, line {line}: this is not valid JSON ({told}).") from error


def _csv(path: Path) -> Iterator[tuple[Place, dict]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            delimiter = _delimiter(file.read(SNIFFED))
        reading = {"sep": delimiter, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
        with pd.read_csv(path, chunksize=ROWS, **reading) as tables:
            yield from _numbered(row for table in tables for row in _as_headed(path, table).to_dict("records"))
    except UnicodeDecodeError as error:
        raise MedComfortError(f"{tidy(path)} is not UTF-8; save it as UTF-8.") from error
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        told = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise MedComfortError(f"{tidy(path)} is not a readable CSV file: {told}.") from error


def _delimiter(sample: str) -> str:
    """The mark between the names in a table's first line, which holds no texts; a comma if none can be told."""
    try:
        return csv.Sniffer().sniff(sample.lstrip().partition("\n")[0], delimiters=",;\t|").delimiter
    except csv.Error:
        return ","


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


def _numbered(rows: Iterable[object]) -> Iterator[tuple[Place, object]]:
    for number, row in enumerate(rows, start=1):
        yield f"record {number}", row
