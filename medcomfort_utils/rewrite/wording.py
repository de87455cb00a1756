"""What the gates read in a text: numbers with their units, cues of a feeling or of comfort, what a rewrite added.

The word lists, for English, are in `gates_en.yaml` beside this file.
"""

import re
from collections import Counter
from functools import cache, lru_cache
from pathlib import Path

import yaml

from medcomfort_utils.rewrite.clean import sentences, words

_NUMBER = r"(?<![\w.])(?:(?<!\S)[-+])?(?:\d+/\d+|\d{1,3}(?:,\d{2,3})*,\d{3}(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_CONTRACTIONS = {"can't": "can not", "cannot": "can not", "won't": "will not", "n't": " not", "'m": " am"}
_CONTRACTIONS |= {"'re": " are", "'ve": " have", "'ll": " will", "'d": " would"}
_CONTRACTIONS |= {"it's": "it is", "that's": "that is", "there's": "there is"}


@cache
def lexicon() -> dict:
    """The word lists of `gates_en.yaml`."""
    return yaml.safe_load(Path(__file__).with_name("gates_en.yaml").read_text(encoding="utf-8"))


@cache
def cues(name: str, emotion: str = "") -> re.Pattern:
    """One list of cues as one pattern over `plain` text; an emotion right after a "not" is none."""
    written = lexicon()[name][emotion] if emotion else lexicon()[name]
    either = "|".join(written).replace("...", r"(?:[\w']+ ){0,4}").replace("*", r"[\w']*")
    either = either.replace("~", rf"(?:(?:{'|'.join(lexicon()['intensifiers'])}) ){{0,3}}")
    denied = r"(?<!\bnot )(?<!\bnever )(?<!\bno longer )" if emotion else ""
    return re.compile(rf"{denied}(?<![\w'])(?:{either})(?![\w'])")


def plain(text: str) -> str:
    """Lower-case words without punctuation or contractions: the form in which cues are written."""
    text = text.lower().replace("’", "'")
    for short, long in _CONTRACTIONS.items():
        text = text.replace(short, long)
    return " ".join(words(text))


@cache
def _quantity() -> re.Pattern:
    units, number_words = lexicon()["units"].values(), "|".join(lexicon()["number_words"])
    named = "|".join(f"(?P<u{i}>{forms})" for i, forms in enumerate(units))
    word = rf"\b(?:{number_words})(?=[ -](?:{'|'.join(units)})\b)"
    return re.compile(rf"(?P<number>{_NUMBER}|{word})(?:[ -]?(?:{named})(?![a-z]))?", re.I)


def _value(number: str) -> str:
    number = str(lexicon()["number_words"].get(number.lower(), number)).replace(",", "")
    number = f"0{number}" if number.startswith(".") else number
    return number.rstrip("0").rstrip(".") if "." in number else number


@lru_cache(maxsize=4096)
def numbers(text: str) -> Counter:
    """How often each number occurs, with its unit in one spelling: "400mg" is "400 mg", "two weeks" is "2 week"."""
    units, found = list(lexicon()["units"]), Counter()
    for match in _quantity().finditer(text):
        unit = "" if match.lastgroup == "number" else units[int(match.lastgroup[1:])]
        found[f"{_value(match['number'])} {unit}".strip()] += 1
    return found


@lru_cache(maxsize=4096)
def added_text(source: str, rewritten: str) -> str:
    """What `rewritten` says beyond `source`, a sentence a line: new sentences, and the new words of changed ones."""
    kept, runs = _known(source)
    fresh = (_without(sentence, runs) for sentence in sentences(rewritten) if sentence not in kept)
    return "\n".join(filter(None, fresh))


@lru_cache(maxsize=4096)
def _known(source: str) -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
    """The sentences of a text, and its runs of three words."""
    return frozenset(sentences(source)), frozenset(_runs(source))


def _runs(text: str) -> list[tuple[str, ...]]:
    tokens = [token.strip(".,;:!?\"'()") for token in text.lower().split()]
    return list(zip(tokens, tokens[1:], tokens[2:], strict=False))


def _without(sentence: str, known: frozenset[tuple[str, ...]]) -> str:
    """The sentence without its known runs; one that is mostly new keeps all its words ("I have had" proves little)."""
    old = {i + step for i, run in enumerate(_runs(sentence)) if run in known for step in range(3)}
    tokens = sentence.split()
    return sentence if 2 * len(old) < len(tokens) else " ".join(w for i, w in enumerate(tokens) if i not in old)


@lru_cache(maxsize=4096)
def padded(text: str) -> str:
    """The words between blanks, so that a statement is found in a text whatever its case, spacing and punctuation."""
    return f" {' '.join(words(text))} "


@lru_cache(maxsize=4096)
def comforts(sentence: str) -> bool:
    """Whether a sentence soothes: by a cue, by naming a feeling to "you" or in a question, or by a gentle question."""
    text = plain(sentence).replace("i am afraid", "")  # from a doctor that is a formula, no feeling
    asks = sentence.endswith("?")
    if cues("comfort").search(text) or (asks and cues("gentle_questions").search(text)):
        return True
    feelings = (cues("feelings"), *(cues("emotions", emotion) for emotion in lexicon()["emotions"]))
    named = asks or re.search(r"\byou(?:r|rself)?\b", text)
    return bool(named) and any(feeling.search(text) for feeling in feelings)


@cache
def leaks() -> re.Pattern:
    """Labels and remarks of the machine that wrote a text, as one pattern over the text itself."""
    return re.compile("|".join(lexicon()["role_leaks"]), re.I | re.M)
