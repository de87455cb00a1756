"""Lets authors stand in for the language model: shows them the prompts of MedComfort-mini, records what they return.

    python scripts/record_authored.py --export prompts.jsonl
    python scripts/record_authored.py --record part1.jsonl part2.jsonl
    python scripts/record_authored.py --export-verdicts verdicts.jsonl

`--export` writes a prompt a line, those for questions first: `index` and `id` of the dialogue, `emotion` (empty for a
neutral answer), `task` (`question` or `answer`) and `messages`. A prompt for an answer shows the rewritten question,
which nobody has written yet: `REWRITTEN` stands in its place.

`--export-verdicts` writes the prompts for verdicts on what is recorded, likewise.

`--record` takes lines of `id` (or `index`), `emotion`, `task` (also `verdict`) and `response`, the object asked for;
where one is given twice the later line counts. It writes data/medcomfort_mini/responses.jsonl under the model name
"authored", leaves out what cannot be used, and reports that, what is missing, and what fails the gates.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from medcomfort_utils.llm import Request, Response, Unparsable, parse
from medcomfort_utils.paths import DATA, MedComfortError, tidy, write_text
from medcomfort_utils.records import Dialogue
from medcomfort_utils.rewrite import compose, rewriter, sources
from medcomfort_utils.rewrite.prompts import SCHEMAS
from medcomfort_utils.rewrite.template import emotions_of, version_of
from medcomfort_utils.rewrite.verdict import ASKED_ABOUT

MINI = DATA / "medcomfort_mini"
EMOTIONS = 2  # of each dialogue
SAMPLING = {"temperature": 0.7, "max_tokens": 1024}  # as 01_rewrite asks
REWRITTEN = "(the rewritten question)"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--export", type=Path, metavar="FILE")
    task.add_argument("--export-verdicts", type=Path, metavar="FILE")
    task.add_argument("--record", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, default=MINI / "responses.jsonl")
    parser.add_argument("--only", type=Path, help="a text file; only dialogues whose ids it holds are looked at")
    given = parser.parse_args(argv)
    every = list(sources.open_source(str(MINI / "dialogues.jsonl")))
    wanted = given.only.read_text(encoding="utf-8") if given.only else ""
    dialogues = [dialogue for dialogue in every if not given.only or dialogue.id in wanted]
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache.sqlite")
        responses = str(given.out) if given.export_verdicts else ""
        writer = rewriter.open_rewriter("llm", cache, responses, "authored", EMOTIONS, SAMPLING, mode="replay")
        problems = []
        if given.export:
            export(prompts(writer, dialogues), given.export)
        elif given.export_verdicts:
            export(verdict_prompts(writer, dialogues), given.export_verdicts)
        else:
            problems = record(writer, dialogues, read(given.record, every), given.out)
        writer.client.cache.close()
    print(*problems, sep="\n")
    return bool(problems)


def prompts(writer: rewriter.LLMRewriter, dialogues: list[Dialogue]) -> Iterator[dict]:
    """All prompts for questions, then those for answers."""
    for index, dialogue in enumerate(dialogues):
        for emotion in emotions_of(dialogue, EMOTIONS):
            yield line(index, dialogue, emotion, "question", writer.question_request(dialogue, emotion))
    for index, dialogue in enumerate(dialogues):
        for emotion in [*emotions_of(dialogue, EMOTIONS), ""]:
            question = REWRITTEN if emotion else dialogue.question
            yield line(index, dialogue, emotion, "answer", writer.answer_request(dialogue, question, emotion))


def verdict_prompts(writer: rewriter.LLMRewriter, dialogues: list[Dialogue]) -> Iterator[dict]:
    """The prompts for verdicts on the compositions that are recorded."""
    writer.verdict_model = ""
    places = {dialogue.id: index for index, dialogue in enumerate(dialogues)}
    found = [(dialogue, version) for dialogue, made in writer.versions(dialogues) for version in made]
    writer.verdict_model = writer.model
    for dialogue, version in found:
        if version.condition in ASKED_ABOUT:
            request = writer.verdict_request(dialogue, version)
            yield line(places[dialogue.id], dialogue, version.emotion, "verdict", request)


def line(index: int, dialogue: Dialogue, emotion: str, task: str, request: Request) -> dict:
    return {"index": index, "id": dialogue.id, "emotion": emotion, "task": task, "messages": request.messages}


def export(lines: Iterable[dict], path: Path) -> None:
    """Write the prompts to `path`, one a line."""
    lines = [json.dumps(each, ensure_ascii=False) for each in lines]
    write_text(path, "\n".join(lines) + "\n")
    print(f"{len(lines)} prompts, written to {tidy(path)}")


def read(paths: list[Path], dialogues: list[Dialogue]) -> dict[tuple[str, str, str], dict]:
    """Responses by dialogue id, emotion and task; a MedComfortError names the file and line that do not fit."""
    found, ids = {}, {d.id for d in dialogues}
    for path in paths:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                identity = row["id"] if "id" in row else dialogues[row["index"]].id
                key, response = (identity, row["emotion"], row["task"]), row["response"]
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise MedComfortError(f"{path}, line {number}: {type(error).__name__}: {error}.") from None
            if identity not in ids or row["task"] not in SCHEMAS:
                raise MedComfortError(f"{path}, line {number}: there is no {row['task']} of dialogue {identity}.")
            found[key] = response
    return found


def record(writer: rewriter.LLMRewriter, dialogues: list[Dialogue], given: dict, out: Path) -> list[str]:
    """Record the responses, write them to `out`, and return what is wrong, a line each."""
    problems, judged = [], any(task == "verdict" for _, _, task in given)
    writer.verdict_model = writer.model

    def put(dialogue: Dialogue, emotion: str, task: str, request: Request) -> dict | None:
        response = given.pop((dialogue.id, emotion, task), None)
        text = json.dumps(response, ensure_ascii=False)
        try:
            problem = rewriter.problem_of(dialogue, parse(text, SCHEMAS[task])) if response else "It is missing."
        except Unparsable as error:
            problem = str(error)
        if problem:
            problems.append(f"{request.row}: {problem}")
            return None
        writer.client.cache.put_many({request.key: Response(text, "authored", "stop", 0, 0, cached=False)})
        return response

    def answer(dialogue: Dialogue, emotion: str, question: str) -> None:
        composed = put(dialogue, emotion, "answer", writer.answer_request(dialogue, question, emotion))
        if composed and judged:
            text = compose.compose(compose.segments_of(composed), compose.numbered(dialogue))
            made_by = {"backend": "llm", "model": writer.model, "prompt_version": ""}
            version = version_of(dialogue, "emotional", emotion, question, text, **made_by)
            put(dialogue, emotion, "verdict", writer.verdict_request(dialogue, version))

    for dialogue in dialogues:
        for emotion in emotions_of(dialogue, EMOTIONS):
            asked = put(dialogue, emotion, "question", writer.question_request(dialogue, emotion))
            question = asked["question"].strip() if asked else ""
            if not question:
                problems.append(f"{dialogue.id}/{emotion}/answer: its question cannot be used.")
                continue
            answer(dialogue, emotion, question)
        answer(dialogue, "", dialogue.question)
    shown = {dialogue.id for dialogue in dialogues}
    problems += [f"{'/'.join(key)}: nobody asked for it." for key in given if key[0] in shown]
    writer.verdict_model = writer.model if judged else ""
    count = writer.client.cache.export_jsonl(out)
    print(f"{count} responses, written to {tidy(out)}")
    return problems + failed_gates(writer, dialogues)


def failed_gates(writer: rewriter.LLMRewriter, dialogues: list[Dialogue]) -> list[str]:
    """The gates that versions of the dialogues whose record is complete fail."""
    found = []
    for dialogue in dialogues:
        try:
            versions = [version for _, made in writer.versions([dialogue]) for version in made]
        except MedComfortError:  # a response is missing, which is told already
            continue
        for version in versions:
            failed = [gate for gate in rewriter.judged(dialogue, version).gates if not gate.passed]
            place = f"{dialogue.id}/{version.emotion or 'neutral'}/{version.condition}"
            found += [f"{place}: gate {gate.name}: {gate.reason}" for gate in failed]
    return found


if __name__ == "__main__":
    try:
        sys.exit(main())
    except MedComfortError as error:
        sys.exit(str(error))
