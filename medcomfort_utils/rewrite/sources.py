"""Real dialogues from a file or a Hugging Face dataset: read, clean, drop with a reason, count."""

import io
import json
import random
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from medcomfort_utils.paths import MedComfortError, existing, tidy
from medcomfort_utils.records import Dialogue, content_id, split_of
from medcomfort_utils.rewrite import clinic
from medcomfort_utils.rewrite.clean import clean_text, language, sentences, squeeze, urgent_sentences, words
from medcomfort_utils.rewrite.duplicates import near_duplicates, shingles

__all__ = ["load_dialogues", "read_source", "sentences", "urgent_sentences"]

# Question and answer of known corpora: iCliniq (its `question` is only a title), K-QA, ChatDoctor, and the plain names.
PAIRS = (("question_text", "answer"), ("Question", "Free_form_answer"), ("input", "output"), ("question", "answer"))
ROLES = {"system": "system", "user": "user", "client": "user", "assistant": "assistant", "counselor": "assistant"}
DROPS = (
    "empty question", "empty answer", "too short", "too long", "unsupported language",
    "exact duplicate", "near duplicate", "over the limit",
)  # fmt: skip
MIN_WORDS = {"user": 5, "assistant": 8}
MAX_WORDS = 1_000  # in one turn
MAX_CHARACTERS = 20_000  # in one turn, also where there is no white space to count words by


def read_source(
    source: str, per_condition: int = 1, seed: int = 0, limit: int = 0, **options: str
) -> tuple[list[Dialogue], pd.DataFrame]:
    """English dialogues of the synthetic clinic (`clinic`) or of a corpus, with the counts of `load_dialogues`.

    `options` are the field names and the revision of `load_dialogues`. Dialogues in another language are dropped and
    counted as `not English`: the template rewriter and its gates know no other.
    """
    if source == "clinic":
        if per_condition < 1:
            raise MedComfortError(f"per_condition must be at least 1, not {per_condition}.")
        dialogues = list(clinic.generate(per_condition, seed))
        return dialogues, pd.DataFrame(
            [("read", len(dialogues)), ("kept", len(dialogues))], columns=["reason", "count"]
        )
    dialogues, counts = load_dialogues(source, limit, seed=seed, **options)
    english = [dialogue for dialogue in dialogues if dialogue.lang == "en"]
    if not english:
        raise MedComfortError(
            f"{source}: none of the {len(dialogues)} dialogues is in English, the one language of the templates."
        )
    kept = counts.iloc[:-1].values.tolist()
    rows = [*kept, ("not English", len(dialogues) - len(english)), ("kept", len(english))]
    return english, pd.DataFrame(rows, columns=["reason", "count"])


def load_dialogues(
    source: str,
    limit: int = 0,
    question_field: str = "",
    answer_field: str = "",
    facts_field: str = "",
    revision: str = "",
    seed: int = 0,
) -> tuple[list[Dialogue], pd.DataFrame]:
    """Dialogues of a corpus, cleaned, and a table that says how many records went where.

    `source`: a JSON, JSONL, CSV or parquet file (relative to the repository root), `hf:owner/name` (needs `revision`)
    or `hf:./folder`. Field names are detected or given. `limit` > 0 keeps a random sample (`seed`) in the file's order.
    The table has columns `reason` and `count`: `read`, one row for each of `DROPS`, `kept`; the drops and `kept` add up
    to `read`. Raises MedComfortError for what cannot be read, a record without a field, or nothing left.
    """
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise MedComfortError(f"limit: {limit!r} is not a count; give 0 for all records or a positive whole number.")
    shown, name, records = _read(source, revision)
    fields = _fields(shown, records, question_field, answer_field, facts_field)
    counts = dict.fromkeys(DROPS, 0)
    kept, marks = [], []
    for where, record in records:
        turns = _turns(f"{shown}, {where}", record, fields)
        reason, lang, tokens = _judge(turns)
        if reason:
            counts[reason] += 1
            continue
        kept.append(_dialogue(f"{shown}, {where}", turns, record, fields[2], name, lang))
        marks.append(shingles(tokens))
    usable = len(kept)
    kept = _without_duplicates(kept, marks, counts)
    if len(kept) == 1 < usable:
        raise MedComfortError(f"{shown}: all {usable} usable records are copies of one dialogue.")
    if 0 < limit < len(kept):
        counts["over the limit"] = len(kept) - limit
        kept = [kept[i] for i in sorted(random.Random(seed).sample(range(len(kept)), limit))]
    if not kept:
        told = ", ".join(f"{count} {reason}" for reason, count in counts.items() if count)
        raise MedComfortError(f"{shown}: of {len(records)} records read none can be used ({told}).")
    rows = [("read", len(records)), *counts.items(), ("kept", len(kept))]
    return kept, pd.DataFrame(rows, columns=["reason", "count"])


def _read(source: str, revision: str) -> tuple[str, str, list[tuple[str, dict]]]:
    """How messages show the source, the name dialogues carry, and (place, record) pairs."""
    if source.startswith("hf:"):
        shown, name, records = _read_hub(source.removeprefix("hf:"), revision)
    else:
        path = existing(source, "source")
        shown, name, records = tidy(path), path.stem, _read_file(path)
    if not records:
        raise MedComfortError(f"{shown} holds no records.")
    for where, record in records:
        if not isinstance(record, dict):
            raise MedComfortError(f"{shown}, {where}: a record must be an object with named fields.")
    return shown, name, records


def _read_hub(name: str, revision: str) -> tuple[str, str, list[tuple[str, dict]]]:
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
    return shown, label, _numbered(rows)


def _read_file(path: Path) -> list[tuple[str, dict]]:
    readers = {".json": _read_json, ".jsonl": _read_json, ".csv": _read_csv, ".parquet": _read_parquet}
    if path.is_dir():
        raise MedComfortError(f"source: {tidy(path)} is a folder; give a file, or hf: before the folder of a dataset.")
    if path.suffix.lower() not in readers:
        raise MedComfortError(f"source: {tidy(path)} must end in one of {', '.join(readers)}.")
    if path.stat().st_size == 0:
        raise MedComfortError(f"{tidy(path)} is empty.")
    return readers[path.suffix.lower()](path)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MedComfortError(f"{tidy(path)} is not UTF-8 at byte {error.start}; save it as UTF-8.") from error
    except OSError as error:
        raise MedComfortError(f"{tidy(path)} could not be read: {error.strerror}.") from error


def _read_json(path: Path) -> list[tuple[str, dict]]:
    """A list of records, or one record a line: told by the content, since both are called .json."""
    text = _text(path)
    if text.lstrip().startswith("["):
        return _numbered(_parse(path, text, 1))
    rows = enumerate(text.split("\n"), start=1)
    return [(f"line {number}", _parse(path, row, number)) for number, row in rows if row.strip()]


def _parse(path: Path, text: str, line: int) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line, told = line + getattr(error, "lineno", 1) - 1, getattr(error, "msg", error)
        raise MedComfortError(f"{tidy(path)}, line {line}: this is not valid JSON ({told}).") from error


def _read_csv(path: Path) -> list[tuple[str, dict]]:
    try:
        table = pd.read_csv(io.StringIO(_text(path)), dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        told = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise MedComfortError(f"{tidy(path)} is not a readable CSV file: {told}.") from error
    return _numbered(table.to_dict("records"))


def _read_parquet(path: Path) -> list[tuple[str, dict]]:
    try:
        return _numbered(pq.read_table(path).to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise MedComfortError(f"{tidy(path)} is not a readable parquet file.") from error


def _numbered(rows: Iterable[dict]) -> list[tuple[str, dict]]:
    return [(f"record {number}", row) for number, row in enumerate(rows, start=1)]


def _fields(shown: str, records: list, question: str, answer: str, facts: str) -> tuple[str, str, str]:
    """Names of the question, answer and facts fields (`messages` twice for conversations; facts may be empty)."""
    names = dict.fromkeys(name for _, record in records for name in record)
    found = ", ".join(map(str, names)) or "none"
    for parameter, name in {"question_field": question, "answer_field": answer, "facts_field": facts}.items():
        if name and name not in names:
            raise MedComfortError(f"{parameter}: no record of {shown} has a field {name!r}; its fields are {found}.")
    facts = facts or ("Must_have" if "Must_have" in names else "")
    if not (question or answer) and "messages" in names:
        return "messages", "messages", facts
    for known in PAIRS:
        pair = (question or known[0], answer or known[1])
        if names.keys() >= set(pair):
            return *pair, facts
    raise MedComfortError(
        f"{shown}: no question and answer could be found among its fields ({found}); "
        "set question_field and answer_field."
    )


def _turns(place: str, record: dict, fields: tuple[str, str, str]) -> list[dict]:
    """The record's turns with white space squeezed; conversations end with their last answer."""
    question, answer, _ = fields
    for name in dict.fromkeys((question, answer)):
        if name not in record:
            raise MedComfortError(f"{place}: the record has no field {name!r} (it has {', '.join(map(str, record))}).")
    if question != answer:
        return [_turn(place, "user", record[question]), _turn(place, "assistant", record[answer])]
    turns = []
    for message in record["messages"] if isinstance(record["messages"], list) else [record["messages"]]:
        if not isinstance(message, dict) or message.get("role") not in ROLES or "content" not in message:
            roles = ", ".join(ROLES)
            raise MedComfortError(f"{place}: messages must be a list of turns, each with content and a role ({roles}).")
        turns.append(_turn(place, ROLES[message["role"]], message["content"]))
    while turns and turns[-1]["role"] == "user" and any(turn["role"] == "assistant" for turn in turns):
        turns.pop()
    return turns


def _turn(place: str, role: str, value: object) -> dict:
    if value is None or value != value:  # null, or NaN where a table had a gap
        value = ""
    if not isinstance(value, str):
        raise MedComfortError(f"{place}: the {role}'s turn must be text, not {type(value).__name__}.")
    text = squeeze(value)
    return {"role": role, "content": clean_text(text) if len(text) <= MAX_CHARACTERS else text}


def _judge(turns: list[dict]) -> tuple[str, str, list[str]]:
    """Why a dialogue is dropped (empty if it is not), its language and its words."""
    for role, reason in (("user", "empty question"), ("assistant", "empty answer")):
        said = [turn["content"] for turn in turns if turn["role"] == role]
        if not said or not all(said):
            return reason, "", []
    if any(len(turn["content"]) > MAX_CHARACTERS for turn in turns):
        return "too long", "", []
    spoken = [(turn["role"], words(turn["content"])) for turn in turns]
    if any(sum(len(tokens) for role, tokens in spoken if role == who) < low for who, low in MIN_WORDS.items()):
        return "too short", "", []
    if any(len(tokens) > MAX_WORDS for _, tokens in spoken):
        return "too long", "", []
    lang = language(" ".join(turn["content"] for turn in turns))
    return "" if lang else "unsupported language", lang, [token for _, tokens in spoken for token in tokens]


def _dialogue(place: str, turns: list[dict], record: dict, facts_field: str, name: str, lang: str) -> Dialogue:
    facts = (record.get(facts_field) if facts_field else None) or []
    facts = facts.splitlines() if isinstance(facts, str) else facts
    if not isinstance(facts, list) or not all(isinstance(fact, str) for fact in facts):
        raise MedComfortError(f"{place}: {facts_field} must be a list of statements.")
    tags = record.get("tags") or [""]
    identity = content_id(turns)
    return Dialogue(
        id=identity,
        source=name,
        lang=lang,
        topic=str(tags if isinstance(tags, str) else tags[0]),
        messages=turns,
        facts=[text for text in map(clean_text, facts) if text],
        red_flags=urgent_sentences(turns[-1]["content"]),
        split=split_of(identity),
    )


def _without_duplicates(dialogues: list[Dialogue], marks: list[np.ndarray], counts: dict) -> list[Dialogue]:
    first = {}
    for index, dialogue in enumerate(dialogues):
        first.setdefault(dialogue.id, index)
    single = list(first.values())
    near = near_duplicates([marks[index] for index in single])
    counts["exact duplicate"], counts["near duplicate"] = len(dialogues) - len(single), sum(near)
    return [dialogues[index] for index, repeated in zip(single, near, strict=True) if not repeated]
