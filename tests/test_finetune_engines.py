"""Unsloth and plain TRL train the same, and several processes train what one trains."""

import importlib.util
import json
import os
import subprocess
import sys

import pandas as pd
import pytest
import yaml
from finetuning import EACH, changed, fit, loss, rows_of
from transformers import AutoModelForCausalLM

from medcomfort_utils import parquet, paths, records
from medcomfort_utils.finetune import methods, trainers
from medcomfort_utils.finetune.methods import METHODS

LORA = changed(lora_rank=4, max_steps=8, max_length=64, save_steps=8)
ENVIRONMENT = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
BY_UNSLOTH = """
import dataclasses, json
from medcomfort_utils.finetune import engine
engine.prepare("unsloth")
from medcomfort_utils.finetune import data, trainers
from medcomfort_utils.schema import Hyper
plan, effective, built = json.load(open("plan.json")), {}, trainers.build
def watched(examples, *rest):
    trainer = built(examples, *rest)
    effective[examples.method] = {f.name: str(getattr(trainer.args, f.name)) for f in dataclasses.fields(trainer.args)}
    return trainer
trainers.build = watched
for method, rows in plan["rows"].items():
    examples = data.prepare(method, rows, plan["base"], Hyper(**plan["hyper"]))
    trainers.train(examples, plan["base"], plan["out"] + "/" + method, "unsloth")
json.dump(effective, open("effective.json", "w"))
"""


@pytest.fixture(scope="module")
def by_unsloth(tiny, rewrites, tmp_path_factory):
    """Models trained by Unsloth in a process of its own: importing it changes transformers, PEFT and TRL."""
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    folder = tmp_path_factory.mktemp("unsloth")
    plan = {"base": tiny, "out": str(folder), "hyper": LORA.model_dump()}
    paths.write_json(folder / "plan.json", plan | {"rows": {m: rows_of(m, rewrites) for m in METHODS}})
    command = [sys.executable, "-c", BY_UNSLOTH]
    done = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    if done.returncode and "Unsloth cannot be imported" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert not done.returncode, done.stderr[-2000:]
    return folder


@EACH
def test_the_engines_start_from_one_loss_and_end_within_the_spread_of_seeds(
    by_unsloth, tiny, rewrites, tmp_path, method
):
    unsloth = json.loads((by_unsloth / "effective.json").read_text())[method]
    plain = methods.config(method, LORA, 0, tmp_path, precompute=method != "sft")
    assert [n for n, v in vars(plain).items() if n in unsloth and str(v) != unsloth[n]] == ["output_dir"]
    other = loss(pd.read_csv(by_unsloth / method / "history.csv"))
    runs = pd.DataFrame([loss(fit(method, "lora", rewrites, tiny, tmp_path / f"{s}", s, hyper=LORA)) for s in range(3)])
    ends = runs.iloc[:, -2:].mean(axis=1)
    assert len(other) == runs.shape[1] == 8 and other[0] == pytest.approx(runs.iloc[0, 0], abs=5e-5)
    assert abs(sum(other[-2:]) / 2 - ends[0]) <= ends.max() - ends.min()
    one, base = (AutoModelForCausalLM.from_pretrained(p).state_dict() for p in (by_unsloth / method, tiny))
    assert {name for name in one if not one[name].equal(base[name])} == {name for name in one if "_proj" in name}


def profile(folder, rewrites, base, batch_size):
    """A profile of three models, one a method, each of four optimiser steps."""
    data = parquet.write_records(folder / "rewrites.parquet", rewrites, records.Rewrite)
    shared = {"rewrites": str(data), "base": base, "against": ["original"], "sft_weight": 0.0, "max_length": 0,
              "learning_rate": 1e-3, "max_steps": 4, "batch_size": batch_size, "lora_rank": 4,
              "out_dir": str(folder / f"models-{batch_size}")}  # fmt: skip
    path = folder / f"batches-of-{batch_size}.yaml"
    path.write_text(yaml.safe_dump({"name": "two", "train": shared, "models": {method: {} for method in METHODS}}))
    return str(path)


def test_two_processes_train_what_one_trains(tiny, rewrites, tmp_path):
    """By accelerate, on CPUs that talk by gloo: one process with batches of 4, two with batches of 2.

    KTO too while its KL term is near 0; later it is estimated from the examples of each process' own batch.
    """
    one, two = (profile(tmp_path, rewrites, tiny, size) for size in (4, 2))
    trainers.main(["--profile", one, "--method", *METHODS])
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(paths.PROFILES / "accelerate/ddp.yaml"), "-m", "medcomfort_utils.finetune.trainers"]
    command = [*launch, "--profile", two, "--method", *METHODS]
    done = subprocess.run(command, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("saved ") == 3 and not list(tmp_path.glob("models-2/.*"))  # by one of the processes only
    for method in METHODS:
        folders = [tmp_path / f"models-{size}/{method}-seed0" for size in (4, 2)]
        curves = [loss(pd.read_csv(folder / "history.csv")) for folder in folders]
        assert curves[0][0] != curves[0][-1] and curves[1] == pytest.approx(curves[0], abs=1e-5)
        weights = [AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders]
        assert all((weights[0][name] - weights[1][name]).abs().max() < 1e-4 for name in weights[0])
    with pytest.raises(SystemExit, match="There is no profile 'pper'"):
        trainers.main(["--profile", "pper", "--method", "sft"])
