"""How many answers a second the measures score, on one core, each answer a new one.

    python benchmarks/score_throughput.py [--answers 2000] [--json FILE]

The answers are those of the synthetic clinic with the sentences of the template rewriter, each made different by
two numbers and a name, so that no cache of whole answers helps. Prints a table; `--json` writes it too.
"""

import argparse
import json
import os
import platform
import resource
import time
from itertools import cycle, islice
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from medcomfort_utils.evaluate import comfort, facts, knowledge, safety  # noqa: E402
from medcomfort_utils.rewrite import clinic  # noqa: E402
from medcomfort_utils.rewrite.template import template_versions  # noqa: E402


def answers(count: int) -> tuple[list[str], list[str], list]:
    """(questions, answers, source dialogues)."""
    every = ((version, dialogue) for dialogue in clinic.generate(10) for version in template_versions(dialogue))
    made = []
    for number, (version, dialogue) in enumerate(islice(cycle(every), count)):
        told = f"{version.answer} Mrs Able{number} came {number + 2} days ago with {number + 3} photos."
        made.append((version.question, told, dialogue))
    return tuple(map(list, zip(*made, strict=True)))


def machine() -> str:
    """The processor's name."""
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(": ")[2] for line in told.splitlines() if line.startswith("model name")]
    return f"one core of {names[0] if names else platform.processor()}"


def measured(count: int) -> list[dict]:
    """A row a measure: answers a second, by the wall clock and by the processor's own."""
    questions, said, dialogues = answers(count)
    listed = [dialogue.facts for dialogue in dialogues]
    measures = {
        "comfort": lambda n: comfort.score(questions[:n], said[:n]),
        "fact support": lambda n: facts.fact_support(said[:n], listed[:n]),
        "safety": lambda n: safety.score(questions[:n], said[:n], dialogues[:n]),
        "knowledge, all": lambda n: knowledge.score(said[:n], dialogues[:n]),
    }
    rows = []
    for name, score in measures.items():
        score(20)  # word lists are read and patterns compiled
        began = time.perf_counter(), time.process_time()
        score(count)
        wall, busy = time.perf_counter() - began[0], time.process_time() - began[1]
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        rows.append({"measure": name, "answers": count, "per_second": round(count / wall),
                     "per_cpu_second": round(count / busy), "peak_mb": memory})  # fmt: skip
    return rows


def main() -> None:
    """Measure, print, and write if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measured(options.answers)
    print(f"{machine()}\n{'measure':16}{'answers/s':>12}{'per CPU s':>12}{'peak MB':>10}")
    for row in rows:
        print(f"{row['measure']:16}{row['per_second']:12}{row['per_cpu_second']:12}{row['peak_mb']:10}")
    if options.json:
        report = {"machine": machine(), "load": round(os.getloadavg()[0], 1), "python": platform.python_version()}
        options.json.write_text(json.dumps({**report, "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
