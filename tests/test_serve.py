"""The whole protocol against a real server: `transformers serve` with the nano model."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from medcomfort_utils.evaluate import judge
from medcomfort_utils.llm import Cache, Client, Settings
from medcomfort_utils.parquet import read_records
from medcomfort_utils.paths import NANO_BASE
from medcomfort_utils.records import Rewrite
from medcomfort_utils.rewrite import rewriter, sources
from medcomfort_utils.rewrite.rewriter import LLMRewriter

PATIENCE = 180  # seconds for the server to load its model, on a busy machine


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of `transformers serve`, started here and stopped at the end."""
    command = [Path(sys.executable).with_name("transformers"), "serve", NANO_BASE, "--host", "127.0.0.1", "--port", "0"]
    log = tmp_path_factory.mktemp("serve") / "log"
    with log.open("w") as out:
        process = subprocess.Popen([*command, "--device", "cpu", "--log-level", "info"], stdout=out, stderr=out)
        try:
            yield f"{_address(process, log)}/v1"
        finally:
            process.terminate()
            process.wait(30)


def _address(process, log):
    """Where it listens, once it says so: on a port that the system chose, so that nobody else has it."""
    for _ in range(PATIENCE):
        if found := re.search(r"running on (http://127\.0\.0\.1:\d+)", log.read_text()):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(1)
    pytest.fail(f"the server was not ready in {PATIENCE} s: {log.read_text()[-2000:]}")


def test_nonsense_is_rejected_with_reasons(server, tmp_path):
    dialogues = list(sources.Clinic(1))[:2]
    with Cache(tmp_path / "cache.sqlite") as cache:
        client = Client(Settings(base_url=server, timeout=120, concurrency=2), cache)
        writer = LLMRewriter(client, str(NANO_BASE), 1, {"temperature": 0.0, "max_tokens": 24})
        rewriter.write(writer.versions(dialogues), tmp_path)
        asked = len(cache)
    kept, rejected = (read_records(tmp_path / f"{name}.parquet", Rewrite) for name in ("rewrites", "rejected"))
    assert [r.condition for r in kept] == ["original"] * 2
    assert sorted(r.condition for r in rejected) == ["emotional"] * 2 + ["soothing_answer"] * 2
    assert all(gate.reason for r in rejected for gate in r.gates) and client.budget.calls == asked == 8
    assert all(r.question if r.condition == "emotional" else r.answer for r in rejected)


def test_a_judge_that_talks_nonsense_is_counted_and_not_scored(server, tmp_path, monkeypatch):
    """The nano model answers every question as a doctor would: none of its verdicts can be read."""
    monkeypatch.setitem(judge.SAMPLING, "max_tokens", 24)
    with Cache(tmp_path / "cache.sqlite") as cache:
        client = Client(Settings(base_url=server, timeout=120, concurrency=2), cache)
        compared = judge.compare(client, str(NANO_BASE), ["Is it bad?"], ["It is a cold."], ["Rest."])
        asked = client.budget.calls
    assert compared["value"].isna().all() and compared["problem"].all()
    assert asked == 4  # two orders, each sent back once
