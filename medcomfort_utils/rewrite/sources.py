"""Dialogues of the synthetic clinic or of a corpus: cleaned, dropped with a reason, counted, one at a time."""

import hashlib
import heapq
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import get_args

import pandas as pd

from medcomfort_utils.medical import is_urgent
from medcomfort_utils.parquet import stream_records, writing
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import EMOTIONS, Dialogue, Urgency, content_id, split_of
from medcomfort_utils.rewrite import clinic
from medcomfort_utils.rewrite.clean import cleaned
from medcomfort_utils.rewrite.duplicates import Near
from medcomfort_utils.rewrite.readers import Odd, layout_of, named, open_records, text_of
from medcomfort_utils.text import language, sentences, words

DROPS = (
    "empty question", "empty answer", "too short", "too long", "unsupported language",
    "exact duplicate", "near duplicate", "over the limit",
)  # fmt: skip
LANGUAGES = ("en", "zh")
MIN_WORDS = {"user": 5, "assistant": 8}
MAX_WORDS = 1_000  # in one turn
MAX_CHARACTERS = 20_000  # in one turn, also where there is no white space to count words by
MOST_ODD = 0.5  # share of the records that may not fit the layout of the others
LOOKED_AT = 1_000  # records from which the layout is told
TOLD_BY = 600  # characters of either side from which the language is told
_HAN = re.compile(r"[\u3400-\u9fff]|[^\u3400-\u9fff]+")


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

    `source`, `revision`, `split`, `config`: as `readers.open_records` takes them. Field names are detected or given.
    `limit` > 0 keeps a random sample (by `seed`) in the file's order. `lang` ("en") drops all other languages. The
    records are read once, when first asked for, and the dialogues kept in a temporary file: it may be iterated often.
    Raises MedComfortError for what cannot be read, and if more than `MOST_ODD` of the records, or all, are of no use.
    """

    def __init__(
        self,
        source: str,
        limit: int = 0,
        question_field: str = "",
        answer_field: str = "",
        facts_field: str = "",
        revision: str = "",
        split: str = "",
        config: str = "",
        seed: int = 0,
        lang: str = "",
    ):
        if limit < 0:
            raise MedComfortError(f"limit: {limit} is no count; give 0 for all records or a positive whole number.")
        self._limit, self._seed, self._lang = limit, seed, lang
        self._records = open_records(source, revision, split, config)
        self.name = self._records.name
        some = [record for _, record in islice(self._records.read(), LOOKED_AT)]
        self._layout = layout_of(some, self._records.shown, question_field, answer_field, facts_field)
        self._counts: Counter[str] = Counter()
        self._first_odd, self._names, self._folder = "", 0, None

    def __iter__(self) -> Iterator[Dialogue]:
        yield from stream_records(self._read(), Dialogue)  # a generator keeps the corpus, and with it the file

    def counts(self) -> pd.DataFrame:
        """Columns `reason` and `count`: `read`, why records were dropped, `kept`; drops and `kept` add up to `read`.

        The last row, `names removed`, counts what was cut out of greetings and sign-offs.
        """
        self._read()
        odd = sorted(self._counts.keys() - {"read", "kept", *DROPS})
        rows = {row: self._counts[row] for row in ("read", *DROPS, *odd, "kept")}
        return _table(rows | {"names removed": self._names})

    def _read(self) -> Path:
        """The file with the dialogues; written by the first call."""
        if self._folder is None:
            folder = tempfile.TemporaryDirectory(prefix="medcomfort-")
            with writing(Path(folder.name) / "dialogues.parquet", Dialogue) as add:
                for dialogue in self._sampled() if self._limit else self._usable():
                    add(dialogue)
            self._complain()
            self._folder = folder
        return Path(self._folder.name) / "dialogues.parquet"

    def _sampled(self) -> list[Dialogue]:
        """The `limit` dialogues with the smallest hash of seed and id: a fair sample, and no more is held."""
        ranked = (
            (hashlib.sha256(f"{self._seed}:{dialogue.id}".encode()).hexdigest(), place, dialogue)
            for place, dialogue in enumerate(self._usable())
        )
        chosen = heapq.nsmallest(self._limit, ranked)
        self._counts["over the limit"] = self._counts["kept"] - len(chosen)
        self._counts["kept"] = len(chosen)
        return [dialogue for _, _, dialogue in sorted(chosen, key=lambda each: each[1])]

    def _usable(self) -> Iterator[Dialogue]:
        ids, dialogues, questions = set(), Near(), Near()
        for where, record in self._records.read():
            self._counts["read"] += 1
            try:
                found = self._dialogue(record, ids, dialogues, questions)
            except Odd as odd:
                self._first_odd = self._first_odd or f"{where}: {odd}"
                found = odd.reason
            self._counts[found if isinstance(found, str) else "kept"] += 1
            if not isinstance(found, str):
                yield found

    def _dialogue(self, record: object, ids: set[str], dialogues: Near, questions: Near) -> Dialogue | str:
        """The record as a dialogue, or why it is dropped; raises Odd where it does not fit the layout."""
        turns, removed = _cleaned(self._layout.turns(record))
        reason, lang, spoken = _judge(turns, self._lang)
        if reason:
            return reason
        details, identity = _details(named(record), turns, lang, self._layout.facts), content_id(turns)
        if identity in ids:
            return "exact duplicate"
        ids.add(identity)
        if dialogues.label([token for _, said in spoken for token in said], identity) != identity:
            return "near duplicate"
        asked = [token for role, said in spoken if role == "user" for token in said]
        key = questions.label(asked, hashlib.sha256(" ".join(asked).encode()).hexdigest())
        self._names += removed
        return Dialogue(
            id=identity, source=self.name, lang=lang, messages=turns, split=split_of(f"question:{key}"), **details
        )

    def _complain(self) -> None:
        read, shown = self._counts["read"], self._records.shown
        dropped = {reason: count for reason, count in self._counts.items() if reason not in ("read", "kept") and count}
        told = ", ".join(f"{count} {reason}" for reason, count in dropped.items())
        told += f"; the first, {self._first_odd}" if self._first_odd else ""
        if not self._counts["kept"]:
            raise MedComfortError(f"{shown}: of {read} records read none can be used ({told}).")
        if sum(count for reason, count in dropped.items() if reason not in DROPS) > MOST_ODD * read:
            raise MedComfortError(
                f"{shown}: more than {MOST_ODD:.0%} of its {read} records do not fit ({told}); mend the file, or set "
                "question_field and answer_field."
            )


def open_source(source: str, per_condition: int = 1, seed: int = 0, **options) -> Clinic | Corpus:
    """The synthetic clinic (`clinic`), or the English dialogues of a corpus; `options` are those of `Corpus`."""
    return Clinic(per_condition, seed) if source == "clinic" else Corpus(source, seed=seed, lang="en", **options)


def _table(counts: dict[str, int]) -> pd.DataFrame:
    return pd.DataFrame(counts.items(), columns=["reason", "count"])


def _cleaned(turns: list[dict]) -> tuple[list[dict], int]:
    """The turns with clean texts, and how many names were removed; texts too long to be used are left as they are."""
    texts = [cleaned(t["content"]) if len(t["content"]) <= 2 * MAX_CHARACTERS else (t["content"], 0) for t in turns]
    done = [{"role": turn["role"], "content": text} for turn, (text, _) in zip(turns, texts, strict=True)]
    return done, sum(removed for _, removed in texts)


def _judge(turns: list[dict], wanted: str) -> tuple[str, str, list[tuple[str, list[str]]]]:
    """Why a dialogue is dropped (empty if it is not), its language, and each turn's role and words."""
    for role, reason in (("user", "empty question"), ("assistant", "empty answer")):
        said = [turn["content"] for turn in turns if turn["role"] == role]
        if not said or not all(said):
            return reason, "", []
    if any(len(turn["content"]) > MAX_CHARACTERS for turn in turns):
        return "too long", "", []
    # Each Chinese character counts as a word.
    spoken = [(t["role"], [part for word in words(t["content"]) for part in _HAN.findall(word)]) for t in turns]
    if any(sum(len(tokens) for role, tokens in spoken if role == who) < low for who, low in MIN_WORDS.items()):
        return "too short", "", []
    if any(len(tokens) > MAX_WORDS for _, tokens in spoken):
        return "too long", "", []
    lang = language(" ".join(turn["content"][:TOLD_BY] for turn in (turns[0], turns[-1])))
    return "" if lang in ((wanted,) if wanted else LANGUAGES) else "unsupported language", lang, spoken


def _details(fields: dict, turns: list[dict], lang: str, facts: str) -> dict:
    """What else a record says; red flags are the record's own, else the answer's sentences of urgent advice."""
    tags = fields.get("topic") or fields.get("tags")
    topic = tags[0] if isinstance(tags, list) and tags else tags
    emotions = _statements(fields, "emotions")
    if unknown := [emotion for emotion in emotions if emotion not in EMOTIONS]:
        raise Odd("odd statements", f"emotions must be some of {', '.join(EMOTIONS)}, not {unknown[0]!r}")
    urgent = (sentence for sentence in sentences(turns[-1]["content"], lang) if is_urgent(sentence))
    return {
        "topic": cleaned(topic)[0] if isinstance(topic, str) else "",
        "urgency": fields["urgency"] if fields.get("urgency") in get_args(Urgency) else "",
        "facts": _statements(fields, facts),
        "red_flags": _statements(fields, "red_flags") if "red_flags" in fields else list(urgent),
        "emotions": emotions,
    }


def _statements(fields: dict, name: str) -> list[str]:
    """A field with a list of statements, or one a line; empty if the record has none."""
    found = fields.get(name) or []
    found = found.splitlines() if isinstance(found, str) else found
    if not isinstance(found, list):
        raise Odd("odd statements", f"{name} must be a list of statements")
    return [text for text in (cleaned(text_of(each, name))[0] for each in found) if text]
