"""Versions of a dialogue, and the template rewriter, which makes them from phrase banks and asks no model.

It puts an emotion into any English question, comfort around the sentences of the answer, and changes no other word.
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import EMOTIONS, Dialogue, Message, Rewrite, Segment
from medcomfort_utils.rewrite import compose
from medcomfort_utils.rewrite.clinic import load_emotions

BY_TEMPLATE = {"backend": "template", "model": "phrase-banks", "prompt_version": "1"}

# "Hello doctor." or "Hi," keeps its place at the head of the text; "Good morning stiffness bothers me, ..." holds none.
_WHOM = r"(?: (?:there|all|doctors?|doc|sir|madam|team)| dr\.?(?: (?-i:[A-Z])\w+)?)*"
_GREETING = re.compile(
    rf"^\s*(?:hello|hi|hey|dear|greetings|good (?:morning|afternoon|evening|day)){_WHOM}\s*[.,!]\s*", re.I
)


def emotions_of(dialogue: Dialogue, count: int) -> list[str]:
    """`count` (1-5) different emotions: those the corpus names first, then by the hash in the id, evenly spread."""
    start = int(dialogue.id, 16)
    spread = [EMOTIONS[(start + step) % len(EMOTIONS)] for step in range(len(EMOTIONS))]
    return list(dict.fromkeys([*dialogue.emotions, *spread]))[:count]


def version_of(dialogue: Dialogue, condition: str, emotion: str, question: str, answer: str, **made_by) -> Rewrite:
    """The dialogue with its last question and its answer replaced; earlier turns stay.

    `made_by`: backend, model and prompt_version of the rewriter, and where it has them, intensity and segments.
    """
    earlier = dialogue.messages[:-1]
    last = max(i for i, message in enumerate(earlier) if message.role == "user")
    messages = [*earlier[:last], Message(role="user", content=question), *earlier[last + 1 :]]
    return Rewrite(
        dialogue_id=dialogue.id,
        condition=condition,
        emotion=emotion,
        lang=dialogue.lang,
        split=dialogue.split,
        messages=[*messages, Message(role="assistant", content=answer)],
        **made_by,
    )


def original(dialogue: Dialogue, **made_by) -> Rewrite:
    """The source dialogue as a version of itself."""
    return version_of(dialogue, "original", "", dialogue.question, dialogue.answer, **made_by)


def _asked_with(expression: str, question: str, first: bool) -> str:
    """The question with an expression of feeling behind its greeting, or at its end."""
    if not first:
        return f"{compose.ended(question)} {expression}"
    greeting = _GREETING.match(question)
    head, rest = (greeting[0].strip(), question[greeting.end() :]) if greeting else ("", question)
    return f"{head} {expression} {rest}".strip()


def template_versions(dialogue: Dialogue, emotions: int = 1) -> Iterator[Rewrite]:
    """The `original`, for each of 1-5 emotions the versions `emotional` and `comfort_only`, one `soothing_answer`.

    A neutral question has no feeling of its own: it gets the soothing answer of the first emotion. Deterministic:
    choices depend on the dialogue's id alone. Dialogues of the test split take phrases that training never sees.
    Raises MedComfortError for a language without phrase banks.
    """
    if dialogue.lang != "en":
        raise MedComfortError(
            f"dialogue {dialogue.id} is in '{dialogue.lang}', but the template rewriter knows English only."
        )
    chosen, numbered = emotions_of(dialogue, emotions), compose.numbered(dialogue)
    urgent = [number for number in [compose.urgent_now(dialogue)] if number]
    head = urgent or ([1] if _GREETING.fullmatch(numbered[0]) else [])
    rest = [number for number in range(1, len(numbered) + 1) if number not in head]
    yield original(dialogue, **BY_TEMPLATE)
    bank = "test" if dialogue.split == "test" else "train"
    for emotion in chosen:
        rng = random.Random(f"{dialogue.id}:{emotion}")
        phrases = load_emotions()[emotion]
        expression, opener, closer = (
            rng.choice(getattr(kind, bank)) for kind in (phrases.expressions, phrases.openers, phrases.closers)
        )
        question = _asked_with(expression, dialogue.question, first=rng.random() < 0.5)
        pieces = [{"keep": head}, {"say": opener}, {"keep": rest}, {"say": closer}]
        segments = [Segment(role="assistant", **piece) for piece in pieces if any(piece.values())]
        soothing, made_by = compose.compose(segments, numbered), {**BY_TEMPLATE, "segments": segments}
        yield version_of(dialogue, "emotional", emotion, question, soothing, **made_by)
        if emotion == chosen[0]:
            yield version_of(dialogue, "soothing_answer", emotion, dialogue.question, soothing, **made_by)
        yield comfort_only(dialogue, emotion, question, **made_by)


def comfort_only(dialogue: Dialogue, emotion: str, question: str, segments: list[Segment], **made_by) -> Rewrite:
    """The emotional question with the own words of its answer alone."""
    spoken = [segment for segment in segments if segment.say]
    text = compose.compose(spoken, [])
    return version_of(dialogue, "comfort_only", emotion, question, text, segments=spoken, **made_by)


@dataclass(frozen=True)
class TemplateRewriter:
    """The rewriter that asks no model: `emotions` emotional versions of each English dialogue."""

    emotions: int = 1

    def versions(self, dialogues: Iterable[Dialogue]) -> Iterator[tuple[Dialogue, list[Rewrite]]]:
        """Each English dialogue with its `template_versions`, in order; other languages are left out."""
        for dialogue in dialogues:
            if dialogue.lang == "en":
                yield dialogue, list(template_versions(dialogue, self.emotions))

    def prompts(self, dialogue: Dialogue) -> str:
        """What would be asked about a dialogue: nothing."""
        return "Templates ask no model: phrases from `data/clinic/emotions` are put around the source's words."

    def estimate(self, dialogues: Iterable[Dialogue]) -> str:
        """What it will cost: nothing."""
        return "Templates ask no model and cost nothing."

    def finish(self, record: Path) -> str:
        """What it cost: nothing, and nothing is recorded."""
        return self.estimate([])


def rewrite_all(dialogues: Iterable[Dialogue], emotions: int = 1) -> list[Rewrite]:
    """The template versions of all English dialogues in one list."""
    return [version for _, made in TemplateRewriter(emotions).versions(dialogues) for version in made]
