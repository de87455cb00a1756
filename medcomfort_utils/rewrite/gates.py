"""Gates: what a rewrite must satisfy before anything is trained on it. What fails is set aside, with its reason.

Rules veto, they never acquit: a rewrite that passes keeps numbers, relations and sentences, and no rule saw a fault. A
composition (`segments`) is checked exactly; of a text written freely it is recovered by `invariants.Alignment`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import cached_property

import pandas as pd

from medcomfort_utils import medical
from medcomfort_utils.medical import lexicon
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue, Gate, Rewrite
from medcomfort_utils.rewrite.compose import compose, problems, urgent_now
from medcomfort_utils.rewrite.invariants import ONE, Alignment, Said, read
from medcomfort_utils.text import language as language_of
from medcomfort_utils.text import sentences, words

USABLE = "usable_response"  # failed where a rewriter's response could not become a rewrite at all
BEFORE_URGENT = 40  # own words before an emergency in a text written freely, at most; compositions: `compose.problems`
SHORTEST, LONGEST, LONGER = 0.5, 1.8, 80  # words of a free text for each of its source; and so many words more

_REFUSAL = re.compile(
    r"\bi(?: can ?not| can't|(?: am|'m) (?:not able|unable) to) (?:assist|comply|fulfil|help (?:you )?with"
    r"|provide|give|offer|engage|rewrite|diagnose|create|generate)|\bi(?: am|'m) not a (?:doctor|medical professional"
    r"|physician)|\bmy (?:guidelines|programming|training data|knowledge cutoff)\b|\bnot appropriate for me\b",
    re.I,
)
_LEAK = re.compile(
    r"^\W*(?:patient|doctor|dr|user|assistant|system|human|physician|therapist|question|answer|response|output|input"
    r"|rewrite|note) ?:|<\|[^|<>]{0,40}\|>|</?s>|</?(?:think|system|user|assistant)|\[/?INST\]|^#{1,6} |```"
    r"|\*\*[^*\n]+\*\*|\bas an ai\b|\bai (?:language )?(?:model|assistant)\b|\blanguage model\b|\bchatbot\b"
    r"|\b(?:rewrit\w+|(?:here|below) is) (?:the |this |your |an? |my )?(?:\w+ )?"
    r"(?:question|answer|version|dialogue|response|message)"
    r"|\bneutral question\b|\bmy (?:system )?(?:prompt|instructions)\b|\bthe (?:system )?prompt\b"
    r"|\bprevious instructions\b|\b(?:sentences|segments) (?:of the source|to keep|by number)\b",
    re.I,
)
_PLACEHOLDER = re.compile(
    r"\[[^\[\]\n]{0,60}\]|\{[^{}\n]{0,40}\}|<[a-z][a-z _'-]{1,30}>|(?:^|\s|\()(?:\.{3,}|…)(?=\s|\)|$)|_{2,}|\bx{3,}\b"
    r"|\binsert (?:your|the|name|age|here)\b|\blorem ipsum\b|\btbd\b",
    re.I,
)
_SIDE = re.compile(
    r"\b(left|right) (?:\w+ )?(?:side|arm|hand|leg|foot|eye|ear|breast|knee|hip|shoulder|ankle|wrist|calf|lung|kidney)"
)
_FOREIGN = re.compile(r"[\u0370-\u1fff\u3040-\ud7af\uff66-\uffdc]+")
_LINK = re.compile(
    r"https?://|\bwww\.|\S+@\S+\.\w|#\w{3,}|\b\w+\.(?:com|net|org|example)\b|[\U0001F300-\U0001FAFF]"
    r"|\b[A-Z]{3,} [A-Z]{2,} [A-Z]{2,}"
)
_MACHINE = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}\b(?:instructions?|prompts?|rules|guidelines)\b"
    r"|\byou are (?:now |no longer )?(?:an? )?(?:ai|language model|chatbot|bot|machine)\b|\bjailbreak\b"
    r"|\bsystem prompt\b|(?:^|\n)(?:system|assistant|instruction) ?:|<\||<!--|```"
    r"|\b(?:add|say|write|mention|include|insert|append|print|output|state|claim|begin|start|end|finish|close|repeat)\b"
    r"[^.!?]{0,60}\b(?:at the (?:very )?(?:end|beginning|start|top|bottom)|in (?:your|the|every) (?:answer|reply)"
    r"|(?:your|the|every) (?:answer|reply|response|message) with)\b",
    re.I,
)


def addresses_machine(text: str) -> list[str]:
    """The sentences of a patient's text that give orders to the machine that writes, or name what it must say."""
    return [sentence for sentence in sentences(text) if _MACHINE.search(sentence)]


class Case:
    """A rewrite beside its source, taken apart; of a conversation, all turns of a speaker one after the other."""

    def __init__(self, dialogue: Dialogue, rewrite: Rewrite):
        self.dialogue, self.rewrite = dialogue, rewrite
        self.question, self.answer, self.new_question, self.new_answer = (
            "\n".join(message.content for message in each.messages if message.role == role)
            for each in (dialogue, rewrite)
            for role in ("user", "assistant")
        )
        self.source = (*read(self.question), *read(self.answer))
        self.free = not rewrite.segments and rewrite.condition != "comfort_only"  # written freely, so aligned

    @cached_property
    def asked(self) -> Alignment:
        return Alignment(self.question, self.new_question)

    @cached_property
    def told(self) -> Alignment:
        return Alignment(self.answer, self.new_answer)

    @cached_property
    def own(self) -> list[Said]:
        """The sentences of the answer in the rewriter's own words."""
        if self.rewrite.segments:
            return [said for segment in self.rewrite.segments for said in read(segment.say)]
        return self.told.own if self.free else list(read(self.new_answer))


def _told(fault: str, items: Iterable[str]) -> str:
    items = ", ".join(f'"{item}"' for item in dict.fromkeys(items))
    return f"{fault}: {items}" if items else ""


def unchanged(case: Case) -> str:
    """The `original` is the source, turn by turn."""
    return "" if case.rewrite.messages == case.dialogue.messages else "differs from the source dialogue"


def sentences_kept(case: Case) -> str:
    """A composition keeps each sentence once, the urgent one first; of a free text no sentence is without a like."""
    if case.free:
        before, after = (Counter(said.words for said in side) for side in (case.told.source, case.told.text))
        twice = [words for words, count in after.items() if 0 < before[words] < count]
        return _told("lost or said twice", [said.text for said in case.told.lost if _matters(said)] + twice)
    source = [said for turn in case.dialogue.messages if turn.role == "assistant" for said in sentences(turn.content)]
    faults = " ".join(problems(case.rewrite.segments, len(source), urgent_now(case.dialogue)))
    if not faults and "".join(case.new_answer.split()) != "".join(compose(case.rewrite.segments, source).split()):
        return "the answer is not what its segments say"
    return faults


def _matters(said: Said) -> bool:
    """Whether a sentence of the source says more than a greeting."""
    content = said.content - lexicon("pleasantries")
    return len(content) > 2 or bool(said.quantities) or bool(content and (said.clinical or said.urgent))


def relations_kept(case: Case) -> str:
    """What is reworded keeps its numbers, bounds, medicines, doses, negations, conditions and relations."""
    if not case.free:
        return ""
    lost = _union("medicines", case.told.source) - _union("medicines", case.told.text)
    return _told("changed", [*case.told.changes(), *(f"lost medicine: {name}" for name in sorted(lost))])


def _union(part: str, sentences: Iterable[Said]) -> frozenset[str]:
    return frozenset().union(*(getattr(said, part) for said in sentences))


def urgent_first(case: Case) -> str:
    """In a free text an emergency is named first, or behind a few own words; what is urgent stays urgent."""
    urgent = [said for said in read(case.answer) if said.urgent] if case.free else []
    if not urgent:
        return ""
    if not any(medical.names_urgent_care(said.text) for said in case.told.text):
        return _told("lost urgent advice", (said.text for said in urgent))
    own = 0
    for said in case.told.text if any(medical.is_emergency(said.text) for said in urgent) else ():
        if said.urgent:
            break
        own += len(said.text.split()) if said in case.own else 0
    return f"{own} words of comfort stand before urgent advice" if own > BEFORE_URGENT else ""


def own_words_plain(case: Case) -> str:
    """The own words of a composition name no number and no medicine."""
    if not case.rewrite.segments:
        return ""
    numbers = (f"{value} {unit}".strip() for said in case.own for value, unit in said.quantities.keys() - ONE)
    return _told("in own words", [*sorted(numbers), *sorted(_union("medicines", case.own))])


def no_new_advice(case: Case) -> str:
    """No command, permission or excuse about medicine, care, tests or waiting in own words."""
    added = [clause for said in case.own for clause in medical.instructions(said.text)]
    if case.free:
        known = [frozenset(words(said.text)) for said in case.told.source]
        added = [c for c in added if not any(len(set(words(c)) - k) <= 0.25 * len(words(c)) for k in known)]
    return _told("advice in own words", added)


def no_promise(case: Case) -> str:
    """No outcome is promised that the source does not promise."""
    known = [said.text for said in read(case.answer) if said.promises]
    reworded = case.told.reworded if case.free and not known else []
    return _told("promise", (s.text for s in (*case.own, *reworded) if s.promises and s.text not in known))


def no_new_facts(case: Case) -> str:
    """No medicine, number, symptom, test or treatment that the source dialogue lacks."""
    return _told("not in the source", _new_content(case.source, case.told.new if case.free else case.own))


def _new_content(source: Iterable[Said], text: list[Said]) -> list[str]:
    """Medicines, numbers and clinical words of `text` that `source` lacks; comfort may borrow the body's words."""
    known, letters = {value for said in source for value, _ in said.quantities}, " ".join(said.words for said in source)
    numbers = {key for said in text for key in said.quantities if key[0] not in known and key[1]} - ONE
    named = _union("clinical", text) - _union("clinical", source) - lexicon("figurative")
    medicines = _union("medicines", text) - _union("medicines", source)
    return sorted({name for name in named if name[:5] not in letters} | medicines | {" ".join(key) for key in numbers})


def question_unchanged(case: Case) -> str:
    """A neutral question stays word for word."""
    same = words(case.question) == words(case.new_question)
    return "" if same else f'changed a neutral question: "{case.new_question}"'


def question_kept(case: Case) -> str:
    """The patient's story keeps its numbers, medicines, sides and denied symptoms; its wording and order are free."""
    before, after = case.asked.source, case.asked.text
    kept = {value for said in after for value, _ in said.quantities}
    lost = [
        f"number {value}"
        for value, unit in sorted({key for said in before for key in said.quantities} - ONE)
        if value not in kept and (unit or float(value.split("^")[0].split("-")[0]) > 12)
    ]
    lost += sorted(_union("medicines", before) - _union("medicines", after))
    sides = [set(_SIDE.findall(" ".join(said.words for said in each))) for each in (before, after)]
    lost += sorted(sides[0]) if len(sides[0]) == 1 and sides[1] - sides[0] else []
    return _told("lost or turned", [*lost, *case.asked.denials(_union("clinical", case.source))])


def no_new_history(case: Case) -> str:
    """No symptom, substance, number or history that the patient did not name."""
    return _told("not in the patient's story", _new_content(case.source, case.asked.new))


def language(case: Case) -> str:
    """The rewrite stays in the language of the source."""
    for side, old, new, own in (
        ("question", case.question, case.new_question, case.asked.new),
        ("answer", case.answer, case.new_answer, case.own),
    ):
        strange = [said.text for said in own if not said.english and language_of(said.text) != case.dialogue.lang]
        english = sum(said.english for said in read(new)) > 0.5 * len(read(new))
        if strange or not english and language_of(new) not in (case.dialogue.lang, language_of(old)):
            return _told(f"another language in the {side}", strange or [new])
        if foreign := set(_FOREIGN.findall(new)) - set(_FOREIGN.findall(old)):
            return _told(f"letters of another script in the {side}", sorted(foreign))
    return ""


def _traces(fault: str, pattern: re.Pattern, case: Case) -> str:
    """What `pattern` finds in the new sentences of either side and not in the source."""
    new = [*case.asked.new, *(case.told.new if case.free else case.own)]
    found = [match[0] for said in new for match in pattern.finditer(said.text)]
    known = f"{case.question}\n{case.answer}".lower() if found else ""
    return _told(fault, (text for text in found if text.lower() not in known))


def no_refusal(case: Case) -> str:
    """No model refuses the task or the patient."""
    return _traces("refusal", _REFUSAL, case)


def no_role_leak(case: Case) -> str:
    """No label, marker or remark of the machine that wrote the text, unless the source has it."""
    return _traces("role leak", _LEAK, case)


def no_placeholder(case: Case) -> str:
    """No gap left to be filled: "[name]", a lone "..."."""
    return _traces("placeholder", _PLACEHOLDER, case)


def injection(case: Case) -> str:
    """Nothing is said because the patient's text orders it, and nothing advertises."""
    orders = [said.content for order in addresses_machine(case.question) for said in read(order)]
    known = _union("content", read(case.answer))
    faults = [said.text for said in case.own if any(len((said.content - known) & order) > 1 for order in orders)]
    return _told("is said by order", faults) or _traces("advertises", _LINK, case)


def length(case: Case) -> str:
    """Not much shorter than the source, and not much longer."""
    sides = (("question", case.question, case.new_question), ("answer", case.answer, case.new_answer))
    for side, old, new in sides[: 2 if case.free else 1]:
        before, after = len(old.split()), len(new.split())
        if not SHORTEST * before <= after <= LONGEST * before + LONGER:
            return f"the {side} has {after} words, its source {before}"
    return ""


_KEEPING = (sentences_kept, relations_kept, urgent_first)
_OWN = (own_words_plain, no_new_advice, no_promise, no_new_facts)
_ASKING = (question_kept, no_new_history)
_FORM = (language, no_refusal, no_role_leak, no_placeholder, injection, length)
_GATES: dict[str, tuple[Callable[[Case], str], ...]] = {
    "original": (unchanged,),
    "soothing_answer": (*_KEEPING, *_OWN, question_unchanged, *_FORM),
    "emotional": (*_KEEPING, *_OWN, *_ASKING, *_FORM),
    "comfort_only": (*_OWN, *_ASKING, *_FORM),
}


def check(dialogue: Dialogue, rewrite: Rewrite) -> list[Gate]:
    """All gates that apply to the condition of `rewrite`, in fixed order; a failed one says what was lost or added.

    Raises MedComfortError for a text that is not English.
    """
    if rewrite.lang != "en" or dialogue.lang != "en":
        raise MedComfortError(f"Dialogue {dialogue.id} or its rewrite is not English, the one language the gates know.")
    case = Case(dialogue, rewrite)
    reasons = ((gate.__name__, gate(case)) for gate in _GATES[rewrite.condition])
    return [Gate(name=name, passed=not reason, reason=reason) for name, reason in reasons]


def report(rewrites: Iterable[Rewrite]) -> pd.DataFrame:
    """How often each gate failed: `gate`, `condition`, `checked`, `failed`, `share` in [0, 1]."""
    checked, failed = Counter(), Counter()
    for rewrite in rewrites:
        for gate in rewrite.gates:
            checked[gate.name, rewrite.condition] += 1
            failed[gate.name, rewrite.condition] += not gate.passed
    order = [USABLE, *(gate.__name__ for gates in _GATES.values() for gate in gates), *(name for name, _ in checked)]
    keys = sorted(checked, key=lambda key: (order.index(key[0]), list(_GATES).index(key[1])))
    rows = [(*key, checked[key], failed[key], failed[key] / checked[key]) for key in keys]
    return pd.DataFrame(rows, columns=["gate", "condition", "checked", "failed", "share"])
