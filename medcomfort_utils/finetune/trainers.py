"""SFT, DPO and KTO by TRL: one skeleton, three losses. Several GPUs:

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
from accelerate import PartialState
from datasets import Dataset, disable_progress_bars
from transformers import PrinterCallback, ProgressCallback, TrainerState
from transformers.trainer_utils import set_seed
from trl import DPOTrainer, KTOTrainer, SFTTrainer

from medcomfort_utils import parquet, paths, profile, records
from medcomfort_utils.finetune import card, checkpoints, checks, engine, examples
from medcomfort_utils.finetune.hyperparameters import Hyper, arguments, from_parameters
from medcomfort_utils.paths import MedComfortError, resolve, tidy

CURVES = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/rejected",
    "mean_token_accuracy",
    "kl",
)


def build(method: str, model, tokenizer, rows: list[dict], arguments, lora=None, reference=None):
    """The TRL trainer of `method`; `reference` is the frozen copy that DPO and KTO compare with in full training.

    With an adapter (`lora`, or one on the model already) the reference is the model itself, the adapter switched off.
    """
    parts = {
        "model": model,
        "args": arguments,
        "train_dataset": Dataset.from_list(rows),
        "processing_class": tokenizer,
        "peft_config": lora,
    }
    disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
    if method == "sft":
        trainer = SFTTrainer(**parts)
    elif method == "dpo":
        trainer = DPOTrainer(**parts, ref_model=reference)
    else:
        trainer = KTOTrainer(**parts, ref_model=reference)
    if "ref" in getattr(trainer.model, "peft_config", {}):  # TRL's copy of an untrained adapter, which changes nothing
        trainer.model.delete_adapter("ref")
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    checks.labels(method, trainer)
    return trainer


def history(trainer) -> pd.DataFrame:
    """The curves of a run, long: columns step, metric, value."""
    rows = [
        (log["step"], name, float(log[name])) for log in trainer.state.log_history for name in CURVES if name in log
    ]
    return pd.DataFrame(rows, columns=["step", "metric", "value"])


def train(
    method: str,
    rows: list[dict],
    hyper: Hyper,
    seed: int,
    base: str,
    out_dir: str | Path,
    engine_name: str = "trl",
    revision: str = "",
    init_from: str = "",
    report_to: str = "none",
    data: str = "",
) -> pd.DataFrame:
    """Train one model on `rows` (of `rows_for`) from `init_from` or else `base`; returns its `history`.

    A run that was killed goes on from its last checkpoint; a finished one with the same signature is not repeated.
    Under `out_dir`: the whole model, its adapter, README.md (the card), `history.csv`, `training.json` (the effective
    parameters) and a tracker's `logs/`. `report_to`: a tracker that transformers knows (tensorboard, wandb, ...).
    `data`: where the rows come from, for the card.
    """
    out_dir, start, revision = resolve(out_dir), init_from or base, "" if init_from else revision
    rows, hyper = checks.ready(method, rows, engine.load_tokenizer(start, revision), hyper)
    settings = {"model": out_dir.name.rsplit("-seed", 1)[0], "method": method, "seed": seed, "base": base}
    settings |= {"start": start, "revision": revision, "engine": engine_name, **hyper.model_dump()}
    mark = checkpoints.signature(settings=settings, rows=rows, base=checkpoints.digest(start, revision))
    work_dir = checkpoints.work_folder(out_dir, mark)
    if not checkpoints.is_finished(out_dir, mark):
        checks.tell_balance(method, rows, hyper)
        trainer, used = _fitted(method, rows, hyper, settings, work_dir, report_to)
        told = {"signature": mark, "examples": len(rows), "data": data, **settings}
        told |= {"batch_size": used.batch_size, "accumulation": used.accumulation}
        _finish(trainer, work_dir, out_dir, hyper, told)
    if PartialState().is_main_process:
        checkpoints.sweep(out_dir, work_dir)
        card.write(out_dir)
    PartialState().wait_for_everyone()
    return pd.read_csv(out_dir / "history.csv")


def _fitted(method: str, rows: list[dict], hyper: Hyper, settings: dict[str, Any], work_dir: Path, report_to: str):
    """(trainer, hyper-parameters used): trained to the end, in smaller batches where the GPU's memory asks for it."""
    while True:
        try:
            return _fit(method, rows, hyper, settings, work_dir, report_to), hyper
        except torch.cuda.OutOfMemoryError as error:
            if PartialState().num_processes > 1:  # the other processes wait for this one: no way on
                raise MedComfortError(
                    "batch_size: a GPU's memory is too small; halve it and double accumulation."
                ) from error
        gc.collect()  # outside of the handler, which still held the trainer
        torch.cuda.empty_cache()
        hyper = checkpoints.halved(method, hyper)


def _fit(method: str, rows: list[dict], hyper: Hyper, settings: dict[str, Any], work_dir: Path, report_to: str):
    start, engine_name, seed = settings["start"], settings["engine"], settings["seed"]
    used = {"dtype": hyper.dtype, "revision": settings["revision"], "max_length": hyper.max_length}
    # Where each row is seen more than once, its reference is computed once; then full training needs no frozen copy.
    # Several processes would look for it in each other's temporary folders.
    repeated = hyper.max_steps * hyper.batch_size * hyper.accumulation > len(rows)
    precompute = method != "sft" and repeated and PartialState().num_processes == 1
    config = arguments(method, hyper, seed, work_dir, report_to, precompute)  # refuses what cannot be, before it loads
    set_seed(seed)
    lora = engine.adapter(hyper.lora_rank, hyper.lora_alpha, hyper.lora_dropout)
    model, tokenizer = engine.load(start, engine_name, **used, full=lora is None)
    if lora:
        engine.check_adaptable(model, start)
    if lora and engine_name == "unsloth":
        model, lora = engine.attach(model, lora, seed, hyper.max_length), None
    copied = method != "sft" and hyper.lora_rank == 0 and not precompute
    reference = engine.load(start, "trl", **used)[0].eval() if copied else None
    trainer = build(method, model, tokenizer, rows, config, lora, reference)
    checkpoints.check_disk(trainer.model, tokenizer, hyper, work_dir)
    checkpoints.stop_at_nan(trainer, work_dir)
    last = checkpoints.last_checkpoint(work_dir)
    try:
        if last and checkpoints.step_of(last) >= hyper.max_steps:  # transformers would train a step more
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
    return trainer


def _finish(trainer, work_dir: Path, out_dir: Path, hyper: Hyper, told: dict[str, Any]) -> None:
    """Put the whole model in its place, by the main process; the others wait."""
    if trainer.accelerator.is_main_process:
        notes = {
            "training.json": json.dumps(told, indent=1) + "\n",
            "history.csv": history(trainer).to_csv(index=False),
        }
        dtype = hyper.save_dtype or hyper.dtype
        tokenizer = trainer.processing_class
        trained = Path(checkpoints.last_checkpoint(work_dir))
        engine.save(trained, told["start"], tokenizer, out_dir, dtype, notes, told["revision"])
    trainer.accelerator.wait_for_everyone()


def train_seeds(parameters: dict[str, Any], engine_name: str) -> pd.DataFrame:
    """Train one model a seed, as the parameters of 02_finetune say; returns their curves (model, method, seed, ...).

    Models of other seeds under the same name are removed. Beside the models lies `<name>.json`, the parameters.
    """
    checks.parameters(parameters)
    given = parameters | {"name": parameters["name"] or parameters["method"]}
    method, name, out_dir = given["method"], given["name"], resolve(given["out_dir"])
    rewritten, hyper = parquet.read_records(given["rewrites"], records.Rewrite), from_parameters(given)
    view = {key: given[key] for key in ("neutral_fraction", "target", "against")}
    curves = []
    for seed in given["seeds"]:
        rows = examples.rows_for(method, rewritten, seed, **view)
        base, init = given["base"].format(seed=seed), given["init_from"].format(seed=seed)
        options = {"init_from": init, "report_to": given["report_to"], "data": described(given["rewrites"], rewritten)}
        folder = out_dir / f"{name}-seed{seed}"
        run = train(method, rows, hyper, seed, base, folder, engine_name, given["revision"], **options)
        curves.append(run.assign(model=name, method=method, seed=seed))
        if PartialState().is_main_process:
            _leave(folder, given["push_to_hub"], seed)
    if PartialState().is_main_process:
        checkpoints.drop_other_seeds(out_dir, name, given["seeds"])
        paths.write_json(out_dir / f"{name}.json", {"parameters": parameters, "versions": paths.package_versions()})
    return pd.concat(curves, ignore_index=True)


def _leave(folder: Path, repository: str, seed: int) -> None:
    print("saved", tidy(folder))
    if repository:
        print("pushed to", card.push(folder, repository.format(seed=seed)))


def described(path: str | Path, rewrites: Sequence[records.Rewrite]) -> str:
    """Where the training data comes from and who wrote it, in one phrase for the model card."""
    writers = sorted({f"{r.backend} {r.model} (prompts {r.prompt_version})" for r in rewrites})
    return f"{tidy(resolve(path))}, rewritten by {', '.join(writers)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Train the steps of a profile that use these methods, by plain TRL, in as many processes as were launched."""
    parser = argparse.ArgumentParser(prog="accelerate launch -m medcomfort_utils.finetune.trainers")
    parser.add_argument("--profile", required=True, metavar="NAME_OR_PATH")
    parser.add_argument("--method", required=True, nargs="+", choices=examples.METHODS)
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="STEP.PARAM=VALUE")
    parser.add_argument("--name", metavar="RUN", help="the run's own folder, runs/RUN (default: the profile's name)")
    given = parser.parse_args(argv)
    try:
        run = profile.load(given.profile, given.settings, given.name)
        steps = [step for step in run.steps if step.parameters.get("method") in given.method]
        if not steps:
            raise MedComfortError(f"{run.profile} trains no model by {', '.join(given.method)}.")
        for step in steps:
            train_seeds(step.parameters, engine.prepare("trl"))
    except MedComfortError as error:
        print(f"medcomfort: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
