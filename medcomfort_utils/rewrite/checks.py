"""The single gates: each reads a rewrite beside its source and returns the reason why it fails, or an empty text.

Rules, not judges: "a feeling is named" is all that `emotion_present` says. How they read a text is in `wording.py`,
`quantities.py`, `safety.py` and `support.py`.
"""

import re
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.rewrite import safety
from medcomfort_utils.rewrite.advice import new_advice
from medcomfort_utils.rewrite.clean import language as language_of
from medcomfort_utils.rewrite.clean import sentences, words
from medcomfort_utils.rewrite.negation import lost_denials, new_denials, turned
from medcomfort_utils.rewrite.orders import obeyed
from medcomfort_utils.rewrite.quantities import numbers, unmatched
from medcomfort_utils.rewrite.support import Similarity, same_care, unsupported
from medcomfort_utils.rewrite.wording import (
    comforts,
    content,
    cues,
    is_foreign,
    lexicon,
    new_cue,
    new_sentences,
    new_traces,
    parts,
    plain,
    stem,
    warms,
)

# Thresholds, tuned on the `tuning` part of tests/labelled/rewrites.yaml.
FACT_RECALL = 0.6  # share of a fact's content stems that its window must have
FLAG_RECALL = 0.65  # the same for a red flag
QUESTION_RECALL = 0.6  # share of the question's content stems that must survive
# What tells the patient to take something; "take the next dose of it" is caught too if only the patient named it.
_ORDERS = re.compile(r"(?<!not )\b(?:take|add|adding|start|try|give|swallow|increase|double|use)\b", re.I)
SHORTEST = 0.6  # words of a rewritten text for each word of its source, at least
LONGEST = {"multiturn": (4.0, 100)}  # at most so many times its source, and so many words more
LONGEST_ELSE = (1.8, 60)


def _turns(conversation: Dialogue | Rewrite, role: str) -> str:
    return "\n".join(message.content for message in conversation.messages if message.role == role)


class Case:
    """A rewrite beside its source, taken apart; of a conversation, all turns of a speaker one after the other."""

    def __init__(self, dialogue: Dialogue, rewrite: Rewrite, similarity: Similarity | None = None):
        self.dialogue, self.rewrite, self.similarity = dialogue, rewrite, similarity
        self.question, self.answer = _turns(dialogue, "user"), _turns(dialogue, "assistant")
        self.new_question, self.new_answer = _turns(rewrite, "user"), _turns(rewrite, "assistant")
        both = ("question", self.question, self.new_question), ("answer", self.answer, self.new_answer)
        self.both = both  # name, source and rewritten text
        # What must be kept: comfort without knowledge keeps the question only.
        self.sides = both[:1] if rewrite.condition == "comfort_only" else both
        self.source = f"{self.question}\n{self.answer}"


def _told(fault: str, items: Iterable[str]) -> str:
    items = ", ".join(f'"{item}"' for item in items)
    return f"{fault}: {items}" if items else ""


def unchanged(case: Case) -> str:
    """The `original` is the source, turn by turn."""
    return "" if case.rewrite.messages == case.dialogue.messages else "differs from the source dialogue"


def numbers_kept(case: Case) -> str:
    """Every number with its unit is still there; one that the source repeats may be said once."""
    lost = (f"{number} ({side})" for side, old, new in case.sides for number in unmatched(old, [new]))
    return _told("lost number", lost)


def no_invented_number(case: Case) -> str:
    """No number with its unit that the source dialogue lacks."""
    invented = (unmatched(new, [case.question, case.answer]) for new in (case.new_question, case.new_answer))
    return _told("invented number", sorted(set().union(*invented)))


def drugs_kept(case: Case) -> str:
    """Every medicine is still named, by its generic or a brand name."""
    lost = (
        f"{drug} ({side})" for side, old, new in case.sides for drug in sorted(safety.drugs(old) - safety.drugs(new))
    )
    return _told("lost medicine", lost)


def no_invented_drug(case: Case) -> str:
    """No medicine that the source dialogue lacks, and none that only the patient named is now told to be taken."""
    new = safety.drugs(case.new_question) | safety.drugs(case.new_answer)
    invented = new - safety.drugs(case.question) - safety.drugs(case.answer)
    patients = safety.drugs(case.new_answer) - safety.drugs(case.answer)
    said = parts(case.new_answer) if patients else ()
    told = (safety.drugs(sentence) & patients for sentence in said if _ORDERS.search(sentence))
    return _told("invented medicine", sorted(invented.union(*told)))


def doses_kept(case: Case) -> str:
    """No medicine is given a dose that the source gives to others only."""
    wrong = (dose for _, _, new in case.sides for dose in safety.new_doses(case.source, new))
    return _told("dose of another medicine", wrong)


def negations_kept(case: Case) -> str:
    """What is denied or forbidden stays so: "no fever", "never smoked", "do not stop"."""
    lost = [(side, denied) for side, old, new in case.sides for denied in lost_denials(old, new)]
    if len(case.sides) == 2:
        lost += [("answer", words) for words in turned(case.answer, case.new_answer)]
    return _told("lost negation", (f"{denied} ({side})" for side, denied in dict.fromkeys(lost)))


def no_added_negation(case: Case) -> str:
    """Nothing is denied or forbidden that the source affirms; comfort ("you did not cause this") does not count."""
    added = []
    for side, old, new in case.sides:
        for part in new_sentences(old, new):
            denied = new_denials(old, part) + (turned(part, old) if side == "answer" else [])
            if denied and not (side == "answer" and (comforts(part) or warms(part, old))):
                added += [f"{words} ({side})" for words in dict.fromkeys(denied)]
    return _told("added negation", added)


def _to_support(case: Case) -> list[str]:
    """The facts; where they are unknown, or in words of their own, the sentences of medical content in the answer."""
    facts = case.dialogue.facts
    if facts and not unsupported(facts, case.answer, FACT_RECALL):
        return facts
    small_talk = cues("small_talk")
    said = (s for s in sentences(case.answer) if len(content(s)) >= 3 or numbers(s))
    return [sentence for sentence in said if not small_talk.search(plain(sentence))]


def facts_kept(case: Case) -> str:
    """Each fact, or where facts are unknown each sentence of the source answer, is supported by the answer."""
    return _told("lost fact", unsupported(_to_support(case), case.new_answer, FACT_RECALL, case.similarity))


def red_flags_kept(case: Case) -> str:
    """Each piece of urgent-care advice is still in the answer, and sends to the same care."""
    flags = case.dialogue.red_flags
    lost = unsupported(flags, case.new_answer, FLAG_RECALL, case.similarity)
    return _told("lost red flag", [f for f in flags if f in lost or not same_care(f, case.new_answer)])


@cache
def _body() -> list[frozenset[str]]:
    return [frozenset(map(stem, group.split())) for group in lexicon()["body"].split("|")]


def question_kept(case: Case) -> str:
    """Most content words of the question survive, and every part of the body; a neutral question has not changed."""
    if case.rewrite.condition == "soothing_answer":
        same = words(case.question) == words(case.new_question)
        return "" if same else f'changed a neutral question: "{case.new_question}"'
    wanted, found = content(case.question), content(case.new_question)
    lost = [min(group & wanted) for group in _body() if group & wanted and not group & found]
    if lost:
        return _told("lost from the question", lost)
    gone = sorted(wanted - found)
    kept = 1 - len(gone) / len(wanted) if wanted else 1.0
    return "" if kept >= QUESTION_RECALL else _told(f"only {kept:.0%} of the question's words survive, lost", gone)


def emotion_present(case: Case) -> str:
    """The question names the emotion asked for, in words that the source does not have."""
    emotion = case.rewrite.emotion
    if emotion not in lexicon()["emotions"]:
        raise MedComfortError(f"Rewrite of dialogue {case.dialogue.id}: the gates know no emotion '{emotion}'.")
    found = new_cue(cues("emotions", emotion), case.question, case.new_question)
    return "" if found else f"no word of {emotion} was added to the question"


def comfort_present(case: Case) -> str:
    """A new sentence of the answer shows warmth or understanding, offers company, or asks about feelings."""
    added = new_sentences(case.answer, case.new_answer)
    found = any(comforts(sentence) or warms(sentence, case.answer) for sentence in added)
    return "" if found else "no comfort was added to the answer"


def no_false_reassurance(case: Case) -> str:
    """No outcome is promised that the source answer does not promise."""
    return _told("false reassurance", filter(None, [safety.false_reassurance(case.answer, case.new_answer)]))


def no_added_advice(case: Case) -> str:
    """No command, permission or excuse about medicine, care, tests or waiting that the source answer does not give."""
    added = new_sentences(case.answer, case.new_answer)
    return _told("added advice", chain.from_iterable(new_advice(case.answer, sentence) for sentence in added))


_FOREIGN = re.compile(r"[\u0370-\u1fff\u3040-\ud7af\uff66-\uffdc]+")


def language(case: Case) -> str:
    """The rewrite stays in the language of the source."""
    for side, old, new in case.both:
        if language_of(new) != case.dialogue.lang and language_of(new) != language_of(old):
            return f"the {side} is not in the language of the dialogue, '{case.dialogue.lang}'"
        foreign = set(_FOREIGN.findall(new)) - set(_FOREIGN.findall(old)) if not new.isascii() else set()
        if foreign:
            return _told(f"letters of another script in the {side}", sorted(foreign))
        strange = [sentence for sentence in new_sentences(old, new) if is_foreign(sentence)]
        if strange:
            return _told(f"another language in the {side}", strange)
    return ""


def _traces(case: Case, name: str) -> Iterator[str]:
    """What a list finds, side by side: what the patient wrote ("Assistant: ...") is no excuse for the answer."""
    return chain.from_iterable(new_traces(name, old, new) for _, old, new in case.both)


def no_refusal(case: Case) -> str:
    """No model refuses the task or the patient."""
    return _told("refusal", _traces(case, "refusals"))


def no_role_leak(case: Case) -> str:
    """No label, marker or remark of the machine that wrote the text, unless the source has it."""
    return _told("role leak", _traces(case, "role_leaks"))


def no_order_followed(case: Case) -> str:
    """Nothing is said because the patient's text orders the machine to say it."""
    return _told("follows an order", obeyed(case.question, case.answer, case.new_question, case.new_answer))


def no_placeholder(case: Case) -> str:
    """No gap left to be filled: "[name]", a lone "..."."""
    return _told("placeholder", _traces(case, "placeholders"))


def length(case: Case) -> str:
    """Not much shorter than the source, and not much longer."""
    factor, extra = LONGEST.get(case.rewrite.condition, LONGEST_ELSE)
    for side, old, new in case.sides:
        before, after = len(old.split()), len(new.split())
        if not SHORTEST * before <= after <= factor * before + extra:
            return f"the {side} has {after} words, its source {before}"
    return ""
