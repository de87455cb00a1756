"""The four notebooks once through, in small: a run that is broken off, however often, ends like an undisturbed one.

The second run has another folder and another name than the first, so the test also shows that two runs agree.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from medcomfort_utils.paths import ROOT

PROFILE = """
name: small
rewrite: {source: docs/example_dialogues.jsonl, rewriter: template, emotions: 1}
train: {max_steps: 3, batch_size: 2, more: {save_steps: 1}}
models: {sft: {}, dpo: {after: sft}}
evaluate: {max_new_tokens: 8}
figures: {}
"""
RESULTS = {"dialogues.parquet", "rewrites.parquet", "scores.parquet", "results.json", "claims.json", "summary.md",
           "models/sft-seed0/model.safetensors", "figures/comfort_vs_knowledge.pdf"}  # fmt: skip
DISTURBED = ("01_rewrite", "02_finetune-sft", "02_finetune-dpo", "03_evaluate", "04_figures")
NAMES = ("undisturbed-run", "broken-off-run")  # words that stand in no text
TOLD = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def house(folder):
    """A copy of what the runs need, so that nothing is written into the repository."""
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "medcomfort_mini", "smoke")
    for name in ("medcomfort_utils", "notebooks", "data", "docs", "paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "small.yaml").write_text(PROFILE)
    return folder


class Reproducing:
    """The command at work on a run, in a process group of its own; what it says goes to files."""

    def __init__(self, folder, name):
        command = [sys.executable, "-m", "medcomfort_utils", "reproduce", "--profile", "small.yaml", "--name", name]
        self.said = [folder / "out.txt", folder / "err.txt"]
        with self.said[0].open("w") as out, self.said[1].open("w") as err:
            self.process = subprocess.Popen(command, cwd=folder, env={**os.environ, **TOLD, "PYTHONPATH": str(folder)},
                                            stdout=out, stderr=err, process_group=0)  # fmt: skip

    def out(self):
        return self.said[0].read_text()

    def wait_for(self, step, seconds):
        """Wait until the step has been at work for so many seconds, or has ended: the machine may be faster by now."""
        while self.process.poll() is None and not re.search(rf"\] {step} \((?!up to date)", self.out()):
            time.sleep(0.05)
        done, end = self.out().count(" done in "), time.monotonic() + seconds
        while self.process.poll() is None and self.out().count(" done in ") == done and time.monotonic() < end:
            time.sleep(0.05)

    def kill(self, kernels):
        """End the group at once; the kernels, which have groups of their own, with it or some seconds later."""
        started = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        os.killpg(self.process.pid, signal.SIGKILL)
        for kernel in started if kernels else []:
            kernel.kill()
        self.process.wait(60)

    def end(self):
        assert self.process.wait(300) == 0, self.said[1].read_text()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of an undisturbed run, and the seconds that each of its steps took."""
    folder = house(tmp_path_factory.mktemp("house"))
    Reproducing(folder, NAMES[0]).end()
    run = folder / "runs" / NAMES[0]
    return run, {step: json.loads((run / f"steps/{step}.json").read_text())["seconds"] for step in DISTURBED}


def files(run):
    """Content of every file that the steps wrote, by its path; the run's name is made the same for all."""
    found = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    told = {path.relative_to(run).as_posix(): path.read_bytes().replace(run.name.encode(), b"RUN") for path in found}
    return {name: content for name, content in told.items() if not name.startswith(("notebooks/", "steps/"))}


def half_written(run):
    return [*run.rglob(".*.tmp*"), *run.rglob(".*.running.ipynb")]


def test_killed_in_every_step_and_interrupted_it_ends_like_an_undisturbed_run(undisturbed, tmp_path):
    calm, seconds = undisturbed
    folder, moments = house(tmp_path), random.Random(20)
    run = folder / "runs" / NAMES[1]
    for number, step in enumerate(DISTURBED):
        torn = Reproducing(folder, NAMES[1])
        torn.wait_for(step, moments.uniform(0.2, 0.6) * seconds[step])
        torn.kill(kernels=number % 2 == 0)
        assert torn.process.returncode == -signal.SIGKILL
        if step == "02_finetune-sft":
            interrupt(folder, run, moments.uniform(1, 6))  # the step takes longer on any machine, to import alone
    last = Reproducing(folder, NAMES[1])
    last.end()
    assert last.out().count("(up to date)") >= 3
    expected, found = files(calm), files(run)
    assert RESULTS <= expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []


def interrupt(folder, run, seconds):
    """Ctrl-C in 02: one line, exit code 130, nothing half-written, no kernel left."""
    stopped = Reproducing(folder, NAMES[1])
    stopped.wait_for("02_finetune-sft", seconds)
    kernels = []
    while stopped.process.poll() is None and not kernels:  # papermill itself takes seconds to import
        kernels = psutil.Process(stopped.process.pid).children(recursive=True)
        time.sleep(0.05)
    os.killpg(stopped.process.pid, signal.SIGINT)
    assert stopped.process.wait(60) == 130
    said = stopped.said[1].read_text().strip().splitlines()
    assert len(said) == 1 and said[0].startswith("medcomfort: interrupted; finished steps are kept")
    assert not half_written(run) and kernels
    assert psutil.wait_procs(kernels, timeout=30)[1] == []
