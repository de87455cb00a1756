"""Records in parquet files: written with a fixed schema, whole or not at all; read one at a time."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from medcomfort_utils.paths import MedComfortError, existing, replacing, resolve, tidy
from medcomfort_utils.records import Dialogue, Rewrite

_TYPES = {  # of all other fields: text
    "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    "gates": pa.list_(pa.struct({"name": pa.string(), "passed": pa.bool_(), "reason": pa.string()})),
    "segments": pa.list_(pa.struct({"role": pa.string(), "say": pa.string(), "keep": pa.list_(pa.int32())})),
    "intensity": pa.int8(),
    **dict.fromkeys(("facts", "red_flags", "emotions"), pa.list_(pa.string())),
}

Record = TypeVar("Record", Dialogue, Rewrite)


@contextmanager
def writing(
    path: str | Path, kind: type[Record], batch: int = 1000, without: Sequence[str] = ()
) -> Iterator[Callable[[Record], None]]:
    """Yield a function that adds a record to a parquet file of fixed schema; at most `batch` wait in memory.

    The file takes its place at the end, and only if all went well. `without`: fields that it does not hold.
    """
    names = [name for name in kind.model_fields if name not in without]
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in names])
    waiting: list[dict] = []
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(waiting, schema=schema))
            waiting.clear()

        def add(record: Record) -> None:
            waiting.append(record.model_dump())
            if len(waiting) == batch:
                flush()

        yield add
        flush()


def write_records(path: str | Path, records: Iterable[Record], kind: type[Record]) -> Path:
    """Write records of one `kind` to parquet, atomically, with a fixed schema (also when there are none)."""
    with writing(path, kind) as add:
        for record in records:
            add(record)
    return resolve(path)


def stream_records(path: str | Path, kind: type[Record]) -> Iterator[Record]:
    """Read records one at a time; a MedComfortError names the file and row that do not fit."""
    found, number = existing(path, kind.__name__.lower() + "s"), 0
    try:
        with pq.ParquetFile(found) as file:
            for batch in file.iter_batches(1000):
                for row in batch.to_pylist():
                    number += 1
                    yield kind(**row)
    except ValidationError as error:
        problem = error.errors()[0]
        place = f"{tidy(found)}, row {number}: {'.'.join(map(str, problem['loc'])) or 'record'}"
        raise MedComfortError(f"{place}: {problem['msg']}.") from error
    except (pa.ArrowException, OSError) as error:
        raise MedComfortError(f"{tidy(found)} is not a readable parquet file; run 01_rewrite again.") from error


def read_records(path: str | Path, kind: type[Record], limit: int | None = None) -> list[Record]:
    """The records of a file in a list, or the first `limit` of them; raises as `stream_records` does."""
    return list(islice(stream_records(path, kind), limit))
