"""Answers put together from a rewriter's own words and the doctor's sentences, so that nothing medical is reworded.

A composition is a list of `records.Segment`: `say` holds own words to this patient, `keep` sentences of the source's
answer by number, counted from 1 as `text.sentences` splits it.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from medcomfort_utils.medical import is_emergency
from medcomfort_utils.records import Dialogue, Segment
from medcomfort_utils.text import sentences

MOST_SAID = 80  # own words in one answer
SHORT = 20  # own words that may stand before urgent advice

_LIST_ITEM = re.compile(r"(?:[-*•–]|\(?\d{1,2}[.)]|[a-z]\))\s")
_ENDED = re.compile(r"[.!?:;。！？…][\"'”’」』)\]]*$")


def numbered(dialogue: Dialogue) -> list[str]:
    """The sentences of the answer; the first is sentence 1."""
    return sentences(dialogue.answer, dialogue.lang)


def red_flagged(dialogue: Dialogue) -> list[int]:
    """Numbers of the answer's sentences that hold its red flags."""
    return [
        number
        for number, sentence in enumerate(numbered(dialogue), 1)
        if any(flag in sentence or sentence in flag for flag in dialogue.red_flags)
    ]


def urgent_now(dialogue: Dialogue) -> int:
    """The number of the sentence that must come first; 0 if nothing is urgent now.

    In an emergency it is the first red flag. Where the corpus does not say how urgent a dialogue is, it is the first
    red flag that depends on nothing (`medical.is_emergency`): "Call an ambulance now.", not "... if he faints."
    """
    split = numbered(dialogue)
    flagged = [n for n in red_flagged(dialogue) if dialogue.urgency or is_emergency(split[n - 1])]
    return flagged[0] if flagged and dialogue.urgency in ("", "emergency") else 0


def segments_of(response: dict) -> list[Segment]:
    """The composition in a parsed response to the `answer` prompt; every `say` ends with a mark."""
    found = ((each.get("say", "").strip(), each.get("keep", [])) for each in response["segments"])
    return [Segment(role="assistant", say=ended(say) if say else "", keep=keep) for say, keep in found if say or keep]


def compose(segments: Iterable[Segment], source: Sequence[str]) -> str:
    """The text of a composition of the sentences `source`, none of them changed; list items start a line.

    Raises IndexError for a number that does not exist; `problems` finds those.
    """
    text, in_list = "", False
    for segment in segments:
        for place, piece in enumerate([segment.say] if segment.say else [source[n - 1] for n in segment.keep]):
            item = bool(_LIST_ITEM.match(piece))
            if item or (in_list and place == 0):
                text, in_list = f"{text}\n{piece}", item
            else:
                text = _joined(text, piece)
    return text.strip()


def problems(segments: Sequence[Segment], count: int, first: int = 0) -> list[str]:
    """What is wrong with a composition of an answer of `count` sentences, in sentences that a model can act on.

    Every sentence must be kept once, own words must be there and number at most `MOST_SAID`, and sentence `first`
    (`urgent_now`) may stand behind one `say` of at most `SHORT` words and nothing else.
    """
    kept = Counter(number for segment in segments for number in segment.keep)
    every = set(range(1, count + 1))
    words = sum(len(segment.say.split()) for segment in segments)
    found = {
        f"Not a sentence: {{}}; they are numbered 1 to {count}.": kept.keys() - every,
        "Left out of the old answer: {}.": every - kept.keys(),
        "Kept more than once: {}.": {number for number, times in kept.items() if times > 1},
    }
    told = [text.format(", ".join(map(str, sorted(numbers)))) for text, numbers in found.items() if numbers]
    if not words:
        told.append("There is no say segment.")
    if words > MOST_SAID:
        told.append(f"The say segments have {words} words together; at most {MOST_SAID} are allowed.")
    head = segments[1:] if segments and 0 < len(segments[0].say.split()) <= SHORT else segments
    if first in kept and head[0].keep[:1] != [first]:
        place = f"it must come first, or right behind one say of at most {SHORT} words"
        told.append(f"Sentence {first} is urgent now: {place}.")
    return told


def ended(text: str) -> str:
    """The text with a full stop if it ends without a mark, so that a sentence can follow."""
    return text if _ENDED.search(text) else f"{text}."


def _joined(text: str, piece: str) -> str:
    """What has no mark at its end, a heading or the end of a source, ends its line: nothing is added to it."""
    if not text:
        return piece
    return text + ("" if re.search(r"[。！？][”’」』]?$", text) else " " if _ENDED.search(text) else "\n") + piece
