"""Unsloth and plain TRL train the same: equal arguments, equal first loss, an end within what seeds differ by."""

import ast
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import turn
from finetuning import EACH, HYPER, fit, loss, rows_of
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from medcomfort_utils import paths
from medcomfort_utils.finetune import engine, examples, hyperparameters

LORA = HYPER.model_copy(update={"lora_rank": 4, "max_steps": 8, "max_length": 64, "save_steps": 8})
SEEDS = (0, 1, 2)
BY_UNSLOTH = """
import dataclasses, json
from medcomfort_utils.finetune import engine
engine.prepare("unsloth")
from medcomfort_utils.finetune import hyperparameters, trainers
plan, effective = json.load(open("plan.json")), {}
hyper, built = hyperparameters.Hyper(**plan["hyper"]), trainers.build
def watched(method, model, *rest):
    trainer = built(method, model, *rest)
    effective[method] = {f.name: str(getattr(trainer.args, f.name)) for f in dataclasses.fields(trainer.args)}
    effective[method]["adapters"] = sorted(trainer.model.peft_config)
    return trainer
trainers.build = watched
for method, rows in plan["rows"].items():
    trainers.train(method, rows, hyper, 0, plan["base"], plan["out"] + "/" + method, "unsloth")
json.dump(effective, open("effective.json", "w"))
"""


@pytest.fixture(scope="module")
def by_unsloth(tiny, rewrites, tmp_path_factory):
    """Three models trained by Unsloth in a process of its own: importing it changes transformers, PEFT and TRL."""
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    folder = tmp_path_factory.mktemp("unsloth")
    plan = {"base": tiny, "out": str(folder), "hyper": LORA.model_dump()}
    paths.write_json(folder / "plan.json", plan | {"rows": {m: rows_of(m, rewrites) for m in examples.METHODS}})
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    options = {"cwd": folder, "env": environment, "capture_output": True, "text": True, "timeout": 300}
    done = subprocess.run([sys.executable, "-c", BY_UNSLOTH], **options)
    if done.returncode and "Unsloth cannot be imported" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert not done.returncode, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def by_trl(tiny, rewrites, tmp_path_factory):
    """The losses of plain TRL over three seeds, a row a seed."""
    folder = tmp_path_factory.mktemp("trl")

    def losses(method):
        runs = [fit(method, "lora", rewrites, tiny, folder / f"{method}-seed{s}", s, hyper=LORA) for s in SEEDS]
        return pd.DataFrame([loss(run) for run in runs])

    return losses


@EACH
def test_both_engines_take_the_same_arguments(by_unsloth, tmp_path, method):
    unsloth = json.loads((by_unsloth / "effective.json").read_text())[method]
    plain = hyperparameters.arguments(method, LORA, 0, tmp_path, precompute=method != "sft")
    plain = {field.name: str(getattr(plain, field.name)) for field in dataclasses.fields(plain)}
    assert plain.keys() <= unsloth.keys()
    different = {name: (value, unsloth[name]) for name, value in plain.items() if value != unsloth[name]}
    assert different.keys() == {"output_dir"}, different


def replaced_by_unsloth():
    """The fields whose defaults Unsloth rewrites on a GPU, read from its source (it cannot be imported without one)."""
    found = importlib.util.find_spec("unsloth")
    if found is None:
        pytest.skip("Unsloth is not installed")
    tree = ast.parse((Path(found.origin).parent / "models" / "rl.py").read_text(encoding="utf-8"))
    names = set()
    for node in (node for node in ast.walk(tree) if isinstance(node, ast.Assign)):
        target = node.targets[0]
        if ast.unparse(target) == "replacements" and isinstance(node.value, ast.Dict):
            names |= {key.value for key in node.value.keys}
        elif isinstance(target, ast.Subscript) and ast.unparse(target.value) == "replacements":
            names.add(target.slice.value)
    return names


@EACH
def test_no_default_that_unsloth_rewrites_is_relied_on(tmp_path, monkeypatch, method):
    replaced, given = replaced_by_unsloth(), []
    assert {"learning_rate", "optim", "weight_decay", "seed", "warmup_steps", "loss_type"} <= replaced
    fields = {field.name for field in dataclasses.fields(type(hyperparameters.arguments(method, LORA, 0, tmp_path)))}
    for name in ("SFTConfig", "DPOConfig", "KTOConfig"):
        monkeypatch.setattr(hyperparameters, name, lambda **options: given.append(options))
    hyperparameters.arguments(method, LORA, 0, tmp_path)
    left = replaced & fields - given[0].keys()
    assert left <= {"router_aux_loss_coef"}  # of mixtures of experts, under GRPO only


@EACH
def test_the_engines_start_from_one_loss_and_end_within_the_spread_of_seeds(by_unsloth, by_trl, method):
    unsloth, trl = loss(pd.read_csv(by_unsloth / method / "history.csv")), by_trl(method)
    assert len(unsloth) == trl.shape[1] == 8
    assert unsloth[0] == pytest.approx(trl.iloc[0, 0], abs=5e-5)
    ends = trl.iloc[:, -2:].mean(axis=1)
    assert abs(ends - ends.mean()).max() > 0  # seeds do differ
    assert abs(sum(unsloth[-2:]) / 2 - ends[0]) <= ends.max() - ends.min()


@EACH
def test_a_model_by_unsloth_is_read_by_plain_transformers(by_unsloth, tiny, method):
    folder = by_unsloth / method
    reloaded = logits(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    untrained = AutoModelForCausalLM.from_pretrained(tiny)
    assert not torch.allclose(reloaded, logits(untrained, AutoTokenizer.from_pretrained(tiny)), atol=1e-3)
    apart = PeftModel.from_pretrained(untrained, folder / "adapter")
    assert torch.allclose(reloaded, logits(apart, AutoTokenizer.from_pretrained(folder)), atol=1e-4)
    adapter = apart.peft_config["default"]
    assert (adapter.r, adapter.target_modules) == (4, set(engine.LORA_TARGETS))


def test_unsloth_has_no_second_adapter(by_unsloth):
    effective = json.loads((by_unsloth / "effective.json").read_text())
    assert {method: told["adapters"] for method, told in effective.items()} == dict.fromkeys(
        examples.METHODS, ["default"]
    )


@torch.no_grad()
def logits(model, tokenizer):
    asked = tokenizer.apply_chat_template(turn("user", "I cough."), add_generation_prompt=True, return_tensors="pt")
    return model.eval()(**asked).logits
