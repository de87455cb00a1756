"""Processes that are killed, and processes that share a cache: no response that was paid is lost or paid again."""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import aiohttp  # noqa: F401 - here and below: imported before the fork, so that the children need not
import httpx2  # noqa: F401
import openai  # noqa: F401
import pytest

from medcomfort_utils.llm import Cache, Client, Request, Settings

ROWS, CONCURRENCY = 300, 8
FORK = multiprocessing.get_context("fork")


def request(number):
    question = {"role": "user", "content": f"question {number}"}
    return Request(f"row {number}", "m", (question,), {"temperature": 0}, None, "1")


@pytest.fixture
def url():
    """The address of a server in its own process, which counts the calls."""
    program = [sys.executable, str(Path(__file__).with_name("servers.py")), "--latency", "0.02"]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        yield server.stdout.readline().strip()
        server.stdin.close()


def asked(url):
    """How often the server was asked each question."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(f"{url}/calls", timeout=10) as reply:
        return json.load(reply)


def work_through(url, folder, name, numbers):
    """What a process does: ask for all rows, and write down each that was yielded."""
    with Cache(folder / "cache.sqlite") as cache, (folder / name).open("w", buffering=1) as yielded:
        client = Client(Settings(base_url=url, concurrency=CONCURRENCY), cache)

        async def work(number):
            return f"{number} {(await client.ask(request(number))).text}\n"

        for line in client.run(numbers, work):
            yielded.write(line)


def start(*arguments):
    process = FORK.Process(target=work_through, args=arguments)
    process.start()
    return process


def recorded(folder):
    """The rows that the cache holds, and their answers."""
    with Cache(folder / "cache.sqlite") as cache:
        found = {number: cache.get(request(number).key) for number in range(ROWS)}
    return {number: response.text for number, response in found.items() if response}


def answers(path):
    return [(int(number), text) for number, _, text in (line.partition(" ") for line in path.read_text().splitlines())]


def wait_until(calls, url):
    deadline = time.monotonic() + 60
    while sum(asked(url).values()) < calls:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_killed_five_times_no_recorded_response_is_paid_twice(url, tmp_path):
    rng, snapshots = random.Random(0), []
    for turn in range(5):
        process = start(url, tmp_path, f"turn {turn}", range(ROWS))
        wait_until(sum(asked(url).values()) + rng.randint(10, 50), url)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it was killed in the middle of its work"
        kept = recorded(tmp_path)
        snapshots.append((kept, asked(url)))
        yielded = answers(tmp_path / f"turn {turn}")
        assert all(kept[number] == text for number, text in yielded), "what was yielded is recorded"
    process = start(url, tmp_path, "last turn", range(ROWS))
    process.join()
    assert process.exitcode == 0
    assert [number for number, _ in answers(tmp_path / "last turn")] == list(range(ROWS))
    times, final = asked(url), recorded(tmp_path)
    assert len(final) == ROWS
    for kept, before in snapshots:
        assert kept, "some rows were recorded before each kill"
        assert all(final[number] == text for number, text in kept.items())
        assert all(times[f"question {number}"] == before[f"question {number}"] for number in kept)
    assert sum(times.values()) <= ROWS + 5 * CONCURRENCY


def test_two_processes_share_a_cache(url, tmp_path):
    """One works forwards, one backwards; what the one recorded the other finds, and both yield the same answers."""
    processes = [start(url, tmp_path, "up", range(ROWS)), start(url, tmp_path, "down", range(ROWS)[::-1])]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert dict(answers(tmp_path / "up")) == dict(answers(tmp_path / "down")) == recorded(tmp_path)
    assert len(recorded(tmp_path)) == ROWS
    assert sum(asked(url).values()) < ROWS * 1.5
