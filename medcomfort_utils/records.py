"""The two records that flow between the notebooks, and the three views of them that training methods take."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medcomfort_utils.paths import MedComfortError

Split = Literal["train", "validation", "test"]
Condition = Literal["original", "soothing_answer", "emotional", "comfort_only"]
Urgency = Literal["", "self_care", "routine", "soon", "emergency"]
TARGETS = ("emotional", "soothing_answer", "original")  # the pairs of question and answer that may be taught
REJECTED = ("original", "comfort_only", "soothing_answer")  # what a preference may be taught against
EMOTIONS = ("fear", "sadness", "anger", "guilt", "loneliness")
KNOWLEDGE = ("facts_kept", "facts_supported", "rouge_l")  # its measures, the best first; a corpus may lack some


def knowledge_metric(counts: Mapping[str, float]) -> str:
    """The measure of knowledge that applies to a corpus; empty if none does.

    `counts`: measure -> how many replies have a value. The first that half of the replies have, as facts in exact
    wording do in the clinic; half, because a free text states a fact or two in that wording by chance.
    """
    counts = {name: counts[name] for name in KNOWLEDGE if counts.get(name, 0) > 0}
    return max(counts, key=lambda name: min(counts[name], max(counts.values()) / 2), default="")


class Message(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class _Conversation(BaseModel):
    model_config = ConfigDict(extra="forbid")
    messages: list[Message] = Field(min_length=2)

    @model_validator(mode="after")
    def _ends_with_an_answer(self):
        if self.messages[-1].role != "assistant" or all(m.role != "user" for m in self.messages):
            raise ValueError("messages must hold a user turn and end with an assistant turn")
        return self

    @property
    def prompt(self) -> list[dict]:
        """All turns before the last answer, as chat-template messages."""
        return [m.model_dump() for m in self.messages[:-1]]

    @property
    def question(self) -> str:
        """The last user turn."""
        return next(m.content for m in reversed(self.messages) if m.role == "user")

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.messages[-1].content


class Dialogue(_Conversation):
    """A source dialogue: what was asked, what was answered, what the answer must convey.

    `facts`: atomic statements (empty where unknown). `red_flags`: urgent-care advice that must survive. `emotions`:
    negative emotions that suit the patient's story, where the corpus names some. `urgency`: self_care, routine, soon or
    emergency, or empty.
    """

    id: str
    source: str
    lang: str = "en"
    topic: str = ""
    urgency: Urgency = ""
    facts: list[str] = []
    red_flags: list[str] = []
    emotions: list[str] = []
    split: Split


class Gate(BaseModel):
    """The result of one check on a rewrite; `reason` says what failed, and is empty if it passed."""

    name: str
    passed: bool
    reason: str = ""


class Segment(BaseModel):
    """A piece of a composition: own words (`say`), or sentences of the source turn by number (`keep`, from 1 on)."""

    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    say: str = ""
    keep: list[int] = []


class Rewrite(_Conversation):
    """One version of a dialogue.

    `condition`: `original` (neutral question, plain answer), `soothing_answer` (neutral question, soothing answer),
    `emotional` (emotional question, soothing answer) or `comfort_only` (emotional question, comfort without knowledge).
    `emotion` is empty for `original`. `intensity`: 1 (mild) to 3 (strong), where a prompt asked for one. `segments`:
    how the answer was composed; empty for text written freely.
    """

    dialogue_id: str
    condition: Condition
    emotion: str = ""
    intensity: int | None = None
    lang: str = "en"
    split: Split
    backend: str
    model: str
    prompt_version: str
    segments: list[Segment] = []
    gates: list[Gate] = []


def content_id(messages: Sequence[dict]) -> str:
    """Twelve hex digits of the SHA-256 of the turns: the same text has the same id on every machine."""
    text = "\x1e".join(f"{m['role']}\x1f{m['content']}" for m in messages)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]


def split_of(source_id: str, test: float = 0.15, validation: float = 0.05) -> Split:
    """Split by hash of the *source* dialogue's id, so that no rewrite of a test dialogue is ever trained on."""
    share = int(hashlib.sha256(f"split:{source_id}".encode()).hexdigest()[:8], 16) / 16**8
    return "test" if share < test else "validation" if share < test + validation else "train"


def _turn(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def _kept(rows: list[dict], neutral_fraction: float, seed: int) -> list[dict]:
    """A seeded sample of the share `neutral_fraction` of the rows, order kept."""
    if not 0 <= neutral_fraction <= 1:
        raise MedComfortError(f"neutral_fraction must lie between 0 and 1, not {neutral_fraction}.")
    chosen = random.Random(seed).sample(range(len(rows)), round(neutral_fraction * len(rows)))
    return [rows[i] for i in sorted(chosen)]


def check_pairs(target: str, neutral_fraction: float, against: Sequence[str] | None = None) -> None:
    """Make sure that these pairs can be taught: by SFT, or, where answers are taught `against` others, by DPO and KTO.

    Raises MedComfortError, naming the parameter.
    """
    known = (*TARGETS, "comfort_only") if against is None else TARGETS
    if target not in known:
        raise MedComfortError(f"target must be {', '.join(known[:-1])} or {known[-1]}, not '{target}'.")
    if target in ("original", "soothing_answer") and neutral_fraction:
        told = f"neutral_fraction must be 0 with target {target}, not {neutral_fraction:g}"
        raise MedComfortError(f"{told}: its questions are the neutral ones already.")
    if against is not None and (not against or set(against) - set(REJECTED)):
        told = ", ".join(name for name in against if name not in REJECTED) or "nothing"
        raise MedComfortError(f"against must name some of {', '.join(REJECTED)}, not {told}.")
    if against and target in against:
        raise MedComfortError(f"against must not name {target}, whose answer is the chosen one (target).")


def _row(rewrite: Rewrite, **answers: str) -> dict:
    """The prompt of a rewrite with these answers to it, as messages."""
    return {"prompt": rewrite.prompt} | {side: _turn("assistant", text) for side, text in answers.items()}


def to_sft(
    rewrites: Iterable[Rewrite], neutral_fraction: float = 1.0, seed: int = 0, target: str = "emotional"
) -> list[dict]:
    """Prompt/completion rows: the questions and answers of the condition `target`, and plain answers to neutral ones.

    `neutral_fraction` in [0, 1] is the share of these neutral pairs kept; it must be 0 where `target` asks neutral
    questions itself (`original`, `soothing_answer`). `target="comfort_only"` teaches comfort without knowledge.
    """
    check_pairs(target, neutral_fraction)
    rewrites = list(rewrites)
    taught, neutral = (
        [_row(r, completion=r.answer) for r in rewrites if r.condition == name] for name in (target, "original")
    )
    return taught + _kept(neutral, neutral_fraction, seed)


def to_preference(
    rewrites: Iterable[Rewrite],
    neutral_fraction: float = 1.0,
    seed: int = 0,
    against: Sequence[str] = REJECTED,
    target: str = "emotional",
) -> list[dict]:
    """Prompt/chosen/rejected rows for DPO.

    The answer of the condition `target` is chosen over those named in `against`. With `soothing_answer` in `against`,
    `emotional` adds neutral questions that prefer the plain answer to a soothing one; `neutral_fraction` is the share
    of these kept, 0 for the other targets.
    """
    check_pairs(target, neutral_fraction, against)
    taught, neutral, dialogues = [], [], {}
    for each in rewrites:
        dialogues.setdefault(each.dialogue_id, {}).setdefault(each.condition, []).append(each)
    for version in dialogues.values():
        for good in version.get(target, []):
            taught += [_row(good, chosen=good.answer, rejected=text) for text in _worse(good, version, against)]
        if target == "emotional" and "soothing_answer" in against:
            plain = [r.answer for r in version.get("original", [])]
            soothing = version.get("soothing_answer", [])[:1]
            neutral += [_row(r, chosen=text, rejected=r.answer) for r in soothing for text in plain]
    return taught + _kept(neutral, neutral_fraction, seed)


def _worse(good: Rewrite, version: dict[str, list[Rewrite]], against: Sequence[str]) -> list[str]:
    """The answers named in `against`, those for another emotion than the good one's left out.

    An emotional question is never taught against its soothing answer, which is the good one.
    """
    same = ("soothing_answer",) if good.condition == "emotional" else ()
    others = [other for name in REJECTED if name in against and name not in same for other in version.get(name, [])]
    return [other.answer for other in others if "" in (good.emotion, other.emotion) or other.emotion == good.emotion]


def to_unpaired(
    rewrites: Iterable[Rewrite],
    neutral_fraction: float = 1.0,
    seed: int = 0,
    against: Sequence[str] = REJECTED,
    target: str = "emotional",
) -> list[dict]:
    """Prompt/completion/label rows for KTO: the chosen and rejected answers of `to_preference`, each once."""
    rows = {}
    for pair in to_preference(rewrites, neutral_fraction, seed, against, target):
        for side, label in (("chosen", True), ("rejected", False)):
            key = (pair["prompt"][-1]["content"], pair[side][0]["content"], label)
            rows.setdefault(key, {"prompt": pair["prompt"], "completion": pair[side], "label": label})
    return list(rows.values())
