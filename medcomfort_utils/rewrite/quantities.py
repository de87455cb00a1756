"""Numbers with their units in a text, and whether two texts give the same ones.

"400mg" is "400 mg", "two weeks" are "14 days", "a litre" is 1 litre; a range gives its unit to both ends.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache

from medcomfort_utils.rewrite.wording import lexicon, parts, tokens

_NUMBER = r"(?:(?<!\S)[-+])?(?:\d+/\d+|\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_DIGIT = re.compile(r"\d")
# A time of day, at which no "times a day" is meant: "at five each morning".
_CLOCK = re.compile(
    r"\b((?:at|around|about|by|until|past) [\w-]+) (?=(?:each|every|in the|at) (?:morning|evening|night|day))"
)
_RANGE = re.compile(r"\s?(?:-|–|to|or|and)\s?", re.I)


@cache
def _quantity(spelt: bool) -> re.Pattern:
    """A number and its unit; without number words (`spelt`), which few sentences have, it is found far faster."""
    values = lexicon()["number_words"]
    tens = "|".join(word for word, value in values.items() if value in range(20, 100, 10))
    ones = "|".join(word for word, value in values.items() if value in range(1, 10))
    word = rf"(?:(?:{tens})(?:-(?:{ones}))?|{'|'.join(values)})\b"
    named = "|".join(f"(?P<u{i}>{forms})" for i, forms in enumerate(lexicon()["units"].values()))
    return re.compile(
        rf"(?<![\w.])(?=[-+.\d{''.join({word[0] for word in values}) if spelt else ''}])(?:(?P<number>{_NUMBER})"
        rf"|(?P<word>{word})(?:(?<=half) an?\b)?)(?:[ -]?(?:{named})(?![a-z]))?"
    )


@cache
def _unsaid_one() -> re.Pattern:
    """ "a litre", "an hour", "daily", "each morning"."""
    units = list(lexicon()["units"].values())
    named = "|".join(f"(?P<u{i}>{forms})" for i, forms in enumerate(units))
    return re.compile(rf"(?<!\w)(?:an? |(?=each|every|daily|weekly|monthly|nightly|in the|at))(?:{named})(?![a-z])")


def _value(number: str) -> str:
    number = number.replace(",", "")
    number = f"0{number}" if number.startswith(".") else number
    return number.rstrip("0").rstrip(".") if "." in number else number


def _unit(match: re.Match) -> str:
    return list(lexicon()["units"])[int(match.lastgroup[1:])] if match.lastgroup[1:].isdigit() else ""


def _number(match: re.Match) -> str:
    """The number in digits; "twenty-four" is the sum of its parts."""
    return _value(match["number"] or str(sum(lexicon()["number_words"][word] for word in match["word"].split("-"))))


@lru_cache(maxsize=1 << 14)
def _read(sentence: str) -> tuple[frozenset[str], frozenset[str]]:
    """The numbers of a sentence with their units, and its numbers in words without a unit ("six of ten")."""
    spelt = not lexicon()["number_words"].keys().isdisjoint(tokens(sentence))
    if not spelt and not _DIGIT.search(sentence):
        return frozenset(), frozenset()
    said, loose, before, sentence = set(), set(), None, _CLOCK.sub(r"\1, ", sentence.lower())
    for match in [*_quantity(spelt).finditer(sentence), None]:
        unit = match and _unit(match)
        if before and unit and _RANGE.fullmatch(sentence, before.end(), match.start()):
            said.add(f"{_number(before)} {unit}")
        elif before:
            (said if before["number"] else loose).add(_number(before))
        if unit:
            said.add(f"{_number(match)} {unit}")
        before = None if unit else match
    return frozenset(said), frozenset(loose)


@lru_cache(maxsize=4096)
def numbers(text: str) -> frozenset[str]:
    """The numbers of a text, each with its unit in one spelling: "400mg" is "400 mg", "two weeks" is "2 week"."""
    return frozenset().union(*(_read(part)[0] for part in parts(text)))


@lru_cache(maxsize=4096)
def _base(number: str) -> str:
    """The number in the base of its unit: "2 week" and "14 day" are the same seconds."""
    value, _, unit = number.partition(" ")
    factor, base = lexicon()["same_as"].get(unit, (1, unit))
    return number if "/" in value else f"{float(value) * factor:.12g} {base}"


def unmatched(text: str, others: Sequence[str]) -> list[str]:
    """The numbers of `text` that none of `others` gives, sorted.

    They may be given in another unit of the same kind. A number without a unit, or with one that may stay unsaid
    (years of age, degrees), is also given by its value alone; "a litre" and "daily" give one of it.
    """
    given = frozenset().union(*map(numbers, others))
    missing = sorted(numbers(text) - given)
    if not missing:
        return []
    loose = (_read(part)[1] for other in others for part in parts(other))
    values = {number.partition(" ")[0] for number in given}.union(*loose)
    ones = {f"1 {_unit(match)}" for other in others for match in _unsaid_one().finditer(other.lower())}
    bases = set(map(_base, given | ones))
    return [number for number in missing if _base(number) not in bases and not _bare(number, values)]


def _bare(number: str, values: set[str]) -> bool:
    value, _, unit = number.partition(" ")
    return value in values and (not unit or unit in lexicon()["may_stay_unsaid"])
