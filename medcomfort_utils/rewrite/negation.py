"""What a text denies or forbids: "no fever", "never smoked", "do not stop bisoprolol", and whether a rewrite keeps it.

A denial is a negator and the content stems of its clause, after it ("no fever, cough or rash") or before it ("an MRI is
not needed"). Rules for English, with the word lists under `denial` in `gates_en.yaml`; no grammar is parsed.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import chain
from typing import NamedTuple

from medcomfort_utils.rewrite.wording import MARKS, content, lexicon, new_sentences, parts, stem, tokens

AGREE = 0.5  # share of the denied stems that another denial must name to be the same one
ALIKE = 0.75  # share of their content stems that two clauses have in common if one is the other reworded
_FARTHEST = 6  # content stems after a negator that it denies, at most
_IT = re.compile(r"\bstop\w* (?:it|them|this|that)\b")
_SEGMENT = re.compile(r"[;:]")


class Denial(NamedTuple):
    """What a negator denies: the words, their stems, whether it is a plain "not", and whether it must be kept."""

    words: str
    stems: frozenset[str]
    hard: bool
    firm: bool


@cache
def _listed(kind: str) -> frozenset[str]:
    return frozenset(lexicon()["denial"][kind].split())


def _after(words: tuple[str, ...], negator: int) -> tuple[list[str], int]:
    """The content stems after a negator up to the end of its clause, and the index where that is."""
    found, at = [], negator + 1
    listing = words[negator] in ("no", "without", "never", "avoid")
    while at < len(words) and len(found) < _FARTHEST:
        word, following = words[at], words[at + 1 : at + 5]
        if word in MARKS and not (word == "," and listing and {"or", "nor"}.intersection(following)):
            break
        if word == "and" and not (listing and following and stem(following[0])):
            break
        if word in _listed("firm") or (word in _listed("ends") and words[at - 1] != "such"):
            break
        if found and word in _listed("auxiliaries"):  # "no limp is typical": the limp alone is denied
            break
        found += [stem(word)] if stem(word) else []
        at += 1
    return found, at


def _spare(words: tuple[str, ...]) -> list[str]:
    """What a denial without a content stem is about: its figures and verbs of dosing ("do not take 400 mg of it")."""
    return [word[:3] if word.isalpha() else word for word in words if word[0].isdigit() or word in _listed("dosing")]


def _before(words: tuple[str, ...], negator: int) -> list[str]:
    """The last content stems before a negator in the same clause: "an MRI is not needed", "decaf is best avoided"."""
    verb = negator
    while verb and words[verb - 1] in _listed("auxiliaries") | {"to", "best", "better"}:
        verb -= 1
    if verb and words[verb - 1] in ("and", "or"):  # "... and do not stop it" has no subject
        return []
    return [found for found in map(stem, words[_clause(words, verb) : verb]) if found][-4:]


def _clause(words: tuple[str, ...], at: int) -> int:
    """The index where the clause begins that holds `at`."""
    return next((i + 1 for i in range(at - 1, -1, -1) if words[i] in MARKS or words[i] in _listed("breaks")), 0)


def _is_firm(words: tuple[str, ...], negator: int) -> bool:
    """Not an idiom ("not sure"), not an ability ("cannot sleep"), not under a condition ("if it does not stop")."""
    if words[negator] not in _listed("firm") or _listed("idle").intersection(words[negator + 1 : negator + 2]):
        return False
    if _listed("able").intersection(words[max(negator - 1, 0) : negator]):
        return False
    start = next((i for i in range(negator - 1, -1, -1) if words[i] in MARKS), -1)
    return not _listed("conditions").intersection(words[start + 1 : negator])


@cache
def _negators() -> frozenset[str]:
    return _listed("firm") | _listed("telling") | _listed("soft")


def _denial(words: tuple[str, ...], at: int) -> Denial | None:
    """What the negator at an index denies; None if it denies no content word."""
    word = words[at]
    after, end = _after(words, at)
    passive = word in _listed("firm") or word in _listed("passive")
    takes_subject = passive and (not after or words[at - 1] in _listed("auxiliaries"))
    after = after or _spare(words[at:end])
    stems = frozenset(after + _before(words, at) if takes_subject else after)
    firm = bool(after) and _is_firm(words, at)
    return Denial(" ".join(words[at:end]), stems, word not in _listed("soft"), firm) if stems else None


@lru_cache(maxsize=4096)
def denials(text: str) -> tuple[Denial, ...]:
    """What is denied or forbidden in a text, in order."""
    words = tokens(text)
    return tuple(filter(None, (_denial(words, at) for at, word in enumerate(words) if word in _negators())))


def _same(denial: Denial, other: Denial, around: frozenset[str]) -> bool:
    """Whether `other` denies the same: half of its stems, or some of these alone with half of them `around`.

    Of "do not stop X" it must deny both the stopping and X (or "it").
    """
    wanted = denial.stems
    if "stop" in wanted:
        if "stop" not in other.stems:
            return False
        wanted = frozenset({"stop"}) if _IT.search(other.words) else (wanted - {"stop"} or wanted)
    shared, enough = len(wanted & other.stems), AGREE * len(wanted)
    if not other.hard:  # "avoid", "stop": less of a sign than "not"
        return shared > enough
    nothing_else = shared >= AGREE * len(other.stems)
    return shared >= enough or (shared > 0 and nothing_else and len(wanted & around) >= enough)


def _goes_on(denial: Denial, segment: str) -> bool:
    """Whether "do not stop X" has become "keep taking X"."""
    rest = denial.stems - {"stop"}
    if not rest or rest == denial.stems or _listed("going_on").isdisjoint(tokens(segment)):
        return False
    return len(rest & content(segment)) >= AGREE * len(rest)


def _segments(text: str) -> Iterator[str]:
    return (segment for part in parts(text) for segment in _SEGMENT.split(part))


class _Clause(NamedTuple):
    """A clause: its words, its content stems, what each "not" in it stands before, and if it may deny otherwise."""

    words: str
    stems: frozenset[str]
    denied: tuple[frozenset[str], ...]
    hints: bool


@lru_cache(maxsize=1 << 14)
def _clauses(sentence: str) -> tuple[_Clause, ...]:
    """The clauses of a sentence with two content stems or more, and the sentence itself."""
    words = tokens(sentence)
    ends = [i for i, word in enumerate(words) if word in MARKS or word in _listed("breaks")]
    spans = dict.fromkeys([words[i:j] for i, j in zip([0, *ends], [*ends, len(words)], strict=True)] + [words])
    return tuple(clause for clause in map(_clause_of, spans) if len(clause.stems) > 1)


def _clause_of(words: tuple[str, ...]) -> _Clause:
    negators = (at for at, word in enumerate(words) if word in _listed("firm") or word in _listed("telling"))
    near = tuple(_next_to(words, at) for at in negators)
    said = " ".join(word for word in words if word not in MARKS)
    hints = not _listed("instead_of_not").isdisjoint(words)
    return _Clause(said, frozenset(map(stem, words)) - {""}, near, hints)


def _next_to(words: tuple[str, ...], negator: int) -> frozenset[str]:
    """The content stems of the three words after a negator, or of those before one that ends a clause."""
    if _listed("idle").intersection(words[negator + 1 : negator + 2]):
        return frozenset()
    if not words[negator + 1 :] or words[negator + 1] in MARKS:
        return frozenset(list(filter(None, map(stem, words[_clause(words, negator) : negator])))[-1:])
    end = next((i for i in range(negator + 1, len(words)) if words[i] in MARKS), len(words))
    return frozenset(map(stem, words[negator + 1 : min(end, negator + 4)])) - {""}


def turned(denying: str, affirming: str) -> list[str]:
    """The clauses of one text that deny what the other affirms in nearly the same words ("without food")."""
    reworded = chain.from_iterable(map(_clauses, new_sentences(affirming, denying)))
    clauses, found = [clause for clause in reworded if any(clause.denied)], []
    if not clauses:
        return found
    others, still = _read(affirming), frozenset().union(*(denial.stems for denial in denials(affirming)))
    said = set(others)
    for clause in (clause for clause in clauses if clause not in said):
        near = [other for other in others if _alike(clause.stems, other.stems)]
        if any(other.hints or len(other.denied) >= len(clause.denied) for other in near):
            continue
        if any(each and each <= other.stems and not each <= still for each in clause.denied for other in near):
            found.append(clause.words)
    return list(dict.fromkeys(found))


def _alike(stems: frozenset[str], others: frozenset[str]) -> bool:
    return len(stems & others) >= ALIKE * max(len(stems), len(others))


@lru_cache(maxsize=1024)
def _read(text: str) -> tuple[_Clause, ...]:
    return tuple(chain.from_iterable(map(_clauses, parts(text))))


def lost_denials(source: str, rewritten: str) -> list[str]:
    """The firm denials of `source` that `rewritten` does not make, as words of the source."""
    known = set(denials(rewritten))  # what stands there word for word need not be looked for
    wanted = [denial for denial in denials(source) if denial.firm and denial not in known]
    if not wanted:
        return []
    said = [(segment, denials(segment), content(segment)) for segment in _segments(rewritten)]
    return [
        denial.words
        for denial in wanted
        if not any(_same(denial, other, around) for _, others, around in said for other in others)
        and not any(_goes_on(denial, segment) for segment, _, _ in said)
    ]


@lru_cache(maxsize=1024)
def _affirmed(source: str) -> frozenset[str]:
    denied = denials(source)
    said = content(source).union(_spare(tokens(source)))
    return said.difference(*(denial.stems for denial in denied), *(_spare(tokens(denial.words)) for denial in denied))


def new_denials(source: str, rewritten: str) -> list[str]:
    """The denials of `rewritten` of what `source` says, and says without a "not"."""
    return [
        denial.words
        for denial in denials(rewritten)
        if (denial.firm or denial.words.split()[0] in _listed("telling"))
        and len(denial.stems & _affirmed(source)) > AGREE * len(denial.stems)
        and not any(other.stems <= denial.stems for other in denials(source))
    ]
