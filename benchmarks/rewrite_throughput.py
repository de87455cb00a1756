"""How fast rows are rewritten: our client beside a bare gather, replay, and memory, against a stub server.

The bare gather needs the openai client (`pip install "openai[aiohttp]"`), which nothing else here does.

    python benchmarks/rewrite_throughput.py [--json FILE] [--million] [--distilabel-python PATH]

The server is a process of its own on 127.0.0.1 that answers each call after 200 ms (for memory: at once). All arms
send the same requests. CPU is that of the client's process: unlike the rate it hardly depends on what else runs here.
"""

import argparse
import asyncio
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from medcomfort_utils.llm import Cache, Client, Request, Response, Settings, parse
from medcomfort_utils.paths import ROOT, write_json

CONCURRENCY, ROWS, LATENCY = 64, 3200, 0.2
SCALE = 2  # how much faster than in earnest the clock of the limited server runs
BARE, BARE_AIOHTTP = "a  bare gather, default transport", "a' bare gather, aiohttp transport"
OURS = "b  ours, nothing cached"
COLUMNS = {
    "rows_per_second": "10.0f",
    "cpu_ms_per_row": "11.2f",
    "peak_mb": "8.0f",
    "rows_kept": "9.1%",
    "time_of_ideal": "7.2f",
}  # those that lack are at the end
ANSWER = json.dumps({"answer": "I hear how much this worries you. Rest, drink, and see a doctor if it lasts. " * 3})
SCHEMA = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}
PROMPT = "Rewrite the question of patient {number} so that it shows fear. " * 6
SERVER = ("fixed", "--text", ANSWER)
SAMPLING = {"temperature": 0.7, "max_tokens": 300}

DISTILABEL = """
import sys, time
from distilabel.models import OpenAILLM
from distilabel.pipeline import Pipeline
from distilabel.steps import LoadDataFromDicts
from distilabel.steps.tasks import TextGeneration
url, rows, concurrency = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
data = [{{"instruction": {prompt!r}.format(number=n)}} for n in range(rows)]
with Pipeline() as pipeline:
    load = LoadDataFromDicts(data=data, batch_size=concurrency)
    llm = OpenAILLM(model="m", base_url=url, api_key="none", generation_kwargs={{"max_new_tokens": 300}})
    load >> TextGeneration(llm=llm, input_batch_size=concurrency)
if __name__ == "__main__":
    start = time.perf_counter()
    done = pipeline.run(use_cache=False)["default"]["train"]
    assert len(done) == rows and all(done["generation"])
    print("seconds", time.perf_counter() - start)
"""


def request(number: int) -> Request:
    question = {"role": "user", "content": PROMPT.format(number=number)}
    return Request(f"row {number}", "m", (question,), SAMPLING, None, "1")


@contextmanager
def stub(*options: str) -> Iterator[str]:
    """The base URL of `tests/servers.py` in its own process."""
    program = [sys.executable, str(ROOT / "tests/servers.py"), *options]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


def bare(url: str, rows: int, aiohttp: bool) -> None:
    """A gather under a semaphore over the openai client, on its default or on the aiohttp transport."""
    import openai

    async def main() -> None:
        transport = openai.DefaultAioHttpClient() if aiohttp else None
        async with openai.AsyncOpenAI(api_key="none", base_url=url, max_retries=0, http_client=transport) as api:
            room = asyncio.Semaphore(CONCURRENCY)

            async def one(number: int) -> str:
                async with room:
                    asked = request(number)
                    done = await api.chat.completions.create(model="m", messages=list(asked.messages), **SAMPLING)
                    return done.choices[0].message.content

            answers = await asyncio.gather(*[one(number) for number in range(rows)])
            assert answers == [ANSWER] * rows

    asyncio.run(main())


def ours(settings: Settings, cache: Cache, rows: int) -> None:
    """Our client over the same rows, parsing each answer."""
    client = Client(settings, cache)

    async def work(number: int) -> dict:
        return parse((await client.ask(request(number))).text, SCHEMA)

    assert sum(len(row) for row in client.run(range(rows), work)) == rows


def timed(arm: Callable[[int], None], rows: int) -> dict:
    """Rows a second, and milliseconds of CPU a row."""
    start, cpu = time.perf_counter(), time.process_time()
    arm(rows)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"rows_per_second": rows / seconds, "cpu_ms_per_row": 1000 * cpu / rows}


def fresh(url: str, folder: Path, rows: int) -> None:
    """Our client with an empty cache."""
    with Cache(Path(tempfile.mkdtemp(dir=folder)) / "cache.sqlite") as cache:
        ours(Settings(base_url=url, concurrency=CONCURRENCY), cache, rows)


def replay(folder: Path, rows: int, repeats: int) -> list[dict]:
    """Our client from a full cache."""
    with Cache(folder / "full.sqlite") as cache, stub(*SERVER) as url:
        ours(Settings(base_url=url, concurrency=CONCURRENCY), cache, rows)
        settings = Settings(mode="replay", concurrency=CONCURRENCY)
        return [timed(lambda count: ours(settings, cache, count), rows) for _ in range(repeats)]


def throughput(rows: int, repeats: int) -> dict[str, dict]:
    """Medians over `repeats` rounds, in which each arm has its turn."""
    rounds: dict[str, list[dict]] = {}
    with tempfile.TemporaryDirectory() as temporary, stub(*SERVER, "--latency", str(LATENCY)) as url:
        folder = Path(temporary)
        arms = {
            BARE: lambda count: bare(url, count, aiohttp=False),
            BARE_AIOHTTP: lambda count: bare(url, count, aiohttp=True),
            OURS: lambda count: fresh(url, folder, count),
        }
        for arm in arms.values():  # imports are not measured
            arm(CONCURRENCY)
        for _ in range(repeats):
            for name, arm in arms.items():
                rounds.setdefault(name, []).append(timed(arm, rows))
        rounds["d  ours, replay"] = replay(folder, rows, repeats)
    return {
        name: {key: statistics.median(one[key] for one in measured) for key in measured[0]}
        for name, measured in rounds.items()
    }


def limited(rows: int, per_minute: int, retry_after: str) -> dict:
    """Rows kept and seconds against the ideal, under a server that answers so many calls a minute, scaled to seconds.

    Time is scaled by `SCALE`, so that 60 a minute are one answer each 1 / SCALE seconds; so is the wait asked for.
    """
    rate = SCALE * per_minute / 60
    wait = ("--retry-after", str(float(retry_after) / SCALE)) if retry_after else ()
    with (
        tempfile.TemporaryDirectory() as folder,
        Cache(Path(folder) / "cache.sqlite") as cache,
        stub(*SERVER, "--rate", str(rate), *wait) as url,
    ):
        client = Client(Settings(base_url=url, concurrency=CONCURRENCY), cache)
        start = time.perf_counter()
        answers = list(client.run([request(number) for number in range(rows)], client.ask))
        seconds = time.perf_counter() - start
    kept = sum(isinstance(answer, Response) for answer in answers)
    return {"rows_kept": kept / rows, "time_of_ideal": seconds / ((rows - 1) / rate)}


def distilabel(python: str | None, rows: int) -> dict | None:
    """Rows a second of distilabel, in the Python at that path; None where it cannot be imported there.

    The time is that of `Pipeline.run`, whose processes have to start first. Tried with distilabel 1.5.3.
    """
    if not python or subprocess.run([python, "-c", "import distilabel"], capture_output=True).returncode:
        return None
    with stub(*SERVER, "--latency", str(LATENCY)) as url, tempfile.TemporaryDirectory() as folder:
        script = Path(folder) / "run.py"
        script.write_text(DISTILABEL.format(prompt=PROMPT))
        command = [python, str(script), url, str(rows), str(CONCURRENCY)]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    if done.returncode:
        raise SystemExit(f"distilabel failed:\n{done.stderr[-2000:]}")
    seconds = next(float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("seconds"))
    return {"rows_per_second": rows / seconds}


def peak_memory(rows: int) -> dict:
    """Peak resident MB of a process that asks for so many rows of a server that answers at once, and the rate."""
    done = subprocess.run([sys.executable, __file__, "--in-memory", str(rows)], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def in_memory(rows: int) -> None:
    """The child of `peak_memory`; prints JSON."""
    with tempfile.TemporaryDirectory() as folder, stub(*SERVER) as url, Cache(Path(folder) / "cache.sqlite") as cache:
        settings = Settings(base_url=url, concurrency=CONCURRENCY)
        measured = timed(lambda count: ours(settings, cache, count), rows)
    status = Path("/proc/self/status").read_text()
    kilobytes = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    print(json.dumps({**measured, "peak_mb": kilobytes / 1024}))


def machine() -> str:
    """The processor, its cores, and how busy they are."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start"


def shown(table: dict[str, dict | None]) -> str:
    """The table as text; an arm that was not measured says so."""
    lines = [f"{'':42} {'rows/s':>10} {'CPU ms/row':>11} {'peak MB':>8}; f: rows kept, time of the ideal"]
    for name, row in sorted(table.items()):
        cells = [format(row[key], form) for key, form in COLUMNS.items() if key in row] if row else []
        lines.append(f"{name:42} {' '.join(cells) or 'not measured'}".rstrip())
    for other in (BARE, BARE_AIOHTTP):
        share = table[OURS]["rows_per_second"] / table[other]["rows_per_second"]
        lines.append(f"b has {share:.0%} of the rate of {other}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the table shows medians")
    parser.add_argument("--million", action="store_true", help="also the memory of a million rows (half an hour)")
    parser.add_argument("--distilabel-python", help="a Python in which distilabel is installed")
    parser.add_argument("--json", help="write the numbers to this file")
    parser.add_argument("--in-memory", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_memory:
        return in_memory(options.in_memory)
    versions = {name: metadata.version(name) for name in ("openai", "aiohttp", "jsonschema")}
    about = {"machine": machine(), "python": platform.python_version(), **versions}
    table = throughput(options.rows, options.repeats)
    table["c  distilabel, with its start"] = distilabel(options.distilabel_python, options.rows)
    for rows in (10_000, *([1_000_000] if options.million else [])):
        table[f"e  ours, {rows:,} rows answered at once"] = peak_memory(rows)
    for per_minute, wait in ((60, ""), (60, "1"), (600, ""), (600, "1")):
        asked = f"Retry-After {wait}" if wait else "no Retry-After"
        table[f"f  ours, limited to {per_minute} a minute, {asked}"] = limited(2 * per_minute, per_minute, wait)
    print(*[f"{name}: {value}" for name, value in about.items()], shown(table), sep="\n")
    if options.json:
        write_json(options.json, {**about, "rows": options.rows, "repeats": options.repeats, "table": table})


if __name__ == "__main__":
    main()
