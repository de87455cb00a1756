"""A training outlives kills, NaN, a full disk and too little GPU memory, or says in one sentence why it ends."""

import os
import shutil
import signal
import subprocess
import sys
from collections import namedtuple

import pandas as pd
import pytest
import torch
from finetuning import HYPER, RANKS, fit, loss, notes, rows_of, same_weights, small_disk, undisturbed
from safetensors.torch import load_file
from transformers import TrainerCallback

from medcomfort_utils import paths
from medcomfort_utils.finetune import checkpoints, engine, examples, trainers
from medcomfort_utils.paths import MedComfortError


@pytest.fixture(scope="module")
def trained(tiny, rewrites, tmp_path_factory):
    return undisturbed(rewrites, tiny, tmp_path_factory.mktemp("models"))


def at_step(wanted, act):
    """A callback that acts at the end of a step."""

    class Act(TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            if state.global_step == wanted:
                act(model)

    return Act()


def disturbing(monkeypatch, callback):
    built = trainers.build

    def disturbed(*parts):
        trainer = built(*parts)
        trainer.add_callback(callback)
        return trainer

    monkeypatch.setattr(trainers, "build", disturbed)


def interrupt(model):
    raise KeyboardInterrupt


KILLED = [("sft", "lora", 1), ("dpo", "lora", 3), ("kto", "lora", 4), ("sft", "full", 3), ("dpo", "full", 5),
          ("kto", "full", 2)]  # fmt: skip


@pytest.mark.parametrize(("method", "way", "step"), KILLED)  # checkpoints lie at steps 2, 4 and 5
def test_a_run_killed_at_any_step_ends_like_an_undisturbed_one(
    trained, tiny, rewrites, tmp_path, monkeypatch, method, way, step
):
    folder, curves = trained(method, way)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        disturbing(patched, at_step(step, interrupt))
        fit(method, way, rewrites, tiny, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (work_dir,) = tmp_path.glob(".model-*")
    (work_dir / "checkpoint-9").mkdir()  # as if cut short while it was being saved
    begun = int((checkpoints.last_checkpoint(work_dir) or "checkpoint-0").rsplit("-", 1)[1])
    assert begun == (step - 1) // 2 * 2  # the interrupted step's own checkpoint was not written yet
    steps = []
    disturbing(monkeypatch, Count(steps))
    resumed = fit(method, way, rewrites, tiny, tmp_path / "model")
    assert steps == list(range(begun + 1, 6))
    assert same_weights(folder, tmp_path / "model") and resumed.equals(curves)
    assert os.listdir(tmp_path) == ["model"]


class Count(TrainerCallback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, args, state, control, **kwargs):
        self.steps.append(state.global_step)


SLAYER = """
import itertools, json, os, random, signal, sys
import datasets, torch
from transformers import PreTrainedModel, TrainerState
from medcomfort_utils.finetune import hyperparameters, checkpoints, trainers

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
    setattr(owner, name, doomed(getattr(owner, name), at))
    hyper = hyperparameters.Hyper(**plan["hyper"], lora_rank=rank)
    trainers.train(method, plan["rows"][method], hyper, 0, plan["base"], os.path.abspath(moment) + "/model")
    os._exit(0)
json.dump(ends, open("ends.json", "w"))
"""
# Where the system kills the process: when this function is called for the nth time.
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
    moments = {moment: (*told[:4], RANKS[told[4]]) for moment, told in MOMENTS.items()}
    rows, hyper = {m: rows_of(m, rewrites) for m in examples.METHODS}, HYPER.model_dump(exclude={"lora_rank"})
    paths.write_json(folder / "plan.json", {"moments": moments, "rows": rows, "hyper": hyper, "base": tiny})
    environment = os.environ | {"PYTHONPATH": str(paths.ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", SLAYER], cwd=folder, env=environment, timeout=300, check=True)
    assert set(paths.read_json(folder / "ends.json", "ends").values()) == {-signal.SIGKILL}
    return folder


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_process_slain_by_the_system_at_any_moment_is_survived(trained, slain, tiny, rewrites, moment):
    *_, method, way = MOMENTS[moment]
    folder, curves = trained(method, way)
    assert (slain / moment / "model").exists() == (moment == "when all is written")
    resumed = fit(method, way, rewrites, tiny, slain / moment / "model")
    assert loss(resumed) == pytest.approx(loss(curves), abs=1e-6)
    assert same_weights(folder, slain / moment / "model") and os.listdir(slain / moment) == ["model"]


@torch.no_grad()
def poison(model):
    next(p for p in model.parameters() if p.requires_grad).fill_(float("nan"))


def test_a_loss_that_is_not_finite_ends_the_run_with_the_last_good_checkpoint(tiny, rewrites, tmp_path, monkeypatch):
    disturbing(monkeypatch, at_step(3, poison))
    with pytest.raises(MedComfortError, match=r"^Step 4: the loss is nan, .* is .*checkpoint-2\. Lower") as raised:
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    assert "\n" not in str(raised.value) and not (tmp_path / "model").exists()
    (checkpoint,) = tmp_path.glob(".model-*/checkpoint-*")
    weights = load_file(checkpoint / "adapter_model.safetensors").values()
    assert checkpoint.name == "checkpoint-2" and all(tensor.isfinite().all() for tensor in weights)


def test_poisoned_weights_are_never_saved(tiny, rewrites, tmp_path, monkeypatch):
    disturbing(monkeypatch, at_step(4, poison))  # a checkpoint is due at the end of this very step
    with pytest.raises(MedComfortError, match="^Step 4: the weights are no longer finite, .*checkpoint-2"):
        fit("dpo", "lora", rewrites, tiny, tmp_path / "model")
    assert [path.name for path in tmp_path.glob(".model-*/checkpoint-*")] == ["checkpoint-2"]


def test_a_disk_too_small_is_told_before_training_starts(tiny, rewrites, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 10**6, 10**6))
    with pytest.raises(MedComfortError, match=r"^out_dir: about 0\.01 GB will be written .* 0\.00 GB are free there"):
        fit("sft", "full", rewrites, tiny, tmp_path / "sft")
    assert not list(tmp_path.glob("**/*.safetensors"))


def size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("way", ["lora", "full"])
def test_the_estimate_is_what_is_written(tiny, rewrites, tmp_path, monkeypatch, way):
    """At the peak, all checkpoints and the model that comes out lie on the disk together."""
    seen, removed = [], checkpoints.remove
    monkeypatch.setattr(checkpoints, "remove", lambda path: (seen.append(size(tmp_path)), removed(path)))
    estimates = []
    check = checkpoints.check_disk
    monkeypatch.setattr(
        checkpoints, "check_disk", lambda *given: (estimates.append(checkpoints.bytes_to_write(*given[:3])), check(*given))
    )
    fit("sft", way, rewrites, tiny, tmp_path / "sft", hyper=HYPER.model_copy(update={"max_steps": 4}))
    assert seen[0] == pytest.approx(estimates[0], rel=0.15)


def test_too_little_gpu_memory_halves_the_batch_and_doubles_the_accumulation(
    trained, tiny, rewrites, tmp_path, monkeypatch, capsys
):
    tried, fitted = [], trainers._fit

    def small_gpu(method, rows, hyper, *rest):
        tried.append((hyper.batch_size, hyper.accumulation))
        if hyper.batch_size > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return fitted(method, rows, hyper, *rest)

    hyper = HYPER.model_copy(update={"batch_size": 4})
    expected = fit("dpo", "lora", rewrites, tiny, tmp_path / "expected", hyper=hyper)
    monkeypatch.setattr(trainers, "_fit", small_gpu)
    curves = fit("dpo", "lora", rewrites, tiny, tmp_path / "model", hyper=hyper)
    assert tried == [(4, 1), (2, 2), (1, 4)]
    assert "batches of 4: going on with 2 examples a batch and 2 batches a step" in capsys.readouterr().out
    assert (notes(tmp_path / "model")["batch_size"], notes(tmp_path / "model")["accumulation"]) == (1, 4)
    assert loss(curves) == pytest.approx(loss(expected), abs=1e-4)  # the same examples a step
    monkeypatch.setattr(trainers, "_fit", None)  # and the run counts as finished
    fit("dpo", "lora", rewrites, tiny, tmp_path / "model", hyper=hyper)


def test_memory_that_runs_out_in_the_middle_goes_on_from_the_last_checkpoint(tiny, rewrites, tmp_path, monkeypatch):
    steps, full = [], [True]

    def memory(model):
        if full:
            full.clear()
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    expected = fit("sft", "full", rewrites, tiny, tmp_path / "expected")
    disturbing(monkeypatch, at_step(3, memory))
    disturbing(monkeypatch, Count(steps))
    curves = fit("sft", "full", rewrites, tiny, tmp_path / "model")
    assert steps == [1, 2, 3, 4, 5] and not full
    assert loss(curves) == pytest.approx(loss(expected), abs=1e-4)


@pytest.mark.parametrize(("method", "batch_size"), [("sft", 1), ("dpo", 3), ("kto", 2), ("kto", 5)])
def test_a_batch_that_cannot_be_halved_is_told(method, batch_size):
    with pytest.raises(MedComfortError, match=f"too small for batches of {batch_size}, and they cannot be halved"):
        checkpoints.halved(method, HYPER.model_copy(update={"batch_size": batch_size}))


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    assert checkpoints.last_checkpoint(tmp_path) is None
    for step, state in ((2, "{}"), (10, "{}"), (12, ""), (14, None), (16, '{"step"'), (18, "{}")):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
        if step != 18:
            (tmp_path / f"checkpoint-{step}" / "optimizer.pt").touch()
    assert checkpoints.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_finished_run_is_repeated_only_if_something_changed(trained, tiny, rewrites, tmp_path, monkeypatch):
    folder, curves = trained("sft", "full")
    shutil.copytree(folder, tmp_path / folder.name)
    built = (tmp_path / folder.name / "model.safetensors").stat().st_mtime_ns
    again = fit("sft", "full", rewrites, tiny, tmp_path / folder.name)
    assert (tmp_path / folder.name / "model.safetensors").stat().st_mtime_ns == built
    pd.testing.assert_frame_equal(again, curves.reset_index(drop=True))

    def begun(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "load", begun)
    usual = {"method": "sft", "way": "full", "rewrites": rewrites, "base": tiny, "folder": tmp_path / folder.name}
    for change in ({"hyper": HYPER.model_copy(update={"beta": 0.2})}, {"rewrites": rewrites[4:]}, {"way": "lora"}):
        with pytest.raises(KeyboardInterrupt):
            fit(**usual | change)
    assert same_weights(folder, tmp_path / folder.name)


@pytest.mark.parametrize(
    ("name", "content"), [("training.json", "{"), ("history.csv", None), ("model.safetensors", None)]
)
def test_a_model_that_is_not_whole_is_trained_again(trained, tiny, rewrites, tmp_path, name, content):
    folder, curves = trained("sft", "full")
    shutil.copytree(folder, tmp_path / folder.name)
    (tmp_path / folder.name / name).unlink()
    if content:
        (tmp_path / folder.name / name).write_text(content)
    assert fit("sft", "full", rewrites, tiny, tmp_path / folder.name).equals(curves)
    assert same_weights(folder, tmp_path / folder.name)


def test_what_earlier_trainings_left_is_swept_once_the_model_is_whole(tmp_path):
    out, work = tmp_path / "sft-seed1", tmp_path / (".sft-seed1-" + "a" * 16)
    names = [".sft-seed1-" + "b" * 16, ".sft-seed10-" + "b" * 16, ".sft-seed1-notes", "sft-seed1"]
    for name in [*names, work.name, f"{work.name}/runs"]:
        (tmp_path / name).mkdir()
    checkpoints.sweep(out, work)
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:]) and os.listdir(out) == ["logs"]


def test_what_a_killed_run_left_is_not_asked_of_the_disk_again(tiny, tmp_path, monkeypatch):
    model, tokenizer = engine.load(tiny)
    work, usage = tmp_path / "work", namedtuple("usage", "total used free")
    work.mkdir()
    needed = checkpoints.bytes_to_write(model, tokenizer, HYPER)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed - 1000))
    with pytest.raises(MedComfortError, match="make room"):
        checkpoints.check_disk(model, tokenizer, HYPER, work)
    (work / "checkpoint").write_bytes(bytes(1000))
    checkpoints.check_disk(model, tokenizer, HYPER, work)


def test_another_base_is_another_signature(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "base")
    assert checkpoints.digest(tiny, "") == checkpoints.digest(str(tmp_path / "base"), "")
    assert checkpoints.digest("org/model", "abc") == "org/model@abc"
    model, _ = engine.load(tiny)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(tmp_path / "base")
    assert checkpoints.digest(tiny, "") != checkpoints.digest(str(tmp_path / "base"), "")


@pytest.mark.parametrize(("way", "room"), [("full", 100_000), ("full", 600_000), ("lora", 9_000), ("lora", 60_000)])
def test_a_disk_that_fills_while_training(tiny, rewrites, tmp_path, way, room):
    """At the weights, at AdamW's state or at the tokenizer: three libraries, each with an exception of its own."""
    with small_disk(room), pytest.raises(MedComfortError, match="A checkpoint in .* could not be written") as raised:
        fit("sft", way, rewrites, tiny, tmp_path / "sft")
    assert not (tmp_path / "sft").exists() and "make room on the disk" in str(raised.value)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "adapter_model.safetensors"])
def test_a_checkpoint_that_is_damaged_is_told(trained, tiny, rewrites, tmp_path, monkeypatch, name):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        disturbing(patched, at_step(5, interrupt))
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    (newest,) = tmp_path.glob(".model-*/checkpoint-4")
    (newest / name).write_bytes((newest / name).read_bytes()[:200])
    with pytest.raises(MedComfortError, match="if the newest checkpoint there is broken, remove it"):
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    shutil.rmtree(newest)  # as told
    fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    assert same_weights(trained("sft", "lora")[0], tmp_path / "model")


def test_only_other_seeds_of_the_same_name_are_dropped(tmp_path):
    kept = ["sft-seed0", "sft-seed10", "sft-wide-seed1", "dpo-seed1", "sft-seeds", "sft-seed1b"]
    for name in [*kept, "sft-seed1", "sft-seed2"]:
        (tmp_path / name).mkdir()
    checkpoints.drop_other_seeds(tmp_path, "sft", [0, 10])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
