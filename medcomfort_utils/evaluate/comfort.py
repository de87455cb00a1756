"""How comforting is an answer: three mechanisms of empathy in text, by two small models of our own.

After EPITOME (Sharma et al., "A Computational Approach to Understanding Empathy Expressed in Text-Based Mental Health
Support", EMNLP 2020): emotional reactions, interpretations and explorations, each none (0), weak (1) or strong (2).
A linear model sees each sentence alone and takes the strongest; a sentence encoder reads the whole answer; their
expected levels are averaged. Neither reads the question, or a frightened one would lend its warmth to a plain answer;
only what an answer repeats of its question is left out. Both were learnt by `scripts/train_comfort.py` from
`data/comfort_labels`, replies written and labelled for this repository by a language model. They see wording, not
sincerity: read the score beside a judge's. How far it can be trusted stands in `data/comfort_labels/README.md`.
"""

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from safetensors.torch import load_file

from medcomfort_utils.evaluate.comfort_features import MECHANISMS, features, sentences
from medcomfort_utils.evaluate.encoder import Tensors, log_odds
from medcomfort_utils.paths import MedComfortError

LINEAR = Path(__file__).with_name("comfort_en.json")
ADAPTER = Path(__file__).with_name("comfort_en.safetensors")
MOST = (48, 224)  # tokens of question (in training alone) and answer that the encoder reads


class Linear(NamedTuple):
    """A linear model over the features of one sentence.

    `names`: feature -> row of `weights`. `weights`: array (features, 3, 2), the log odds that each adds to reach
    level 1 and level 2 of each mechanism. `intercepts`: array (3, 2).
    """

    names: dict[str, int]
    weights: np.ndarray
    intercepts: np.ndarray


def score(questions: Sequence[str], answers: Sequence[str], lang: str = "en", fast: bool = False) -> pd.DataFrame:
    """How comforting each answer is, one row a pair, in order.

    Int columns `emotional_reactions`, `interpretations`, `explorations` (0-2 each) and `comfort`, their sum (0-6).
    With `fast` by the linear model alone: thousands of answers a second, but it hears "not" less well.
    Raises MedComfortError for a language without a model, for lists of unequal length, for entries that are not text,
    and if the encoder's package is missing.
    """
    if lang != "en":
        raise MedComfortError(f"lang: there is a comfort model for 'en' alone, not for {lang!r}; train one first.")
    _check("questions", questions)
    _check("answers", answers)
    if len(questions) != len(answers):
        raise MedComfortError(f"score needs one question an answer, not {len(questions)} for {len(answers)} answers.")
    pairs = list(zip(questions, answers, strict=True))
    unlike = list(dict.fromkeys(pairs))  # models that learnt the same say the same
    linear, thresholds = _linear()
    values = expected(unlike, linear, None if fast else _adapter())
    found = levels(values, thresholds["linear" if fast else "both"])
    place = {pair: row for row, pair in enumerate(unlike)}
    table = pd.DataFrame(found[[place[pair] for pair in pairs]], columns=list(MECHANISMS), dtype=int)
    return table.assign(comfort=table.sum(axis=1).astype(int))


def length_only(answers: Sequence[str]) -> np.ndarray:
    """The baseline beside the score: words in each answer, so that a measure that merely rewards length is noticed."""
    _check("answers", answers)
    return np.array([len(answer.split()) for answer in answers], dtype=int)


def expected(
    pairs: Sequence[tuple[str, str]], linear: Linear | None = None, adapter: Tensors | None = None
) -> np.ndarray:
    """Array (pairs, 3): the expected level (0-2) of each mechanism, by one model or as the mean of both."""
    found = []
    own = [own_sentences(question, answer) for question, answer in pairs]
    if linear:
        found.append(np.array([_strongest(linear, said) for said in own]).reshape(-1, 3))
    if adapter:
        read = [("", " ".join(said)) for said in own]
        spoken = np.array([bool(said) for said in own])[:, None]
        found.append(_probability(log_odds(adapter, read, MOST)).sum(axis=-1) * spoken)
    return np.mean(found, axis=0)


def levels(values: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Int array (..., 3) of levels from expected levels (..., 3): how many of its two thresholds each reaches."""
    return (values[..., None] >= thresholds).sum(axis=-1)


def own_sentences(question: str, answer: str) -> list[str]:
    """The answer's sentences, each once, without those that stand in the question: an echo is no comfort."""
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


def _probability(log_odds: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-log_odds))


def _strongest(model: Linear, said: Sequence[str]) -> np.ndarray:
    """Array (3,): the expected level of each mechanism in the strongest sentence; 0 without one."""
    rows = [sorted(model.names[name] for name in features(sentence) if name in model.names) for sentence in said]
    odds = [model.intercepts + model.weights[row].sum(axis=0) for row in rows]
    return _probability(np.array(odds)).sum(axis=-1).max(axis=0) if odds else np.zeros(3)


@cache
def _linear() -> tuple[Linear, dict[str, np.ndarray]]:
    """The committed linear model, stored in whole thousandths, and the thresholds."""
    stored = json.loads(LINEAR.read_text(encoding="utf-8"))
    names = {name: row for row, name in enumerate(stored["weights"])}
    weights = np.array(list(stored["weights"].values())).reshape(-1, 3, 2) / 1000
    thresholds = {name: np.array(stored[name]) for name in ("linear", "both")}
    return Linear(names, weights, np.array(stored["intercepts"]) / 1000), thresholds


@cache
def _adapter() -> Tensors:
    return {name: tensor.float() for name, tensor in load_file(ADAPTER).items()}


def _check(name: str, texts: Sequence[str]) -> None:
    if isinstance(texts, str):
        raise MedComfortError(f"{name} must be a list of texts, not one text; put it in a list.")
    if not hasattr(texts, "__len__"):
        raise MedComfortError(f"{name} must be a list of texts, not {type(texts).__name__}.")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise MedComfortError(f"{name}[{position}] must be text, not {type(text).__name__}.")
