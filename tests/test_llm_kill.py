"""Processes that are killed, and processes that share a cache: no row, and no response that was paid, is lost."""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from medcomfort_utils.llm import Cache, Client, Request, Settings
from medcomfort_utils.llm import client as llm_client
from medcomfort_utils.paths import DATA
from medcomfort_utils.rewrite import rewriter, sources
from medcomfort_utils.rewrite.rewriter import open_rewriter

DIALOGUES, ROWS, CONCURRENCY = 24, 300, 8
FILES = ("dialogues.parquet", "rewrites.parquet", "rejected.parquet", "responses.jsonl")
# Children are forked from a clean process that has imported all of it once.
CLEAN = multiprocessing.get_context("forkserver")
CLEAN.set_forkserver_preload(["medcomfort_utils.rewrite.rewriter", "pandas", "aiohttp"])


@contextmanager
def serving(*options):
    """The address of a server in its own process."""
    program = [sys.executable, str(Path(__file__).with_name("servers.py")), *options]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


def count(url, what):
    """How many `calls` a server had, or how often each answer was `paid`."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/calls", timeout=10) as reply:
        return json.load(reply)[what]


def start(work, *arguments):
    process = CLEAN.Process(target=work, args=arguments)
    process.start()
    return process


def finish(*processes):
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * len(processes)


def rewrite(url, folder):
    """What notebook 01 does, from the corpus to its files."""
    llm_client.FIRST_WAIT = 0.01
    corpus = sources.open_source(str(DATA / "medcomfort_mini/dialogues.jsonl"), limit=DIALOGUES)
    settings = {"base_url": url, "concurrency": CONCURRENCY, "timeout": 1.0, "retries": 30}
    writer = open_rewriter("llm", folder / "cache.sqlite", "", "m", 2, {"max_tokens": 500}, **settings)
    rewriter.write(writer.versions(corpus), folder)
    writer.finish(folder / "responses.jsonl")


def recorded(folder):
    """The answers in the cache, by the name that the server gave each."""
    with Cache(folder / "cache.sqlite") as cache:
        cache.export_jsonl(folder / "snapshot.jsonl")
    return {record["model"] for record in map(json.loads, (folder / "snapshot.jsonl").open())}


def kill_after(process, calls, url):
    deadline = time.monotonic() + 60
    while count(url, "calls") < calls:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL, "it was killed in the middle of its work"


def test_killed_five_times_gives_the_same_bytes_and_pays_nothing_twice(tmp_path):
    """As a run that nobody disturbed, though half of all calls fail in both."""
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    rng, snapshots = random.Random(0), []
    with serving("failing", "--latency", "0.02") as url:
        finish(start(rewrite, url, calm))
    with serving("failing", "--latency", "0.02") as url:
        for _ in range(5):
            kill_after(start(rewrite, url, killed), count(url, "calls") + rng.randint(20, 60), url)
            assert not any((killed / name).exists() for name in FILES), "no half of a file"
            snapshots.append((recorded(killed), count(url, "paid")))
        finish(start(rewrite, url, killed))
        paid = count(url, "paid")
    assert all((killed / name).read_bytes() == (calm / name).read_bytes() for name in FILES)
    assert not list(killed.glob(".*")), "what the killed ones left half-written is gone"
    for names, before in snapshots:
        assert names and all(paid[name] == before[name] for name in names), "what is recorded is not paid again"
    assert paid.keys() == recorded(killed), "what is paid is recorded"
    assert sum(paid.values()) <= len(paid) + 5 * CONCURRENCY, "paid twice is at most what was under way at a kill"


def ask_all(url, folder, name, numbers):
    """Ask for all rows, and write down each that was yielded."""
    with Cache(folder / "cache.sqlite") as cache, (folder / name).open("w", buffering=1) as yielded:
        client = Client(Settings(base_url=url, concurrency=CONCURRENCY), cache)

        async def work(number):
            asked = Request(f"row {number}", "m", ({"role": "user", "content": f"{number}"},), {}, None, "1")
            return f"{number} {(await client.ask(asked)).text}\n"

        yielded.writelines(client.run(numbers, work))


def test_two_processes_share_a_cache(tmp_path):
    """One works forwards, one backwards; no two answers of the server are equal, yet both yield the same ones."""
    with serving("counting", "--latency", "0.02") as url:
        up, down = range(ROWS), range(ROWS)[::-1]
        finish(start(ask_all, url, tmp_path, "up", up), start(ask_all, url, tmp_path, "down", down))
        assert count(url, "calls") < ROWS * 1.5
    up, down = (sorted((tmp_path / name).read_text().splitlines()) for name in ("up", "down"))
    assert up == down and len(up) == ROWS
