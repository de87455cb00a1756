"""What the rewriting model is asked: Jinja files beside this one, one a task and language, each with its version.

Patient text is data. It stands between two lines that hold a marker made from the text's own hash, which the text
cannot contain, and the instructions say not to follow what stands there.
"""

import hashlib
import re
from functools import cache
from pathlib import Path

import yaml
from jinja2 import Environment, StrictUndefined, Template

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue
from medcomfort_utils.rewrite import compose

FOLDER = Path(__file__).parent
INTENSITIES = (1, 2, 3)
_TEXT = {"type": "string"}


def _object(**properties: dict) -> dict:
    """The schema of an object that has exactly these properties, as strict structured output wants it."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


_KEEP = {"type": "array", "items": {"type": "integer"}}
_SEGMENT = {"anyOf": [_object(say=_TEXT), _object(keep=_KEEP)]}
SCHEMAS = {
    "question": _object(question=_TEXT),
    "answer": _object(segments={"type": "array", "items": _SEGMENT}),
    "verdict": _object(
        facts={"type": "array", "items": {"type": "string", "enum": ["stated", "missing", "changed"]}},
        **dict.fromkeys(("message_changes", "new_advice", "promises"), {"type": "array", "items": _TEXT}),
        **dict.fromkeys(("emotion_shown", "comfort_given"), {"type": "boolean"}),
        orders_followed={"type": "array", "items": _TEXT},
    ),
}


@cache
def _file(task: str, lang: str) -> str:
    """The text of a prompt file, or a MedComfortError if there is none in that language."""
    path = FOLDER / f"{task}_{lang}.md.j2"
    if not path.is_file():
        known = sorted(p.name.removeprefix(f"{task}_").removesuffix(".md.j2") for p in FOLDER.glob(f"{task}_*.md.j2"))
        raise MedComfortError(f"There is no prompt to rewrite in the language '{lang}'; there is {', '.join(known)}.")
    return path.read_text(encoding="utf-8")


@cache
def _template(task: str, lang: str) -> Template:
    return Environment(undefined=StrictUndefined, autoescape=False).from_string(_file(task, lang))


@cache
def _words(lang: str) -> dict:
    return yaml.safe_load((FOLDER / f"emotions_{lang}.yaml").read_text(encoding="utf-8"))


def feeling_words(lang: str = "en") -> dict[str, str]:
    """Plain words for each emotion, as the prompt for questions names them, with commas between."""
    return _words(lang)["words"]


@cache
def version(task: str, lang: str = "en") -> str:
    """The version that a prompt file states in its first line."""
    stated = re.match(r"\{#- version: (\S+) -#\}", _file(task, lang))
    if not stated:
        raise MedComfortError(f"{task}_{lang}.md.j2 must state its version in its first line.")
    return f"{task}-{lang}-{stated[1]}"


def intensity_of(dialogue: Dialogue, emotion: str) -> int:
    """1 (mild) to 3 (strong), evenly spread by hash: the same on every machine."""
    return INTENSITIES[int(hashlib.sha256(f"{dialogue.id}:{emotion}".encode()).hexdigest()[:8], 16) % len(INTENSITIES)]


def _marker(*texts: str) -> str:
    """A line that none of the texts holds, since it is made from their hash."""
    return f"====== {hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:12]} ======"


def _messages(task: Template, **values) -> tuple[dict, ...]:
    """The two turns of a prompt file; its headings stand before any text of the patient's."""
    _, system, user = re.split(r"^## (?:system|user)\n", task.render(**values), maxsplit=2, flags=re.M)
    return {"role": "system", "content": system.strip()}, {"role": "user", "content": user.strip()}


def question_messages(dialogue: Dialogue, emotion: str) -> tuple[dict, ...]:
    """The chat messages that ask for the last question of `dialogue` out of `emotion`."""
    task, intensity = _template("question", dialogue.lang), intensity_of(dialogue, emotion)
    told = _words(dialogue.lang)
    values = {"emotion": emotion, "meaning": told["meaning"][emotion], "words": told["words"][emotion]}
    values |= {"intensity": intensity, "strength": told["strength"][intensity], "question": dialogue.question}
    return _messages(task, marker=_marker(dialogue.question), **values)


def answer_messages(dialogue: Dialogue, question: str, emotion: str) -> tuple[dict, ...]:
    """The chat messages that ask for a soothing answer to `question`; `emotion` is empty for a neutral one."""
    task, numbered = _template("answer", dialogue.lang), compose.numbered(dialogue)
    values = {"emotion": emotion, "meaning": _words(dialogue.lang)["meaning"].get(emotion, ""), "question": question}
    values |= {"numbered": numbered, "flagged": compose.red_flagged(dialogue), "first": compose.urgent_now(dialogue)}
    values |= {"short": compose.SHORT, "most": compose.MOST_SAID, "marker": _marker(question, dialogue.answer)}
    return _messages(task, **values)


def verdict_messages(dialogue: Dialogue, question: str, answer: str, emotion: str) -> tuple[dict, ...]:
    """The chat messages that ask what is wrong with a rewritten question and answer; `emotion` may be empty."""
    facts = "\n".join(f"{number}. {fact}" for number, fact in enumerate(dialogue.facts, 1)) or "(none)"
    texts = {"Patient's message, source": dialogue.question, "Doctor's answer, source": dialogue.answer}
    texts |= {"Facts": facts, "Patient's message, rewritten": question, "Doctor's answer, rewritten": answer}
    meaning = _words(dialogue.lang)["meaning"].get(emotion, "")
    values = {"texts": texts.items(), "emotion": emotion, "meaning": meaning, "marker": _marker(*texts.values())}
    return _messages(_template("verdict", dialogue.lang), **values)
