"""How text is read: forms made one, sentences, words, language, quantities, negation. The one place that does it."""

import functools
import html
import re

import ftfy
from py3langid.langid import MODEL_FILE, LanguageIdentifier

# --- Forms ---------------------------------------------------------------------------------------------------------

_FTFY = ftfy.TextFixerConfig(unescape_html=False, fix_character_width=False, explain=False)  # wide marks are Chinese
_TAG = re.compile(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)(?:\s+[\w:-]+\s*=[^<>]{0,500})?\s*/?>")
_UNUSUAL = re.compile(r"[<&`\x00-\x08\x0b-\x1f\x7f]")
_INLINE = {"a", "b", "i", "u", "em", "strong", "span", "font", "small", "sub", "big", "code"}
_INVISIBLE = (0xAD, 0x61C, 0x180E, 0x200B, 0x200C, 0x200E, 0x200F, *range(0x202A, 0x202F), 0xFEFF)
_WIDE = (*range(0xFF10, 0xFF1A), *range(0xFF21, 0xFF3B), *range(0xFF41, 0xFF5B))
_NAMES = {
    **{ord(mark): "'" for mark in "\u2018\u2019\u201b\u02bc\u02b9\u2032"},
    **{ord(mark): '"' for mark in "\u201c\u201d\u201f\u2033"},
    **{ord(mark): "-" for mark in "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"},
    **{code: code - 0xFEE0 for code in _WIDE},
    **dict.fromkeys((*_INVISIBLE, *range(0x2060, 0x2070))),
    0x3BC: 0xB5,
}


def _tag(match: re.Match) -> str:
    name = match[2].lower()
    if name == "sup":
        return "" if match[1] else "^"
    return "" if name in _INLINE else "\n" if name in ("br", "p", "li", "tr", "div") else " "


def normalise(text: str) -> str:
    """The text with one form for each thing: mojibake, quotes, dashes, spaces, entities; tags and invisible marks out.

    `10<sup>9</sup>` becomes `10^9`. Line breaks stay, wide Chinese marks too. Linear in the length of the text.
    """
    if text.isascii() and not _UNUSUAL.search(text):  # most texts: nothing to mend but blanks
        return _blanks(text)
    for _ in range(3):
        text = html.unescape(re.sub(r"&(?:amp;)+(?=#?\w)", "&", text))
    first, *rest = text.split("<!--")
    text = first + "".join(part.partition("-->")[2] if "-->" in part else "<!--" + part for part in rest)
    text = re.sub(r"\n\s*\n", "\n\n", _TAG.sub(_tag, text))
    text = re.sub(r"(?<=[^\W\d_])[\u0091\u0092\u00b4`\ufffd](?=[^\W\d_])", "'", text)
    text = ftfy.fix_text(text, _FTFY).translate(_NAMES)
    text = re.sub(r"(?<=\w)\u200d|\u200d(?=\w)|[\x00-\x08\x0b-\x1f\x7f-\x9f]", "", text)
    text = re.sub(r"(?<!\u2014)\u2014(?!\u2014)", " - ", text)
    return _blanks(text)


def _blanks(text: str) -> str:
    return re.sub(r" ?\n ?", "\n", re.sub(r"[^\S\n]+", " ", text)).strip()


# --- Sentences -----------------------------------------------------------------------------------------------------

# Tried by hand on real answers and on 33 hard cases (`tests/test_text.py`): pysbd fails 7 of them and takes 6 s for
# 95 kB and three times that for twice as much; spaCy's sentencizer fails 14, untrained Punkt 17. Hence these rules,
# which only choose where to cut.
_END = re.compile(
    r"(?:[.!?\u2026]+[\"')\]]*(?=\s|$|(?<=[a-z)][.?!])[A-Z][a-z])|[\u3002\uff01\uff1f]+[\u201d\u2019\"]*)"
)
_MARKS = re.compile(rf"{_END.pattern}|\n+|(?<!\S)\d{{1,2}}[.)](?=\s+\S)|(?<=\S )[\u2022](?= )")
_SEMICOLON = re.compile(r"[\u3002\uff01\uff1f\uff1b!?]+[\u201d\u2019\"]*|\n+")
_NEVER = r"dr|mr|mrs|ms|prof|vs|approx|ca|cf|e\.g|i\.e|eg|viz|incl|resp|fig"
# These may end a sentence: what comes next decides.
_MAYBE = r"etc|tab|cap|inj|syr|sol|deg|ft|temp|hrs?|wks|yrs|al|max|min|st|jr|sr|dept|no|(?:[a-z]\.)+[a-z]"


def _goes_on(text: str, start: int, match: re.Match) -> bool:
    """Whether the stop at `match` does not end the sentence that begins at `start`."""
    follows = re.compile(r"\s*(\S?)(\S?)").match(text, match.end())
    after = follows[1]
    if match[0][0] != "." or not after:
        return match[0] == "\u2026" and after.islower()
    before = re.compile(r"[^\s(\"']*$").search(text, max(start, match.start() - 40), match.start())[0]
    word = before.lower()
    if match[0].startswith(".."):
        return after.islower()
    if re.fullmatch(r"\d{1,2}", word):  # the number of a step; or "2. 5 ml", a decimal torn apart
        return not text[start : match.start() - len(word)].strip() or (after.isdigit() and "\n" not in follows[0])
    if re.fullmatch(_NEVER, word):
        return True
    if re.fullmatch(_MAYBE, word):
        return after.isdigit() if word == "no" else not (after.isupper() or "\n" in follows[0]) or word == "st"
    if re.fullmatch(r"[A-Z]", before):  # an initial: "J. Smith", but "vitamin C. Then"
        return after.islower() or not text[start : match.start() - 1].strip()
    return False


def _cuts(text: str) -> list[int]:
    """Where one sentence ends and the next one begins."""
    cuts, start, step = [], 0, 0
    for match in _MARKS.finditer(text):
        if match[0][0] == "\n":
            line = text[text.rfind("\n", start, match.start()) + 1 : match.start()].rstrip()
            rest = text[match.end() : match.end() + 4].lstrip()
            wrapped = len(line) >= 50 and not re.search(r"[.!?:;\u3002]$", line) and rest[:1].islower()
            cut = match.end() if len(match[0]) > 1 or not wrapped else None
        elif match[0][0].isdigit():  # a step counts where it is the next one, or stands behind a colon
            number = int(match[0][:-1])
            leads = match.start() - start < 8 and not text[start : match.start()].strip()
            behind = text[max(0, match.start() - 8) : match.start()].rstrip()[-1:]
            opens = leads or number == step + 1 > 1 or (number == 1 and behind in ":.")
            stop = None if opens else _END.match(text, match.end() - 1)
            cut = match.start() if opens else match.end() if stop and not _goes_on(text, start, stop) else None
            step = number if opens else step
        elif match[0] == "\u2022":
            cut = match.start()
        else:
            cut = None if _goes_on(text, start, match) else match.end()
        if cut is not None:
            cuts.append(cut)
            start = cut
    return cuts


def sentences(text: str, lang: str = "en") -> list[str]:
    """The sentences of a text, in order, outer blanks off; joined, they lose nothing but blanks. Linear time."""
    cuts = [m.end() for m in _SEMICOLON.finditer(text)] if lang == "zh" else _cuts(text)
    parts = (text[i:j].strip() for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True))
    return [part for part in parts if part]


# --- Words ---------------------------------------------------------------------------------------------------------

_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+(?:'[^\W\d_]+)?|[^\w\s]")
_SHORT = re.compile(
    r"\b(?:(?P<can>can ?not|can'?t)|(?P<will>won't|wont(?! to))"
    r"|(?P<verb>do|does|did|is|are|was|were|have|has|had|could|should|would|must|need)n'?t)\b"
)


@functools.lru_cache(maxsize=8192)
def opened(text: str) -> str:
    """The text in one case with its contractions of "not" opened: `Dont`, `can't`, `isnt` deny too."""
    return _SHORT.sub(lambda m: f"{m['verb'] or m.lastgroup} not", normalise(text).lower())


def words(text: str, marks: bool = False) -> list[str]:
    """The words and numbers of a text in lower case, contractions of "not" opened; with `marks`, punctuation too."""
    return tokens(opened(text), marks)


def tokens(plain: str, marks: bool = False) -> list[str]:
    """The words of a text that was opened already."""
    return [token for token in _WORD.findall(plain) if marks or token[0].isalnum()]


_LANGUAGES = "en zh ja ko de fr es it pt nl pl ru tr sv ar hi"


@functools.lru_cache(maxsize=1)
def _identifier() -> LanguageIdentifier:
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(_LANGUAGES.split())
    return identifier


@functools.lru_cache(maxsize=4096)
def language(text: str) -> str:
    """The ISO 639-1 code of the language. Latin letters without strong evidence of another language are English."""
    letters = "".join(re.findall(r"[^\W\d_]+[ ']?", normalise(text)[:4000]))
    name, share = _identifier().classify(letters.lower())
    latin = len(re.findall(r"[a-zA-Z]", letters)) > 0.7 * len(letters.replace(" ", ""))
    return "en" if not letters or latin and (share < 0.95 or len(letters.split()) < 6) else name


# --- Negation ------------------------------------------------------------------------------------------------------

_DENYING = "not no non never without nor neither none nobody nothing cannot deny denies denied denying avoid avoids"
DENYING = frozenset([*_DENYING.split(), "avoiding"])
_ENDING = "but although though however because since so whereas while if unless when until"
_CLAUSE = frozenset([*",;:.!?()", *_ENDING.split()])


def negated(said: list[str]) -> set[int]:
    """The places of the tokens (`words(text, marks=True)`) that a negation governs, to the end of its clause."""
    governed, inside = set(), False
    for i, token in enumerate(said):
        if token in _CLAUSE:  # but "no fever, cough or pain"
            inside = inside and token == "," and "or" in said[i + 1 : i + 6] and not _CLAUSE & set(said[i + 1 : i + 4])
        elif token in DENYING and said[i + 1 : i + 2] not in (["only"], ["just"]):
            inside = True
        elif inside:
            governed.add(i)
    return governed
