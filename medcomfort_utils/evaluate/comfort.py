"""How comforting is an answer: a transparent score from cues of the three mechanisms of empathy in text.

After EPITOME (Sharma et al., "A Computational Approach to Understanding Empathy Expressed in Text-Based Mental Health
Support", EMNLP 2020): emotional reactions, interpretations and explorations, each none (0), weak (1) or strong (2).
The cues in `comfort_en.yaml` are ours. Each sentence is read alone and a mechanism takes its strongest sentence, so
that length and repetition earn nothing. Rules see wording, not sincerity: read the score beside a judge's.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import yaml

from medcomfort_utils.paths import MedComfortError, tidy

LEXICON = Path(__file__).with_name("comfort_en.yaml")
MECHANISMS = ("emotional_reactions", "interpretations", "explorations")

_SHORT = {"'m": " am", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "n't": " not"}
# 's stands for "is" after these words alone: "the patient's" is a possessive.
_CONTRACTION = re.compile(r"\b(it|he|she|that|this|what|here|there|who|how)'s\b|('(?:m|re|ve|ll|d)|n't)\b")
_BARE = {"im": "i am", "ive": "i have", "dont": "do not", "youre": "you are", "thats": "that is"}
_BARE_WORD = re.compile(rf"\b(?:{'|'.join(_BARE)})\b")
_SENTENCE = re.compile(r"[^.!?;\n]+[.!?;]*")
_ASKS = re.compile(r"\?|^\W*(?:please |so |can you |could you )?(?:tell me|i wonder|may i ask|i would like to hear)")


def score(questions: Sequence[str], answers: Sequence[str], lang: str = "en") -> pd.DataFrame:
    """How comforting each answer is, one row a pair, in order.

    Int columns `emotional_reactions`, `interpretations`, `explorations` (0-2 each) and `comfort`, their sum (0-6).
    An answer's sentence that also stands in its question is skipped: an echo is no comfort. Nothing else of the
    question is used, so that an emotional question cannot raise the score of a plain answer.
    Raises MedComfortError for a language without cues, for lists of unequal length and for entries that are not text.
    """
    if lang != "en":
        raise MedComfortError(f"lang: there are comfort cues for 'en' alone, not for {lang!r}; add a lexicon first.")
    _check("questions", questions)
    _check("answers", answers)
    if len(questions) != len(answers):
        raise MedComfortError(f"score needs one question an answer, not {len(questions)} for {len(answers)} answers.")
    levels = [_levels(question, answer) for question, answer in zip(questions, answers, strict=True)]
    table = pd.DataFrame(levels, columns=list(MECHANISMS), dtype=int)
    return table.assign(comfort=table.sum(axis=1).astype(int))


def length_only(answers: Sequence[str]) -> np.ndarray:
    """The baseline beside the score: words in each answer, so that a measure that merely rewards length is noticed."""
    _check("answers", answers)
    return np.array([len(answer.split()) for answer in answers], dtype=int)


def _check(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise MedComfortError(f"{name} must be a list of texts, not one text; put it in a list.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise MedComfortError(f"{name}[{position}] must be text, not {type(text).__name__}.")


def _levels(question: str, answer: str) -> tuple[int, ...]:
    """The strongest level of each mechanism over the answer's own sentences."""
    sentences = set(_sentences(answer)) - set(_sentences(question))
    return tuple(max(levels) for levels in zip((0, 0, 0), *map(_sentence_levels, sentences), strict=True))


def _sentences(text: str) -> list[str]:
    """Sentences in lower case, contractions written out."""
    text = text.lower().replace("\u2019", "'").replace("won't", "will not").replace("can't", "cannot")
    text = _CONTRACTION.sub(lambda match: f"{match[1]} is" if match[1] else _SHORT[match[2]], text)
    text = _BARE_WORD.sub(lambda match: _BARE[match[0]], text)
    return [" ".join(sentence.split()) for sentence in _SENTENCE.findall(text)]


@lru_cache(maxsize=100_000)
def _sentence_levels(sentence: str) -> tuple[int, ...]:
    """The level of each mechanism in one sentence; explorations are looked for in questions and invitations only."""
    remove, cues = _lexicon()
    sentence = remove.sub(" ", sentence)
    asks = _ASKS.search(sentence)
    return tuple(
        _level(sentence, *patterns) if asks or name != "explorations" else 0 for name, patterns in cues.items()
    )


def _level(sentence: str, strong: re.Pattern, weak: re.Pattern) -> int:
    return 2 if strong.search(sentence) else 1 if weak.search(sentence) else 0


@cache
def _lexicon() -> tuple[re.Pattern, dict[str, tuple[re.Pattern, re.Pattern]]]:
    """The compiled lexicon: what to remove, and the strong and weak cues of each mechanism."""
    lexicon = yaml.safe_load(LEXICON.read_text(encoding="utf-8"))
    words = {name: rf"(?:{'|'.join(re.split(r', *', listed))})" for name, listed in lexicon["words"].items()}
    pieces = words | lexicon["spans"]
    cues = {name: tuple(_compile(lexicon[name][level], pieces) for level in ("strong", "weak")) for name in MECHANISMS}
    return _compile(lexicon["remove"], pieces), cues


def _compile(cues: Sequence[str | dict[str, list[str]]], pieces: dict[str, str]) -> re.Pattern:
    """One expression for all cues; each {name} stands for that piece, which may itself hold names."""
    expression = "|".join(_joined(cue) for cue in cues)
    while names := re.findall(r"\{([a-z_]+)\}", expression):
        if names[0] not in pieces:
            raise MedComfortError(f"{tidy(LEXICON)}: there is no list of words {names[0]!r}; define it under words.")
        expression = expression.replace(f"{{{names[0]}}}", pieces[names[0]])
    return re.compile(rf"(?<!\w)(?=\w)(?:{expression})(?!\w)")


def _joined(cue: str | dict[str, list[str]]) -> str:
    """A cue as one pattern: written as such, or as a beginning with its endings."""
    if isinstance(cue, str):
        return cue
    return "|".join(f"{start}(?:{'|'.join(ends)})" for start, ends in cue.items())
