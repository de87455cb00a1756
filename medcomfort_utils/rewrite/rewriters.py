"""The template rewriter: puts an emotion into any English question, soothes in the answer, changes no other word."""

import random
import re
from collections.abc import Iterable, Iterator

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import EMOTIONS, Dialogue, Message, Rewrite
from medcomfort_utils.rewrite.clinic import load_emotions

BACKEND, MODEL, PROMPT_VERSION = "template", "phrase-banks", "1"

# "Hello doctor." or "Hi," keeps its place at the head of the text; "Good morning stiffness bothers me, ..." holds none.
_WHOM = r"(?: (?:there|all|doctors?|doc|sir|madam|team)| dr\.?(?: (?-i:[A-Z])\w+)?)*"
_GREETING = re.compile(
    rf"^\s*(?:hello|hi|hey|dear|greetings|good (?:morning|afternoon|evening|day)){_WHOM}\s*[.,!]\s*", re.I
)


def _ended(text: str) -> str:
    """The text with a full stop if it ends without a mark, so that a sentence can follow."""
    return text if re.search(r"[.!?:;][\"')\]]*$", text) else f"{text}."


def _after_greeting(text: str, phrase: str) -> str:
    greeting = _GREETING.match(text)
    if not greeting:
        return f"{phrase} {text}"
    return f"{greeting[0].strip()} {phrase} {text[greeting.end() :].lstrip()}".strip()


def _emotions_of(dialogue: Dialogue, count: int) -> list[str]:
    """`count` different emotions, evenly spread over a corpus by the hash in the id."""
    start = int(dialogue.id, 16)
    return [EMOTIONS[(start + step) % len(EMOTIONS)] for step in range(count)]


def _version(dialogue: Dialogue, condition: str, emotion: str, question: str, answer: str) -> Rewrite:
    """The dialogue with its last question and its answer replaced; earlier turns stay."""
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
        backend=BACKEND,
        model=MODEL,
        prompt_version=PROMPT_VERSION,
    )


def template_versions(dialogue: Dialogue, emotions: int = 1) -> Iterator[Rewrite]:
    """The `original`, then for each of 1-5 emotions the versions `emotional`, `soothing_answer` and `comfort_only`.

    Deterministic: choices depend on the dialogue's id alone. Dialogues of the test split take phrases that training
    never sees. Raises MedComfortError for a language without phrase banks.
    """
    if dialogue.lang != "en":
        raise MedComfortError(
            f"dialogue {dialogue.id} is in '{dialogue.lang}', but the template rewriter knows English only."
        )
    if not 1 <= emotions <= len(EMOTIONS):
        raise MedComfortError(f"emotions must lie between 1 and {len(EMOTIONS)}, not {emotions}.")
    yield _version(dialogue, "original", "", dialogue.question, dialogue.answer)
    bank = "test" if dialogue.split == "test" else "train"
    for emotion in _emotions_of(dialogue, emotions):
        rng = random.Random(f"{dialogue.id}:{emotion}")
        phrases = load_emotions()[emotion]
        expression, opener, closer = (
            rng.choice(getattr(kind, bank)) for kind in (phrases.expressions, phrases.openers, phrases.closers)
        )
        first = rng.random() < 0.5
        question = (
            _after_greeting(dialogue.question, expression) if first else f"{_ended(dialogue.question)} {expression}"
        )
        soothing = f"{_ended(_after_greeting(dialogue.answer, opener))} {closer}"
        yield _version(dialogue, "emotional", emotion, question, soothing)
        yield _version(dialogue, "soothing_answer", emotion, dialogue.question, soothing)
        yield _version(dialogue, "comfort_only", emotion, question, f"{opener} {closer}")


def rewrite_all(dialogues: Iterable[Dialogue], emotions: int = 1) -> list[Rewrite]:
    """`template_versions` of every English dialogue, in order; other languages are left out."""
    return [
        version for dialogue in dialogues if dialogue.lang == "en" for version in template_versions(dialogue, emotions)
    ]
