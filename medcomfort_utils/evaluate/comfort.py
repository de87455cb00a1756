"""How comforting is an answer: three mechanisms of empathy in text, seen by a small linear model of our own.

After EPITOME (Sharma et al., "A Computational Approach to Understanding Empathy Expressed in Text-Based Mental Health
Support", EMNLP 2020): emotional reactions, interpretations and explorations, each none (0), weak (1) or strong (2).
The weights in `comfort_en.json` were learned by `comfort_model` from `data/comfort_labels`, replies written and
labelled for this repository by a language model. Each sentence is scored alone and a mechanism takes its strongest
sentence, so that length and repetition earn nothing. The model sees wording, not sincerity: read the score beside a
judge's. How far it can be trusted stands in `data/comfort_labels/README.md`.
"""

import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from medcomfort_utils.evaluate.comfort_features import MECHANISMS, features, sentences
from medcomfort_utils.paths import MedComfortError

WEIGHTS = Path(__file__).with_name("comfort_en.json")


class Model(NamedTuple):
    """A linear model over the features of one sentence.

    `names`: feature -> row of `weights`. `weights`: array (features, 3, 2), the log odds that each adds to reach
    level 1 and level 2 of each mechanism. `intercepts`: array (3, 2). `thresholds`: array (3, 2), the expected levels
    from which 1 and 2 are given.
    """

    names: dict[str, int]
    weights: np.ndarray
    intercepts: np.ndarray
    thresholds: np.ndarray


def score(questions: Sequence[str], answers: Sequence[str], lang: str = "en") -> pd.DataFrame:
    """How comforting each answer is, one row a pair, in order.

    Int columns `emotional_reactions`, `interpretations`, `explorations` (0-2 each) and `comfort`, their sum (0-6).
    An answer's sentence that also stands in its question is skipped: an echo is no comfort. Nothing else of the
    question is used, so that an emotional question cannot raise the score of a plain answer.
    Raises MedComfortError for a language without a model, for lists of unequal length and for entries that are not
    text.
    """
    if lang != "en":
        raise MedComfortError(f"lang: there is a comfort model for 'en' alone, not for {lang!r}; train one first.")
    _check("questions", questions)
    _check("answers", answers)
    if len(questions) != len(answers):
        raise MedComfortError(f"score needs one question an answer, not {len(questions)} for {len(answers)} answers.")
    rows = [_answer_levels(question, answer) for question, answer in zip(questions, answers, strict=True)]
    table = pd.DataFrame(np.reshape(rows, (-1, 3)), columns=list(MECHANISMS), dtype=int)
    return table.assign(comfort=table.sum(axis=1).astype(int))


def length_only(answers: Sequence[str]) -> np.ndarray:
    """The baseline beside the score: words in each answer, so that a measure that merely rewards length is noticed."""
    _check("answers", answers)
    return np.array([len(answer.split()) for answer in answers], dtype=int)


def own_sentences(question: str, answer: str) -> list[str]:
    """The answer's sentences, each once, without those that stand in the question."""
    asked = set(sentences(question))
    return [sentence for sentence in dict.fromkeys(sentences(_once(answer))) if sentence not in asked]


def _once(text: str) -> str:
    """The text, or its beginning if the rest only repeats that: without a mark between, both would be one sentence."""
    text = text.strip()
    for gap in (" ", ""):
        period = (text + gap + text + gap).find(text + gap, 1)
        if period < len(text + gap) and (gap or " " in text[:period]):
            return text[:period]
    return text


def expected_levels(model: Model, sentence: str) -> np.ndarray:
    """Array (3,): the expected level of each mechanism in one sentence, between 0 and 2."""
    present = sorted(model.names[name] for name in features(sentence) if name in model.names)
    log_odds = model.intercepts + model.weights[present].sum(axis=0)
    return (1 / (1 + np.exp(-log_odds))).sum(axis=1)


def levels(expected: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Int array (..., 3) of levels from expected levels (..., 3): how many of its two thresholds each reaches."""
    return (expected[..., None] >= thresholds).sum(axis=-1)


def _check(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise MedComfortError(f"{name} must be a list of texts, not one text; put it in a list.")
    if not hasattr(texts, "__len__"):
        raise MedComfortError(f"{name} must be a list of texts, not {type(texts).__name__}.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise MedComfortError(f"{name}[{position}] must be text, not {type(text).__name__}.")


def _answer_levels(question: str, answer: str) -> np.ndarray:
    """Array (3,): the strongest level of each mechanism over the answer's own sentences."""
    found = [_sentence_levels(sentence) for sentence in own_sentences(question, answer)]
    return np.max(found, axis=0) if found else np.zeros(3, dtype=int)


@lru_cache(maxsize=20_000)
def _sentence_levels(sentence: str) -> np.ndarray:
    model = _model()
    return levels(expected_levels(model, sentence), model.thresholds)


@cache
def _model() -> Model:
    """The committed model; its weights are stored as whole thousandths."""
    stored = json.loads(WEIGHTS.read_text(encoding="utf-8"))
    names = {name: row for row, name in enumerate(stored["weights"])}
    weights = np.array(list(stored["weights"].values())).reshape(-1, 3, 2) / 1000
    return Model(names, weights, np.array(stored["intercepts"]) / 1000, np.array(stored["thresholds"]))
