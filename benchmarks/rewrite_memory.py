"""Peak memory of the whole rewriting step: a file of dialogues, a language model, the gates, three parquet files.

    python benchmarks/rewrite_memory.py [--rows 10000 1000000] [--json FILE]

A row is a version of a dialogue, a line of rewrites.parquet or rejected.parquet: four a dialogue, for which a stub
server on 127.0.0.1, a process of its own, is called three times. Each number of rows is worked through by a fresh
process, from a made-up corpus on disk. 10 thousand rows take about a minute, a million more than an hour.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from rewrite_throughput import CONCURRENCY, machine, stub

from medcomfort_utils.llm import Cache, Client, Settings
from medcomfort_utils.paths import write_json
from medcomfort_utils.rewrite import rewriter, sources
from medcomfort_utils.rewrite.rewriter import LLMRewriter

VERSIONS = 4  # of a dialogue with one emotion
WORDS = [
    "bending", "bicycle", "breakfast", "climbing", "coffee", "cooking", "dancing", "digging", "dinner", "driving",
    "football", "gardening", "hiking", "jumping", "kneeling", "lifting", "lunch", "moving", "painting", "party",
    "reading", "running", "sewing", "shopping", "singing", "sleeping", "swimming", "tennis", "travelling", "typing",
    "walking", "weekend", "winter", "work", "yoga",
]  # fmt: skip
QUESTION = (
    "I am {age} and have had a dull ache in my {part} for {n} weeks. It began with {0} and {1}, was worse after {2}, "
    "{3} and {4}, and got better with {5} or {6}. I have no fever. What should I do about {7} and {8}?"
)
ANSWER = (
    "An ache of {n} weeks is often a strain. Rest the {part}, leave {0} and {1} for a while, and go slowly with {2}, "
    "{3} and {4}. Take paracetamol 500 mg up to 4 times a day. Do not try {5} or {6} yet. Go to an emergency "
    "department at once if the {part} turns hot and red. Come back after {7} and {8}."
)


def write_corpus(path: Path, dialogues: int) -> None:
    """Dialogues that are no near duplicates of each other, one a line."""
    rng = random.Random(0)
    with path.open("w") as file:
        for _ in range(dialogues):
            told = {"age": rng.randint(20, 80), "n": rng.randint(2, 9), "part": rng.choice(("knee", "hip", "back"))}
            texts = (text.format(*rng.sample(WORDS, 9), **told) for text in (QUESTION, ANSWER))
            file.write(json.dumps(dict(zip(("question", "answer"), texts, strict=True))) + "\n")


def work(rows: int) -> dict:
    """Rewrite so many rows in this process: its peak resident memory in MB, and rows a second."""
    with tempfile.TemporaryDirectory() as temporary, stub("rewriting", "--forget") as url:
        folder, start = Path(temporary), time.perf_counter()
        write_corpus(folder / "corpus.jsonl", rows // VERSIONS)
        with Cache(folder / "cache.sqlite") as cache:
            client = Client(Settings(base_url=url, concurrency=CONCURRENCY), cache)
            corpus = sources.open_source(str(folder / "corpus.jsonl"))
            rewriter.write(LLMRewriter(client, "m").versions(corpus), folder)
        seconds = time.perf_counter() - start
        kept, rejected = (pq.read_metadata(folder / f"{name}.parquet").num_rows for name in ("rewrites", "rejected"))
    lines = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
    return {"peak_mb": round(peak), "rows_per_second": round(rows / seconds), "kept": kept, "rejected": rejected}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return print(json.dumps(work(options.child)))
    about, table = {"machine": machine()}, {}
    print(about["machine"])
    for rows in options.rows:
        command = [sys.executable, __file__, "--child", str(rows)]
        table[rows] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        print(f"{rows:,} rows:", ", ".join(f"{name} {value:,}" for name, value in table[rows].items()), flush=True)
    if options.json:
        write_json(options.json, {**about, "rows": table})


if __name__ == "__main__":
    main()
