"""Dialogues of the synthetic clinic or of a corpus: cleaned, dropped with a reason, counted, one at a time."""

import hashlib
import heapq
from collections.abc import Iterator
from itertools import islice
from typing import get_args

import pandas as pd

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import EMOTIONS, Dialogue, Urgency, content_id, split_of
from medcomfort_utils.rewrite import clinic
from medcomfort_utils.rewrite.clean import clean_text, language, sentences, squeeze, urgent_sentences, words
from medcomfort_utils.rewrite.duplicates import Seen
from medcomfort_utils.rewrite.readers import Records, open_records

__all__ = ["Clinic", "Corpus", "load_dialogues", "open_source", "sentences", "urgent_sentences"]

# Question and answer of known corpora: iCliniq (its `question` is only a title), K-QA, ChatDoctor, and the plain names.
PAIRS = (("question_text", "answer"), ("Question", "Free_form_answer"), ("input", "output"), ("question", "answer"))
FACTS = ("facts", "Must_have")
ROLES = {"system": "system", "user": "user", "client": "user", "assistant": "assistant", "counselor": "assistant"}
DROPS = (
    "empty question", "empty answer", "too short", "too long", "unsupported language",
    "exact duplicate", "near duplicate", "over the limit",
)  # fmt: skip
MIN_WORDS = {"user": 5, "assistant": 8}
MAX_WORDS = 1_000  # in one turn
MAX_CHARACTERS = 20_000  # in one turn, also where there is no white space to count words by
LOOKED_AT = 1_000  # records from which the names of the fields are detected


class Clinic:
    """The dialogues of the synthetic clinic, with the same face as a `Corpus`."""

    name = "clinic"

    def __init__(self, per_condition: int = 1, seed: int = 0):
        if per_condition < 1:
            raise MedComfortError(f"per_condition must be at least 1, not {per_condition}.")
        self.dialogues = list(clinic.generate(per_condition, seed))

    def __iter__(self) -> Iterator[Dialogue]:
        return iter(self.dialogues)

    def counts(self) -> pd.DataFrame:
        """What was read and kept: all."""
        return _table({"read": len(self.dialogues), "kept": len(self.dialogues)})


class Corpus:
    """Dialogues of a corpus, cleaned, read one at a time; `counts` says how many records went where.

    `source`: as `readers.open_records` takes it. Field names are detected or given. `limit` > 0 keeps a random sample
    (by `seed`) in the file's order. `lang` ("en") drops all other languages. It may be iterated more than once.
    Raises MedComfortError for what cannot be read, a record without a field, or, at the end, nothing left.
    """

    def __init__(
        self,
        source: str,
        limit: int = 0,
        question_field: str = "",
        answer_field: str = "",
        facts_field: str = "",
        revision: str = "",
        seed: int = 0,
        lang: str = "",
    ):
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise MedComfortError(
                f"limit: {limit!r} is not a count; give 0 for all records or a positive whole number."
            )
        self.records, self.limit, self.seed, self.lang = open_records(source, revision), limit, seed, lang
        self.name = self.records.name
        self._fields = _fields(self.records, question_field, answer_field, facts_field)
        self._counts: dict[str, int] = {}

    def __iter__(self) -> Iterator[Dialogue]:
        self._counts = dict.fromkeys(("read", *DROPS, "kept"), 0)
        if self.lang:
            self._counts["unsupported language"] = 0
        yield from self._sampled() if self.limit else self._usable()
        self._complain_if_empty()

    def counts(self) -> pd.DataFrame:
        """Columns `reason` and `count`: `read`, each of `DROPS`, `kept`; drops and `kept` add up to `read`."""
        return _table(self._counts)

    def _sampled(self) -> list[Dialogue]:
        """The `limit` dialogues with the smallest hash of seed and id: a fair sample, and no more is held."""
        ranked = (
            (hashlib.sha256(f"{self.seed}:{dialogue.id}".encode()).hexdigest(), place, dialogue)
            for place, dialogue in enumerate(self._usable())
        )
        chosen = heapq.nsmallest(self.limit, ranked)
        self._counts["over the limit"] = self._counts["kept"] - len(chosen)
        self._counts["kept"] = len(chosen)
        return [dialogue for _, _, dialogue in sorted(chosen, key=lambda each: each[1])]

    def _usable(self) -> Iterator[Dialogue]:
        seen = Seen()
        for where, record in self.records:
            self._counts["read"] += 1
            place = f"{self.records.shown}, {where}"
            turns = _turns(place, record, self._fields)
            reason, lang, tokens = _judge(turns)
            if not reason and self.lang and lang != self.lang:
                reason = "unsupported language"
            reason = reason or seen.repeats(content_id(turns), tokens)
            self._counts[reason or "kept"] += 1
            if not reason:
                yield _dialogue(place, turns, record, self._fields[2], self.name, lang)

    def _complain_if_empty(self) -> None:
        read, kept = self._counts["read"], self._counts["kept"]
        dropped = {reason: count for reason, count in self._counts.items() if count and reason in DROPS}
        if not read:
            raise MedComfortError(f"{self.records.shown} holds no records.")
        if not kept:
            told = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
            raise MedComfortError(f"{self.records.shown}: of {read} records read none can be used ({told}).")
        copies = dropped.get("exact duplicate", 0) + dropped.get("near duplicate", 0)
        if kept == 1 and copies and not dropped.get("over the limit"):
            raise MedComfortError(
                f"{self.records.shown}: all {kept + copies} usable records are copies of one dialogue."
            )


def open_source(source: str, per_condition: int = 1, seed: int = 0, **options) -> Clinic | Corpus:
    """The synthetic clinic (`clinic`), or the English dialogues of a corpus; `options` are those of `Corpus`."""
    return Clinic(per_condition, seed) if source == "clinic" else Corpus(source, seed=seed, lang="en", **options)


def load_dialogues(source: str, limit: int = 0, **options) -> tuple[list[Dialogue], pd.DataFrame]:
    """All dialogues of a `Corpus` at once, and its counts."""
    corpus = Corpus(source, limit, **options)
    return list(corpus), corpus.counts()


def _table(counts: dict[str, int]) -> pd.DataFrame:
    return pd.DataFrame(counts.items(), columns=["reason", "count"])


def _fields(records: Records, question: str, answer: str, facts: str) -> tuple[str, str, str]:
    """Names of the question, answer and facts fields (`messages` twice for conversations; facts may be empty)."""
    names, shown = dict.fromkeys(name for _, record in islice(records, LOOKED_AT) for name in record), records.shown
    if not names:
        raise MedComfortError(f"{shown} holds no records.")
    found = ", ".join(map(str, names)) or "none"
    for parameter, name in {"question_field": question, "answer_field": answer, "facts_field": facts}.items():
        if name and name not in names:
            raise MedComfortError(f"{parameter}: no record of {shown} has a field {name!r}; its fields are {found}.")
    facts = facts or next((name for name in FACTS if name in names), "")
    if question and question == answer:
        raise MedComfortError(f"question_field and answer_field must be two fields of {shown}, not both {question!r}.")
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
        if not isinstance(message, dict) or str(message.get("role")) not in ROLES or "content" not in message:
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
    """The record as a dialogue; red flags are the record's own, else the answer's sentences of urgent advice."""
    tags = record.get("topic") or record.get("tags")
    topic = tags[0] if isinstance(tags, list) and tags else tags
    identity = content_id(turns)
    flags = _statements(place, record, "red_flags") if "red_flags" in record else urgent_sentences(turns[-1]["content"])
    emotions = _statements(place, record, "emotions")
    if unknown := [emotion for emotion in emotions if emotion not in EMOTIONS]:
        raise MedComfortError(f"{place}: emotions must be some of {', '.join(EMOTIONS)}, not {unknown[0]!r}.")
    return Dialogue(
        id=identity,
        source=name,
        lang=lang,
        topic=squeeze(topic) if isinstance(topic, str) else "",
        messages=turns,
        facts=_statements(place, record, facts_field),
        red_flags=flags,
        emotions=emotions,
        urgency=record.get("urgency") if record.get("urgency") in get_args(Urgency) else "",
        split=split_of(identity),
    )


def _statements(place: str, record: dict, name: str) -> list[str]:
    """A field with a list of statements, or one a line; empty if the record has none."""
    found = (record.get(name) if name else None) or []
    found = found.splitlines() if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise MedComfortError(f"{place}: {name} must be a list of statements.")
    return [text for text in map(clean_text, found) if text]
