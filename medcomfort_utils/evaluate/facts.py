"""Whether an answer conveys the statements it must convey, in whatever words: a small, transparent measure.

For each pair of an answer and a statement a handful of features between 0 and 1, such as the weighted share of the
statement's words in the best sentence, and a logistic regression over them, learnt by `scripts/train_facts.py`
from data/fact_labels. Words and synonyms, not understanding: a denial in other words ("a waste of time") goes unseen.
"""

import math
import re
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

from medcomfort_utils.evaluate.concepts import Reading, antonyms, match, polarity, read
from medcomfort_utils.paths import MedComfortError, read_json
from medcomfort_utils.quantities import quantities

WEIGHTS = Path(__file__).with_name("facts_weights.json")
FREQUENCIES = Path(__file__).with_name("facts_frequencies.json")

CONVEYED = 0.5  # support from which a statement counts as conveyed
DENIED = 0.4  # share of its words denied or reversed from which a statement that is not conveyed counts as denied
OPPOSED = 0.2  # what is left of the support if another number, or an antonym, stands in place of the fact's
ALIKE = 0.4  # share of the fact's words from which another number in their place opposes it
MOSTLY = 0.6  # share of the fact's words from which an antonym beside them opposes the fact
ASKED = 0.7  # weight of a word that the question already holds

# "Do not ...", "You should never ...".
_FORBIDS = re.compile(r"\W*(?:[\w']+ ){0,3}(?:not|never|cannot|\w+n't)\b", re.I)


def fact_support(
    answers: Sequence[str],
    facts: Sequence[Sequence[str]],
    lang: str = "en",
    questions: Sequence[str] | None = None,
) -> list[list[float]]:
    """The probability (0-1) that each answer conveys each of its own facts; facts of one list share a topic.

    Given `questions`, words that the question holds count less.
    Raises MedComfortError for a language without word lists, unequal lists, and entries that are not text.
    """
    return [list(map(support, rows)) for rows in fact_features(answers, facts, lang, questions)]


def comprehensiveness(answers: Sequence[str], facts: Sequence[Sequence[str]], lang: str = "en") -> list[float]:
    """Share (0-1) of its facts that each answer supports with at least 0.5, K-QA's Comp (Manes et al. 2024).

    nan for an answer without facts.
    """
    return [sum(map(conveys, rows)) / len(rows) if rows else math.nan for rows in fact_features(answers, facts, lang)]


def contradictions(answers: Sequence[str], facts: Sequence[Sequence[str]], lang: str = "en") -> list[int]:
    """How many of its facts each answer denies (K-QA's Hall): a "not", an antonym or another number in their place."""
    return [sum(map(contradicts, rows)) for rows in fact_features(answers, facts, lang)]


def fact_features(
    answers: Sequence[str],
    facts: Sequence[Sequence[str]],
    lang: str = "en",
    questions: Sequence[str] | None = None,
) -> list[list[dict[str, float]]]:
    """What is compared of each answer and fact, by name: shares (0-1) of the fact's words by weight, or of its numbers.

    `sentence`: in the best sentence, and like the fact affirmed or denied there. `answer`: anywhere. `denied`: in the
    best two sentences, but affirmed where the fact denies them or the other way round; `reversed`: an antonym stands
    there instead. `numbers`: given nowhere. `opposed` (0 or 1): none of some kind of the fact's numbers is given, but
    another of that kind in the best two sentences; or the best sentence holds most of the fact's words, and an antonym,
    or it allows what the fact forbids.
    """
    _check(answers, facts, lang, questions)
    questions = [""] * len(answers) if questions is None else questions
    rows = []
    for answer, listed, question in zip(answers, facts, questions, strict=True):
        reading = read(answer)
        found = [_features(reading, fact, _weights(fact, question)) for fact in listed]
        rows.append(found)
    return rows


def _check(answers: Sequence[str], facts: Sequence[Sequence[str]], lang: str, questions: Sequence[str] | None) -> None:
    if lang != "en":
        raise MedComfortError(f"lang: facts can be looked for in English ('en') alone, not in {lang!r}.")
    lists = (answers, facts) if questions is None else (answers, facts, questions)
    if any(isinstance(given, str) or not hasattr(given, "__len__") for given in lists) or len(set(map(len, lists))) > 1:
        raise MedComfortError("fact_support needs a list of answers, and a list of facts (and a question) for each.")
    for name, texts in (("answers", answers), ("questions", questions if questions is not None else ())):
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                raise MedComfortError(f"{name}[{position}] must be text, not {type(text).__name__}.")
    for position, listed in enumerate(facts):
        if isinstance(listed, str) or not hasattr(listed, "__len__") or not all(isinstance(f, str) for f in listed):
            raise MedComfortError(f"facts[{position}] must be a list of texts.")


def numbers(text: str) -> frozenset[str]:
    """The numbers of a text, each with its unit in one form: "400mg" is "400 mg", "two weeks" are "14 day"."""
    return frozenset(f"{q.value} {q.unit}".strip() for q in quantities(text))


def unmatched(text: str, others: Sequence[str]) -> list[str]:
    """The numbers of `text` that none of `others` gives, sorted; where one has no unit, its value is enough."""
    given = frozenset().union(*map(numbers, others))
    bare, values = {n for n in given if " " not in n}, {n.partition(" ")[0] for n in given}
    missing = sorted(numbers(text) - given)
    return [n for n in missing if (n.partition(" ")[0] not in bare) if (" " in n or n not in values)]


@cache
def _model(name: str) -> dict[str, float]:
    return read_json(WEIGHTS, "facts_weights.json")[name]


def support(features: dict[str, float], weights: dict[str, float] | None = None) -> float:
    """Logistic regression, the sigmoid of intercept and weighted features, cut down if the answer opposes the fact."""
    weights = weights or _model("support")
    score = weights["intercept"] + sum(weights[name] * features[name] for name in weights if name != "intercept")
    return (OPPOSED if features["opposed"] else 1.0) / (1 + math.exp(-score))


def conveys(features: dict[str, float]) -> bool:
    """Whether these features tell that the answer conveys the fact."""
    return support(features) >= CONVEYED


def contradicts(features: dict[str, float], weights: dict[str, float] | None = None) -> bool:
    """Whether these features tell of a denial: against the fact, and not conveyed all the same."""
    against = max(features["denied"], features["reversed"]) >= DENIED or bool(features["opposed"])
    return against and support(features, weights) < CONVEYED


@cache
def _frequencies() -> dict:
    return read_json(FREQUENCIES, "facts_frequencies.json")


@lru_cache(maxsize=1 << 16)
def _rarity(concept: str) -> float:
    """Square root of the inverse document frequency over the sentences counted by `scripts/train_facts.py`."""
    counted = _frequencies()
    return math.sqrt(math.log((counted["sentences"] + 1) / (counted["counts"].get(concept, 1) + 1)))


@lru_cache(maxsize=4096)
def _weights(fact: str, question: str) -> dict[str, float]:
    """The weights of a fact's concepts: the rarer, the higher; whatever other facts stand beside it."""
    asked = read(question)
    return {c: _rarity(c) * (ASKED if asked.where(c) else 1.0) for c in sorted(polarity(fact))}


def _best(hits: list[tuple[int, float]], sentences: int, length: int) -> tuple[float, int]:
    """The run of `length` sentences with the most weight of hits: that weight, and the run's bits."""
    runs = (((1 << length) - 1) << start for start in range(max(sentences - length, 0) + 1))
    return max(((sum(weight for bits, weight in hits if bits & run), run) for run in runs), key=lambda found: found[0])


class _Hit(NamedTuple):
    """A concept of the fact that the answer holds: its weight, where it stands, and where as the fact has it."""

    weight: float
    anywhere: int
    agreeing: int


def _hits(reading: Reading, fact: str, weights: dict[str, float]) -> list[_Hit]:
    denies = polarity(fact)
    hits = []
    for concept, weight in weights.items():
        other, alike = match(reading, concept)
        if alike:
            bits = reading.denied if denies[concept] else reading.affirmed
            hits.append(_Hit(weight * alike, reading.where(other), bits.get(other, 0)))
    return hits


def _features(reading: Reading, fact: str, weights: dict[str, float]) -> dict[str, float]:
    total, count = sum(weights.values()) or 1.0, len(reading.sentences)
    hits = _hits(reading, fact, weights)
    sentence, best = _best([(hit.agreeing, hit.weight) for hit in hits], count, 1)
    _, near = _best([(hit.anywhere, hit.weight) for hit in hits], count, 2)
    wanted, missing = numbers(fact), unmatched(fact, reading.sentences)
    run = reading.run(near)
    within = _within(fact, run)  # "take 400 mg" denies nothing of "do not take more than 1200 mg"
    denied = sum(hit.weight for hit in hits if hit.anywhere & near and not hit.agreeing & near)
    opposite = sentence >= MOSTLY * total and any(_reversed(reading, concept, best) for concept in weights)
    allowed = bool(_FORBIDS.match(fact)) and _allows(reading, fact, hits, total)
    return {
        "sentence": sentence / total,
        "answer": sum(hit.weight for hit in hits) / total,
        "denied": 0.0 if within else denied / total,
        "reversed": sum(weights[c] for c in weights if _reversed(reading, c, near)) / total,
        "numbers": len(missing) / len(wanted) if wanted else 0.0,
        "opposed": float(
            opposite
            or allowed
            or (sentence >= ALIKE * total and _other_number(wanted, missing, run) and not within)
            or _other_bound(fact, run)
        ),  # fmt: skip
    }


def _kinds(found: Iterable[str]) -> set[str]:
    """The units of some numbers."""
    return {number.partition(" ")[2] for number in found} - {""}


def _other_number(wanted: frozenset[str], missing: Sequence[str], near: list[str]) -> bool:
    """Whether no number of some kind that the fact wants is given, and the sentences near give another of that kind."""
    lost = _kinds(missing) - _kinds(wanted.difference(missing))
    return bool(lost) and not lost.isdisjoint(_kinds(number for sentence in near for number in numbers(sentence)))


def _within(fact: str, near: list[str]) -> bool:
    """Whether the numbers near keep within a bound that the fact sets: 400 mg are no more than 1200 mg."""
    most = {
        q.unit: float(q.value) for q in quantities(fact) if q.bound[:1] == "<" and q.value.replace(".", "").isdigit()
    }
    said = [
        q for sentence in near for q in quantities(sentence) if q.unit in most and q.value.replace(".", "").isdigit()
    ]
    return bool(said) and all(float(q.value) <= most[q.unit] for q in said)


def _other_bound(fact: str, near: list[str]) -> bool:
    """Whether a number of the fact stands there with another bound alone: at least for at most."""
    said = [q for sentence in near for q in quantities(sentence)]
    bounded = {(q.value, q.unit): q.bound[0] for q in quantities(fact) if q.bound}
    bounds = {key: {q.bound[:1] for q in said if (q.value, q.unit) == key} for key in bounded}
    return any(
        found and "" not in found and sign not in found
        for (key, sign), found in zip(bounded.items(), bounds.values(), strict=True)
    )


def _allows(reading: Reading, fact: str, hits: list[_Hit], total: float) -> bool:
    """Whether one sentence holds most of the fact, affirms all that the fact forbids, and no sentence forbids it."""
    weight, best = _best([(hit.anywhere, hit.weight) for hit in hits], len(reading.sentences), 1)
    said = [match(reading, concept)[0] for concept, denied in polarity(fact).items() if denied]
    affirmed = all(reading.affirmed.get(other, 0) & best and other not in reading.denied for other in said)
    return weight >= MOSTLY * total and bool(said) and affirmed


def _reversed(reading: Reading, concept: str, run: int) -> bool:
    """Whether the run holds an antonym of the concept in its place."""
    return not reading.where(concept) & run and any(reading.where(a) & run for a in antonyms().get(concept, ()))
