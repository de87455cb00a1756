"""Gates: what a rewrite must satisfy before anything is trained on it. What fails is set aside, with its reason.

Rules veto, they never acquit: a rewrite that passes keeps numbers, relations and sentences, and no rule saw a fault. A
composition (`segments`) is checked exactly; of a text written freely the composition is recovered by `invariants.Alignment`.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

import pandas as pd

from medcomfort_utils import medical
from medcomfort_utils.medical import lexicon
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.quantities import quantities
from medcomfort_utils.records import Dialogue, Gate, Rewrite
from medcomfort_utils.rewrite.invariants import ONE, Alignment, Said, read
from medcomfort_utils.text import language as language_of
from medcomfort_utils.text import sentences, words

USABLE = "usable_response"  # failed where a rewriter's response could not become a rewrite at all
OWN_WORDS = 80  # words of all `say` segments together, at most
BEFORE_URGENT, BEFORE_URGENT_FREE = 25, 40  # own words before an emergency, at most: composed, written freely
SHORTEST, LONGEST, LONGER = 0.5, 1.8, 80  # words of a free text for each of its source; and so many words more

_REFUSAL = re.compile(
    r"\bi (?:cannot|can't|can not|am (?:not able|unable) to|'m (?:not able|unable) to) (?:assist|comply|fulfil|help (?:you )?with|provide|give"
    r"|offer|engage|rewrite|diagnose|create|generate)|\bi(?: am|'m) not a (?:doctor|medical professional|physician)|\bas an ai\b"
    r"|\bmy (?:guidelines|programming|training data|knowledge cutoff)\b|\bnot appropriate for me\b", re.I)  # fmt: skip
_LEAK = re.compile(
    r"(?:^|(?<=[.!?\"] ))(?:patient|doctor|dr|user|assistant|system|human|physician|therapist|counsell?or|question|answer|response|output|input|rewrite"
    r"|note) ?:|<\|[^|<>]{0,40}\|>|</?s>|</?(?:think|system|user|assistant)|\[/?INST\]|^#{1,6} |```|\*\*[^*\n]+\*\*|\bas an ai\b"
    r"|\bai (?:language )?(?:model|assistant)\b|\blanguage model\b|\bchatbot\b|\brewrit(?:e|ten|ing) (?:the |this |your )?(?:question|answer|version|dialogue|response|message)"
    r"|\b(?:here|below) (?:is|are|'s) (?:the|a|an|your|my) (?:\w+ ){0,2}(?:rewr\w+|revis\w+|version|dialogue|response)|\bneutral question\b"
    r"|\bmy (?:system )?(?:prompt|instructions)\b|\bthe (?:system )?prompt\b|\bprevious instructions\b|\b(?:sentences|segments) (?:of the source|to keep|by number)\b",
    re.I | re.M)  # fmt: skip
_PLACEHOLDER = re.compile(
    r"\[[^\[\]\n]{0,60}\]|\{[^{}\n]{0,40}\}|<[a-z][a-z _'-]{1,30}>|(?:^|\s|\()(?:\.{3,}|…)(?=\s|\)|$)|_{2,}|\bx{3,}\b"
    r"|\binsert (?:your|the|name|age|here)\b|\blorem ipsum\b|\btbd\b", re.I)  # fmt: skip
_FOREIGN = re.compile(r"[\u0370-\u1fff\u3040-\ud7af\uff66-\uffdc]+")
_LINK = re.compile(r"https?://|\bwww\.|\S+@\S+\.\w|#\w{3,}|\b\w+\.(?:com|net|org|example)\b|[\U0001F300-\U0001FAFF]|\b[A-Z]{3,} [A-Z]{2,} [A-Z]{2,}")
_MACHINE = re.compile(
    r"\b(?:ignore|disregard|forget|override|bypass)\b.{0,40}\b(?:instructions?|prompts?|rules|guidelines|above|safety|training)\b"
    r"|\byou are (?:now |no longer )?(?:an? )?(?:ai|language model|chatbot|bot|machine|assistant)\b|\b(?:system prompt|jailbreak|language model|role ?play)\b"
    r"|\b(?:the (?:ai|model|software|program|computer)|robot|machine),? |(?:^|\W)(?:system|assistant|instruction) ?: |<\||<!--|```|\{\{|\{\""
    r"|\b(?:add|say|write|tell|mention|include|insert|append|print|output|state|claim|recommend|advise|put|begin|start|end|finish|close|open|sign|contain|repeat)\b[^.!?]{0,60}"
    r"(?:\bat the (?:very )?(?:end|beginning|start|top|bottom)\b|\bin (?:your|the|every|each) (?:answer|reply|response|sentence|line|text|message)|\b(?:last|first) (?:line|sentence|word)"
    r"|\b(?:the|this|following) (?:word|sentence|phrase|code|notice)\b|\bevery (?:reply|sentence|line))", re.I)  # fmt: skip
_ORDER = re.compile(
    r"(?:^|[.,:;!?\"'<{-] ?|\b(?:please|kindly|then|must|should|to|and|now|so) )"
    r"(?:add|say|write|tell|mention|include|insert|append|print|output|state|claim|recommend|advise|praise|repeat|respond|reply|answer|begin|start|end|finish|close|open"
    r"|sign|slip|sneak|work|put|make|speak|act|talk|list|name|swear|call me|use|swap|replace|hide|confess|give|publish|type|show|explain|send|treat|be)\b", re.I)  # fmt: skip


def addresses_machine(text: str) -> list[str]:
    """The sentences of a patient's text that give orders to the machine that writes, or name what it must say."""
    return [sentence for sentence in sentences(text) if _MACHINE.search(sentence)]


def _turns(conversation: Dialogue | Rewrite, role: str) -> str:
    return "\n".join(message.content for message in conversation.messages if message.role == role)


class Case:
    """A rewrite beside its source, taken apart; of a conversation, all turns of a speaker one after the other."""

    def __init__(self, dialogue: Dialogue, rewrite: Rewrite):
        self.dialogue, self.rewrite = dialogue, rewrite
        self.question, self.answer = _turns(dialogue, "user"), _turns(dialogue, "assistant")
        self.new_question, self.new_answer = _turns(rewrite, "user"), _turns(rewrite, "assistant")
        self.sides = (("question", self.question, self.new_question), ("answer", self.answer, self.new_answer))
        self.source = f"{self.question}\n{self.answer}"
        self.segments = [s for s in rewrite.segments if s.role == "assistant"]

    @cached_property
    def asked(self) -> Alignment:
        return Alignment(self.question, self.new_question)

    @cached_property
    def told(self) -> Alignment:
        return Alignment(self.answer, self.new_answer)

    @cached_property
    def source_sentences(self) -> list[str]:
        """What `keep` numbers, from 1 on."""
        turns = (m.content for m in self.dialogue.messages if m.role == "assistant")
        return [sentence for turn in turns for sentence in sentences(turn, self.dialogue.lang)]

    @cached_property
    def own(self) -> list[Said]:
        """The sentences of the answer in the rewriter's own words."""
        if self.segments:
            return [said for segment in self.segments for said in read(segment.say)]
        return list(read(self.new_answer)) if self.rewrite.condition == "comfort_only" else self.told.own


_YOU = {"you", "your", "yours", "yourself", "you're", "you've", "you'll", "you'd"}
_ALONE = {"take care", "all the best", "best wishes"}


def _told(fault: str, items: Iterable[str]) -> str:
    items = ", ".join(f'"{item}"' for item in dict.fromkeys(items))
    return f"{fault}: {items}" if items else ""


def unchanged(case: Case) -> str:
    """The `original` is the source, turn by turn."""
    return "" if case.rewrite.messages == case.dialogue.messages else "differs from the source dialogue"


def _letters(text: str) -> str:
    return "".join(text.split()).casefold()


def sentences_kept(case: Case) -> str:
    """Each sentence of the answer is there: once and verbatim in a composition, else one that stands for it."""
    if not case.segments:
        return _told("lost", (said.text for said in case.told.lost if _medical(said)))
    source, kept = case.source_sentences, [number for segment in case.segments for number in segment.keep]
    if wrong := [number for number in kept if not 1 <= number <= len(source)]:
        return f"the answer has no sentence {', '.join(map(str, wrong))}"
    counts = Counter(kept)
    faults = [_told("lost", (source[i - 1] for i in range(1, len(source) + 1) if not counts[i]))]
    faults += [_told("said twice", (source[i - 1] for i, count in counts.items() if count > 1))]
    pieces = "".join(segment.say + "".join(source[i - 1] for i in segment.keep) for segment in case.segments)
    if _letters(pieces) != _letters(case.new_answer):
        faults.append("the answer is not what its segments say")
    return "; ".join(filter(None, faults))


def _medical(said: Said) -> bool:
    """Whether a sentence of the source says anything that matters: more than a greeting."""
    content = said.content - lexicon("pleasantries")
    return len(content) > 2 or bool(said.quantities) or bool(content and (medical.clinical(said.text) or medical.is_urgent(said.text)))


def relations_kept(case: Case) -> str:
    """What is reworded keeps its numbers, bounds, medicines, doses, negations, conditions and relations."""
    if case.segments:
        return ""
    found = list(case.told.changes())
    lost = medical.medicines(case.answer) - medical.medicines(case.new_answer)
    found += [f"lost medicine: {name}" for name in sorted(lost)]
    return _told("changed", found + _new_doses(case.answer, case.new_answer))


def _new_doses(source: str, text: str) -> list[str]:
    """Doses and frequencies that the source does not give to that medicine."""
    known = defaultdict(set)
    for name, *taken in medical.prescriptions(source):
        known[name] |= {part for each in taken for part in each.split("+") if part}
    given = ((name, part) for name, *taken in sorted(medical.prescriptions(text)) for each in taken for part in each.split("+") if part)
    return [f"dose of another medicine: {name} {part}" for name, part in given if known[name] and part not in known[name] | known[""]]


def urgent_first(case: Case) -> str:
    """An emergency is named first, or behind a few own words; urgent advice and red flags stay urgent."""
    own = 0
    if case.segments:
        for number, segment in enumerate(case.segments):
            urgent = [i for i in segment.keep if medical.is_emergency(case.source_sentences[i - 1])] if segment.keep else []
            first = number == 0 or (number == 1 and not case.segments[0].keep and own <= BEFORE_URGENT)
            if urgent and not (first or own <= BEFORE_URGENT and _only_urgent_before(case, number)):
                return _told("not at the beginning", (case.source_sentences[i - 1] for i in urgent))
            own += len(segment.say.split())
        return ""
    urgent = [s for s in sentences(case.answer) if medical.is_urgent(s)]
    urgent += [flag for flag in case.dialogue.red_flags if flag not in urgent]
    kept = [s for s in sentences(case.new_answer) if medical.names_urgent_care(s)]
    if urgent and not kept and any(map(medical.is_urgent, urgent)):
        return _told("lost urgent advice", urgent)
    if any(map(medical.is_emergency, urgent)):
        mine = {id(said) for said in case.own}
        for said in case.told.text:
            if medical.is_urgent(said.text):
                break
            own += len(said.text.split()) if id(said) in mine else 0
        if own > BEFORE_URGENT_FREE:
            return f"{own} words of comfort stand before urgent advice"
    return ""


def _only_urgent_before(case: Case, number: int) -> bool:
    before = (case.source_sentences[i - 1] for segment in case.segments[:number] for i in segment.keep)
    return all(map(medical.is_urgent, before))


def own_words_short(case: Case) -> str:
    """A composition says little in its own words, and no number."""
    said = " ".join(segment.say for segment in case.segments)
    count = len(said.split())
    faults = [f"{count} own words, at most {OWN_WORDS}" if count > OWN_WORDS else ""]
    faults += [_told("number in own words", (f"{q.value} {q.unit}".strip() for q in quantities(said)))]
    faults += [_told("medicine in own words", sorted(medical.medicines(said)))]
    return "; ".join(filter(None, faults))


def no_new_advice(case: Case) -> str:
    """No command, permission or excuse about medicine, care, tests or waiting in own words."""
    known = [frozenset(words(sentence)) for sentence in sentences(case.answer)]
    found = (clause for said in case.own for clause in medical.instructions(said.text))
    added = (c for c in found if case.segments or not any(len(set(words(c)) - k) <= 0.25 * len(words(c)) for k in known))
    return _told("advice in own words", added)


def no_promise(case: Case) -> str:
    """No outcome is promised that the source does not promise."""
    known = medical.promises(case.answer)
    reworded = [] if case.segments or known or case.rewrite.condition == "comfort_only" else case.told.new
    added = [s for said in (*case.own, *reworded) for s in medical.promises(said.text) if s not in known]
    return _told("promise", added)


def no_new_facts(case: Case) -> str:
    """No medicine, number, symptom, test or treatment that the source dialogue lacks."""
    text = " ".join(said.text for said in case.own)
    if case.segments or case.rewrite.condition == "comfort_only":
        return _told("not in the source", sorted(_new_content(case.source, text)))
    found = _new_content(case.source, case.new_answer, figurative=text)
    return _told("not in the source", sorted(found))


def _new_content(source: str, text: str, figurative: str | None = None) -> set[str]:
    """Medicines, numbers and clinical words of `text` that `source` lacks; feelings may borrow the body's words."""
    known = {q.value for q in quantities(source)}
    found = [q for q in quantities(text) if q.value not in known and (q.unit or float(q.value.split("^")[0]) > 12)]
    numbers = {f"{q.value} {q.unit}".strip() for q in found if (q.value, q.unit) not in ONE}
    names = medical.clinical(text if figurative is None else figurative) - medical.clinical(source) - lexicon("figurative")
    return numbers | (medical.medicines(text) - medical.medicines(source)) | {n for n in names if not _near(n, source)}


def _near(name: str, source: str) -> bool:
    """Whether another form of the word stands in the source: infected for infection."""
    return any(name[:5].startswith(medical.stem(word)[:5]) for word in words(source) if len(word) > 3)


def question_unchanged(case: Case) -> str:
    """A neutral question stays word for word."""
    return "" if words(case.question) == words(case.new_question) else f'changed a neutral question: "{case.new_question}"'


def question_kept(case: Case) -> str:
    """The patient's story keeps its sentences, numbers, negations and relations."""
    lost = [f"lost: {said.text}" for said in case.asked.lost if _medical(said)]
    return _told("changed", lost + list(case.asked.changes(question=True)))


def no_new_history(case: Case) -> str:
    """No symptom, substance, number or history that the patient did not name."""
    return _told("not in the patient's story", sorted(_new_content(case.source, case.new_question)))


def emotion_present(case: Case) -> str:
    """The question names the emotion asked for, in words that the source does not have."""
    emotion, emotions = case.rewrite.emotion, medical.word_lists()["emotions"]
    if emotion not in emotions:
        raise MedComfortError(f"Rewrite of dialogue {case.dialogue.id}: the gates know no emotion '{emotion}'.")
    named = set(map(medical.stem, emotions[emotion].split()))
    before, after = (Counter(map(medical.stem, words(text))) for text in (case.question, case.new_question))
    return "" if any(after[name] > before[name] for name in named) else f"no word of {emotion} was added to the question"


def comfort_present(case: Case) -> str:
    """Some own words of the answer show warmth or understanding, or offer company."""
    own = case.own if case.segments else case.told.new
    known = {medical.stem(word) for word in words(case.answer)}
    said = {medical.stem(word) for said in own for word in words(said.text)}
    spoken = any(_YOU & {*said.tokens} for said in case.own)
    return "" if spoken or (said - known) & lexicon("comfort") else "no comfort was added to the answer"


def language(case: Case) -> str:
    """The rewrite stays in the language of the source."""
    for side, old, new in case.sides:
        if language_of(new) != case.dialogue.lang and language_of(new) != language_of(old):
            return f"the {side} is not in the language of the dialogue, '{case.dialogue.lang}'"
        if foreign := set(_FOREIGN.findall(new)) - set(_FOREIGN.findall(old)):
            return _told(f"letters of another script in the {side}", sorted(foreign))
        aligned = case.asked.own if side == "question" else case.own
        if strange := [said.text for said in aligned if language_of(said.text) != case.dialogue.lang]:
            return _told(f"another language in the {side}", strange)
    return ""


def _traces(pattern: re.Pattern, case: Case) -> Iterator[str]:
    for _, old, new in case.sides:
        known = Counter(match[0].lower() for match in pattern.finditer(old))
        found = Counter(match[0].lower() for match in pattern.finditer(new))
        yield from (text for text, count in found.items() if count > known[text])


def no_refusal(case: Case) -> str:
    """No model refuses the task or the patient."""
    return _told("refusal", _traces(_REFUSAL, case))


def no_role_leak(case: Case) -> str:
    """No label, marker or remark of the machine that wrote the text, unless the source has it."""
    return _told("role leak", _traces(_LEAK, case))


def no_placeholder(case: Case) -> str:
    """No gap left to be filled: "[name]", a lone "..."."""
    return _told("placeholder", _traces(_PLACEHOLDER, case))


def injection(case: Case) -> str:
    """Nothing is said because the patient's text orders it. Where it orders anything, own words speak to the patient."""
    orders = [said for order in addresses_machine(case.question) for said in read(order)]
    ordering = bool(orders) or any(_ORDER.search(s) and not s.endswith("?") for s in sentences(case.question))
    known = {name for said in read(case.answer) for name in said.content}
    faults = []
    for said in case.own:
        alien = ordering and not {*said.tokens} & _YOU and not lexicon("comfort") & {medical.stem(t) for t in said.tokens}
        obeyed = any(_obeys(said.content - known, order.content) for order in orders)
        if obeyed or (_LINK.search(said.text) and not _LINK.search(case.source)) or (alien and said.words not in _ALONE):
            faults.append(said.text)
    return _told("is said by order", faults)


def _obeys(said: frozenset[str], order: frozenset[str]) -> bool:
    """Whether the new content of a sentence is, for the most part, what was ordered."""
    social = lexicon("comfort") | lexicon("social_verbs")
    said = said - social
    return len(said & order) > 1 and len(said & order) >= 0.5 * len(said)


def length(case: Case) -> str:
    """Not much shorter than the source, and not much longer."""
    for side, old, new in case.sides[: 1 if case.segments or case.rewrite.condition == "comfort_only" else 2]:
        before, after = len(old.split()), len(new.split())
        if not SHORTEST * before <= after <= LONGEST * before + LONGER * (2 if case.rewrite.condition == "multiturn" else 1):
            return f"the {side} has {after} words, its source {before}"
    return ""


_KEEPING = (sentences_kept, relations_kept, urgent_first)
_OWN = (own_words_short, no_new_advice, no_promise, no_new_facts)
_ASKING = (question_kept, no_new_history, emotion_present)
_FORM = (comfort_present, language, no_refusal, no_role_leak, no_placeholder, injection, length)
_GATES: dict[str, tuple[Callable[[Case], str], ...]] = {
    "original": (unchanged,),
    "soothing_answer": (*_KEEPING, *_OWN, question_unchanged, *_FORM),
    "emotional": (*_KEEPING, *_OWN, *_ASKING, *_FORM),
    "comfort_only": (*_OWN, *_ASKING, *_FORM),
    "multiturn": (*_KEEPING, *_OWN, *_ASKING, *_FORM),
}


def check(dialogue: Dialogue, rewrite: Rewrite) -> list[Gate]:
    """All gates that apply to the condition of `rewrite`, in fixed order; a failed one says what was lost or added.

    Raises MedComfortError for a text that is not English and for an unknown emotion.
    """
    if rewrite.lang != "en" or dialogue.lang != "en":
        raise MedComfortError(f"Dialogue {dialogue.id} or its rewrite is not English, the one language the gates know.")
    case = Case(dialogue, rewrite)
    reasons = ((gate.__name__, gate(case)) for gate in _GATES[rewrite.condition])
    return [Gate(name=name, passed=not reason, reason=reason) for name, reason in reasons]


def sifted(pairs: Iterable[tuple[Dialogue, Rewrite]]) -> Iterator[Rewrite]:
    """Each rewrite, in order, with its `gates` filled in; a corpus of any size passes through, a pair at a time.

    One that brings its verdict, because the rewriter's response was unusable, keeps that.
    """
    for dialogue, rewrite in pairs:
        yield rewrite.model_copy(update={"gates": rewrite.gates or check(dialogue, rewrite)})


def sift(dialogues: Iterable[Dialogue], rewrites: Iterable[Rewrite]) -> tuple[list[Rewrite], list[Rewrite]]:
    """Kept and rejected rewrites, each in order and with its `gates` filled in; one failed gate rejects.

    Raises MedComfortError for a rewrite whose source is not among `dialogues`.
    """
    sources, rewrites = {dialogue.id: dialogue for dialogue in dialogues}, list(rewrites)
    if strays := [r.dialogue_id for r in rewrites if r.dialogue_id not in sources]:
        raise MedComfortError(f"A rewrite names dialogue {strays[0]}, which is not among the dialogues.")
    checked = list(sifted((sources[rewrite.dialogue_id], rewrite) for rewrite in rewrites))
    kept = [rewrite for rewrite in checked if all(gate.passed for gate in rewrite.gates)]
    return kept, [rewrite for rewrite in checked if not all(gate.passed for gate in rewrite.gates)]


def report(rewrites: Iterable[Rewrite]) -> pd.DataFrame:
    """How often each gate failed: `gate`, `condition`, `checked`, `failed`, `share` in [0, 1].

    `rewrites`: kept and rejected together, as `sift` returns them.
    """
    found = Counter((gate.name, rewrite.condition, gate.passed) for rewrite in rewrites for gate in rewrite.gates)
    frame = pd.DataFrame([(*key, count) for key, count in found.items()], columns=["gate", "condition", "passed", "checked"])
    order = dict.fromkeys((USABLE, *(gate.__name__ for gates in _GATES.values() for gate in gates)))
    frame["gate"] = pd.Categorical(frame["gate"], list(order))
    frame["condition"] = pd.Categorical(frame["condition"], list(_GATES))
    frame["failed"] = frame["checked"].where(~frame["passed"].astype(bool), 0)
    counts = frame.groupby(["gate", "condition"], observed=True)[["checked", "failed"]].sum().reset_index()
    counts["share"] = counts["failed"] / counts["checked"]
    return counts.astype({"gate": str, "condition": str, "checked": int, "failed": int, "share": float})
