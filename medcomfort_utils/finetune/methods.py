"""The training methods, and every argument that their trainers get. A method is added to `METHODS`, and nowhere else.

TRL is imported inside the functions: Unsloth changes it, and must be imported first (`engine.prepare`). Unsloth also
changes defaults of TRL's configurations on a GPU, so every field that either sets differently is given here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import to_preference, to_sft, to_unpaired
from medcomfort_utils.schema import Hyper


@dataclass(frozen=True)
class Method:
    """One way of training: what it takes of the rewrites, and what TRL gets."""

    description: str
    view: Callable[..., list[dict]]  # the rewrites as rows of messages
    columns: Callable[..., dict[str, list]]  # token ids, for TRL's collator
    arguments: Callable[[Hyper], dict[str, Any]]  # its own arguments, beside those that all share
    reference: bool = True  # compares with a frozen model
    least_batch: int = 1  # examples a batch; above 1 the loss is estimated within a batch


def _sft_columns(prompts: list[list[int]], answers: list[list[list[int]]], batch_size: int) -> dict[str, list]:
    pairs = [(prompt, answer) for prompt, (answer,) in zip(prompts, answers, strict=True)]
    return {"input_ids": [p + a for p, a in pairs], "labels": [[-100] * len(p) + a for p, a in pairs]}


def _dpo_columns(prompts: list[list[int]], answers: list[list[list[int]]], batch_size: int) -> dict[str, list]:
    chosen, rejected = zip(*answers, strict=True)
    return {"prompt_ids": prompts, "chosen_ids": list(chosen), "rejected_ids": list(rejected)}


def _kto_columns(prompts: list[list[int]], answers: list[list[list[int]]], batch_size: int) -> dict[str, list]:
    """Each prompt also gets its neighbour's answer, from which TRL estimates the KL term of a batch."""
    own = [answer for (answer,) in answers]
    batches = [own[i : i + batch_size] for i in range(0, len(own), batch_size)]
    other = [answer for batch in batches for answer in (batch[-1], *batch[:-1])]
    return {"prompt_ids": prompts, "completion_ids": own, "KL_completion_ids": other}


def _sft_arguments(hyper: Hyper) -> dict[str, Any]:
    return {"loss_type": "nll", "completion_only_loss": True, "packing": False, "padding_free": False}


def _dpo_arguments(hyper: Hyper) -> dict[str, Any]:
    losses = {"sigmoid": 1.0} | ({"sft": hyper.sft_weight} if hyper.sft_weight else {})
    own = {"loss_type": list(losses), "loss_weights": list(losses.values()), "beta": hyper.beta}
    return own | {"label_smoothing": 0.0, "disable_dropout": True, "padding_free": False}


def _kto_arguments(hyper: Hyper) -> dict[str, Any]:
    own = {"loss_type": "kto", "beta": hyper.beta, "disable_dropout": True}
    own |= {"desirable_weight": hyper.desirable_weight, "undesirable_weight": hyper.undesirable_weight}
    return own | {"train_sampling_strategy": "sequential"}  # an example's KL partner is a neighbour in its batch


METHODS = {
    "sft": Method(
        "Supervised fine-tuning (SFT): the loss falls on the answer's tokens only.",
        *(to_sft, _sft_columns, _sft_arguments),
        reference=False,
    ),
    "dpo": Method(
        "Direct preference optimisation (DPO; Rafailov et al., 2023), with an SFT term where sft_weight is above 0.",
        *(to_preference, _dpo_columns, _dpo_arguments),
    ),
    "kto": Method(
        "Kahneman-Tversky optimisation (KTO; Ethayarajh et al., 2024).",
        *(to_unpaired, _kto_columns, _kto_arguments),
        least_batch=2,
    ),
}


def differences(hyper: Hyper) -> pd.DataFrame:
    """What makes the method: the arguments that not all share, a row an argument, a column a method."""
    own = {name: {key: str(v) for key, v in method.arguments(hyper).items()} for name, method in METHODS.items()}
    return pd.DataFrame(own).fillna("")


def config(method: str, hyper: Hyper, seed: int, work_dir: Path, report_to: str = "none", precompute: bool = False):
    """The trainer's configuration (TRL's): what the methods share, then what makes the method.

    `precompute`: the reference is computed once, before training. Raises MedComfortError for a dtype that cannot be.
    """
    import trl

    cuda, half = torch.cuda.is_available(), hyper.dtype == "float16"
    if half and not (cuda and hyper.lora_rank):  # its gradient scaler wants a GPU, and 32-bit trainable weights
        raise MedComfortError("dtype: float16 trains an adapter on a GPU only; set lora_rank, or take another dtype.")
    if hyper.dtype == "bfloat16" and cuda and not torch.cuda.is_bf16_supported(False):
        raise MedComfortError("dtype: this GPU has no bfloat16 (a T4 has none); take float16.")
    shared = {
        "output_dir": str(work_dir),
        # what is asked for
        "learning_rate": hyper.learning_rate, "max_steps": hyper.max_steps, "max_length": hyper.max_length,
        "per_device_train_batch_size": hyper.batch_size, "gradient_accumulation_steps": hyper.accumulation,
        "warmup_steps": round(hyper.warmup_ratio * hyper.max_steps), "weight_decay": hyper.weight_decay,
        "max_grad_norm": hyper.max_grad_norm, "seed": seed, "data_seed": seed,
        # the optimiser
        "lr_scheduler_type": "cosine", "optim": "adamw_torch_fused",
        "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8,
        "average_tokens_across_devices": True,  # one token weighs the same on every device
        # the machine
        "bf16": cuda and hyper.dtype == "bfloat16", "fp16": half, "use_cpu": not cuda,
        "gradient_checkpointing": cuda, "gradient_checkpointing_kwargs": {"use_reentrant": False} if cuda else None,
        "auto_find_batch_size": False,  # it halves the batch without doubling the accumulation: `checkpoints.halved`
        "torch_empty_cache_steps": None, "ddp_find_unused_parameters": False,
        "dataloader_drop_last": False, "dataloader_num_workers": 0, "dataloader_pin_memory": cuda,
        # what is written
        "save_strategy": "steps", "save_steps": hyper.save_steps, "save_total_limit": 2,
        "logging_strategy": "steps", "logging_steps": max(1, hyper.max_steps // 40),
        "logging_nan_inf_filter": False,  # a NaN must be seen: `checkpoints.Watch`
        "report_to": report_to,
        "push_to_hub": False,  # the merged model is pushed, not the checkpoints: `card.push`
        "disable_tqdm": True, "include_num_input_tokens_seen": "no", "remove_unused_columns": False,
        "eval_strategy": "no", "per_device_eval_batch_size": hyper.batch_size, "eval_accumulation_steps": None,
    }  # fmt: skip
    own = METHODS[method].arguments(hyper)
    own |= {"precompute_ref_log_probs": precompute} if METHODS[method].reference else {}
    return getattr(trl, f"{method.upper()}Config")(**shared, **own)
