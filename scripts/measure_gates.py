"""How many broken rewrites the gates stop, and how many good ones, on each labelled set.

    python scripts/measure_gates.py                       # the sets of tests/labelled
    python scripts/measure_gates.py mine.jsonl other.jsonl

A set outside the repository is a JSONL file, a rewrite a line: `kind` (any word), `good` (true or false), `dialogue`
and `rewrite` (as in `records`). The sets of tests/labelled were seen while the rules were made.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from medcomfort_utils.paths import ROOT, MedComfortError  # noqa: E402
from medcomfort_utils.records import Dialogue, Rewrite  # noqa: E402
from medcomfort_utils.rewrite.gates import check  # noqa: E402

COMFORT = "I am so sorry that you have to go through this."
Labelled = tuple[str, str, bool, Dialogue, Rewrite]  # set, kind, whether it is good, and the pair


def pair(entry: dict, question: str, answer: str, condition: str, asked: str = "") -> tuple[Dialogue, Rewrite]:
    """A rewrite of a labelled dialogue beside it; `asked`: what the patient wrote besides."""

    def turns(*texts: str) -> list[dict]:
        roles = zip(("user", "assistant"), texts, strict=True)
        return [{"role": role, "content": text.strip()} for role, text in roles]

    known = {"id": "labelled", "source": "labelled", "split": "train"}
    known |= {name: entry[name] for name in ("facts", "red_flags")}
    made = {"backend": "hand", "model": "labelled", "prompt_version": "1", "split": "train", "dialogue_id": "labelled"}
    source = Dialogue(messages=turns(f"{entry['question']} {asked}", entry["answer"]), **known)
    return source, Rewrite(messages=turns(question, answer), condition=condition, emotion=entry["emotion"], **made)


def labelled(folder: Path = ROOT / "tests/labelled") -> Iterator[Labelled]:
    """The rewrites of tests/labelled; sentences and obeyed orders are put behind the answers of three dialogues."""
    files = (folder / f"{name}.yaml" for name in ("rewrites", "additions", "orders"))
    rewrites, additions, orders = (yaml.safe_load(path.read_text(encoding="utf-8")) for path in files)
    for part, entries in rewrites.items():
        for entry in entries:
            good = entry["good"]
            yield f"rewrites, {part}", "good", True, *pair(entry, good["question"], good["answer"], "emotional")
            for change in entry["broken"]:
                texts = [change.get(side, good[side]) for side in ("question", "answer")]
                for old, new in change.get("edits", []):
                    texts = [text.replace(old, new) for text in texts]
                yield f"rewrites, {part}", change["way"], False, *pair(entry, *texts, "emotional")
    hosts = [entry for entries in rewrites.values() for entry in entries][::10]

    def added(said: str, asked: str = "") -> Iterator[tuple[Dialogue, Rewrite]]:
        for host in hosts:
            texts = f"{host['question']} {asked}", f"{COMFORT} {host['answer']} {said}"
            yield pair(host, *texts, "soothing_answer", asked)

    for part, kinds in additions.items():
        for kind, texts in kinds.items():
            found = (each for said in texts for each in added(said))
            yield from ((f"additions, {part}", kind, kind == "soothing", *each) for each in found)
    for part, given in orders.items():
        obeyed = [order for order in given["orders"] if "obeyed" in order]
        for kind, rows in (("obeyed", obeyed), ("answer", given["requests"])):
            asked = "order" if kind == "obeyed" else "request"
            found = ((row, each) for row in rows for each in added(row[kind], row[asked]))
            yield from ((f"orders, {part}", kind, kind == "answer", *each) for _, each in found)


def outside(path: Path) -> Iterator[Labelled]:
    """The rewrites of a JSONL file."""
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            yield path.stem, row["kind"], row["good"], Dialogue(**row["dialogue"]), Rewrite(**row["rewrite"])
        except (ValueError, KeyError, TypeError) as error:
            raise MedComfortError(f"{path}, line {number}: {error}.") from None


def measured(rewrites: Iterator[Labelled]) -> pd.DataFrame:
    """A row a set: how many `broken` there are and the share `found`, how many `good` and the share `stopped`."""
    rows = [(name, good, any(not gate.passed for gate in check(*pair))) for name, _, good, *pair in rewrites]
    table = pd.DataFrame(rows, columns=["set", "good", "failed"]).groupby(["set", "good"])["failed"]
    columns = pd.MultiIndex.from_product([["size", "mean"], [False, True]])
    found = table.agg(["size", "mean"]).unstack().reindex(columns=columns)
    found.columns = ["broken", "good", "found", "stopped"]
    return found[["broken", "found", "good", "stopped"]].round(2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*")
    given = parser.parse_args()
    try:
        sets = (row for path in given.files for row in outside(path)) if given.files else labelled()
        print(measured(sets).to_string())
    except MedComfortError as error:
        sys.exit(str(error))
