"""A training outlives kills, NaN, a full disk and too little GPU memory, or says in one sentence why it ends."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from finetuning import HYPER, RANKS, changed, fit, loss, rows_of, same_weights, undisturbed
from safetensors.torch import load_file
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
    owner = {"AdamW": torch.optim.AdamW}.get(owner) or globals()[owner]
    examples = data.prepare(method, plan["rows"][method], plan["base"], Hyper(**plan["hyper"], lora_rank=rank))
    setattr(owner, name, doomed(getattr(owner, name), at))
    trainers.train(examples, plan["base"], os.path.abspath(moment) + "/model")
    os._exit(0)
json.dump(ends, open("ends.json", "w"))
"""
# Where the system kills the process: when this function is called for the nth time. Checkpoints lie at steps 2, 4, 5.
MOMENTS = {
    "between two steps": ("AdamW", "step", 4, "dpo", "lora"),
    "while a checkpoint is written": ("torch", "save", 5, "sft", "full"),
    "when the training is over": ("trainers", "_finish", 1, "dpo", "full"),
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


@pytest.mark.parametrize(("every", "what"), [(3, "Step 5: the loss is nan"), (2, "Step 4: the weights are no longer")])
def test_nan_ends_the_run_with_the_last_good_checkpoint(tiny, rewrites, tmp_path, monkeypatch, every, what):
    disturb(monkeypatch, 4, poison)
    with pytest.raises(MedComfortError, match=rf"^{what}.* is .*checkpoint-{every}\. Lower"):
        fit("sft", "lora", rewrites, tiny, tmp_path / "model", hyper=changed(max_steps=7, save_steps=every))
    (checkpoint,) = tmp_path.glob(".model-*/checkpoint-*")
    weights = load_file(checkpoint / "adapter_model.safetensors").values()
    assert checkpoint.name == f"checkpoint-{every}" and all(tensor.isfinite().all() for tensor in weights)


@pytest.mark.parametrize("way", RANKS)
def test_what_will_be_written_must_have_room_before_training_starts(tiny, rewrites, tmp_path, monkeypatch, way):
    """At the peak, all checkpoints and the model that comes out lie on the disk together; 15 % off is near enough."""
    sizes, removed, free = [], checkpoints.remove, [0]
    size = lambda: sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())  # noqa: E731
    monkeypatch.setattr(checkpoints, "remove", lambda path: (sizes.append(size()), removed(path)))
    fit("sft", way, rewrites, tiny, tmp_path / "first", hyper=changed(max_steps=4))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free[0]))
    free[0] = 0.85 * sizes[0]
    with pytest.raises(MedComfortError, match=r"^out_dir: in .* 0\.0\d GB will be written, and 0\.0\d GB are free"):
        fit("sft", way, rewrites, tiny, tmp_path / "sft", hyper=changed(max_steps=4))
    assert not list(tmp_path.glob(".sft*/**/*.safetensors"))
    free[0] = 1.15 * sizes[0]
    fit("sft", way, rewrites, tiny, tmp_path / "sft", hyper=changed(max_steps=4))


@pytest.mark.parametrize(("way", "room"), [("full", 100_000), ("full", 600_000), ("lora", 60_000)])
def test_a_disk_that_fills_while_training(tiny, rewrites, tmp_path, way, room):
    """At the weights, at AdamW's state or at the tokenizer: three libraries, each with an exception of its own.

    No file can grow beyond `room` bytes: the operating system refuses it, as a full disk does.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        with pytest.raises(MedComfortError, match="A checkpoint in .* could not be written .* make room on the disk"):
            fit("sft", way, rewrites, tiny, tmp_path / "sft")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not (tmp_path / "sft").exists()


def test_too_little_gpu_memory_halves_the_batch(tiny, rewrites, tmp_path, monkeypatch, capsys):
    tried, fitted, hyper = [], trainers.fit, changed(batch_size=4)

    def small_gpu(examples, hyper, *rest):
        tried.append((hyper.batch_size, hyper.accumulation))
        if hyper.batch_size > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return fitted(examples, hyper, *rest)

    expected = fit("dpo", "lora", rewrites, tiny, tmp_path / "expected", hyper=hyper)
    monkeypatch.setattr(trainers, "fit", small_gpu)
    curves = fit("dpo", "lora", rewrites, tiny, tmp_path / "model", hyper=hyper)
    assert tried == [(4, 1), (2, 2), (1, 4)] and loss(curves) == pytest.approx(loss(expected), abs=1e-4)
    assert "too small for batches of 4, it goes on with 2, and twice the accumulation" in capsys.readouterr().out
    monkeypatch.setattr(trainers, "fit", None)  # and the run counts as finished
    fit("dpo", "lora", rewrites, tiny, tmp_path / "model", hyper=hyper)
    with pytest.raises(MedComfortError, match="too small for batches of 2, and they cannot be halved"):
        checkpoints.halved(changed(batch_size=2), least=2)


def test_a_finished_run_is_repeated_only_if_something_changed(trained, tiny, rewrites, tmp_path, monkeypatch):
    folder, curves = trained("sft", "full")
    shutil.copytree(folder, tmp_path / folder.name)
    usual = {"method": "sft", "way": "full", "rewrites": rewrites, "base": tiny, "folder": tmp_path / folder.name}
    with monkeypatch.context() as patched:
        patched.setattr(engine, "load", lambda *_, **__: interrupt(None))
        assert fit(**usual).equals(curves)
        for change in ({"hyper": changed(beta=0.2)}, {"rewrites": rewrites[4:]}, {"way": "lora"}, {"seed": 1}):
            with pytest.raises(KeyboardInterrupt):
                fit(**usual | change)
    (tmp_path / folder.name / "training.json").write_text("{")  # half of it: not whole
    assert fit(**usual).equals(curves) and same_weights(folder, tmp_path / folder.name)


def test_a_checkpoint_that_is_damaged_is_named(trained, tiny, rewrites, tmp_path, monkeypatch):
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        disturb(patched, 5, interrupt)
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    (newest,) = tmp_path.glob(".model-*/checkpoint-4")
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:200])
    with pytest.raises(MedComfortError, match="if the newest one there is broken, remove it"):
        fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    shutil.rmtree(newest)  # as told
    fit("sft", "lora", rewrites, tiny, tmp_path / "model")
    assert same_weights(trained("sft", "lora")[0], tmp_path / "model")
