"""How a long training survives: checkpoints, NaN, a full disk, too little GPU memory; and what is not done twice."""

import glob
import hashlib
import json
import math
import re
import shutil
from pathlib import Path

import torch
from transformers import TrainerCallback

from medcomfort_utils.finetune import engine
from medcomfort_utils.paths import MedComfortError, remove, tidy
from medcomfort_utils.schema import Hyper

KEPT = 2  # checkpoints kept; while a new one is written, there is one more
MARK = re.compile(r"[0-9a-f]{16}")  # a signature


def work_folder(out_dir: Path, mark: str) -> Path:
    """Where a training of this signature keeps its checkpoints; a MedComfortError if nothing can be written there."""
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MedComfortError(f"out_dir: {tidy(out_dir.parent)} cannot be a folder ({error.strerror}).") from error
    return out_dir.with_name(f".{out_dir.name}-{mark}")


def last_checkpoint(work_dir: Path) -> str | None:
    """The newest whole checkpoint; trainer_state.json is written last, so one without it, or half of it, was cut."""
    found = [path.parent for path in work_dir.glob("checkpoint-*/trainer_state.json") if _whole(path)]
    return str(max(found, key=step_of)) if found else None


def step_of(checkpoint: str | Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(Path(checkpoint).name.split("-")[1])


def _whole(state: Path) -> bool:
    try:
        json.loads(state.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return any(state.parent.glob("optimizer*"))  # without it AdamW would begin anew, and say nothing


class NoPoisonedCheckpoint(TrainerCallback):
    """Ends a run whose weights are no longer finite before they are saved: the last checkpoint is a good one."""

    def __init__(self, work_dir: Path):
        self.work_dir = work_dir

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Look at the trained weights where a checkpoint is due."""
        if control.should_save and not all(_finite(p) for p in model.parameters() if p.requires_grad):
            raise diverged("the weights are no longer finite", state.global_step, self.work_dir)


def _finite(parameter: torch.Tensor) -> bool:
    own = parameter.to_local() if hasattr(parameter, "to_local") else parameter  # this process' share, if sharded
    return bool(own.isfinite().all())


def stop_at_nan(trainer, work_dir: Path) -> None:
    """Make the trainer end with one sentence at the first loss that is not finite, and save no weights that are not."""
    compute = trainer.compute_loss

    def checked(*inputs, **options):
        outcome = compute(*inputs, **options)
        loss = outcome[0] if isinstance(outcome, tuple) else outcome
        if not bool(torch.isfinite(loss).all()):
            raise diverged(f"the loss is {loss.detach().mean().item()}", trainer.state.global_step + 1, work_dir)
        return outcome

    trainer.compute_loss = checked
    trainer.add_callback(NoPoisonedCheckpoint(work_dir))


def diverged(what: str, step: int, work_dir: Path) -> MedComfortError:
    """The sentence for a run that diverged; names the last good checkpoint."""
    good = last_checkpoint(work_dir)
    kept = f"the last good checkpoint is {tidy(good)}" if good else "there was no checkpoint yet"
    return MedComfortError(
        f"Step {step}: {what}, so training stopped; {kept}. Lower learning_rate, or take bfloat16 in place of float16."
    )


def halved(hyper: Hyper, least: int = 1) -> Hyper:
    """After too little GPU memory: half the batch, twice the accumulation, so the same examples a step; said aloud.

    `least`: the smallest batch of the method; above 1 its loss is estimated within a batch, and changes.
    Raises MedComfortError where the batch cannot be halved.
    """
    if hyper.batch_size % 2 or hyper.batch_size < 2 * least:
        raise MedComfortError(
            f"batch_size: the GPU's memory is too small for batches of {hyper.batch_size}, and they cannot be halved; "
            "lower max_length or lora_rank, or take a smaller base model."
        )
    smaller = {"batch_size": hyper.batch_size // 2, "accumulation": hyper.accumulation * 2}
    print(
        f"The GPU's memory is too small for batches of {hyper.batch_size}: going on with {smaller['batch_size']} "
        f"examples a batch and {smaller['accumulation']} batches a step, the same examples a step as before"
        + ("; the method's estimate of KL, made within a batch, changes." if least > 1 else ".")
    )
    return hyper.model_copy(update=smaller)


def bytes_to_write(model, tokenizer, hyper: Hyper) -> int:
    """About how many bytes a training has on the disk at its peak.

    A checkpoint holds the trained weights and AdamW's two numbers for each; at the end they stand beside the model that
    comes out, until that is whole.
    """
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    frozen = [p for p in parameters if not p.requires_grad]  # some where an adapter is trained, else none
    weights = sum(p.numel() * p.element_size() for p in trained)
    tokens = len(tokenizer.backend_tokenizer.to_str(pretty=True).encode())  # the tokenizer lies beside each copy
    checkpoints = min(KEPT + 1, math.ceil(hyper.max_steps / hyper.save_steps))
    size = torch.finfo(getattr(torch, hyper.save_dtype or hyper.dtype)).bits // 8
    whole = sum(p.numel() for p in frozen or trained) * size + (weights if frozen else 0)
    return checkpoints * (3 * weights + tokens) + (whole + tokens)


def check_disk(model, tokenizer, hyper: Hyper, work_dir: Path) -> None:
    """Raise MedComfortError before training starts if the disk has no room for what will be written to `work_dir`.

    What a run that was killed left there is part of it already.
    """
    written = sum(path.stat().st_size for path in work_dir.rglob("*") if path.is_file())
    needed = bytes_to_write(model, tokenizer, hyper) - written
    free = shutil.disk_usage(work_dir.parent).free
    if needed > free:
        raise MedComfortError(
            f"out_dir: about {needed / 1e9:.2f} GB will be written under {tidy(work_dir.parent)}, and "
            f"{free / 1e9:.2f} GB are free there; make room, or choose another out_dir."
        )


def signature(**inputs) -> str:
    """Sixteen hex digits over everything that shapes a model: same signature, same weights on the same machine."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()[:16]


def digest(model: str, revision: str) -> str:
    """SHA-256 of a local model's weights, or the hub id with its revision."""
    source = engine.source_of(model)
    if not Path(source).is_absolute():
        return f"{model}@{revision}"
    sums = []
    for path in sorted(Path(source).glob("*.safetensors")):
        with path.open("rb") as file:
            sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(sums)


def is_finished(out_dir: Path, mark: str) -> bool:
    """Whether `out_dir` already holds the whole model of this signature."""
    try:
        training = json.loads((out_dir / "training.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    whole = any(out_dir.glob("*.safetensors")) and (out_dir / "history.csv").is_file()
    return whole and training.get("signature") == mark


def sweep(out_dir: Path, work_dir: Path) -> None:
    """Once the model is whole: keep a tracker's logs with it, and remove what its trainings left, killed ones too."""
    if (work_dir / "runs").is_dir():  # where TensorBoard's events were written
        shutil.move(work_dir / "runs", out_dir / "logs")
    for left in out_dir.parent.glob(f".{glob.escape(out_dir.name)}-*"):
        if MARK.fullmatch(left.name.rpartition("-")[2]):
            remove(left)
