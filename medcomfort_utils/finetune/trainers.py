"""SFT, DPO and KTO by TRL: one table of explicit hyper-parameters, one skeleton, three losses.

Import this module after `engine.prepare`, since it imports TRL.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from transformers import PrinterCallback, ProgressCallback
from transformers.trainer_utils import set_seed
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

from medcomfort_utils.finetune import engine
from medcomfort_utils.paths import MedComfortError, remove, resolve, tidy

CURVES = (
    "loss",
    "rewards/margins",
    "rewards/accuracies",
    "rewards/chosen",
    "rewards/rejected",
    "mean_token_accuracy",
    "kl",
)


class Hyper(BaseModel):
    """Every hyper-parameter that shapes a run; nothing is left to a library's default. Units are optimiser steps."""

    model_config = ConfigDict(extra="forbid")
    learning_rate: float = Field(gt=0)
    max_steps: int = Field(gt=0)
    batch_size: int = Field(gt=0)
    accumulation: int = Field(1, gt=0)
    beta: float = Field(0.1, gt=0)  # DPO and KTO: how strongly the reference model holds
    sft_weight: float = Field(0.0, ge=0)  # DPO: weight of the SFT term on the chosen answer
    desirable_weight: float = Field(1.0, gt=0)  # KTO
    undesirable_weight: float = Field(1.0, gt=0)  # KTO
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    max_length: int = Field(512, gt=0)
    save_steps: int = Field(100, gt=0)
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


def hyper(**values) -> Hyper:
    """Checked hyper-parameters; a MedComfortError names the one that is out of range."""
    try:
        return Hyper(**values)
    except ValidationError as error:
        problem = error.errors()[0]
        raise MedComfortError(
            f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}, not {problem['input']!r}."
        ) from error


def arguments(method: str, hyper: Hyper, seed: int, work_dir: Path) -> SFTConfig | DPOConfig | KTOConfig:
    """The trainer's configuration: what the methods share, then what makes the method.

    Raises MedComfortError for KTO with batches of one: it estimates the KL term from mismatched examples of a batch.
    """
    if method == "kto" and hyper.batch_size < 2:
        raise MedComfortError(f"batch_size: KTO needs at least 2 examples a batch, not {hyper.batch_size}.")
    cuda = torch.cuda.is_available()
    shared = {
        "output_dir": str(work_dir),
        "learning_rate": hyper.learning_rate,
        "max_steps": hyper.max_steps,
        "per_device_train_batch_size": hyper.batch_size,
        "gradient_accumulation_steps": hyper.accumulation,
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(hyper.warmup_ratio * hyper.max_steps),
        "weight_decay": hyper.weight_decay,
        "max_grad_norm": hyper.max_grad_norm,
        "optim": "adamw_torch",
        "max_length": hyper.max_length,
        "gradient_checkpointing": cuda,
        "bf16": cuda and hyper.dtype == "bfloat16",
        "fp16": cuda and hyper.dtype == "float16",
        "use_cpu": not cuda,
        "seed": seed,
        "data_seed": seed,
        "save_strategy": "steps",
        "save_steps": hyper.save_steps,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, hyper.max_steps // 40),
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
    }
    if method == "sft":
        return SFTConfig(**shared, completion_only_loss=True, packing=False)
    if method == "dpo":
        losses = {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, hyper.sft_weight]}
        losses = losses if hyper.sft_weight else {"loss_type": ["sigmoid"], "loss_weights": [1.0]}
        return DPOConfig(**shared, **losses, beta=hyper.beta, disable_dropout=True, precompute_ref_log_probs=False)
    return KTOConfig(
        **shared,
        loss_type="kto",
        beta=hyper.beta,
        desirable_weight=hyper.desirable_weight,
        undesirable_weight=hyper.undesirable_weight,
        disable_dropout=True,
        precompute_ref_log_probs=False,
        train_sampling_strategy="sequential",
    )


def build(method: str, model, tokenizer, rows: list[dict], arguments, lora=None, reference=None):
    """The TRL trainer of `method`; `reference` is the frozen copy that DPO and KTO compare with in full training.

    With `lora` the reference is the model itself with the adapter switched off.
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
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    return trainer


def last_checkpoint(work_dir: Path) -> str | None:
    """The newest whole checkpoint: trainer_state.json is written last, so one without it was cut short."""
    found = [p.parent for p in work_dir.glob("checkpoint-*/trainer_state.json") if p.stat().st_size]
    return str(max(found, key=lambda p: int(p.name.split("-")[1]))) if found else None


def history(trainer) -> pd.DataFrame:
    """The curves of a run, long: columns step, metric, value."""
    rows = [
        (log["step"], name, float(log[name])) for log in trainer.state.log_history for name in CURVES if name in log
    ]
    return pd.DataFrame(rows, columns=["step", "metric", "value"])


def signature(**inputs) -> str:
    """Sixteen hex digits over everything that shapes a model: same signature, same weights on the same machine."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest(model: str, revision: str) -> str:
    """SHA-256 of a local model's weights, or the hub id with its revision."""
    source = engine.source_of(model)
    if not Path(source).is_absolute():
        return f"{model}@{revision}"
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(source).glob("*.safetensors"))]
    return " ".join(sums)


def train(
    method: str,
    rows: list[dict],
    hyper: Hyper,
    seed: int,
    base: str,
    out_dir: str | Path,
    engine_name: str = "trl",
    revision: str = "",
    lora_rank: int = 0,
    lora_alpha: int = 32,
) -> pd.DataFrame:
    """Train one model from `base` on `rows` (of `rows_for`) and save it under `out_dir`; returns its `history`.

    `lora_rank` 0 trains all weights. A run that was killed goes on from its last checkpoint; a finished one with the
    same signature is not repeated. Beside the weights lie `history.csv` and `training.json`, the effective parameters.
    """
    out_dir = resolve(out_dir)
    settings = {
        "model": out_dir.name.rsplit("-seed", 1)[0],
        "method": method,
        "seed": seed,
        "base": base,
        "revision": revision,
    }
    settings |= {"engine": engine_name, "lora_rank": lora_rank, "lora_alpha": lora_alpha, **hyper.model_dump()}
    mark = signature(settings=settings, rows=rows, base=digest(base, revision))
    if is_finished(out_dir, mark):
        return pd.read_csv(out_dir / "history.csv")
    work_dir = out_dir.with_name(f".{out_dir.name}-{mark}")
    config = arguments(method, hyper, seed, work_dir)
    set_seed(seed)
    model, tokenizer = engine.load(base, engine_name, hyper.dtype, revision, hyper.max_length)
    lora = engine.adapter(lora_rank, lora_alpha)
    reference = None if lora or method == "sft" else engine.load(base, "trl", hyper.dtype, revision)[0].eval()
    trainer = build(method, model, tokenizer, rows, config, lora, reference)
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint(work_dir))
    except (OSError, SafetensorError) as error:
        raise MedComfortError(f"A checkpoint in {tidy(work_dir)} could not be written or read: {error}.") from error
    curves = history(trainer)
    notes = {"training.json": json.dumps({"signature": mark, "examples": len(rows), **settings}, indent=1) + "\n"}
    engine.save(trainer.model, tokenizer, out_dir, {**notes, "history.csv": curves.to_csv(index=False)})
    remove(work_dir)
    return curves


def is_finished(out_dir: Path, mark: str) -> bool:
    """Whether `out_dir` already holds the model of this signature."""
    notes = out_dir / "training.json"
    return notes.is_file() and json.loads(notes.read_text(encoding="utf-8"))["signature"] == mark


def drop_other_seeds(models_dir: str | Path, name: str, seeds: Sequence[int]) -> None:
    """Remove models of this name left by a run with other seeds, which an evaluation would take for its own."""
    kept = {f"{name}-seed{seed}" for seed in seeds}
    for folder in resolve(models_dir).glob(f"{name}-seed*"):
        if folder.name not in kept and folder.name[len(name) + 5 :].isdigit():
            remove(folder)
