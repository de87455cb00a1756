"""What is asked, what came back, and the record of it: an SQLite file that survives a kill, exported as JSON Lines."""

import hashlib
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
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

    `row` says who asks; all other fields shape the answer, and so the key. `messages`: `{"role", "content"}` each.
    `sampling`: temperature, max_tokens and the like. `schema`: the JSON schema of the answer, or None for free text.
    """

    row: str
    model: str
    messages: tuple[dict, ...]
    sampling: dict
    schema: dict | None
    prompt_version: str

    @cached_property
    def key(self) -> str:
        """SHA-256, 64 hex digits, of all that shapes the answer; the same on every machine."""
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
        return estimated_tokens("".join(message["content"] for message in self.messages))

    @cached_property
    def completion_tokens(self) -> int:
        """The longest answer to be expected: `max_tokens`; where the sampling sets none, as long as the prompt."""
        return int(self.sampling.get("max_tokens") or self.prompt_tokens)

    def spent(self, response: "Response") -> tuple[int, int]:
        """Tokens of prompt and answer: as recorded, else estimated (a response may have come from no server)."""
        written = response.completion_tokens or estimated_tokens(response.text)
        return response.prompt_tokens or self.prompt_tokens, written


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
    """A row without an answer, and why. It is recorded for replays; any other run asks again."""

    reason: str


def estimated_tokens(text: str) -> int:
    """About how many tokens the text has, at least one."""
    return max(1, len(text.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


class Record(BaseModel, strict=True, extra="forbid"):
    """One line of the record, and one row of its table."""

    key: str = Field(pattern=r"^[0-9a-f]{64}$")
    model: str
    finish_reason: str
    prompt_tokens: int = Field(ge=0, lt=2**31)
    completion_tokens: int = Field(ge=0, lt=2**31)
    text: str


FIELDS = tuple(Record.model_fields)
SELECT = f"SELECT {', '.join(FIELDS)} FROM responses"
SET_UP = (
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = NORMAL",  # in WAL mode a commit then outlives the process without an fsync
    "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, model TEXT NOT NULL, finish_reason TEXT NOT NULL, "
    "prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, text TEXT NOT NULL) WITHOUT ROWID",
    f"{SELECT} LIMIT 0",
    "BEGIN IMMEDIATE",  # fails where nothing can be written: better now than after the first call was paid
    "ROLLBACK",
)
INSERT = (
    f"INSERT INTO responses ({', '.join(FIELDS)}) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
    f"{', '.join(f'{field} = excluded.{field}' for field in FIELDS[1:])} "
    f"WHERE responses.finish_reason = '{FAILED}' OR (? AND excluded.finish_reason != '{FAILED}')"
)


class Cache(AbstractContextManager):
    """Responses by request key, in an SQLite file; usable from several threads and processes at once.

    What `put_many` returned from is kept when the process is killed; a power cut may take the last seconds of it.
    A recorded failure always gives way, and never takes the place of a response.
    """

    def __init__(self, path: str | Path):
        """Open the file, or make it. Raises MedComfortError if it is something else or cannot be written."""
        self.path, self._lock = resolve(path), threading.RLock()
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            self._set_up(time.monotonic() + PATIENCE)
            self._inode = self.path.stat().st_ino

    def _set_up(self, deadline: float) -> None:
        """SQLite itself does not wait where another process switches to WAL mode at the same time."""
        while True:
            try:
                for statement in SET_UP:
                    self._db.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
            time.sleep(0.01)

    def get(self, key: str) -> Response | None:
        """The recorded response, or None."""
        with self._explained():
            row = self._db.execute(f"{SELECT} WHERE key = ?", (key,)).fetchone()
            if row is None:
                return None
            _checked(row)
        _, model, finish_reason, prompt_tokens, completion_tokens, text = row
        return Response(text, model, finish_reason, prompt_tokens, completion_tokens, cached=True)

    def put_many(self, responses: Mapping[str, Response], overwrite: bool = False) -> dict[str, Response]:
        """Commit the responses together; returns what the record now holds for these keys.

        Without `overwrite` the first response to a request stays, so that a replay gives what the first run gave.
        """
        kept = []
        with self._explained(writing=True):
            for key, response in responses.items():
                row = (key, *(getattr(response, field) for field in FIELDS[1:]))
                if not self._db.execute(INSERT, (*row, overwrite)).rowcount:
                    kept.append(key)
        return {**responses, **{key: self.get(key) for key in kept}}

    def export_jsonl(self, path: str | Path) -> int:
        """Write all responses, sorted by key, one a line; returns how many. Equal content gives equal bytes."""
        with self._explained(), replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            for row in self._db.execute(f"{SELECT} ORDER BY key"):
                file.write(json.dumps(_checked(row), ensure_ascii=False) + "\n")
            return len(self)

    def import_jsonl(self, path: str | Path) -> int:
        """Take in a file that `export_jsonl` wrote; all of it or, if it is broken, nothing. Returns how many lines.

        Where file and cache differ, the file is right. Raises MedComfortError naming the broken line.
        """
        path, number = existing(path, "recorded responses"), 0
        if not path.is_file():
            raise MedComfortError(f"recorded responses: {tidy(path)} cannot be read: it is no file.")
        with self._explained(writing=True), path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    record = Record.model_validate_json(line)
                except ValidationError as error:
                    raise MedComfortError(f"{tidy(path)}, line {number}: {_problem(error)}.") from None
                self._db.execute(INSERT, (*vars(record).values(), True))
        return number

    def __len__(self) -> int:
        with self._explained():
            return self._db.execute("SELECT count(*) FROM responses").fetchone()[0]

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._db.close()

    def __exit__(self, *exception) -> None:
        self.close()

    @contextmanager
    def _explained(self, writing: bool = False) -> Iterator[None]:
        """One thread at a time; all is written or, after an exception, nothing; an error names the file."""
        try:
            with self._lock:
                if not writing:
                    yield
                    return
                with self._db:
                    self._db.execute("BEGIN IMMEDIATE")
                    yield
                    if os.stat(self.path).st_ino != self._inode:
                        raise OSError("another file has taken its place")
        except (sqlite3.Error, OSError, ValidationError) as error:
            problem = _problem(error) if isinstance(error, ValidationError) else getattr(error, "strerror", 0) or error
            raise MedComfortError(
                f"The response cache {tidy(self.path)} cannot be used ({problem}): free the disk, wait for the process "
                "that writes it, or choose another file."
            ) from error


def _checked(row: tuple) -> dict:
    """A row's fields; ValidationError where the file holds what no response has, such as a BLOB."""
    return vars(Record(**dict(zip(FIELDS, row, strict=True))))


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return ": ".join([*map(str, first["loc"]), first["msg"]])
