"""What the gates read in a text: its words, its content stems, and cues of a feeling, of comfort, of a machine.

The word lists, for English, are in `gates_en.yaml` beside this file.
"""

import re
from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import chain
from pathlib import Path

import yaml
from rouge_score.tokenizers import DefaultTokenizer

MARKS = frozenset(".,;:!?()")
_TOKEN = re.compile(r"\d+(?:[.,/]\d+)*|[^\W\d_]+(?:'[^\W_]+)*|[.,;:!?()]")
_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+|\n+")
_CONTRACTIONS = {"can't": "can not", "cannot": "can not", "won't": "will not", "n't": " not", "'m": " am"}
_CONTRACTIONS |= {"'re": " are", "'ve": " have", "'ll": " will", "'d": " would"}
_CONTRACTIONS |= {"it's": "it is", "that's": "that is", "there's": "there is", "he's": "he is", "what's": "what is"}


@cache
def lexicon() -> dict:
    """The word lists of `gates_en.yaml`."""
    return yaml.safe_load(Path(__file__).with_name("gates_en.yaml").read_text(encoding="utf-8"))


@lru_cache(maxsize=4096)
def parts(text: str) -> tuple[str, ...]:
    """The sentences of a text, split quickly: "e.g. " ends one too, but neighbours are read together."""
    return tuple(part for part in _END.split(text) if part)


def spelt_out(text: str) -> str:
    """Lower case, contractions written in full ("isn't" as "is not")."""
    text = text.lower().replace("’", "'").replace("cannot", "can not")
    if "'" in text:
        for short, long in _CONTRACTIONS.items():
            text = text.replace(short, long)
    return text


@lru_cache(maxsize=4096)
def plain(text: str) -> str:
    """Lower-case words without punctuation or contractions: the form in which cues are written."""
    return " ".join(token for token in tokens(text) if token not in MARKS)


@lru_cache(maxsize=4096)
def tokens(text: str) -> tuple[str, ...]:
    """Words of `spelt_out` text, numbers, and the marks that end a clause."""
    return tuple(chain.from_iterable(map(_tokens, parts(text))))


@lru_cache(maxsize=1 << 14)
def _tokens(sentence: str) -> list[str]:
    return _TOKEN.findall(spelt_out(sentence))


_tokenizer = DefaultTokenizer(use_stemmer=True)


@cache
def _synonyms() -> dict[str, str]:
    groups = [[_porter(word) for word in group.split()] for group in lexicon()["synonyms"]]
    return {stem: group[0] for group in groups for stem in group}


def _porter(word: str) -> str:
    return "".join(_tokenizer.tokenize(word.removesuffix("'s")))


@cache
def _unsaying() -> frozenset[str]:
    return frozenset(lexicon()["unsaying"].split())


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The Porter stem of a content word, one for all its synonyms; empty for marks, numbers and idle words."""
    if word[0].isdigit() or word in MARKS or len(word) < 2 or word in _unsaying():
        return ""
    found = _porter(word)
    return _synonyms().get(found, found)


@lru_cache(maxsize=4096)
def content(text: str) -> frozenset[str]:
    """The content stems of a text, without its numbers."""
    return frozenset().union(*map(_content, parts(text)))


@lru_cache(maxsize=1 << 14)
def _content(sentence: str) -> frozenset[str]:
    return frozenset(map(stem, _tokens(sentence))) - {""}


def pattern(written: Sequence[str], unless: str = "") -> re.Pattern:
    """A list of cues as one pattern over `plain` text; `unless`: look-behinds that must not hold before one."""
    either = "|".join(written).replace("...", r"(?:[\w']+ ){0,4}").replace("*", r"[\w']*")
    either = either.replace("~", rf"(?:(?:{'|'.join(lexicon()['intensifiers'])}) ){{0,3}}")
    return re.compile(rf"{unless}(?<![\w'])(?:{either})(?![\w'])")


@cache
def cues(name: str, emotion: str = "") -> re.Pattern:
    """One list of cues as one pattern over `plain` text; an emotion right after a "not" is none."""
    written = lexicon()[name][emotion] if emotion else lexicon()[name]
    return pattern(written, r"(?<!\bnot )(?<!\bnever )(?<!\bno longer )" if emotion else "")


def new_cue(cue: re.Pattern, source: str, rewritten: str) -> str:
    """The first words of `rewritten` that fit the cue and do not stand in `source`; empty if there are none."""
    said = f" {plain(source)} "
    return next((found[0] for found in cue.finditer(plain(rewritten)) if f" {found[0]} " not in said), "")


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


@lru_cache(maxsize=1 << 14)
def is_foreign(sentence: str) -> bool:
    """Whether a sentence holds three function words or more of other European languages, and a third are such."""
    said = [word for word in tokens(sentence) if word.isalpha()]
    found = sum(word in _foreign() for word in said)
    return found >= 3 and 3 * found >= len(said)


@cache
def _foreign() -> frozenset[str]:
    return frozenset(lexicon()["foreign"].split())


def warms(sentence: str, source: str) -> bool:
    """Whether a sentence of five words or more, of which the source says little, holds a word of warmth."""
    stems = content(sentence)
    if len(sentence.split()) < 5 or 2 * len(stems & content(source)) > len(stems):
        return False
    text = plain(sentence)
    return bool(cues("warm").search(text)) and not cues("small_talk").search(text)


@lru_cache(maxsize=64)
def new_sentences(source: str, rewritten: str) -> tuple[str, ...]:
    """The sentences of `rewritten` that do not stand in `source`."""
    known = frozenset(parts(source))
    return tuple(sentence for sentence in parts(rewritten) if sentence not in known)


@cache
def _traces(name: str) -> list[tuple[str, re.Pattern]]:
    return [(sign, re.compile(pattern, re.I | re.M)) for sign, pattern in lexicon()[name].items()]


def new_traces(name: str, source: str, rewritten: str) -> list[str]:
    """What the patterns of one list (`role_leaks`, `refusals`, `placeholders`) find in `rewritten` and not in `source`.

    The patterns read the text itself, case ignored; each is tried only near its sign, which is quick to find.
    """
    lower, known, found = rewritten.lower(), source.lower(), []
    for sign, trace in _traces(name):
        at = lower.find(sign)
        while at >= 0:
            found += [hit[0].strip() for hit in trace.finditer(rewritten, max(at - 60, 0), at + 120)]
            at = lower.find(sign, at + 120)
    return [hit for hit in dict.fromkeys(found) if hit.lower() not in known]
