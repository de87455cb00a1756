"""Where a record holds its question and answer: the layouts that corpora of dialogues come in."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from medcomfort_utils.paths import MedComfortError

# Question and answer of known corpora: iCliniq (its `question` is only a title), K-QA, PubMedQA, ChatDoctor and Alpaca,
# and the plain names. Names are compared without regard to case and blanks.
PAIRS = (
    ("question_text", "answer"), ("question", "free_form_answer"), ("question", "long_answer"), ("input", "output"),
    ("instruction", "output"), ("question", "answer"), ("src", "tgt"), ("prompt", "completion"), ("prompt", "response"),
    ("patient", "doctor"),
)  # fmt: skip
FACTS = ("facts", "must_have")
CONVERSATIONS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns")
_ROLE = ("role", "from", "speaker", "author")
_CONTENT = ("content", "value", "text", "utterance", "message")
ROLES = {
    "system": ("system",),
    "user": ("user", "human", "patient", "client", "seeker", "help-seeker", "customer"),
    "assistant": ("assistant", "gpt", "bot", "model", "doctor", "physician", "psychologist", "counselor", "counsellor",
                  "therapist", "supporter"),
}  # fmt: skip
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}


class Odd(ValueError):  # noqa: N818 - the field's word
    """A record that does not fit: `reason` is counted, and the text says what was found there."""

    def __init__(self, reason: str, found: str):
        super().__init__(found)
        self.reason = reason


def named(record: dict) -> dict:
    """The record with its names in lower case, without blanks around them."""
    return {str(name).strip().lower(): value for name, value in record.items()}


def is_record(value: dict) -> bool:
    """Whether an object is itself a record, and no wrapper around records."""
    fields = named(value)
    pairs = any(isinstance(fields.get(q), str) and isinstance(fields.get(a), str) for q, a in PAIRS)
    return pairs or any(_is_talk(fields.get(name)) for name in CONVERSATIONS)


def _is_talk(value: object) -> bool:
    """Whether a value is a list of turns, also as JSON in a string."""
    turns = _decoded(value) if isinstance(value, str) else value
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        return False
    return bool(turns) and all(named(turn).keys() & set(_ROLE) for turn in turns)


def _decoded(text: str) -> list:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return []
    return found if isinstance(found, list) else []


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
            return _turns(fields.get(self.talk))
        question, answer = (self._text(fields, name) for name in (self.question, self.answer))
        if self.instruction:
            question = "\n".join(part for part in (self._text(fields, "instruction"), question) if part.strip())
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def _text(self, fields: dict, name: str) -> str:
        if name not in fields and not self.instruction:
            raise Odd("missing field", f"no field {name!r} (it has {', '.join(fields) or 'none'})")
        return text_of(fields.get(name), name)


def text_of(value: object, name: str) -> str:
    """The text in a field; empty for null, or for NaN where a table had a gap. Raises Odd."""
    if value is None or value != value:
        return ""
    if not isinstance(value, str):
        raise Odd("not text", f"{name} must be text, not {type(value).__name__}")
    return value


def _turns(value: object) -> list[dict]:
    """The turns of a conversation; one side's turns in a row become one, and what follows the last answer is cut."""
    found = _decoded(value) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(turn, dict) for turn in found):
        raise Odd("no turns", "a conversation must be a list of turns, each with a role and a text")
    turns: list[dict] = []
    for turn in map(named, found):
        role = str(next((turn[name] for name in _ROLE if name in turn), "")).strip().lower()
        if role not in _ROLE_OF:
            raise Odd("unknown role", f"role {role!r} is none of {', '.join(_ROLE_OF)}")
        content = next((name for name in _CONTENT if name in turn), "")
        text = text_of(turn.get(content), content or "content")
        if turns and turns[-1]["role"] == _ROLE_OF[role]:
            turns[-1]["content"] += f"\n{text}"
        else:
            turns.append({"role": _ROLE_OF[role], "content": text})
    while turns and turns[-1]["role"] != "assistant" and any(turn["role"] == "assistant" for turn in turns):
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
    listed = ", ".join(names)
    given = {"question_field": question, "answer_field": answer, "facts_field": facts}
    for parameter, name in given.items():
        if name and name.strip().lower() not in names:
            raise MedComfortError(f"{parameter}: no record of {shown} has a field {name!r}; its fields are {listed}.")
    question, answer, facts = (name.strip().lower() for name in given.values())
    facts = facts or next((name for name in FACTS if name in names), "")
    if question and question == answer:
        raise MedComfortError(f"question_field and answer_field must be two fields of {shown}, not both {question!r}.")
    if not (question or answer):
        talks = [name for name in CONVERSATIONS if any(_is_talk(record.get(name)) for record in some)]
        if talks:
            return Layout(talk=talks[0], facts=facts)
    for known in PAIRS:
        pair = (question or known[0], answer or known[1])
        if names.keys() >= set(pair):
            told = {str(record.get("instruction")) for record in some}
            alpaca = pair == ("input", "output") and "instruction" in names and (len(told) > 1 or len(some) == 1)
            return Layout(question=pair[0], answer=pair[1], facts=facts, instruction=alpaca)
    raise MedComfortError(
        f"{shown}: no question and answer could be found among its fields ({listed}); set question_field and "
        f"answer_field, or bring conversations as {CONVERSATIONS[0]}, a list of turns with role and content."
    )
