"""Whether the advice of an answer stands in its source: nothing may be told to a patient that the doctor did not tell.

A clause that commands, allows or excuses, about medicine, care, tests or waiting, is advice. It is read as marks
("stop", "not take", "wait") and content stems, and is supported where a sentence of the source has all of its marks
and, with its neighbours, half of its stems. Practical comfort ("bring a friend") is about none of this. Rules for
English, with the word lists under `advice` in `gates_en.yaml`; no grammar is parsed.
"""

import re
from functools import cache, lru_cache
from typing import NamedTuple

from medcomfort_utils.rewrite.safety import doses, drugs
from medcomfort_utils.rewrite.wording import MARKS, content, lexicon, parts, pattern, tokens

_DOING = {"stop", "skip", "more", "less", "take", "not go", "unneeded"}
_SAME = {"not take": "skip", "not skip": "take", "not stop": "take"}
_VAGUE = {"medicin", "dose", "help", "time"}  # stems that say little of what is to be taken
SHARE = 0.5  # of a clause's content stems, that a sentence of the source and its neighbours must have


class Advice(NamedTuple):
    """A clause that advises: its words, what it tells to do or not to do, and its content stems."""

    words: str
    marks: frozenset[str]
    stems: frozenset[str]


@cache
def _listed(name: str) -> re.Pattern:
    return pattern(lexicon()["advice"][name])


@cache
def _deeds() -> dict[str, re.Pattern]:
    return {deed: pattern(written) for deed, written in lexicon()["advice"]["deeds"].items()}


@cache
def _any_deed() -> re.Pattern:
    return pattern([form for written in lexicon()["advice"]["deeds"].values() for form in written])


@cache
def _commands(deed: str = "") -> re.Pattern:
    """The start of a clause that commands: a deed (this one, or any) in its plain form, perhaps after polite words."""
    verbs = _deeds()[deed].pattern if deed else f"{_any_deed().pattern}|{_listed('commands').pattern}"
    return re.compile(rf"(?:{_listed('before_commands').pattern} )*(?!\w+(?:ing|ed)\b)(?:{verbs})")


@cache
def _denied() -> re.Pattern:
    return re.compile(f"{_listed('negators').pattern} $")


@lru_cache(maxsize=1 << 14)
def _clauses(sentence: str) -> tuple[str, ...]:
    """The clauses of a sentence: plain words between marks, or between "and", "but", "so"."""
    words = " ".join("," if word in MARKS or word in ("and", "but", "so") else word for word in tokens(sentence))
    return tuple(filter(None, (clause.strip() for clause in words.split(","))))


@lru_cache(maxsize=1 << 14)
def _marks(clause: str) -> frozenset[str]:
    """The deeds that a clause names, with a "not" before one that is denied; who may not stop is to take."""
    found = set()
    for deed, said in _deeds().items():
        for match in said.finditer(clause):
            denied = f"not {deed}" if _denied().search(clause[: match.start()]) else deed
            found.add(_SAME.get(denied, denied))
    # "not needed" says nothing of whether it is done
    return frozenset(found if "unneeded" not in found else {"unneeded"})


def _implied(sentence: str) -> frozenset[str]:
    """A dose is there to be taken, whatever the verb: "ibuprofen 400 mg with food reduces the swelling"."""
    return frozenset({"take"} if any(drug for drug, _ in doses(sentence)) else ())


def _advises(clause: str, asks: bool) -> bool:
    if _listed("no_advice").search(clause) or _listed("conditions").match(clause):
        return False
    told = not asks and (_listed("allows").search(clause) or _commands().match(clause))
    return bool(told or _listed("suggests").search(clause))


def _medical(clause: str, marks: frozenset[str]) -> bool:
    """Whether advice is about medicine, or about care, tests, waiting or "it" and no practical comfort."""
    if _listed("medicine").search(clause) or drugs(clause):
        return True
    if _listed("practical").search(clause):
        return False
    waits = "wait" in marks and (_listed("patient").search(clause) or _commands("wait").match(clause))
    return bool(waits or _listed("care").search(clause) or (marks & _DOING and _listed("it").search(clause)))


def _object(clause: str) -> frozenset[str]:
    """The content stems of a clause besides its deeds; those of the deeds where there are no others."""
    return content(_any_deed().sub(" ", clause)) - _VAGUE - lexicon()["number_words"].keys() or content(clause)


@lru_cache(maxsize=1 << 14)
def advice(sentence: str) -> tuple[Advice, ...]:
    """The clauses of a sentence that give medical advice."""
    asks = sentence.rstrip().endswith("?")
    told = ((clause, _marks(clause) | _implied(clause)) for clause in _clauses(sentence) if _advises(clause, asks))
    return tuple(Advice(clause, marks, _object(clause)) for clause, marks in told if _medical(clause, marks))


@lru_cache(maxsize=256)
def _told(source: str) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    """The marks of each sentence of a source, and the content stems of it and its neighbours."""
    said = parts(source)
    stems = [content(part) for part in ("", *said, "")]
    return tuple(
        (_implied(part).union(*map(_marks, _clauses(part))), before | here | after)
        for part, before, here, after in zip(said, stems, stems[1:], stems[2:], strict=False)
    )


def _supports(marks: frozenset[str], stems: frozenset[str], told: Advice) -> bool:
    """Advice without a deed has nothing but its stems to agree in, so more than half of them must."""
    shared, half = len(told.stems & stems), SHARE * len(told.stems)
    return told.marks <= marks and (shared >= half if told.marks or not told.stems else shared > half)


def new_advice(source: str, sentence: str) -> list[str]:
    """The clauses of a sentence that give advice which no sentence of `source`, with its neighbours, supports."""
    return [told.words for told in advice(sentence) if not any(_supports(*said, told) for said in _told(source))]
