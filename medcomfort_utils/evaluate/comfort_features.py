"""What the comfort model sees of a sentence: cues of the lexicon, its form, and its words in runs of one to three.

Each sentence is seen alone, in lower case, with contractions, the commonest short forms of chats, hearts and the marks
of questions written out, so that shouting and spelling hardly matter.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import yaml

from medcomfort_utils.paths import MedComfortError, tidy

LEXICON = Path(__file__).with_name("comfort_en.yaml")
MECHANISMS = ("emotional_reactions", "interpretations", "explorations")

_SHORT = {"'m": " am", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "n't": " not"}
# 's stands for "is" after these words alone: "the patient's" is a possessive.
_CONTRACTION = re.compile(r"\b(it|he|she|that|this|what|here|there|who|how)'s\b|('(?:m|re|ve|ll|d)|n't)\b")
_STRETCHED = re.compile(r"([a-z!?.])\1{2,}")  # "sooo", "!!!"
_SENTENCE = re.compile(r"[^.!?;\n]+[.!?;]*")
_MARKS = (".", "!", "?", ";", "")
_ASKS = re.compile(r"\?|^\W*(?:please |so |can you |could you )?(?:tell me|i wonder|may i ask|i would like to hear)")
_HEART = re.compile(r"<3+|[\u2764\u2665\U0001f917\U0001fac2\U0001f493-\U0001f49f\U0001f5a4\U0001f90d\U0001f9e1]\ufe0f?")
_TOKEN = re.compile(r"[a-z]+(?:'[a-z]+)?|<3|[:;]'?-?[()dp]|\?|[\u2764\u2665\U0001f300-\U0001faff]")

_LONGEST = 80  # characters of a set phrase, with the words around it

# The form of a sentence: who speaks of whom, and of what time.
_FORM = {
    "i": r"\b(?:i|me|my|mine|myself)\b",
    "i twice": r"\b(?:i|me|my|mine|myself)\b.*\b(?:i|me|my|mine|myself)\b",
    "you": r"\b(?:you|your|yourself|yours)\b",
    "i in the past": r"\bi (?:\w+ )?(?:was|had|used|felt|went|did|lost|got|left|thought|kept|spent|tried|\w+ed)\b",
    "my people": r"\bmy (?:own )?(?:mom|mum|mother|dad|father|sister|brother|wife|husband|boyfriend|girlfriend|ex|kids?"
    r"|son|daughter|family|parents|friends?|depression|anxiety|life|head|brain|job|boss|therapist|doctor)\b",
    "asks": r"\?",
    "asks you": r"\b(?:you|your|yourself|yours)\b.*\?",
    "asks openly": r"\b(?:what|how|why|who|when|where|which)\b.*\?",
    "asks of me": r"\b(?:i|me|my)\b.*\?",
}
_FORM_PATTERNS = {f"form: {name}": re.compile(pattern) for name, pattern in _FORM.items()}


def sentences(text: str) -> list[str]:
    """The sentences of a text, lower case; contractions, short forms, hearts and marks of questions written out."""
    text = _HEART.sub(" hugs ", text.lower())
    text = text.replace("\u2019", "'").replace("won't", "will not").replace("can't", "cannot")
    text = _STRETCHED.sub(r"\1\1", text)
    text = _CONTRACTION.sub(lambda match: f"{match[1]} is" if match[1] else _SHORT[match[2]], text)
    spelling, spelled = _spelling()
    text = spelling.sub(lambda match: spelled[match[0]], text)
    found = (" ".join(sentence.split()) for sentence in _SENTENCE.findall(text))
    return [f"{said}?" if said[-1:] not in _MARKS and _unmarked().search(said) else said for said in found]


def features(sentence: str) -> set[str]:
    """Names of what is present in one sentence of `sentences`: "mechanism: cue", "form: ...", and runs of words.

    Of a sentence that is no more than a set phrase, that alone: "mechanism: stock".
    """
    remove, cues = _lexicon()
    kept = remove.sub(" ", sentence).strip()
    if len(kept) < _LONGEST and (stock := {name for name, phrase in _stock().items() if phrase.search(kept)}):
        return stock
    asks = bool(_ASKS.search(kept))
    found = {name for name, pattern in _FORM_PATTERNS.items() if pattern.search(kept)}
    found |= {
        name + (" (asked)" if asks else "")
        for name, pattern in cues.items()
        if (asks or not name.startswith("explorations")) and pattern.search(kept)
    }
    return found | _runs(kept)


def _runs(sentence: str) -> set[str]:
    """Runs of one to three tokens; ^ stands for the beginning of the sentence."""
    tokens = ["^", *_TOKEN.findall(sentence)]
    return {" ".join(tokens[i : i + n]) for n in (1, 2, 3) for i in range(len(tokens) - n + 1)}


@cache
def _read() -> dict:
    return yaml.safe_load(LEXICON.read_text(encoding="utf-8"))


@cache
def _spelling() -> tuple[re.Pattern, dict[str, str]]:
    """Short forms of chats, as one pattern, and what each stands for."""
    spelled = {str(short): full for short, full in _read()["spelling"].items()}
    return re.compile(rf"\b(?:{'|'.join(sorted(spelled, key=len, reverse=True))})\b(?!')"), spelled


@cache
def _pieces() -> dict[str, str]:
    """What a {name} in a pattern stands for."""
    words = {name: rf"(?:{'|'.join(re.split(r', *', listed))})" for name, listed in _read()["words"].items()}
    return words | _read()["spans"]


@cache
def _unmarked() -> re.Pattern:
    """Questions without their mark."""
    return _compile(_read()["unmarked"], _pieces())


@cache
def _stock() -> dict[str, re.Pattern]:
    """Set phrases by name ("mechanism: stock"), each the whole of a sentence but for a word before it or behind."""
    whole = {name: [f"^{{lead}}(?:{cue}){{tail}}" for cue in cues] for name, cues in _read()["stock"].items()}
    return {f"{name}: stock": _compile(cues, _pieces()) for name, cues in whole.items()}


@cache
def _lexicon() -> tuple[re.Pattern, dict[str, re.Pattern]]:
    """The compiled lexicon: what to remove, and the cues by name ("mechanism: list" or "clinical: list")."""
    lexicon, pieces = _read(), _pieces()
    groups = (*MECHANISMS, "clinical")
    named = {f"{group}: {name}": cues for group in groups for name, cues in lexicon[group].items()}
    return _compile(lexicon["remove"], pieces), {name: _compile(cues, pieces) for name, cues in named.items()}


def _compile(cues: Sequence[str | dict[str, list[str]]], pieces: dict[str, str]) -> re.Pattern:
    """One expression for all cues; each {name} stands for that piece, which may itself hold names."""
    expression = "|".join(_joined(cue) for cue in cues)
    while names := re.findall(r"\{([a-z_]+)\}", expression):
        if names[0] not in pieces:
            raise MedComfortError(f"{tidy(LEXICON)}: there is no list of words {names[0]!r}; define it under words.")
        expression = expression.replace(f"{{{names[0]}}}", pieces[names[0]])
    return re.compile(rf"(?<!\w)(?=\w)(?:{expression})(?!\w)")


def _joined(cue: str | dict[str, list[str]]) -> str:
    """A cue as one pattern: written as such, or as a beginning with its endings."""
    if isinstance(cue, str):
        return cue
    return "|".join(f"{start}(?:{'|'.join(ends)})" for start, ends in cue.items())
