"""Records of a file or a Hugging Face dataset, one at a time, and where a record holds its question and answer."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from medcomfort_utils.paths import MedComfortError, existing, tidy

# Question and answer of known corpora: iCliniq (its `question` is only a title), K-QA, PubMedQA, ChatDoctor and Alpaca,
# and the plain names. Names are compared without regard to case and blanks.
PAIRS = (
    ("question_text", "answer"), ("question", "free_form_answer"), ("question", "long_answer"), ("input", "output"),
    ("instruction", "output"), ("question", "answer"), ("src", "tgt"), ("prompt", "completion"), ("prompt", "response"),
    ("patient", "doctor"),
)  # fmt: skip
FACTS = ("facts", "must_have")
CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")
_ROLE, _CONTENT = ("role", "from", "speaker", "author"), ("content", "value", "text", "utterance", "message")
_ROLES = {
    "system": "system",
    "user": "user human patient client seeker help-seeker customer",
    "assistant": "assistant gpt bot model doctor physician psychologist counselor counsellor therapist supporter",
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names.split()}
Place = str  # "line 812" of a file with a record a line, else "record 812"


class Odd(ValueError):  # noqa: N818 - the field's word
    """A record that does not fit: `reason` is counted, and the text says what was found there."""

    def __init__(self, reason: str, found: str):
        super().__init__(found)
        self.reason = reason


# --- Records --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Records:
    """A corpus that can be read more than once. `shown`: its name in messages; `name`: the one that dialogues carry."""

    shown: str
    name: str
    read: Callable[[], Iterator[tuple[Place, object]]]


def open_records(source: str, revision: str = "", split: str = "", config: str = "") -> Records:
    """The records of a JSON, JSONL, CSV, TSV or parquet file, of `hf:owner/name` (with `revision`) or `hf:./folder`.

    `split` (by default "train") and `config` are those of a hub dataset. JSON is read whole, all else piece by piece.
    Raises MedComfortError for what cannot be opened.
    """
    if source.startswith("hf:"):
        return _hub(source.removeprefix("hf:"), revision, split, config)
    if split or config:
        raise MedComfortError(f"split and config: only a dataset (hf:...) has them, not {source}.")
    path = existing(source, "source")
    readers = {".json": _json, ".jsonl": _json, ".csv": _csv, ".tsv": _csv, ".parquet": _parquet}
    if path.is_dir() or path.suffix.lower() not in readers:
        told = f"be a file that ends in one of {', '.join(readers)}; hf: stands before the folder of a dataset"
        raise MedComfortError(f"source: {tidy(path)} must {told}.")
    name = path.name if path.stem == "clinic" else path.stem  # "clinic" alone is the made-up one

    def read() -> Iterator[tuple[Place, object]]:
        try:
            yield from readers[path.suffix.lower()](path)
        except UnicodeDecodeError as error:
            raise MedComfortError(f"{tidy(path)} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error
        except (pa.ArrowException, OSError, csv.Error) as error:
            told = str(error).strip().partition("\n")[0].rstrip(".")
            raise MedComfortError(f"{tidy(path)} is not a readable {path.suffix[1:]} file: {told}.") from error

    return Records(tidy(path), name, read)


def _hub(name: str, revision: str, split: str, config: str) -> Records:
    from datasets import load_dataset  # takes seconds to import, and only this function needs it

    local = name.startswith((".", "/", "~"))
    path = existing(name, "source") if local else name
    if not local and not revision:
        raise MedComfortError(f"revision: hf:{name} needs one, a commit or tag of the dataset, so that a rerun agrees.")
    try:
        rows = load_dataset(str(path), config or None, split=split or "train", revision=revision or None)
    except Exception as error:  # the library lets through whatever its network and file layers raise
        told = " ".join(str(error).split())[:400].rstrip(".") or type(error).__name__  # it lists splits and configs
        raise MedComfortError(f"source: hf:{name} (split, config) could not be loaded: {told}.") from error
    shown = tidy(path) if local else f"hf:{name}"
    return Records(shown, f"hf:{path.name}" if local else name, lambda: _numbered(rows))


def _json(path: Path) -> Iterator[tuple[Place, object]]:
    """One record a line, or one JSON value that holds all: told by the content, since both are called .json."""
    with path.open("rb") as file:
        head = list(islice(filter(bytes.strip, file), 2))
        file.seek(0)
        if len(head) == 2 and _is_json(head[0]):
            for number, line in enumerate(file, start=1):
                if line := line.rstrip():  # with its end, a record broken off would seem to break on the next line
                    yield f"line {number}", _parsed(path, line, number)
        elif head:
            yield from _numbered(unwrapped(_parsed(path, file.read(), 1)))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError):
        return False
    return True


def _parsed(path: Path, content: bytes, line: int) -> object:
    text = content.decode("utf-8-sig")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line, told = line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", error)
        raise MedComfortError(f"{tidy(path)}, line {line}: this is not valid JSON ({told}).") from error


def unwrapped(value: object) -> list:
    """The records in a JSON value: a list, a map of records, one record, or a wrapper around any of them."""
    if not isinstance(value, dict):
        return value if isinstance(value, list) else [value]
    fields = named(value)
    pair = any(isinstance(fields.get(q), str) and isinstance(fields.get(a), str) for q, a in PAIRS)
    if pair or any(_talk(fields.get(name)) for name in CONVERSATIONS):
        return [value]
    if len(value) > 1 and all(isinstance(each, dict) for each in value.values()):
        return list(value.values())
    inner = [each for each in value.values() if isinstance(each, dict) or _objects(each)]
    return unwrapped(inner[0]) if len(inner) == 1 else [value]


def _csv(path: Path) -> Iterator[tuple[Place, dict]]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        head = file.readline()
        marks = {mark: head.count(mark) for mark in ",;\t|"}  # the first line holds names, no texts
        file.seek(0)
        rows = csv.DictReader(file, delimiter=max(marks, key=marks.get))
        for place, row in _numbered(rows):
            if None in row:
                told = "more fields than its first line has names; put texts that hold commas in double quotes"
                raise MedComfortError(f"{tidy(path)}, line {rows.line_num}: {told}.")
            yield place, row


def _parquet(path: Path) -> Iterator[tuple[Place, dict]]:
    with pq.ParquetFile(path) as file:
        yield from _numbered(row for batch in file.iter_batches(10_000) for row in batch.to_pylist())


def _numbered(rows: Iterable[object]) -> Iterator[tuple[Place, object]]:
    for number, row in enumerate(rows, start=1):
        yield f"record {number}", row


# --- Layouts --------------------------------------------------------------------------------------------------------


def named(record: dict) -> dict:
    """The record with its names in lower case, without blanks around them."""
    return {str(name).strip().lower(): value for name, value in record.items()}


def _objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, dict) for each in value)


def _talk(value: object) -> list[dict]:
    """The turns in a value, also as JSON in a string; empty if it is no conversation."""
    try:
        turns = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return []
    turns = list(map(named, turns)) if _objects(turns) else []
    return turns if all(turn.keys() & set(_ROLE) for turn in turns) else []


@dataclass(frozen=True)
class Layout:
    """The fields of a corpus, in lower case: `talk` for conversations, else `question` and `answer`; facts if any.

    `instruction`: whether that field is a part of the question (Alpaca), as it differs from record to record.
    """

    talk: str = ""
    question: str = ""
    answer: str = ""
    facts: str = ""
    instruction: bool = False

    def turns(self, record: object) -> list[dict]:
        """The record's turns as they stand there, with roles of ours; raises Odd."""
        if not isinstance(record, dict):
            raise Odd("not a record", f"{type(record).__name__} instead of an object with named fields")
        fields = named(record)
        if self.talk:
            return _turns(_talk(fields.get(self.talk)))
        if missing := [name for name in (self.question, self.answer) if name not in fields and not self.instruction]:
            raise Odd("missing field", f"no field {missing[0]!r} (it has {', '.join(fields) or 'none'})")
        question, answer = (text_of(fields.get(name), name) for name in (self.question, self.answer))
        if self.instruction:
            instruction = text_of(fields.get("instruction"), "instruction")
            question = "\n".join(part for part in (instruction, question) if part.strip())
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def text_of(value: object, name: str) -> str:
    """The text in a field; empty for null, or for NaN where a table had a gap. Raises Odd."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        raise Odd("not text", f"{name} must be text, not {type(value).__name__}")
    return value


def _turns(found: list[dict]) -> list[dict]:
    """The turns of a conversation; one side's turns in a row become one, and what follows the last answer is cut."""
    if not found:
        raise Odd("no turns", "a conversation must be a list of turns, each with a role and a text")
    turns: list[dict] = []
    for turn in found:
        role = str(next(turn[name] for name in _ROLE if name in turn)).strip().lower()
        if role not in _ROLE_OF:
            raise Odd("unknown role", f"role {role!r} is none of {', '.join(_ROLE_OF)}")
        text = text_of(next((turn[name] for name in _CONTENT if name in turn), ""), "the text of a turn")
        if turns and turns[-1]["role"] == _ROLE_OF[role]:
            turns[-1]["content"] += f"\n{text}"
        else:
            turns.append({"role": _ROLE_OF[role], "content": text})
    while turns[-1]["role"] != "assistant" and any(turn["role"] == "assistant" for turn in turns):
        turns.pop()
    return turns


def layout_of(records: Iterable[object], shown: str, question: str = "", answer: str = "", facts: str = "") -> Layout:
    """The layout of a corpus, by some of its records and by the names that are given.

    Raises MedComfortError, with the fields that there are, for names that no record has and for a shape unknown here.
    """
    some = [named(record) for record in records if isinstance(record, dict)]
    names = dict.fromkeys(name for record in some for name in record)
    if not names:
        raise MedComfortError(f"{shown} holds no records with named fields.")
    given = {"question_field": question, "answer_field": answer, "facts_field": facts}
    for parameter, name in given.items():
        if name and name.strip().lower() not in names:
            told = f"no record of {shown} has a field {name!r}; its fields are {', '.join(names)}"
            raise MedComfortError(f"{parameter}: {told}.")
    question, answer, facts = (name.strip().lower() for name in given.values())
    facts = facts or next((name for name in FACTS if name in names), "")
    if not (question or answer):
        for name in CONVERSATIONS:
            if any(_talk(record.get(name)) for record in some):
                return Layout(talk=name, facts=facts)
    for known in PAIRS:
        pair = (question or known[0], answer or known[1])
        if names.keys() >= set(pair) and pair[0] != pair[1]:
            told = {str(record.get("instruction")) for record in some}
            alpaca = pair == ("input", "output") and "instruction" in names and (len(told) > 1 or len(some) == 1)
            return Layout(question=pair[0], answer=pair[1], facts=facts, instruction=alpaca)
    raise MedComfortError(
        f"{shown}: no question and answer could be found among its fields ({', '.join(names)}); set question_field and "
        f"answer_field, or bring conversations as {CONVERSATIONS[0]}, a list of turns with role and content."
    )
