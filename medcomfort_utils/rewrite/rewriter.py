"""What rewrites: a language model, as in the paper, or phrases from a bank; and the files that the versions go to.

Both compose a soothing answer from own words and the doctor's sentences (`compose.py`).
"""

import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pandas as pd

from medcomfort_utils.llm import Cache, Client, Failure, Request, Sampling, Settings, Unparsable, parse
from medcomfort_utils.parquet import writing
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.records import EMOTIONS, Dialogue, Gate, Message, Rewrite, Segment
from medcomfort_utils.rewrite import compose, gates, prompts
from medcomfort_utils.rewrite.clinic import load_emotions
from medcomfort_utils.rewrite.show import fenced
from medcomfort_utils.text import sentences

NO_TEXT = "(no text)"
CUT_OFF = "It was cut off where it reached max_tokens."
BY_TEMPLATE = {"backend": "template", "model": "phrase-banks", "prompt_version": "1"}

# "Hello doctor." or "Hi," keeps its place at the head of the text; "Good morning stiffness bothers me, ..." holds none.
_WHOM = r"(?: (?:there|all|doctors?|doc|sir|madam|team)| dr\.?(?: (?-i:[A-Z])\w+)?)*"
_GREETING = re.compile(
    rf"^\s*(?:hello|hi|hey|dear|greetings|good (?:morning|afternoon|evening|day)){_WHOM}\s*[.,!]\s*", re.I
)


def emotions_of(dialogue: Dialogue, count: int) -> list[str]:
    """`count` (1-5) different emotions: those the corpus names first, then by the hash in the id, evenly spread.

    Raises MedComfortError for another count.
    """
    if not 1 <= count <= len(EMOTIONS):
        raise MedComfortError(f"emotions must lie between 1 and {len(EMOTIONS)}, not {count}.")
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


def _original(dialogue: Dialogue, **made_by) -> Rewrite:
    return version_of(dialogue, "original", "", dialogue.question, dialogue.answer, **made_by)


def _say(text: str) -> Segment:
    return Segment(role="assistant", say=text)


def _keep(*numbers: int) -> Segment:
    return Segment(role="assistant", keep=list(numbers))


def _asked_with(expression: str, question: str, first: bool) -> str:
    """The question with an expression of feeling behind its greeting, or at its end."""
    if not first:
        return f"{compose.ended(question)} {expression}"
    greeting = _GREETING.match(question)
    if not greeting:
        return f"{expression} {question}"
    return f"{greeting[0].strip()} {expression} {question[greeting.end() :].lstrip()}".strip()


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
    chosen, numbered = emotions_of(dialogue, emotions), sentences(dialogue.answer)
    greeted = [1] if _GREETING.fullmatch(numbered[0]) else []
    rest = range(1 + len(greeted), len(numbered) + 1)
    yield _original(dialogue, **BY_TEMPLATE)
    bank = "test" if dialogue.split == "test" else "train"
    for emotion in chosen:
        rng = random.Random(f"{dialogue.id}:{emotion}")
        phrases = load_emotions()[emotion]
        expression, opener, closer = (
            rng.choice(getattr(kind, bank)) for kind in (phrases.expressions, phrases.openers, phrases.closers)
        )
        question = _asked_with(expression, dialogue.question, first=rng.random() < 0.5)
        segments = [_keep(*greeted)] * len(greeted) + [_say(opener), _keep(*rest), _say(closer)]
        soothing, made_by = compose.compose(segments, numbered), {**BY_TEMPLATE, "segments": segments}
        yield version_of(dialogue, "emotional", emotion, question, soothing, **made_by)
        if emotion == chosen[0]:
            yield version_of(dialogue, "soothing_answer", emotion, dialogue.question, soothing, **made_by)
        yield _comfort_only(dialogue, emotion, question, **made_by)


def _comfort_only(dialogue: Dialogue, emotion: str, question: str, segments: list[Segment], **made_by) -> Rewrite:
    """The emotional question with the own words of its answer alone."""
    spoken = [segment for segment in segments if segment.say]
    return version_of(
        dialogue, "comfort_only", emotion, question, compose.said(spoken), segments=spoken, **made_by
    )


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


@dataclass(frozen=True)
class Unusable:
    """A response that cannot become a rewrite: its raw text, and why."""

    text: str
    reason: str


@dataclass
class LLMRewriter:
    """Rewrites by `model` through `client`; `sampling` holds temperature, max_tokens and the like.

    `total`: how many dialogues the estimate saw, from which the progress bar tells the time left.
    """

    client: Client
    model: str
    emotions: int = 1
    sampling: dict = field(default_factory=lambda: {"temperature": 0.7, "max_tokens": 1024})
    total: int | None = field(default=None, init=False)

    def versions(self, dialogues: Iterable[Dialogue]) -> Iterator[tuple[Dialogue, list[Rewrite]]]:
        """Each dialogue with all its versions, in order; a version whose response was unusable brings a failed gate.

        Raises MedComfortError as `Client.run` does, after all dialogues that could be finished. `write` then
        leaves no files, but the responses are on record, and the next run goes on from there.
        """
        return self.client.run(dialogues, self._of, self.total)

    def prompts(self, dialogue: Dialogue) -> str:
        """Markdown of the two prompts for a dialogue's first emotion, rendered; the source's question stands in."""
        emotion = emotions_of(dialogue, self.emotions)[0]
        asked = self.question_request(dialogue, emotion), self.answer_request(dialogue, dialogue.question, emotion)
        shown = ((f"**{r.prompt_version}, {m['role']}**", m["content"]) for r in asked for m in r.messages)
        return "\n\n".join(f"{title}\n\n{fenced(text)}" for title, text in shown)

    def estimate(self, dialogues: Iterable[Dialogue]) -> str:
        """Calls, tokens and cost still to come, before the first call: see `llm.estimate`.

        Rewritten questions that are not recorded yet are taken to be as long as their sources.
        """
        return f"{self.client.estimate(self._counted(dialogues))}."

    def finish(self, record: Path) -> str:
        """What was asked and paid in this run, and what came out of the record; all of it is exported to `record`."""
        count = self.client.cache.export_jsonl(record)
        used = {"called in this run": self.client.budget, "from the record": self.client.saved}
        lines = [
            f"{name:18} {spent.calls:6,} responses, {spent.prompt_tokens:10,} prompt and {spent.completion_tokens:9,} "
            f"completion tokens, {f'cost {spent.cost:.2f}' if spent.priced else 'no price was given'}"
            for name, spent in used.items()
        ]
        return "\n".join([*lines, f"{'on record':18} {count:6,} responses, written to {tidy(record)}"])

    def question_request(self, dialogue: Dialogue, emotion: str) -> Request:
        """The request for the question of `dialogue` out of `emotion`."""
        return self._request("question", dialogue, emotion, prompts.question_messages(dialogue, emotion))

    def answer_request(self, dialogue: Dialogue, question: str, emotion: str) -> Request:
        """The request for a soothing answer to `question`, the rewritten one or, with `emotion` empty, the neutral."""
        return self._request("answer", dialogue, emotion, prompts.answer_messages(dialogue, question, emotion))

    def _request(self, task: str, dialogue: Dialogue, emotion: str, messages: tuple[dict, ...]) -> Request:
        row, version = f"{dialogue.id}/{emotion or 'neutral'}/{task}", prompts.version(task, dialogue.lang)
        return Request(row, self.model, messages, self.sampling, prompts.SCHEMAS[task], version)

    def _counted(self, dialogues: Iterable[Dialogue]) -> Iterator[Request]:
        self.total = 0
        for dialogue in dialogues:
            self.total += 1
            for emotion in emotions_of(dialogue, self.emotions):
                asked = self.question_request(dialogue, emotion)
                yield asked
                yield self.answer_request(dialogue, self._recorded(asked) or dialogue.question, emotion)
            yield self.answer_request(dialogue, dialogue.question, "")

    def _recorded(self, asked: Request) -> str:
        """The rewritten question, if its response is recorded and can be used."""
        response = self.client.cache.get(asked.key)
        try:
            return parse(response.text, asked.schema)["question"].strip() if response else ""
        except Unparsable:
            return ""

    async def _of(self, dialogue: Dialogue) -> tuple[Dialogue, list[Rewrite]]:
        made = [_original(dialogue, **self._made_by(dialogue, ""))]
        for emotion in emotions_of(dialogue, self.emotions):
            asked = await self._asked(dialogue, self.question_request(dialogue, emotion))
            if isinstance(asked, Unusable):
                made.append(self._unusable(dialogue, "emotional", emotion, asked.text, asked))
            else:
                made += await self._answered(dialogue, "emotional", emotion, asked["question"].strip())
        return dialogue, made + await self._answered(dialogue, "soothing_answer", "", dialogue.question)

    async def _answered(self, dialogue: Dialogue, condition: str, emotion: str, question: str) -> list[Rewrite]:
        """The question with its soothing answer and, if it is emotional, with the answer's own words alone."""
        answer = await self._asked(dialogue, self.answer_request(dialogue, question, emotion))
        if isinstance(answer, Unusable):
            return [self._unusable(dialogue, condition, emotion, question, answer)]
        segments = compose.segments_of(answer)
        made_by = {**self._made_by(dialogue, emotion), "segments": segments}
        text = compose.compose(segments, sentences(dialogue.answer))
        whole = version_of(dialogue, condition, emotion, question, text, **made_by)
        return [whole, _comfort_only(dialogue, emotion, question, **made_by)] if emotion else [whole]

    async def _asked(self, dialogue: Dialogue, request: Request) -> dict | Unusable:
        """The parsed response; one that cannot be used is sent back once, with what is wrong with it."""
        for last in (False, True):
            response = await self.client.ask(request)
            if isinstance(response, Failure):
                return Unusable(NO_TEXT, response.reason)
            try:
                found = parse(response.text, request.schema)
                problem = problem_of(dialogue, found)
            except Unparsable as error:
                problem = CUT_OFF if response.finish_reason == "length" else str(error)
            if not problem:
                return found
            if last:
                return Unusable(response.text.strip() or NO_TEXT, problem)
            request = request.repair(response.text, problem)

    def _made_by(self, dialogue: Dialogue, emotion: str) -> dict:
        versions = " ".join(prompts.version(task, dialogue.lang) for task in ("question", "answer"))
        intensity = prompts.intensity_of(dialogue, emotion) if emotion else None
        return {"backend": "llm", "model": self.model, "prompt_version": versions, "intensity": intensity}

    def _unusable(self, dialogue: Dialogue, condition: str, emotion: str, question: str, found: Unusable) -> Rewrite:
        failed = [Gate(name=gates.USABLE, passed=False, reason=found.reason)]
        return version_of(
            dialogue, condition, emotion, question, found.text, gates=failed, **self._made_by(dialogue, emotion)
        )


def problem_of(dialogue: Dialogue, found: dict) -> str:
    """What is wrong with a response that fits its schema: an empty question, or a composition that is not whole."""
    if "question" in found:
        return "" if found["question"].strip() else '"question" is empty.'
    segments, count = compose.segments_of(found), len(sentences(dialogue.answer))
    return " ".join(compose.problems(segments, count, compose.urgent_now(dialogue)))


def open_rewriter(kind: str, cache: str, responses: str, model: str, emotions: int, sampling: dict, **settings):
    """The `template` rewriter, or the `llm` one with the SQLite file `cache`, into which `responses` (JSONL) is read.

    `settings`: those of `llm.Settings`. Raises MedComfortError for another kind, for `llm` without a model, and for
    what `emotions`, `sampling` and `settings` may not be.
    """
    if not 1 <= emotions <= len(EMOTIONS):
        raise MedComfortError(f"emotions must lie between 1 and {len(EMOTIONS)}, not {emotions}.")
    if kind == "template":
        return TemplateRewriter(emotions)
    if kind != "llm":
        raise MedComfortError(f"rewriter must be llm or template, not '{kind}'.")
    if not model:
        raise MedComfortError("model: name the language model that rewrites, as its server calls it.")
    Sampling(**sampling)
    asking = Settings(**settings)
    recorded = Cache(cache)
    if responses:
        recorded.import_jsonl(responses)
    return LLMRewriter(Client(asking, recorded), model, emotions, sampling)


def write(rewritten: Iterable[tuple[Dialogue, list[Rewrite]]], out: Path) -> pd.DataFrame:
    """Write `dialogues.parquet`, `rewrites.parquet` (all gates passed) and `rejected.parquet`; returns `gates.report`.

    Every version of every dialogue lands in exactly one of the last two. The files take their places together at the
    end: an interrupted run leaves those of the run before, and a language model's responses are in its cache.
    The column `intensity` is there if the rewriter asks for one, as the first dialogue tells.
    """
    rewritten = iter(rewritten)
    first = next(rewritten, None)
    rewritten = chain([first] if first else [], rewritten)
    without = [] if first and any(version.intensity for version in first[1]) else ["intensity"]
    with (
        writing(out / "dialogues.parquet", Dialogue) as source,
        writing(out / "rewrites.parquet", Rewrite, without=without) as keep,
        writing(out / "rejected.parquet", Rewrite, without=without) as reject,
    ):

        def pairs() -> Iterator[tuple[Dialogue, Rewrite]]:
            for dialogue, versions in rewritten:
                source(dialogue)
                yield from ((dialogue, version) for version in versions)

        def checked() -> Iterator[Rewrite]:
            for rewrite in gates.sifted(pairs()):
                (keep if all(gate.passed for gate in rewrite.gates) else reject)(rewrite)
                yield rewrite

        return gates.report(checked())
