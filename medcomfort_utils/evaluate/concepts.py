"""How a text is read for facts.py: concepts (stems, one for all synonyms), each affirmed or denied by its clause.

The word lists, for English, are in `facts_en.yaml` beside this file.
"""

import re
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import yaml
from rouge_score.tokenizers import DefaultTokenizer

from medcomfort_utils.text import sentences, words

MARKS = frozenset(".,;:!?()")
ALIKE = 0.5  # share of letter triples in common from which two words of one beginning are taken for one


@cache
def lexicon() -> dict:
    """The word lists of `facts_en.yaml`."""
    return yaml.safe_load(Path(__file__).with_name("facts_en.yaml").read_text(encoding="utf-8"))


_tokenizer = DefaultTokenizer(use_stemmer=True)
_SPELLING = (("ae", "e"), ("oe", "e"), ("our", "or"), ("yse", "yze"), ("ise", "ize"), ("isat", "izat"))


@lru_cache(maxsize=1 << 16)
def _stem(word: str) -> str:
    """The Porter stem, British spelling read as American: "haemoglobin" and "hemoglobin" are one."""
    word = word.removesuffix("'s")
    for british, american in _SPELLING:
        word = word.replace(british, american)
    return "".join(_tokenizer.tokenize(word)) or word


@cache
def _listed(name: str) -> frozenset[str]:
    return frozenset(lexicon()[name].split())


@cache
def _stems(name: str) -> frozenset[str]:
    return frozenset(map(_stem, _listed(name)))


@cache
def _phrases() -> dict[str, list[tuple[tuple[str, ...], str]]]:
    """For the first stem of each phrase, longest first: its stems and the concept they stand for."""
    found: dict[str, list] = {}
    for group in lexicon()["synonyms"]:
        said = [tuple(map(_stem, phrase.split())) for phrase in group.split(", ")]
        for phrase in said:
            found.setdefault(phrase[0], []).append((phrase, " ".join(said[0])))
    return {first: sorted(listed, key=lambda entry: -len(entry[0])) for first, listed in found.items()}


def _concepts(stems: list[str]) -> list[tuple[str, bool]]:
    """The concepts of one clause, and whether the clause denies them."""
    found, denied, at = [], False, 0
    while at < len(stems):
        word, length = stems[at], 1
        for phrase, concept in _phrases().get(word, ()):
            if tuple(stems[at : at + len(phrase)]) == phrase:
                found.append(concept)
                length, denied = len(phrase), denied or concept in _stems("negations")
                break
        else:
            if len(word) > 1 and word not in _stems("idle") and not word[0].isdigit():
                found.append(word)
        denied = denied or not _stems("negations").isdisjoint(stems[at : at + length])
        at += length
    return [(concept, denied) for concept in found if concept not in _stems("negations")]


@cache
def _affirming() -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(lexicon()['affirming'])})\b")


@lru_cache(maxsize=1 << 12)
def _sentence(sentence: str) -> tuple[tuple[str, bool], ...]:
    """The concepts of a sentence, clause by clause."""
    clauses: list[list[str]] = [[]]
    for word in words(_affirming().sub(" ", sentence.lower().replace("-", " ")), marks=True):
        if word in MARKS or word in _listed("clauses"):
            clauses.append([])
        if word not in MARKS:
            clauses[-1].append(_stem(word))
    return tuple(concept for clause in clauses for concept in _concepts(clause))


class Reading(NamedTuple):
    """The sentences of a text, and for each concept a bit for each sentence that affirms or that denies it."""

    sentences: tuple[str, ...]
    affirmed: dict[str, int]
    denied: dict[str, int]
    beginnings: dict[str, list[str]]

    def run(self, bits: int) -> list[str]:
        """The sentences whose bits are set."""
        return [sentence for number, sentence in enumerate(self.sentences) if bits >> number & 1]

    def where(self, concept: str) -> int:
        """The bits of the sentences that hold a concept."""
        return self.affirmed.get(concept, 0) | self.denied.get(concept, 0)


@lru_cache(maxsize=64)
def read(text: str) -> Reading:
    """The text taken apart."""
    reading = Reading(tuple(sentences(text)), {}, {}, {})
    for number, sentence in enumerate(reading.sentences):
        for concept, denied in _sentence(sentence):
            bits = reading.denied if denied else reading.affirmed
            bits[concept] = bits.get(concept, 0) | 1 << number
    for concept in reading.affirmed.keys() | reading.denied.keys():
        reading.beginnings.setdefault(concept[:4], []).append(concept)
    return reading


def polarity(text: str) -> dict[str, bool]:
    """The concepts of a text, and whether each is denied where it stands last."""
    return dict(concept for part in sentences(text) for concept in _sentence(part))


@lru_cache(maxsize=1 << 16)
def _triples(word: str) -> frozenset[str]:
    return frozenset(f" {word} "[i : i + 3] for i in range(len(word)))


def _likeness(word: str, other: str) -> float:
    """Dice coefficient of the letter triples: 1 for equal words."""
    return 2 * len(_triples(word) & _triples(other)) / (len(_triples(word)) + len(_triples(other)))


def match(reading: Reading, concept: str) -> tuple[str, float]:
    """The concept of the answer that stands for this one and how alike the two are; 0 if there is none."""
    if reading.where(concept):
        return concept, 1.0
    alike = max(((_likeness(concept, c), c) for c in reading.beginnings.get(concept[:4], ())), default=(0.0, ""))
    return (alike[1], alike[0]) if alike[0] >= ALIKE else ("", 0.0)


@cache
def antonyms() -> dict[str, frozenset[str]]:
    """The concepts that reverse a concept, for those that have any."""
    pairs = [[min(polarity(side)) for side in pair.split(" | ")] for pair in lexicon()["antonyms"]]
    return {one: frozenset(b if a == one else a for a, b in pairs if one in (a, b)) for pair in pairs for one in pair}
