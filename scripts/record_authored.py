"""Lets authors stand in for the language model: shows them the prompts of MedComfort-mini, records what they return.

    python scripts/record_authored.py --export prompts.jsonl
    python scripts/record_authored.py --record part1.jsonl part2.jsonl

`--export` writes a prompt a line, those for questions first: `index` and `id` of the dialogue, `emotion` (empty for a
neutral answer), `task` (`question` or `answer`) and `messages`. A prompt for an answer shows the rewritten question,
which nobody has written yet: `REWRITTEN` stands in its place.

`--record` takes lines of `id` (or `index`), `emotion`, `task` and `response`, the JSON object that the prompt asks for;
where one is given twice the later line counts. It writes data/medcomfort_mini/responses.jsonl under the model name
"authored", leaves out what cannot be used, and reports that, what is missing, and what fails the gates.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from medcomfort_utils.llm import Response, Unparsable, parse
from medcomfort_utils.paths import DATA, MedComfortError, tidy, write_text
from medcomfort_utils.records import Dialogue
from medcomfort_utils.rewrite import rewriter, sources
from medcomfort_utils.rewrite.prompts import SCHEMAS
from medcomfort_utils.rewrite.template import emotions_of

MINI = DATA / "medcomfort_mini"
EMOTIONS = 2  # of each dialogue
SAMPLING = {"temperature": 0.7, "max_tokens": 1024}  # as 01_rewrite asks
REWRITTEN = "(the rewritten question)"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--export", type=Path, metavar="FILE")
    task.add_argument("--record", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--out", type=Path, default=MINI / "responses.jsonl")
    parser.add_argument("--only", type=Path, help="a text file; only dialogues whose ids it holds are looked at")
    given = parser.parse_args(argv)
    dialogues = list(sources.open_source(str(MINI / "dialogues.jsonl")))
    if given.only:
        wanted = given.only.read_text(encoding="utf-8")
        dialogues = [dialogue for dialogue in dialogues if dialogue.id in wanted]
    with tempfile.TemporaryDirectory() as folder:
        cache = str(Path(folder) / "cache.sqlite")
        writer = rewriter.open_rewriter("llm", cache, "", "authored", EMOTIONS, SAMPLING, mode="replay")
        problems = (
            export(writer, dialogues, given.export)
            if given.export
            else record(writer, dialogues, read(given.record, dialogues), given.out)
        )
        writer.client.cache.close()
    print(*problems, sep="\n")
    return bool(problems)


def export(writer: rewriter.LLMRewriter, dialogues: list[Dialogue], path: Path) -> list[str]:
    """Write all prompts to `path`."""
    asked = [(d, e, "question") for d in dialogues for e in emotions_of(d, EMOTIONS)]
    asked += [(d, e, "answer") for d in dialogues for e in [*emotions_of(d, EMOTIONS), ""]]
    places = {dialogue.id: number for number, dialogue in enumerate(dialogues)}
    lines = []
    for dialogue, emotion, task in asked:
        if task == "question":
            request = writer.question_request(dialogue, emotion)
        else:
            request = writer.answer_request(dialogue, REWRITTEN if emotion else dialogue.question, emotion)
        line = {"index": places[dialogue.id], "id": dialogue.id, "emotion": emotion, "task": task}
        lines.append(json.dumps(line | {"messages": request.messages}, ensure_ascii=False))
    write_text(path, "\n".join(lines) + "\n")
    print(f"{len(lines)} prompts, written to {tidy(path)}")
    return []


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
            if identity not in ids or row["task"] not in ("question", "answer"):
                raise MedComfortError(f"{path}, line {number}: there is no {row['task']} of dialogue {identity}.")
            found[key] = response
    return found


def record(writer: rewriter.LLMRewriter, dialogues: list[Dialogue], given: dict, out: Path) -> list[str]:
    """Record the responses, write them to `out`, and return what is wrong, a line each."""
    problems = []

    def put(dialogue: Dialogue, emotion: str, task: str, request) -> dict | None:
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

    for dialogue in dialogues:
        for emotion in emotions_of(dialogue, EMOTIONS):
            asked = put(dialogue, emotion, "question", writer.question_request(dialogue, emotion))
            question = asked["question"].strip() if asked else ""
            if not question:
                problems.append(f"{dialogue.id}/{emotion}/answer: its question cannot be used.")
                continue
            put(dialogue, emotion, "answer", writer.answer_request(dialogue, question, emotion))
        put(dialogue, "", "answer", writer.answer_request(dialogue, dialogue.question, ""))
    problems += [f"{'/'.join(key)}: nobody asked for it." for key in given]
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
