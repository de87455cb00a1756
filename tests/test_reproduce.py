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
STEPS = ("01_rewrite", "02_finetune-sft", "02_finetune-dpo", "03_evaluate", "04_figures")
NAMES = ("undisturbed-run", "broken-off-run")  # words that stand in no text
TOLD = {"HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def house(folder):
    """A copy of what the runs need, so that nothing is written into the repository."""
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "medcomfort_mini", "smoke")
    for name in ("medcomfort_utils", "notebooks", "data", "docs", "paper"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "small.yaml").write_text(PROFILE)
    return folder


def start(folder, name):
    """The command at work on a run, in a process group of its own; what it says goes to NAME.txt."""
    command = [sys.executable, "-m", "medcomfort_utils", "reproduce", "--profile", "small.yaml", "--name", name]
    with (folder / f"{name}.txt").open("w") as said:
        return subprocess.Popen(command, cwd=folder, env={**os.environ, **TOLD, "PYTHONPATH": str(folder)},
                                stdout=said, stderr=said, process_group=0)  # fmt: skip


def kill_in(process, said, step, seconds, kernels):
    """Kill the command when the step has been at work for so many seconds, or has ended: the machine may be faster.

    The kernels, which have groups of their own, end with it or some seconds later.
    """
    while process.poll() is None and not re.search(rf"\] {step} \((?!up to date)", said.read_text()):
        time.sleep(0.05)
    done, end = said.read_text().count(" done in "), time.monotonic() + seconds
    while process.poll() is None and said.read_text().count(" done in ") == done and time.monotonic() < end:
        time.sleep(0.05)
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    for kernel in started if kernels else []:
        kernel.kill()
    assert process.wait(60) == -signal.SIGKILL


def files(run):
    """Content of every file that the steps wrote, by its path; the run's name is made the same for all."""
    found = [path for path in run.rglob("*") if path.is_file() and path.name != ".lock"]
    told = {path.relative_to(run).as_posix(): path.read_bytes().replace(run.name.encode(), b"RUN") for path in found}
    told = {name: re.sub(rb"(signature\W+)[0-9a-f]{16}", rb"\1", content) for name, content in told.items()}  # of paths
    return {name: content for name, content in told.items() if not name.startswith(("notebooks/", "steps/"))}


def test_killed_in_every_step_it_ends_like_an_undisturbed_run(tmp_path):
    folder, moments = house(tmp_path / "house"), random.Random(20)
    calm, torn = (folder / "runs" / name for name in NAMES)
    assert start(folder, calm.name).wait(300) == 0, (folder / f"{calm.name}.txt").read_text()
    said = folder / f"{torn.name}.txt"
    for number, step in enumerate(STEPS):
        seconds = json.loads((calm / f"steps/{step}.json").read_text())["seconds"]
        process = start(folder, torn.name)
        kill_in(process, said, step, moments.uniform(0.2, 0.6) * seconds, kernels=number % 2 == 0)
    assert start(folder, torn.name).wait(300) == 0, said.read_text()
    assert said.read_text().count("(up to date)") >= 3
    expected, found = files(calm), files(torn)
    assert RESULTS <= expected.keys() == found.keys()
    assert [name for name in expected if expected[name] != found[name]] == []
