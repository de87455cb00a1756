"""The rewriter of the paper: a language model puts the emotion into the question and comfort around the answer.

And the files that versions go to, whoever wrote them.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import pandas as pd

from medcomfort_utils.llm import Cache, Client, Failure, Request, Response, Sampling, Settings, Unparsable, parse
from medcomfort_utils.parquet import writing
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.records import EMOTIONS, Dialogue, Gate, Rewrite
from medcomfort_utils.rewrite import compose, gates, prompts, verdict
from medcomfort_utils.rewrite.show import fenced
from medcomfort_utils.rewrite.template import TemplateRewriter, comfort_only, emotions_of, original, version_of

NO_TEXT = "(no text)"
CUT_OFF = "It was cut off where it reached max_tokens."
Ask = Callable[[Request], Awaitable[Response | Failure]]


@dataclass(frozen=True)
class Unusable:
    """A response that cannot become a rewrite: its raw text, and why."""

    text: str
    reason: str


@dataclass
class LLMRewriter:
    """Rewrites by `model` through `client`; `sampling` holds temperature, max_tokens and the like.

    `verdict_model`, if one is named, then judges each answer (`verdict.py`); it may be another than the writer.
    `total`: how many dialogues the estimate saw, from which the progress bar tells the time left.
    """

    client: Client
    model: str
    emotions: int = 1
    sampling: dict = field(default_factory=lambda: {"temperature": 0.7, "max_tokens": 1024})
    verdict_model: str = ""
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
        self.total = 0
        return f"{self.client.estimate(request for dialogue in dialogues for request in self._planned(dialogue))}."

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

    def _planned(self, dialogue: Dialogue) -> list[Request]:
        """The requests for a dialogue, by a dry run: what is not recorded yet is as long as its source."""
        self.total, planned = self.total + 1, []
        first, count = compose.urgent_now(dialogue), len(compose.numbered(dialogue))
        keep = sorted(range(1, count + 1), key=lambda number: number != first)
        standing_in = {"question": dialogue.question, "segments": [{"keep": keep}, {"say": "..."}]}

        async def look(request: Request) -> Response | Failure:
            planned.append(request)
            likely = {name: standing_in[name] for name in request.schema["properties"] if name in standing_in}
            found = self.client.cache.get(request.key)
            return found or (Response(json.dumps(likely), "", "stop", 0, 0, cached=False) if likely else Failure(""))

        try:
            self._of(dialogue, look).send(None)
        except StopIteration:
            return planned

    async def _of(self, dialogue: Dialogue, ask: Ask | None = None) -> tuple[Dialogue, list[Rewrite]]:
        ask, made = ask or self.client.ask, [original(dialogue, **self._made_by(dialogue, ""))]
        for emotion in emotions_of(dialogue, self.emotions):
            asked = await _asked(ask, dialogue, self.question_request(dialogue, emotion))
            if isinstance(asked, Unusable):
                made.append(self._unusable(dialogue, "emotional", emotion, asked.text, asked))
            else:
                made += await self._answered(ask, dialogue, "emotional", emotion, asked["question"].strip())
        return dialogue, made + await self._answered(ask, dialogue, "soothing_answer", "", dialogue.question)

    async def _answered(
        self, ask: Ask, dialogue: Dialogue, condition: str, emotion: str, question: str
    ) -> list[Rewrite]:
        """The question with its soothing answer and, if it is emotional, with the answer's own words alone."""
        answer = await _asked(ask, dialogue, self.answer_request(dialogue, question, emotion))
        if isinstance(answer, Unusable):
            return [self._unusable(dialogue, condition, emotion, question, answer)]
        segments = compose.segments_of(answer)
        made_by = {**self._made_by(dialogue, emotion), "segments": segments}
        text = compose.compose(segments, compose.numbered(dialogue))
        whole = version_of(dialogue, condition, emotion, question, text, **made_by)
        if self.verdict_model:
            found = await _asked(ask, dialogue, self.verdict_request(dialogue, whole))
            gate = verdict.gate_of(dialogue, whole, found if isinstance(found, dict) else found.reason)
            whole = whole.model_copy(update={"gates": [gate]})
        return [whole, comfort_only(dialogue, emotion, question, **made_by)] if emotion else [whole]

    def verdict_request(self, dialogue: Dialogue, rewrite: Rewrite) -> Request:
        """The request for a verdict on `rewrite`."""
        return verdict.request(dialogue, rewrite, self.verdict_model, self.sampling)

    def _made_by(self, dialogue: Dialogue, emotion: str) -> dict:
        versions = " ".join(prompts.version(task, dialogue.lang) for task in ("question", "answer"))
        intensity = prompts.intensity_of(dialogue, emotion) if emotion else None
        return {"backend": "llm", "model": self.model, "prompt_version": versions, "intensity": intensity}

    def _unusable(self, dialogue: Dialogue, condition: str, emotion: str, question: str, found: Unusable) -> Rewrite:
        made_by = self._made_by(dialogue, emotion)
        failed = [Gate(name=gates.USABLE, passed=False, reason=found.reason)]
        return version_of(dialogue, condition, emotion, question, found.text, gates=failed, **made_by)


async def _asked(ask: Ask, dialogue: Dialogue, request: Request) -> dict | Unusable:
    """The parsed response; one that cannot be used is sent back once, with what is wrong with it."""
    for last in (False, True):
        response = await ask(request)
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


def problem_of(dialogue: Dialogue, found: dict) -> str:
    """What is wrong with a response that fits its schema: an empty question, or a composition that is not whole."""
    if "question" in found:
        return "" if found["question"].strip() else '"question" is empty.'
    if "facts" in found:
        return verdict.problem_of(dialogue, found)
    segments, count = compose.segments_of(found), len(compose.numbered(dialogue))
    return " ".join(compose.problems(segments, count, compose.urgent_now(dialogue)))


def open_rewriter(
    kind: str,
    cache: str,
    responses: str,
    model: str,
    emotions: int,
    sampling: dict,
    verdict_model: str = "",
    **settings,
) -> TemplateRewriter | LLMRewriter:
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
    return LLMRewriter(Client(asking, recorded), model, emotions, sampling, verdict_model)


def judged(dialogue: Dialogue, rewrite: Rewrite) -> Rewrite:
    """The rewrite with all its gates: those of the rules, and before them those that it brings (a verdict).

    An unusable response is no rewrite, and is not held to the rules.
    """
    brought = rewrite.gates
    unusable = any(gate.name == gates.USABLE for gate in brought)
    return rewrite if unusable else rewrite.model_copy(update={"gates": brought + gates.check(dialogue, rewrite)})


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
            for dialogue, version in pairs():
                rewrite = judged(dialogue, version)
                (keep if all(gate.passed for gate in rewrite.gates) else reject)(rewrite)
                yield rewrite

        return gates.report(checked())
