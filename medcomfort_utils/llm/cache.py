"""What is asked, what came back, and the record of it: an SQLite file that survives a kill, exported as JSON Lines."""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, Field, ValidationError

from medcomfort_utils.paths import MedComfortError, existing, replacing, resolve, tidy

FAILED = "failed"  # the `finish_reason` under which a failure stands in the record
BYTES_PER_TOKEN = 4  # a rule of thumb, good enough for an estimate: 4 letters of English, 1.3 characters of Chinese
PATIENCE = 60.0  # seconds to wait while another process writes
REPAIR = (
    "Your last answer cannot be used: {problem}\n"
    "Answer once more: only the corrected JSON object, complete, with no text before or after it."
)


@dataclass(frozen=True)
class Request:
    """One chat completion to ask for.

    `row` says who asks and is used in messages alone; all other fields shape the answer, and so the key.
    `messages`: `{"role", "content"}` each. `sampling`: temperature, top_p, max_tokens, seed and the like, as the
    server names them. `schema`: the JSON schema of the answer, or None for free text.
    """

    row: str
    model: str
    messages: tuple[dict, ...]
    sampling: dict
    schema: dict | None
    prompt_version: str

    @cached_property
    def key(self) -> str:
        """SHA-256, 64 hex digits, of all that shapes the answer; the same on every machine and for every server."""
        shape = [self.model, self.messages, self.sampling, self.schema, self.prompt_version]
        return hashlib.sha256(json.dumps(shape, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()

    def repair(self, text: str, problem: str) -> "Request":
        """A new request, with its own key, that shows the model its answer `text` and what is wrong with it."""
        follow_up = {"role": "user", "content": REPAIR.format(problem=problem)}
        answer = {"role": "assistant", "content": text or "(no answer)"}  # many servers refuse an empty turn
        return replace(self, messages=(*self.messages, answer, follow_up))

    @cached_property
    def prompt_tokens(self) -> int:
        """Estimated length of the prompt: about four bytes of UTF-8 a token."""
        return estimated_tokens(*(message["content"] for message in self.messages))

    @cached_property
    def completion_tokens(self) -> int:
        """The longest answer to be expected: `max_tokens`; where the sampling sets none, as long as the prompt."""
        limit = self.sampling.get("max_completion_tokens") or self.sampling.get("max_tokens")
        return int(limit) if limit else self.prompt_tokens


@dataclass(frozen=True)
class Response:
    """An answer; `cached` says that it came from the record and cost nothing."""

    text: str
    model: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cached: bool


@dataclass(frozen=True)
class Failure:
    """A row without an answer: its request was refused, or all tries failed. `reason` is one sentence.

    Failures are recorded too, so that a replay gives what the run gave; any other run asks again.
    """

    reason: str

    def recorded(self, model: str) -> Response:
        """The failure as the cache keeps it."""
        return Response(self.reason, model, FAILED, 0, 0, cached=False)


def estimated_tokens(*texts: str) -> int:
    """About how many tokens the texts have, at least one."""
    return max(1, sum(len(text.encode("utf-8", "replace")) for text in texts) // BYTES_PER_TOKEN)


class Record(BaseModel, strict=True, extra="forbid"):
    """One line of the record, and one row of its table."""

    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    model: str
    finish_reason: str
    prompt_tokens: int = Field(ge=0, lt=2**31)
    completion_tokens: int = Field(ge=0, lt=2**31)
    text: str


FIELDS = tuple(Record.model_fields)
COLUMNS = ", ".join(FIELDS)
SET_UP = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",  # in WAL mode a commit then outlives the process without an fsync
    "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, model TEXT NOT NULL, finish_reason TEXT NOT NULL, "
    "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID",
    f"SELECT {COLUMNS} FROM responses LIMIT 0",
    "BEGIN IMMEDIATE",  # fails where nothing can be written: better now than after the first call was paid
    "ROLLBACK",
)
INSERT = f"INSERT INTO responses ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?)"
OVERWRITE = f"{INSERT} ON CONFLICT (key) DO UPDATE SET {', '.join(f'{f} = excluded.{f}' for f in FIELDS[1:])}"
KEEP = f"{OVERWRITE} WHERE responses.finish_reason = '{FAILED}'"
IMPORT = f"{KEEP} OR excluded.finish_reason != '{FAILED}'"


class Cache:
    """Responses by request key, in an SQLite file in WAL mode; usable from several threads and processes at once.

    What `put_many` returned from is kept when the process is killed; a power cut may take the last seconds of it.
    """

    def __init__(self, path: str | Path):
        """Open the file, or make it. Raises MedComfortError if it is something else or cannot be written."""
        self.path = resolve(path)
        self._lock = threading.Lock()
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            deadline = time.monotonic() + PATIENCE
            for statement in SET_UP:
                self._wait_for(statement, deadline)
            self._inode = self.path.stat().st_ino

    def _wait_for(self, statement: str, deadline: float) -> None:
        """Execute it; SQLite itself does not wait where another process switches to WAL mode at the same time."""
        while True:
            try:
                self._db.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def get(self, key: str) -> Response | None:
        """The recorded response, or None."""
        with self._lock, self._explained():
            row = self._db.execute(f"SELECT {COLUMNS} FROM responses WHERE key = ?", (key,)).fetchone()
            return Response(**_fields(row), cached=True) if row else None

    def put_many(self, responses: Mapping[str, Response], overwrite: bool = False) -> dict[str, Response]:
        """Commit the responses together; returns what the record now holds for these keys.

        Without `overwrite` the first response to a request stays, so that a replay gives what the first run gave.
        A recorded failure always gives way, and never takes the place of a response.
        """
        kept = []
        with self._transaction():
            for key, response in responses.items():
                insert = OVERWRITE if overwrite and response.finish_reason != FAILED else KEEP
                row = (key, *(getattr(response, field) for field in FIELDS[1:]))
                if not self._db.execute(insert, row).rowcount:
                    kept.append(key)
        return {**responses, **{key: self.get(key) for key in kept}}

    def export_jsonl(self, path: str | Path) -> int:
        """Write all responses, sorted by key, one a line; returns how many. Equal content gives equal bytes."""
        query, count = f"SELECT {COLUMNS} FROM responses ORDER BY key", 0
        with (
            self._lock,
            self._explained(),
            replacing(path) as temporary,
            temporary.open("w", encoding="utf-8", newline="\n") as file,
        ):
            for row in self._db.execute(query):
                count += file.write(json.dumps({"key": row[0], **_fields(row)}, ensure_ascii=False) + "\n") > 0
        return count

    def import_jsonl(self, path: str | Path) -> int:
        """Take in a file that `export_jsonl` wrote; all of it or, if it is broken, nothing. Returns how many lines.

        Where file and cache differ, the file is right, but a failure in it takes the place of no response. Raises
        MedComfortError naming the file and the broken line.
        """
        path, keys = existing(path, "recorded responses"), set()
        if not path.is_file():
            raise MedComfortError(f"recorded responses: {tidy(path)} cannot be read: it is no file.")
        with self._transaction(), path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = Record.model_validate_json(line)
                except ValidationError as error:
                    raise MedComfortError(f"{tidy(path)}, line {number}: {_problem(error)}.") from None
                if record.key in keys:
                    raise MedComfortError(f"{tidy(path)}, line {number}: the key stands on an earlier line too.")
                keys.add(record.key)
                self._db.execute(IMPORT, tuple(record.__dict__.values()))
        return len(keys)

    def __len__(self) -> int:
        with self._lock, self._explained():
            return self._db.execute("SELECT count(*) FROM responses").fetchone()[0]

    def summary(self) -> str:
        """What the record holds, in words: "800 responses, by authored"."""
        query = "SELECT model, count(*) FROM responses GROUP BY model ORDER BY count(*) DESC, model"
        with self._lock, self._explained():
            rows = self._db.execute(query).fetchall()
        models = ", ".join(model for model, _ in rows[:3]) + (", ..." if len(rows) > 3 else "")
        return f"{sum(count for _, count in rows):,} responses" + (f", by {models}" if rows else "")

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        with self._lock:
            self._db.close()

    def __enter__(self) -> "Cache":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if os.stat(self.path).st_ino != self._inode:
                    raise OSError("another file has taken its place")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValidationError) as error:
            problem = _problem(error) if isinstance(error, ValidationError) else getattr(error, "strerror", 0) or error
            raise MedComfortError(
                f"The response cache {tidy(self.path)} cannot be used ({problem}): free the disk, wait for the process "
                "that writes it, or choose another file."
            ) from error


def _fields(row: tuple) -> dict:
    """A row's fields but its key; ValidationError where the file holds what no response has, such as a BLOB."""
    fields = Record.model_validate(dict(zip(FIELDS, row, strict=True))).__dict__.copy()
    del fields["key"]
    return fields


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])
