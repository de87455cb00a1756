"""The trainers' configurations made from one table of hyper-parameters; no engine's default is relied on.

Unsloth changes defaults of TRL's configurations on a GPU, so every field that either sets differently is given here.
Import this module after `engine.prepare`, since it imports TRL.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers.integrations import get_available_reporting_integrations
from trl import DPOConfig, KTOConfig, SFTConfig

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.schema import Hyper


def from_parameters(parameters: dict[str, Any]) -> Hyper:
    """The table out of a notebook's parameters: those named like a field, and `more`, which may name any field."""
    named = {name: parameters[name] for name in Hyper.model_fields if name in parameters}
    return Hyper(**named | parameters["more"])


def arguments(
    method: str, hyper: Hyper, seed: int, work_dir: Path, report_to: str = "none", precompute: bool = False
) -> SFTConfig | DPOConfig | KTOConfig:
    """The trainer's configuration: what the methods share, then what makes the method.

    `precompute`: DPO and KTO compute the reference's log-probabilities once, before training.
    Raises MedComfortError for KTO with batches of one (its KL term is estimated from mismatched examples of a batch)
    and for a dtype that cannot be trained here.
    """
    _trainable(method, hyper)
    trackers = get_available_reporting_integrations()
    if report_to not in ("none", *trackers):
        there = ", ".join(["none", *trackers])
        raise MedComfortError(f"report_to: {report_to} is not installed or not known; there are: {there}.")
    shared = _shared(hyper, seed, work_dir) | {"report_to": report_to}
    if method == "sft":
        return SFTConfig(**shared, **_sft())
    if method == "dpo":
        return DPOConfig(**shared, **_dpo(hyper, precompute))
    return KTOConfig(**shared, **_kto(hyper, precompute))


def differences(hyper: Hyper) -> pd.DataFrame:
    """What makes the method: the fields that not all three share, a row a field, a column a method; blank: none such.

    Every other field is the same for all. Whether the reference is computed beforehand depends on the data too.
    """
    own = {"sft": _sft(), "dpo": _dpo(hyper), "kto": _kto(hyper)}
    texts = {method: {name: str(value) for name, value in fields.items()} for method, fields in own.items()}
    return pd.DataFrame(texts).fillna("").drop(index="precompute_ref_log_probs")


def _sft() -> dict[str, Any]:
    return {"loss_type": "nll", "completion_only_loss": True, "packing": False, "padding_free": False}


def _dpo(hyper: Hyper, precompute: bool = False) -> dict[str, Any]:
    return {
        "loss_type": ["sigmoid", "sft"] if hyper.sft_weight else ["sigmoid"],
        "loss_weights": [1.0, hyper.sft_weight] if hyper.sft_weight else [1.0],
        "beta": hyper.beta,
        "label_smoothing": 0.0,
        "disable_dropout": True,
        "padding_free": False,
        "precompute_ref_log_probs": precompute,
    }


def _kto(hyper: Hyper, precompute: bool = False) -> dict[str, Any]:
    return {
        "loss_type": "kto",
        "beta": hyper.beta,
        "desirable_weight": hyper.desirable_weight,
        "undesirable_weight": hyper.undesirable_weight,
        "disable_dropout": True,
        "precompute_ref_log_probs": precompute,
        "train_sampling_strategy": "sequential",  # each example's KL partner is a neighbour in its batch
    }


def _trainable(method: str, hyper: Hyper) -> None:
    if method == "kto" and hyper.batch_size < 2:
        raise MedComfortError(f"batch_size: KTO needs at least 2 examples a batch, not {hyper.batch_size}.")
    if hyper.dtype == "float16" and not torch.cuda.is_available():
        raise MedComfortError("dtype: float16 is trained on a GPU only; take float32 here.")
    if hyper.dtype == "float16" and hyper.lora_rank == 0:  # its gradient scaler wants 32-bit trainable weights
        raise MedComfortError("dtype: float16 trains an adapter only; set lora_rank, or take float32 or bfloat16.")
    if hyper.dtype == "bfloat16" and torch.cuda.is_available() and not torch.cuda.is_bf16_supported(False):
        raise MedComfortError("dtype: this GPU has no bfloat16 (a T4 has none); take float16.")


def _shared(hyper: Hyper, seed: int, work_dir: Path) -> dict[str, Any]:
    """The fields that all three configurations take."""
    cuda = torch.cuda.is_available()
    return {
        "output_dir": str(work_dir),
        "learning_rate": hyper.learning_rate,
        "max_steps": hyper.max_steps,
        "per_device_train_batch_size": hyper.batch_size,
        "gradient_accumulation_steps": hyper.accumulation,
        "average_tokens_across_devices": True,  # one token weighs the same on every device
        "lr_scheduler_type": "cosine",
        "warmup_steps": round(hyper.warmup_ratio * hyper.max_steps),
        "weight_decay": hyper.weight_decay,
        "max_grad_norm": hyper.max_grad_norm,
        "optim": "adamw_torch_fused",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "max_length": hyper.max_length,
        "gradient_checkpointing": cuda,
        "gradient_checkpointing_kwargs": {"use_reentrant": False} if cuda else None,
        "bf16": cuda and hyper.dtype == "bfloat16",
        "fp16": cuda and hyper.dtype == "float16",
        "use_cpu": not cuda,
        "torch_empty_cache_steps": None,
        "auto_find_batch_size": False,  # it halves the batch without doubling the accumulation: `checkpoints.halved`
        "seed": seed,
        "data_seed": seed,
        "eval_strategy": "no",
        "per_device_eval_batch_size": hyper.batch_size,
        "eval_accumulation_steps": None,
        "save_strategy": "steps",
        "save_steps": hyper.save_steps,
        "save_total_limit": 2,
        "logging_strategy": "steps",
        "logging_steps": max(1, hyper.max_steps // 40),
        "logging_nan_inf_filter": False,  # a NaN must be seen: `checkpoints.stop_at_nan`
        "include_num_input_tokens_seen": "no",
        "push_to_hub": False,  # the merged model is pushed, not the checkpoints: `card.push`
        "disable_tqdm": True,
        "dataloader_drop_last": False,
        "dataloader_num_workers": 0,
        "dataloader_pin_memory": cuda,
        "remove_unused_columns": False,
        "ddp_find_unused_parameters": False,
    }
