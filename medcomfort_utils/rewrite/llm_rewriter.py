"""The rewriter of the paper: a language model puts the emotion into the question and the comfort into the answer."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from medcomfort_utils.llm import Cache, Client, Failure, Request, Sampling, Settings, Unparsable, parse
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.records import EMOTIONS, Dialogue, Gate, Rewrite
from medcomfort_utils.rewrite import gates, prompts
from medcomfort_utils.rewrite.rewriters import TemplateRewriter, emotions_of, version_of
from medcomfort_utils.rewrite.show import fenced

NO_TEXT = "(no text)"
CUT_OFF = "It was cut off where it reached max_tokens."


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

        Raises MedComfortError as `Client.run` does, after all dialogues that could be finished. `chain.write` then
        leaves no files, but the responses are on record, and the next run goes on from there.
        """
        return self.client.run(dialogues, self._of, self.total)

    def prompts(self, dialogue: Dialogue) -> str:
        """Markdown of the two prompts for a dialogue's first emotion, rendered; the source's question stands in."""
        emotion = emotions_of(dialogue, self.emotions)[0]
        asked = self._question(dialogue, emotion), self._answer(dialogue, dialogue.question, emotion)
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

    def _counted(self, dialogues: Iterable[Dialogue]) -> Iterator[Request]:
        self.total = 0
        for dialogue in dialogues:
            self.total += 1
            yield from self._requests(dialogue)

    def _requests(self, dialogue: Dialogue) -> Iterator[Request]:
        """All requests for a dialogue, as far as they are known beforehand."""
        for emotion in emotions_of(dialogue, self.emotions):
            asked = self._question(dialogue, emotion)
            yield asked
            yield self._answer(dialogue, self._recorded(asked) or dialogue.question, emotion)
        yield self._answer(dialogue, dialogue.question, "")

    def _recorded(self, asked: Request) -> str:
        """The rewritten question, if its response is recorded and can be used."""
        response = self.client.cache.get(asked.key)
        try:
            return parse(response.text, asked.schema)["question"].strip() if response else ""
        except Unparsable:
            return ""

    async def _of(self, dialogue: Dialogue) -> tuple[Dialogue, list[Rewrite]]:
        made = [self._version(dialogue, "original", "", dialogue.question, dialogue.answer)]
        for emotion in emotions_of(dialogue, self.emotions):
            made += await self._emotional(dialogue, emotion)
        answer = await self._asked(self._answer(dialogue, dialogue.question, ""))
        if isinstance(answer, Unusable):
            made.append(self._unusable(dialogue, "soothing_answer", "", dialogue.question, answer))
        else:
            made.append(self._version(dialogue, "soothing_answer", "", dialogue.question, _whole(answer)))
        return dialogue, made

    async def _emotional(self, dialogue: Dialogue, emotion: str) -> list[Rewrite]:
        """The emotional question with its soothing answer, and with the comforting parts of that answer alone."""
        asked = await self._asked(self._question(dialogue, emotion))
        if isinstance(asked, Unusable):
            return [self._unusable(dialogue, "emotional", emotion, asked.text, asked)]
        question = asked["question"].strip()
        answer = await self._asked(self._answer(dialogue, question, emotion))
        if isinstance(answer, Unusable):
            return [self._unusable(dialogue, "emotional", emotion, question, answer)]
        hollow = _joined(answer["opening"], answer["closing"])
        return [
            self._version(dialogue, "emotional", emotion, question, _whole(answer)),
            self._version(dialogue, "comfort_only", emotion, question, hollow),
        ]

    async def _asked(self, request: Request) -> dict | Unusable:
        """The parsed response; one that does not parse is sent back once, with what is wrong with it."""
        for last in (False, True):
            response = await self.client.ask(request)
            if isinstance(response, Failure):
                return Unusable(NO_TEXT, response.reason)
            try:
                found = parse(response.text, request.schema)
                problem = _emptiness(found)
            except Unparsable as error:
                problem = CUT_OFF if response.finish_reason == "length" else str(error)
            if not problem:
                return found
            if last:
                return Unusable(response.text.strip() or NO_TEXT, problem)
            request = request.repair(response.text, problem)

    def _question(self, dialogue: Dialogue, emotion: str) -> Request:
        return self._request("question", dialogue, emotion, prompts.question_messages(dialogue, emotion))

    def _answer(self, dialogue: Dialogue, question: str, emotion: str) -> Request:
        return self._request("answer", dialogue, emotion, prompts.answer_messages(dialogue, question, emotion))

    def _request(self, task: str, dialogue: Dialogue, emotion: str, messages: tuple[dict, ...]) -> Request:
        row, version = f"{dialogue.id}/{emotion or 'neutral'}/{task}", prompts.version(task, dialogue.lang)
        return Request(row, self.model, messages, self.sampling, prompts.SCHEMAS[task], version)

    def _version(self, dialogue: Dialogue, condition: str, emotion: str, question: str, answer: str) -> Rewrite:
        versions = " ".join(prompts.version(task, dialogue.lang) for task in prompts.SCHEMAS)
        made_by = {"backend": "llm", "model": self.model, "prompt_version": versions}
        made_by["intensity"] = prompts.intensity_of(dialogue, emotion) if emotion else None
        return version_of(dialogue, condition, emotion, question or NO_TEXT, answer or NO_TEXT, **made_by)

    def _unusable(self, dialogue: Dialogue, condition: str, emotion: str, question: str, found: Unusable) -> Rewrite:
        failed = Gate(name=gates.USABLE, passed=False, reason=found.reason)
        rewrite = self._version(dialogue, condition, emotion, question, found.text)
        return rewrite.model_copy(update={"gates": [failed]})


def _joined(*parts: str) -> str:
    return " ".join(part.strip() for part in parts if part.strip())


def _whole(answer: dict) -> str:
    return _joined(answer["opening"], answer["knowledge"], answer["closing"])


def _emptiness(found: dict) -> str:
    """What is missing from a response that fits its schema; only the closing may be empty."""
    empty = [name for name, text in found.items() if name != "closing" and not text.strip()]
    return f'"{empty[0]}" is empty.' if empty else ""


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
