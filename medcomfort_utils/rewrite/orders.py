"""Orders to the machine in a patient's text ("ignore your instructions ..."), and whether a rewrite obeys one.

A sentence is an order by a sign that a machine is addressed, and so is one that goes on from it. Where there is one, no
new sentence of the rewrite may say what was ordered, be of another kind than the dialogue (code, capitals), or speak of
nothing that was spoken of. Where there is none, no sentence of the answer may stand apart from all else and echo what
may be one. The signs, for English, are under `orders` in `gates_en.yaml`.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

from medcomfort_utils.rewrite.prompts import FOLDER
from medcomfort_utils.rewrite.wording import (
    comforts,
    content,
    cues,
    is_foreign,
    lexicon,
    new_sentences,
    parts,
    pattern,
    plain,
    warms,
)

SHARE = 0.5  # of a sentence's content stems that are new to the dialogue, so many from the order are obedience
RUN = 3  # words in a row that no sentence shares with the order, if one of them is new to the dialogue
ALIEN = 3  # content stems, none of them known, that no sentence may have
PROMPT_RUN = 4  # words in a row, two of them content, that no sentence shares with the prompts
_FIGURE = re.compile(r"\d(?:[\d.,:/-]*\d)?")


class Demand(NamedTuple):
    """The plain words of all orders, the stems and figures that they alone have, and the stems of all else."""

    words: str
    payload: frozenset[str]
    figures: frozenset[str]
    known: frozenset[str]


@cache
def _sign(kind: str) -> re.Pattern:
    written = lexicon()["orders"][kind]
    return re.compile("|".join(written), re.I | re.M) if kind in ("marks", "abuse") else pattern(written)


@cache
def _odd() -> dict[str, re.Pattern]:
    return {kind: re.compile(written) for kind, written in lexicon()["orders"]["odd"].items()}


@cache
def _listed(name: str) -> frozenset[str]:
    return frozenset(lexicon()["orders"][name].split())


def _order(sentence: str, goes_on: bool) -> str:
    """The plain words of a sentence from the first sign of an order on; empty if it gives none."""
    said = plain(sentence)
    if _sign("marks").search(sentence) or (goes_on and _sign("goes_on").match(said)):
        return said or sentence
    found = _sign("cues").search(said)
    return said[found.start() :] if found else ""


@lru_cache(maxsize=1024)
def orders(text: str) -> dict[str, str]:
    """The sentences of a text that give orders to a machine, each with the plain words that do."""
    found, before = {}, ""
    for sentence in parts(text):
        told = plain(sentence) if before.endswith(":") else _order(sentence, goes_on=bool(before))
        before = sentence if told else ""
        if told:
            found[sentence] = told
    return found


@cache
def _is_idle(word: str) -> bool:
    """Whether a word says nothing of what is ordered: it is about talking, a number, or a feeling."""
    feelings = (cues("emotions", emotion) for emotion in lexicon()["emotions"])
    return word in _listed("talk") or word in lexicon()["number_words"] or any(f.fullmatch(word) for f in feelings)


def _demand(question: str, answer: str) -> Demand:
    told = orders(question)
    words = " ".join(told.values())
    else_said = "\n".join([part for part in parts(question) if part not in told] + [answer])
    known, figures = content(else_said), set(_FIGURE.findall(words)) - set(_FIGURE.findall(else_said))
    payload = content(" ".join(word for word in words.split() if not _is_idle(word))) - known
    return Demand(f" {words} ", payload, frozenset(figures), known)


def _runs(text: str, length: int) -> set[str]:
    words = plain(text).split()
    return {f" {' '.join(words[i : i + length])} " for i in range(len(words) - length + 1)}


@cache
def _prompts() -> set[str]:
    texts = (path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.j2")))
    runs = set().union(*(_runs(text, PROMPT_RUN) for text in texts))
    return {run for run in runs if len(content(run)) > 1}


def _says(sentence: str, demand: Demand) -> bool:
    """Whether a sentence is a piece of the order, or takes from it a figure, words in a row, or much of what is new."""
    said = plain(sentence)
    if said and f" {said} " in demand.words or demand.figures.intersection(_FIGURE.findall(sentence)):
        return True
    if any(run in demand.words and content(run) - demand.known for run in _runs(sentence, RUN)):
        return True
    new = content(sentence) - demand.known
    return len(new & demand.payload) >= max(1, SHARE * len(new))


def _leaks(sentence: str, source: str) -> bool:
    """Whether a sentence holds a link that the source has not, or words of the prompts."""
    link = _odd()["link"]
    return bool(link.search(sentence) and not link.search(source)) or not _prompts().isdisjoint(
        _runs(sentence, PROMPT_RUN)
    )


def _is_odd(sentence: str, source: str) -> bool:
    """Whether a sentence has code, pictures, verse, capitals or another language, and the source nothing like it."""
    return is_foreign(sentence) or any(
        odd.search(sentence) and not any(map(odd.search, parts(source))) for odd in _odd().values()
    )


def _stands_apart(sentence: str, source: str) -> bool:
    """Whether a sentence is not to the patient, without comfort, and about nothing in the source."""
    apart = _listed("touches").isdisjoint(plain(sentence).split()) and not content(sentence) & content(source)
    return apart and not comforts(sentence) and not warms(sentence, source)


def _is_alien(sentence: str, source: str, demand: Demand) -> bool:
    """Whether a sentence is abuse, or speaks of nothing in the dialogue."""
    stems = content(sentence)
    if _sign("abuse").search(sentence):
        return True
    return len(stems) >= ALIEN and not stems & demand.known and _stands_apart(sentence, source)


@lru_cache(maxsize=1024)
def _hints(question: str) -> tuple[frozenset[str], ...]:
    """The content stems of each sentence that may be an order."""
    return tuple(content(part) for part in parts(question) if not _listed("hints").isdisjoint(plain(part).split()))


def _echoes(sentence: str, question: str, source: str) -> bool:
    """Whether a sentence that stands apart has most of its words from one that may be an order."""
    stems = content(sentence)
    if not stems or not any(len(stems & hint) >= SHARE * len(stems) for hint in _hints(question)):
        return False
    return _listed("points").isdisjoint(plain(sentence).split()) and _stands_apart(sentence, source)


def _only_repeats(sentence: str, source: str, rewritten: str) -> bool:
    """Whether a sentence of the rewritten question is an order that the source gives as often."""
    said = plain(sentence)
    return sentence in orders(rewritten) and plain(rewritten).count(said) <= max(1, plain(source).count(said))


def _carried_out(question: str, answer: str, new_question: str, new_answer: str) -> Iterator[str]:
    demand = _demand(question, answer)
    for sentence in new_sentences(question, new_question):
        told = _says(sentence, demand) or _is_odd(sentence, question)
        if told and not _only_repeats(sentence, question, new_question):
            yield sentence
    for sentence in new_sentences(answer, new_answer):
        if _says(sentence, demand) or _is_odd(sentence, answer) or _is_alien(sentence, answer, demand):
            yield sentence


def obeyed(question: str, answer: str, new_question: str, new_answer: str) -> list[str]:
    """The new sentences of a rewrite that carry out an order in `question`; to reword the order there is none."""
    found = list(_carried_out(question, answer, new_question, new_answer)) if orders(question) else []
    added = new_sentences(answer, new_answer)
    found += [sentence for sentence in added if _leaks(sentence, answer) or _echoes(sentence, question, answer)]
    return list(dict.fromkeys(found))
