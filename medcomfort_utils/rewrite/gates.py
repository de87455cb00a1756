"""Gates: what a rewrite must satisfy before anything is trained on it. What fails is set aside, with its reason.

The gates compare a rewrite with its source dialogue and know nothing of the rewriter. They are rules, not judges:
"a feeling is named" is all that `emotion_present` says. How they read a text, and by which word lists, is in
`wording.py`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue, Gate, Rewrite
from medcomfort_utils.rewrite.clean import sentences, words
from medcomfort_utils.rewrite.wording import added_text, comforts, cues, leaks, lexicon, numbers, padded, plain

MOST_ADDED = 80  # words that a rewrite may add to the question, and to the answer


@dataclass(frozen=True)
class _Case:
    """A rewrite beside its source, taken apart; of a conversation, all turns of a speaker one after the other."""

    dialogue: Dialogue
    rewrite: Rewrite
    question: str
    answer: str
    new_question: str
    new_answer: str

    @property
    def sides(self) -> tuple[tuple[str, str, str], ...]:
        """Name, source and rewritten text of what must be kept; comfort without knowledge keeps the question only."""
        both = ("question", self.question, self.new_question), ("answer", self.answer, self.new_answer)
        return both[:1] if self.rewrite.condition == "comfort_only" else both

    @property
    def added(self) -> tuple[str, str]:
        return added_text(self.question, self.new_question), added_text(self.answer, self.new_answer)


def _turns(conversation: Dialogue | Rewrite, role: str) -> str:
    return "\n".join(message.content for message in conversation.messages if message.role == role)


def _quoted(items: Iterable[str]) -> str:
    return ", ".join(f'"{item}"' for item in items)


def unchanged(case: _Case) -> str:
    """The `original` is the source, turn by turn."""
    return "" if case.rewrite.messages == case.dialogue.messages else "differs from the source dialogue"


def numbers_kept(case: _Case) -> str:
    """Every number with its unit is still there, as often as in the source."""
    lost = [f"{lost} ({side})" for side, old, new in case.sides for lost in (numbers(old) - numbers(new))]
    return f"lost number: {_quoted(lost)}" if lost else ""


def none_invented(case: _Case) -> str:
    """No number with its unit that the source dialogue lacks."""
    known = numbers(case.question) | numbers(case.answer)
    invented = [number for number in numbers(case.new_question) | numbers(case.new_answer) if number not in known]
    return f"invented number: {_quoted(invented)}" if invented else ""


def _missing(statements: list[str], source: str, rewritten: str) -> list[str]:
    """Statements no longer there word for word; if the source itself words them otherwise, its own sentences count."""
    old, new = padded(source), padded(rewritten)
    if any(padded(statement) not in old for statement in statements):
        statements = sentences(source)
    return [statement for statement in statements if words(statement) and padded(statement) not in new]


def facts_kept(case: _Case) -> str:
    """Each fact, or where facts are unknown each sentence, of the source answer is still in the answer."""
    lost = _missing(case.dialogue.facts or sentences(case.answer), case.answer, case.new_answer)
    return f"lost fact: {_quoted(lost)}" if lost else ""


def red_flags_kept(case: _Case) -> str:
    """Each piece of urgent-care advice is still in the answer."""
    lost = _missing(case.dialogue.red_flags, case.answer, case.new_answer)
    return f"lost red flag: {_quoted(lost)}" if lost else ""


def question_kept(case: _Case) -> str:
    """The words of the question are still there, in order, and none denied; a neutral question has gained none."""
    old, new = words(case.question), words(case.new_question)
    if case.rewrite.condition == "soothing_answer" and old != new:
        return f'changed a neutral question: "{case.new_question}"'
    rest = iter(new)
    lost = next((word for word in old if word not in rest), "")
    if lost:
        return f'lost from the question, or out of order: "{lost}"'
    # "I have" made "I do not have" is a scrap of the question; "I cannot sleep." is a sentence of its own.
    scraps = (line for line in case.added[0].splitlines() if len(line.split()) <= 4 and line[-1] not in ".?!")
    denied = next((line for line in scraps if re.search(r"\b(?:not|no|never|without)\b", plain(line))), "")
    return f'denied in the question: "{denied}"' if denied else ""


def emotion_present(case: _Case) -> str:
    """What was added to the question names the emotion asked for."""
    emotion = case.rewrite.emotion
    if emotion not in lexicon()["emotions"]:
        raise MedComfortError(f"Rewrite of dialogue {case.dialogue.id}: the gates know no emotion '{emotion}'.")
    found = cues("emotions", emotion).search(plain(case.added[0]))
    return "" if found else f'no word of {emotion} was added to the question: "{case.added[0]}"'


def comfort_present(case: _Case) -> str:
    """What was added to the answer shows warmth or understanding, offers company, or asks gently about feelings."""
    added = case.added[1]
    return "" if any(map(comforts, sentences(added))) else f'no comfort was added to the answer: "{added}"'


def no_false_reassurance(case: _Case) -> str:
    """No outcome is promised in what was added to the answer."""
    found = cues("false_reassurance").search(plain(case.added[1]))
    return f'false reassurance: "{found[0]}"' if found else ""


def no_role_leak(case: _Case) -> str:
    """No label, marker or remark of the machine that wrote the text, unless the source has it."""
    source = f"{case.question}\n{case.answer}".lower()
    leaked = [leak[0] for leak in leaks().finditer("\n".join(case.added)) if leak[0].lower() not in source]
    return f"role leak: {_quoted(leaked)}" if leaked else ""


def length(case: _Case) -> str:
    """No shorter than the source, and at most `MOST_ADDED` words longer."""
    for side, old, new in case.sides:
        added = len(words(new)) - len(words(old))
        if not 0 <= added <= MOST_ADDED:
            return f"{side} has {abs(added)} words {'more' if added > 0 else 'fewer'} than its source"
    return ""


_KEEPING = (numbers_kept, none_invented, facts_kept, red_flags_kept)
_SAYING = (no_false_reassurance, no_role_leak)
_GATES = {
    "original": (unchanged,),
    "soothing_answer": (*_KEEPING, question_kept, comfort_present, *_SAYING, length),
    "emotional": (*_KEEPING, question_kept, emotion_present, comfort_present, *_SAYING, length),
    "comfort_only": (numbers_kept, none_invented, question_kept, emotion_present, comfort_present, *_SAYING),
    "multiturn": (*_KEEPING, emotion_present, comfort_present, *_SAYING),
}


def check(dialogue: Dialogue, rewrite: Rewrite) -> list[Gate]:
    """All gates that apply to the condition of `rewrite`, in fixed order; a failed one says what was lost or added.

    Raises MedComfortError for a text that is not English and for an unknown emotion.
    """
    if rewrite.lang != "en" or dialogue.lang != "en":
        raise MedComfortError(f"Dialogue {dialogue.id} or its rewrite is not English, the one language the gates know.")
    texts = (_turns(conversation, role) for conversation in (dialogue, rewrite) for role in ("user", "assistant"))
    case = _Case(dialogue, rewrite, *texts)
    reasons = ((gate.__name__, gate(case)) for gate in _GATES[rewrite.condition])
    return [Gate(name=name, passed=not reason, reason=reason) for name, reason in reasons]


def sift(dialogues: Iterable[Dialogue], rewrites: Iterable[Rewrite]) -> tuple[list[Rewrite], list[Rewrite]]:
    """Kept and rejected rewrites, each in order and with its `gates` filled in; one failed gate rejects.

    Raises MedComfortError for a rewrite whose source is not among `dialogues`.
    """
    sources, kept, rejected = {dialogue.id: dialogue for dialogue in dialogues}, [], []
    for rewrite in rewrites:
        if rewrite.dialogue_id not in sources:
            raise MedComfortError(f"A rewrite names dialogue {rewrite.dialogue_id}, which is not among the dialogues.")
        checked = rewrite.model_copy(update={"gates": check(sources[rewrite.dialogue_id], rewrite)})
        (kept if all(gate.passed for gate in checked.gates) else rejected).append(checked)
    return kept, rejected


def report(rewrites: Iterable[Rewrite]) -> pd.DataFrame:
    """How often each gate failed: `gate`, `condition`, `checked`, `failed`, `share` in [0, 1].

    `rewrites`: kept and rejected together, as `sift` returns them.
    """
    rows = [(gate.name, rewrite.condition, not gate.passed) for rewrite in rewrites for gate in rewrite.gates]
    order = [gate.__name__ for gate in (unchanged, *_GATES["emotional"])]
    frame = pd.DataFrame(rows, columns=["gate", "condition", "failed"]).astype({"failed": bool})
    frame["gate"] = pd.Categorical(frame["gate"], order)
    frame["condition"] = pd.Categorical(frame["condition"], list(_GATES))
    groups = frame.groupby(["gate", "condition"], observed=True)["failed"]
    counts = groups.agg(checked="size", failed="sum", share="mean").reset_index()
    return counts.astype({"gate": str, "condition": str, "failed": int})
