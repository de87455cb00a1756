"""SFT, DPO and KTO by TRL: one skeleton, and what `methods` says of each. Several GPUs:

    accelerate launch -m medcomfort_utils.finetune.trainers --profile paper --method sft

Import this module after `engine.prepare`, since it imports TRL.
"""

import argparse
import gc
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import trl
from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import set_seed

from medcomfort_utils import parquet, paths, profile, records
from medcomfort_utils.finetune import card, checkpoints, engine, methods
from medcomfort_utils.finetune.data import Examples, examples_for
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import MedComfortError, resolve, tidy
from medcomfort_utils.schema import Hyper

CURVES = ["loss", *(f"rewards/{name}" for name in ("margins", "accuracies", "chosen", "rejected"))]
CURVES += ["mean_token_accuracy", "kl"]


def processes() -> PartialState:
    """The processes of this launch: without a GPU accelerate must be told so, or each takes itself for the only one."""
    return PartialState(cpu=not torch.cuda.is_available())


def build(examples: Examples, model, arguments, lora=None, reference=None):
    """The TRL trainer of the examples' method; with an adapter it is its own `reference`, the adapter switched off."""
    logging.getLogger("trl").setLevel(logging.ERROR)
    kind = getattr(trl, f"{examples.method.upper()}Trainer")
    prepared = {"_prepare_dataset": lambda self, dataset, *_, **__: dataset}  # it is tokenised already
    given = {"model": model, "args": arguments, "processing_class": examples.tokenizer, "peft_config": lora}
    given |= {"train_dataset": examples.dataset(arguments.per_device_train_batch_size)}
    given |= {"ref_model": reference} if METHODS[examples.method].reference else {}
    with engine.explained(f"The trainer of {examples.method} cannot be made"):  # as with an unknown report_to
        trainer = type(kind.__name__, (kind,), prepared)(**given)
    if "ref" in getattr(trainer.model, "peft_config", {}):  # TRL's copy of an untrained adapter, which changes nothing
        trainer.model.delete_adapter("ref")
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    check_labels(trainer, examples.ends)
    return trainer


def check_labels(trainer, ends: set[int]) -> None:
    """Raise MedComfortError if an end of turn carries no loss in the collator's own tensors, as if it were padding."""
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(min(8, len(trainer.train_dataset)))])
    taught = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
    closed = taught & torch.isin(batch["input_ids"], torch.tensor(sorted(ends)))
    if not bool(closed.any(dim=1).all()):
        raise MedComfortError("An example's end token carries no loss: the model would not learn to stop.")


def train(
    examples: Examples, base: str, out_dir: Path, engine_name: str = "trl", report_to: str = "none", data: str = ""
) -> pd.DataFrame:
    """Train one model on `examples` into `out_dir`; returns its curves, long: columns step, metric, value.

    A run that was killed goes on from its last checkpoint; a finished one with the same signature is not repeated.
    `base`: the model before all fine-tuning. `data`: where the rows come from, for the card.
    """
    out_dir, hyper = resolve(out_dir), examples.hyper
    settings = {"model": out_dir.name.rsplit("-seed", 1)[0], "method": examples.method, "seed": examples.seed}
    settings |= {"base": base, "start": examples.start, "revision": examples.revision, "engine": engine_name}
    settings |= hyper.model_dump()
    mark = checkpoints.signature(examples.start, examples.revision, settings=settings, rows=examples.rows)
    with engine.explained(f"out_dir: {tidy(out_dir.parent)} cannot be a folder"):
        out_dir.parent.mkdir(parents=True, exist_ok=True)
    work_dir = out_dir.with_name(f".{out_dir.name}-{mark}")
    if not checkpoints.is_finished(out_dir, mark):
        trainer, used = _fit_in_memory(examples, engine_name, work_dir, report_to)
        training = {"signature": mark, "examples": len(examples.rows), "data": data, **settings}
        training |= {"batch_size": used.batch_size, "accumulation": used.accumulation}
        if trainer.accelerator.is_main_process:
            _finish(trainer, examples, work_dir, out_dir, training)
        trainer.accelerator.wait_for_everyone()
    if processes().is_main_process:
        checkpoints.sweep(out_dir, work_dir)
    processes().wait_for_everyone()
    return pd.read_csv(out_dir / "history.csv")


def _fit_in_memory(examples: Examples, engine_name: str, work_dir: Path, report_to: str) -> tuple[Any, Hyper]:
    """(trainer, hyper-parameters used): trained to the end, in smaller batches where the GPU's memory asks for it."""
    hyper = examples.hyper
    while True:
        try:
            return fit(examples, hyper, engine_name, work_dir, report_to), hyper
        except torch.cuda.OutOfMemoryError as error:
            if processes().num_processes > 1:  # the other processes wait for this one: no way on
                tip = "batch_size: a GPU's memory is too small; halve it and double accumulation."
                raise MedComfortError(tip) from error
        gc.collect()  # outside of the handler, which still held the trainer: so find_executable_batch_size does not do
        torch.cuda.empty_cache()
        hyper = checkpoints.halved(hyper, METHODS[examples.method].least_batch)


def fit(examples: Examples, hyper: Hyper, engine_name: str, work_dir: Path, report_to: str = "none"):
    """A trainer after its last step; it goes on from the last checkpoint in `work_dir`."""
    start, reference = examples.start, METHODS[examples.method].reference
    # Where each row is seen more than once, its reference is computed once; then full training needs no frozen copy.
    # Several processes would look for it in each other's temporary folders.
    repeated = hyper.max_steps * hyper.batch_size * hyper.accumulation > len(examples.rows)
    precompute = reference and repeated and processes().num_processes == 1
    config = methods.config(examples.method, hyper, examples.seed, work_dir, report_to, precompute)
    set_seed(examples.seed)
    lora = engine.adapter(hyper.lora_rank, hyper.lora_alpha, hyper.lora_dropout)
    which = (hyper.dtype, examples.revision)
    model, _ = engine.load(start, engine_name, *which, hyper.max_length, lora, examples.seed)
    copied = reference and lora is None and not precompute
    frozen = engine.load(start, "trl", *which)[0].eval() if copied else None
    trainer = build(examples, model, config, lora if engine_name == "trl" else None, frozen)
    checkpoints.check_disk(trainer.model, examples.tokenizer, hyper, work_dir)
    trainer.add_callback(checkpoints.Watch(f"{examples.method} seed {examples.seed}: steps", work_dir))
    last, what = checkpoints.last_checkpoint(work_dir), f"A checkpoint in {tidy(work_dir)} could not be written or read"
    hint = "; make room on the disk, or if the newest one there is broken, remove it to go on from the one before"
    with engine.explained(what, hint, checkpoints.of_a_file):
        state = TrainerState.load_from_json(str(last / "trainer_state.json")) if last else TrainerState()
        if state.global_step >= hyper.max_steps:  # transformers would train a step more
            trainer.state = state
        else:
            trainer.train(resume_from_checkpoint=last and str(last))  # writes a checkpoint after its last step
    return trainer


def _finish(trainer, examples: Examples, work_dir: Path, out_dir: Path, training: dict[str, Any]) -> None:
    """Put the whole model, with its curves and its card, in its place."""
    logs = trainer.state.log_history
    rows = [(log["step"], name, float(log[name])) for log in logs for name in CURVES if name in log]
    curves = pd.DataFrame(rows, columns=["step", "metric", "value"])
    trained, dtype = checkpoints.last_checkpoint(work_dir), examples.hyper.save_dtype or examples.hyper.dtype
    with engine.explained(f"{tidy(out_dir)} could not be written"), paths.replacing(out_dir) as folder:
        engine.save(trained, examples.start, examples.revision, examples.tokenizer, folder, dtype)
        paths.write_json(folder / "training.json", training)
        paths.write_text(folder / "history.csv", curves.to_csv(index=False))
        paths.write_text(folder / "README.md", card.text(training, curves))


def train_seeds(
    parameters: dict[str, Any], rewrites: Sequence[records.Rewrite], engine_name: str, first: Examples | None = None
) -> pd.DataFrame:
    """Train one model a seed, as the parameters of 02_finetune say; returns their curves (model, method, seed, ...).

    `first`: the examples of the first seed, where they were made already. Models of other seeds stay where they are.
    """
    seeds, repository = parameters["seeds"], parameters["push_to_hub"]
    if repository:
        if not os.environ.get("HF_TOKEN"):
            raise MedComfortError("push_to_hub: set HF_TOKEN in the environment to a token that may write.")
        if len({repository.format(seed=seed) for seed in seeds}) < len(seeds):
            raise MedComfortError("push_to_hub: this is one repository for all seeds; write {seed} into it.")
    name, out_dir, curves = parameters["name"] or parameters["method"], resolve(parameters["out_dir"]), []
    writers = sorted({f"{r.backend} {r.model} (prompts {r.prompt_version})" for r in rewrites})
    data = f"{tidy(resolve(parameters['rewrites']))}, rewritten by {', '.join(writers)}"
    for seed in seeds:
        examples = first if first and first.seed == seed else examples_for(parameters, rewrites, seed)
        folder, base = out_dir / f"{name}-seed{seed}", parameters["base"].format(seed=seed)
        run = train(examples, base, folder, engine_name, parameters["report_to"], data)
        curves.append(run.assign(model=name, method=parameters["method"], seed=seed))
        if processes().is_main_process:
            print("saved", tidy(folder))
            if repository:
                print("pushed to", card.push(folder, repository.format(seed=seed)))
    if processes().is_main_process:
        paths.write_json(out_dir / f"{name}.json", {"parameters": parameters, "versions": paths.package_versions()})
    return pd.concat(curves, ignore_index=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the steps of a profile that use these methods, by plain TRL, in as many processes as were launched."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m medcomfort_utils.finetune.trainers")
    parser.add_argument("--profile", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--method", required=True, nargs="+", choices=METHODS)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="STEP.PARAM=VALUE")
    parser.add_argument("--name", metavar="RUN", help="the run's own folder, runs/RUN (default: the profile's name)")
    given = parser.parse_args(argv)
    try:
        run = profile.load(given.profile, given.settings, given.name)
        steps = [step for step in run.steps if step.parameters.get("method") in given.method]
        if not steps:
            raise MedComfortError(f"{run.profile} trains no model by {', '.join(given.method)}.")
        for step in steps:
            rewrites = parquet.read_records(step.parameters["rewrites"], records.Rewrite)
            train_seeds(step.parameters, rewrites, engine.prepare("trl"))
    except MedComfortError as error:
        sys.exit(f"medcomfort: {error}")


if __name__ == "__main__":
    main()
