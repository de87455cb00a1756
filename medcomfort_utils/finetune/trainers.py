"""SFT, DPO and KTO by TRL: one skeleton, and what `methods` says of each. Several GPUs:

    accelerate launch -m medcomfort_utils.finetune.trainers --profile paper --method sft

Import this module after `engine.prepare`, since it imports TRL.
"""

import argparse
import gc
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import trl
from accelerate import PartialState
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import set_seed

from medcomfort_utils import parquet, paths, profile, progress, records
from medcomfort_utils.finetune import card, checkpoints, engine, methods
from medcomfort_utils.finetune.data import Examples, examples_for
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import MedComfortError, resolve, tidy
from medcomfort_utils.schema import Hyper

REWARDS = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")
CURVES = ("loss", *REWARDS, "mean_token_accuracy", "kl")


def processes() -> PartialState:
    """The processes of this launch: without a GPU accelerate must be told so, or each takes itself for the only one."""
    return PartialState(cpu=not torch.cuda.is_available())


class Reporting(TrainerCallback):
    """Says how many steps are done to whoever runs the notebook, which itself shows none of it."""

    def __init__(self, what: str):
        self.what = what

    def on_step_end(self, args, state, control, **kwargs):
        """Report the step; transformers calls this."""
        if state.is_world_process_zero:
            progress.report(self.what, state.global_step, state.max_steps)


def build(examples: Examples, model, arguments, lora=None, reference=None):
    """The TRL trainer of the examples' method; `reference` is the frozen copy that full training compares with.

    With an adapter (`lora`, or one on the model already) the reference is the model itself, the adapter switched off.
    """
    logging.getLogger("trl").setLevel(logging.ERROR)
    kind = getattr(trl, METHODS[examples.method].trainer)
    prepared = {"_prepare_dataset": lambda self, dataset, *_, **__: dataset}  # it is tokenised already
    trainer = type(kind.__name__, (kind,), prepared)(
        model=model,
        args=arguments,
        train_dataset=examples.dataset(arguments.per_device_train_batch_size),
        processing_class=examples.tokenizer,
        peft_config=lora,
        **({"ref_model": reference} if METHODS[examples.method].reference else {}),
    )
    if "ref" in getattr(trainer.model, "peft_config", {}):  # TRL's copy of an untrained adapter, which changes nothing
        trainer.model.delete_adapter("ref")
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(Reporting(f"{examples.method} seed {examples.seed}: steps"))
    check_labels(trainer, examples.ends)
    return trainer


def check_labels(trainer, ends: set[int]) -> None:
    """Look at what the trainer's own collator makes of its first examples: each must teach some token, and to stop.

    The last guard before training, on the very tensors. Raises MedComfortError if an example's labels are all masked,
    or no end of turn carries a loss (as where a collator takes it for padding): a model taught so never stops.
    """
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(min(8, len(trainer.train_dataset)))])
    taught = batch["labels"] != -100 if "labels" in batch else batch["completion_mask"] == 1
    if not bool(taught.any(dim=1).all()):
        raise MedComfortError("All labels of an example are masked: the trainer would learn nothing from it.")
    closed = taught & torch.isin(batch["input_ids"], torch.tensor(sorted(ends)))
    if not bool(closed.any(dim=1).all()):
        raise MedComfortError("An example's end token carries no loss: the model would not learn to stop.")


def history(trainer) -> pd.DataFrame:
    """The curves of a run, long: columns step, metric, value."""
    rows = [
        (log["step"], name, float(log[name])) for log in trainer.state.log_history for name in CURVES if name in log
    ]
    return pd.DataFrame(rows, columns=["step", "metric", "value"])


def train(
    examples: Examples,
    base: str,
    out_dir: str | Path,
    engine_name: str = "trl",
    report_to: str = "none",
    data: str = "",
) -> pd.DataFrame:
    """Train one model on `examples` from where they say; returns its `history`.

    A run that was killed goes on from its last checkpoint; a finished one with the same signature is not repeated.
    Under `out_dir`: the whole model, its adapter, README.md (the card), `history.csv`, `training.json` (the effective
    parameters) and a tracker's `logs/`. `base`: the model before all fine-tuning. `report_to`: a tracker that
    transformers knows (tensorboard, wandb, ...). `data`: where the rows come from, for the card.
    """
    out_dir, hyper = resolve(out_dir), examples.hyper
    settings = {"model": out_dir.name.rsplit("-seed", 1)[0], "method": examples.method, "seed": examples.seed}
    settings |= {"base": base, "start": examples.start, "revision": examples.revision, "engine": engine_name}
    settings |= hyper.model_dump()
    digest = checkpoints.digest(examples.start, examples.revision)
    mark = checkpoints.signature(settings=settings, rows=examples.rows, base=digest)
    work_dir = checkpoints.work_folder(out_dir, mark)
    if not checkpoints.is_finished(out_dir, mark):
        trainer, used = _fit_in_memory(examples, engine_name, work_dir, report_to)
        training = {"signature": mark, "examples": len(examples.rows), "data": data, **settings}
        training |= {"batch_size": used.batch_size, "accumulation": used.accumulation}
        _finish(trainer, examples, work_dir, out_dir, training)
    if processes().is_main_process:
        checkpoints.sweep(out_dir, work_dir)
    processes().wait_for_everyone()
    return pd.read_csv(out_dir / "history.csv")


def _fit_in_memory(examples: Examples, engine_name: str, work_dir: Path, report_to: str) -> tuple[Any, Hyper]:
    """(trainer, hyper-parameters used): trained to the end, in smaller batches where the GPU's memory asks for it.

    accelerate's find_executable_batch_size tries again while the error still holds the trainer, and so its memory.
    """
    hyper = examples.hyper
    while True:
        try:
            return fit(examples, hyper, engine_name, work_dir, report_to), hyper
        except torch.cuda.OutOfMemoryError as error:
            if processes().num_processes > 1:  # the other processes wait for this one: no way on
                raise MedComfortError(
                    "batch_size: a GPU's memory is too small; halve it and double accumulation."
                ) from error
        gc.collect()  # outside of the handler, which still held the trainer
        torch.cuda.empty_cache()
        hyper = checkpoints.halved(hyper, METHODS[examples.method].least_batch)


def fit(examples: Examples, hyper: Hyper, engine_name: str, work_dir: Path, report_to: str = "none"):
    """A trainer after its last step; it goes on from the last checkpoint in `work_dir`."""
    start, reference = examples.start, METHODS[examples.method].reference
    # Where each row is seen more than once, its reference is computed once; then full training needs no frozen copy.
    # Several processes would look for it in each other's temporary folders.
    repeated = hyper.max_steps * hyper.batch_size * hyper.accumulation > len(examples.rows)
    precompute = reference and repeated and processes().num_processes == 1
    # refuses what cannot be, before anything is loaded
    config = methods.config(examples.method, hyper, examples.seed, work_dir, report_to, precompute)
    set_seed(examples.seed)
    lora = engine.adapter(hyper.lora_rank, hyper.lora_alpha, hyper.lora_dropout)
    how = {"dtype": hyper.dtype, "revision": examples.revision, "max_length": hyper.max_length}
    model, _ = engine.load(start, engine_name, **how, full=lora is None)
    if lora and engine_name == "unsloth":
        model, lora = engine.attach(model, lora, examples.seed, hyper.max_length), None
    copied = reference and hyper.lora_rank == 0 and not precompute
    frozen = engine.load(start, "trl", **how)[0].eval() if copied else None
    trainer = build(examples, model, config, lora, frozen)
    checkpoints.check_disk(trainer.model, examples.tokenizer, hyper, work_dir)
    checkpoints.stop_at_nan(trainer, work_dir)
    _run(trainer, work_dir, hyper.max_steps)
    return trainer


def _run(trainer, work_dir: Path, steps: int) -> None:
    last = checkpoints.last_checkpoint(work_dir)
    try:
        if last and checkpoints.step_of(last) >= steps:  # transformers would train a step more
            trainer.state = TrainerState.load_from_json(f"{last}/trainer_state.json")
        else:
            trainer.train(resume_from_checkpoint=last)  # writes a checkpoint after its last step
    except Exception as error:
        if not engine.of_a_file(error):
            raise
        raise MedComfortError(
            f"A checkpoint in {tidy(work_dir)} could not be written or read ({engine.first_line(error)}); make room on "
            "the disk, or if the newest checkpoint there is broken, remove it to go on from the one before."
        ) from error


def _finish(trainer, examples: Examples, work_dir: Path, out_dir: Path, training: dict[str, Any]) -> None:
    """Put the whole model in its place, by the main process; the others wait."""
    if trainer.accelerator.is_main_process:
        training |= {"adapted": engine.adapted(trainer.model)}
        curves, dtype = history(trainer), examples.hyper.save_dtype or examples.hyper.dtype
        notes = {
            "training.json": json.dumps(training, indent=1) + "\n",
            "history.csv": curves.to_csv(index=False),
            "README.md": card.text(training, curves),
        }
        trained = Path(checkpoints.last_checkpoint(work_dir))
        engine.save(trained, examples.start, examples.tokenizer, out_dir, dtype, notes, examples.revision)
    trainer.accelerator.wait_for_everyone()


def train_seeds(
    parameters: dict[str, Any], rewrites: Sequence[records.Rewrite], engine_name: str, first: Examples | None = None
) -> pd.DataFrame:
    """Train one model a seed, as the parameters of 02_finetune say; returns their curves (model, method, seed, ...).

    `first`: the examples of the first seed, where they were made already. Models of other seeds stay where they are.
    Beside the models lies `<name>.json`, the parameters.
    """
    seeds, repository = parameters["seeds"], parameters["push_to_hub"]
    if repository:
        card.check_push(repository, seeds)
    name, out_dir, curves = parameters["name"] or parameters["method"], resolve(parameters["out_dir"]), []
    for seed in seeds:
        examples = first if first and first.seed == seed else examples_for(parameters, rewrites, seed)
        folder, base = out_dir / f"{name}-seed{seed}", parameters["base"].format(seed=seed)
        data = described(parameters["rewrites"], rewrites)
        run = train(examples, base, folder, engine_name, parameters["report_to"], data)
        curves.append(run.assign(model=name, method=parameters["method"], seed=seed))
        if processes().is_main_process:
            adapted = paths.read_json(folder / "training.json", "training.json").get("adapted")
            print("saved", tidy(folder), *(["with an adapter on", ", ".join(adapted)] if adapted else []))
            if repository:
                print("pushed to", card.push(folder, repository.format(seed=seed)))
    if processes().is_main_process:
        paths.write_json(out_dir / f"{name}.json", {"parameters": parameters, "versions": paths.package_versions()})
    return pd.concat(curves, ignore_index=True)


def described(path: str | Path, rewrites: Sequence[records.Rewrite]) -> str:
    """Where the training data comes from and who wrote it, in one phrase for the model card."""
    writers = sorted({f"{r.backend} {r.model} (prompts {r.prompt_version})" for r in rewrites})
    return f"{tidy(resolve(path))}, rewritten by {', '.join(writers)}"


def main(argv: Sequence[str] | None = None) -> int:
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
        print(f"medcomfort: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
