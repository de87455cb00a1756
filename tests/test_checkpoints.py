"""A training outlives kills, NaN, a full disk and too little GPU memory, or says in one sentence why it ends."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pytest
import torch
from finetuning import HYPER, RANKS, changed, fit, loss, notes, rows_of, same_weights, small_disk, undisturbed
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from medcomfort_utils import paths
from medcomfort_utils.finetune import checkpoints, engine, trainers
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import MedComfortError


@pytest.fixture(scope="module")
def trained(tiny, rewrites, tmp_path_factory):
    return undisturbed(rewrites, tiny, tmp_path_factory.mktemp("models"))


def disturb(monkeypatch, step, act):
    """Have something happen at the end of a step; returns the list of steps that were taken."""
    built, steps = trainers.build, []

    class Act(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            steps.append(state.global_step)
            if state.global_step == step:
                act(model)

    def disturbed(*parts):
        trainer = built(*parts)
        trainer.add_callback(Act())
        return trainer

    monkeypatch.setattr(trainers, "build", disturbed)
    return steps


def interrupt(model):
    raise KeyboardInterrupt


SLAYER = """
import itertools, json, os, random, signal, sys
import datasets, torch
from transformers import PreTrainedModel, TrainerState
from medcomfort_utils.finetune import checkpoints, data, trainers
from medcomfort_utils.schema import Hyper

def doomed(called, at):
    begun = itertools.count(1)
    def call(*given, **options):
        if next(begun) == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return called(*given, **options)
    return call

plan, ends = json.load(open("plan.json")), {}
for moment, (owner, name, at, method, rank) in plan["moments"].items():
    process = os.fork()  # a copy is quicker than a process that imports torch; this one itself never computes
    if process:
        ends[moment] = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        continue
    datasets.fingerprint.fingerprint_rng.seed()  # or all copies would give their temporary files the same names
    owner = {"torch": torch, "os": os, "torch.optim.AdamW": torch.optim.AdamW, "PreTrainedModel": PreTrainedModel,
             "TrainerState": TrainerState, "checkpoints": checkpoints, "trainers": trainers}[owner]
    examples = data.prepare(method, plan["rows"][method], plan["base"], Hyper(**plan["hyper"], lora_rank=rank))
    setattr(owner, name, doomed(getattr(owner, name), at))
    trainers.train(examples, plan["base"], os.path.abspath(moment) + "/model")
    os._exit(0)
json.dump(ends, open("ends.json", "w"))
"""
# Where the system kills the process: when this function is called for the nth time. Checkpoints lie at steps 2, 4, 5.
MOMENTS = {
    "between two steps": ("torch.optim.AdamW", "step", 4, "dpo", "lora"),
    "while a checkpoint is written": ("torch", "save", 5, "sft", "full"),
    "while its last file is written": ("TrainerState", "save_to_json", 2, "kto", "lora"),
    "when the training is over": ("trainers", "_finish", 1, "dpo", "full"),
    "while the model is written": ("PreTrainedModel", "save_pretrained", 1, "kto", "lora"),
    "before the model takes its place": ("os", "replace", 1, "sft", "lora"),
    "when all is written": ("checkpoints", "sweep", 1, "kto", "full"),
}


@pytest.fixture(scope="module")
def slain(tiny, rewrites, tmp_path_factory):
    """A folder for each moment, with what was left there by a process that the system killed."""
    folder = tmp_path_factory.mktemp("slain")
    moments = {moment: (*how[:4], RANKS[how[4]]) for moment, how in MOMENTS.items()}
    rows, hyper = {m: rows_of(m, rewrites) for m in METHODS}, HYPER.model_dump(exclude={"lora_rank"})
    paths.write_json(folder / "plan.json", {"moments": moments, "rows": rows, "hyper": hyper, "base": tiny})
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SLAYER], cwd=folder, env=environment, timeout=300, check=True)
    assert set(paths.read_json(folder / "ends.json", "ends").values()) == {-signal.SIGKILL}
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_slain_at_any_moment_is_survived_to_the_bit(trained, slain, tiny, rewrites, monkeypatch, moment):
    *_, method, way = MOMENTS[moment]
    folder, curves = trained(method, way)
    assert (slain / moment / "model").exists() == (moment == "when all is written")
    steps = disturb(monkeypatch, 0, None)
    resumed = fit(method, way, rewrites, tiny, slain / moment / "model")
    assert len(steps) < 5 and loss(resumed) == pytest.approx(loss(curves), abs=1e-6)
    assert same_weights(folder, slain / moment / "model") and os.listdir(slain / moment) == ["model"]


@torch.no_grad()
def poison(model):
    next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


@pytest.mark.parametrize(
    ("step", "what"), [(3, "Step 4: the loss is nan"), (4, "Step 4: the weights are no longer finite")]
)
def test_nan_ends_the_run_with_the_last_good_checkpoint(tiny, rewrites, tmp_path, monkeypatch, step, what):
    disturb(monkeypatch, step, poison)
    with pytest.raises(MedComfortError, match=rf"^{what}, .* is .*checkpoint-2\. Lower") as raised:
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    assert "\n" not in str(raised.value) and not (tmp_path / "model").exists()
    (checkpoint,) = tmp_path.glob(".model-*/checkpoint-*")
    weights = load_file(checkpoint / "adapter_model.safetensors").values()
    assert checkpoint.name == "checkpoint-2" and all(tensor.isfinite().all() for tensor in weights)


def test_a_disk_too_small_is_told_before_training_starts(tiny, rewrites, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(MedComfortError, match=r"^out_dir: about 0\.01 GB will be written .* 0\.00 GB are free there"):
        fit("sft", "full", rewrites, tiny, tmp_path / "sft")
    assert not list(tmp_path.glob("**/*.safetensors"))


@pytest.mark.parametrize("way", ["lora", "full"])
def test_the_estimate_is_what_is_written(tiny, rewrites, tmp_path, monkeypatch, way):
    """At the peak, all checkpoints and the model that comes out lie on the disk together."""
    seen, removed, estimates, estimate = [], checkpoints.remove, [], checkpoints.bytes_to_write
    size = lambda: sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())  # noqa: E731
    monkeypatch.setattr(checkpoints, "remove", lambda path: (seen.append(size()), removed(path)))
    monkeypatch.setattr(checkpoints, "bytes_to_write", lambda *g: (estimates.append(estimate(*g)), estimates[0])[1])
    fit("sft", way, rewrites, tiny, tmp_path / "sft", hyper=changed(max_steps=4))
    assert seen[0] == pytest.approx(estimates[0], rel=0.15)


@pytest.mark.parametrize(("way", "room"), [("full", 100_000), ("full", 600_000), ("lora", 9_000), ("lora", 60_000)])
def test_a_disk_that_fills_while_training(tiny, rewrites, tmp_path, way, room):
    """At the weights, at AdamW's state or at the tokenizer: three libraries, each with an exception of its own."""
    with small_disk(room), pytest.raises(MedComfortError, match="A checkpoint in .* could not be written") as raised:
        fit("sft", way, rewrites, tiny, tmp_path / "sft")
    assert not (tmp_path / "sft").exists() and "make room on the disk" in str(raised.value)


def test_too_little_gpu_memory_halves_the_batch(tiny, rewrites, tmp_path, monkeypatch, capsys):
    tried, fitted = [], trainers.fit

    def small_gpu(examples, hyper, *rest):
        tried.append((hyper.batch_size, hyper.accumulation))
        if hyper.batch_size > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return fitted(examples, hyper, *rest)

    expected = fit("dpo", "lora", rewrites, tiny, tmp_path / "expected", hyper=changed(batch_size=4))
    monkeypatch.setattr(trainers, "fit", small_gpu)
    curves = fit("dpo", "lora", rewrites, tiny, tmp_path / "model", hyper=changed(batch_size=4))
    assert tried == [(4, 1), (2, 2), (1, 4)] and loss(curves) == pytest.approx(loss(expected), abs=1e-4)
    assert "batches of 4: going on with 2 examples a batch and 2 batches a step" in capsys.readouterr().out
    assert (notes(tmp_path / "model")["batch_size"], notes(tmp_path / "model")["accumulation"]) == (1, 4)
    monkeypatch.setattr(trainers, "fit", None)  # and the run counts as finished
    fit("dpo", "lora", rewrites, tiny, tmp_path / "model", hyper=changed(batch_size=4))
    for size, least in ((1, 1), (3, 1), (2, 2)):
        with pytest.raises(MedComfortError, match=f"too small for batches of {size}, and they cannot be halved"):
            checkpoints.halved(changed(batch_size=size), least)


def test_a_finished_run_is_repeated_only_if_something_changed(trained, tiny, rewrites, tmp_path, monkeypatch):
    folder, curves = trained("sft", "full")
    shutil.copytree(folder, tmp_path / folder.name)
    usual = {"method": "sft", "way": "full", "rewrites": rewrites, "base": tiny, "folder": tmp_path / folder.name}
    monkeypatch.setattr(engine, "load", lambda *_, **__: interrupt(None))
    assert fit(**usual).equals(curves.reset_index(drop=True))
    for change in ({"hyper": changed(beta=0.2)}, {"rewrites": rewrites[4:]}, {"way": "lora"}, {"seed": 1}):
        with pytest.raises(KeyboardInterrupt):
            fit(**usual | change)
    shutil.copytree(tiny, tmp_path / "base")
    weights = load_file(tmp_path / "base/model.safetensors")
    save_file(
        {name: tensor + 1 for name, tensor in weights.items()}, tmp_path / "base/model.safetensors", {"format": "pt"}
    )
    assert checkpoints.digest(tiny, "") != checkpoints.digest(
        str(tmp_path / "base"), ""
    )  # another base, another signature
    assert same_weights(folder, tmp_path / folder.name)
    monkeypatch.undo()
    (tmp_path / folder.name / "training.json").write_text("{")  # half of it: not whole
    assert fit(**usual).equals(curves) and same_weights(folder, tmp_path / folder.name)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "adapter_model.safetensors"])
def test_a_checkpoint_that_is_damaged_is_told(trained, tiny, rewrites, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        disturb(patched, 5, interrupt)
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    (newest,) = tmp_path.glob(".model-*/checkpoint-4")
    (newest / name).write_bytes((newest / name).read_bytes()[:200])
    with pytest.raises(MedComfortError, match="if the newest checkpoint there is broken, remove it"):
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    shutil.rmtree(newest)  # as told
    fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    assert same_weights(trained("sft", "lora")[0], tmp_path / "model")
