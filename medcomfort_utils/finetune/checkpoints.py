"""How a long training survives: checkpoints, NaN, a full disk, too little GPU memory; and what is not done twice."""

import hashlib
import json
import math
import shutil
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from transformers import TrainerCallback

from medcomfort_utils import progress
from medcomfort_utils.finetune import engine
from medcomfort_utils.paths import MedComfortError, remove, tidy
from medcomfort_utils.schema import Hyper


def last_checkpoint(work_dir: Path) -> Path | None:
    """The newest whole checkpoint; trainer_state.json is written last, so one without it, or half of it, was cut."""
    whole = {}
    for state in work_dir.glob("checkpoint-*/trainer_state.json"):
        with suppress(ValueError):
            step = json.loads(state.read_text(encoding="utf-8"))["global_step"]
            if any(state.parent.glob("optimizer*")):  # without it AdamW would begin anew, and say nothing
                whole[step] = state.parent
    return whole[max(whole)] if whole else None


def of_a_file(error: Exception) -> bool:
    """Whether an error tells of a file that could not be written or read."""
    # of a full disk or half a file torch raises RuntimeError, and tokenizers a plain Exception, with these words
    words = ("os error", "PytorchStream", "inline_container")
    return isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in words)


class Watch(TrainerCallback):
    """Says how many steps are done, and ends a run that is no longer finite before it is saved."""

    def __init__(self, what: str, work_dir: Path):
        self.what, self.work_dir = what, work_dir

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Look at the mean loss since the last log, which all processes have in common."""
        if not math.isfinite(logs.get("loss", 0.0)):
            self.stop(f"the loss is {logs['loss']}", state.global_step)

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Report the step, and look at the trained weights where a checkpoint is due."""
        if state.is_world_process_zero:
            progress.report(self.what, state.global_step, state.max_steps)
        # to_local: this process' share, if they are sharded
        trained = (getattr(p, "to_local", lambda p=p: p)() for p in model.parameters() if p.requires_grad)
        if control.should_save and not all(bool(own.isfinite().all()) for own in trained):
            self.stop("the weights are no longer finite", state.global_step)

    def stop(self, what: str, step: int) -> None:
        """Raise MedComfortError, which names the last good checkpoint."""
        good = last_checkpoint(self.work_dir)
        kept = f"the last good checkpoint is {tidy(good) if good else 'none'}"
        tip = "Lower learning_rate, or take bfloat16 in place of float16."
        raise MedComfortError(f"Step {step}: {what}, so training stopped; {kept}. {tip}")


def halved(hyper: Hyper, least: int = 1) -> Hyper:
    """Half the batch, down to `least`, and twice the accumulation, so the same examples a step; said aloud."""
    size, short = hyper.batch_size // 2, f"the GPU's memory is too small for batches of {hyper.batch_size}"
    if hyper.batch_size % 2 or size < least:
        raise MedComfortError(f"batch_size: {short}, and they cannot be halved; lower max_length or lora_rank.")
    kl = "; the method's estimate of KL, made within a batch, changes" if least > 1 else ""
    print(f"Since {short}, it goes on with {size}, and twice the accumulation: the same examples a step{kl}.")
    return hyper.model_copy(update={"batch_size": size, "accumulation": hyper.accumulation * 2})


def check_disk(model, tokenizer, hyper: Hyper, work_dir: Path) -> None:
    """Raise MedComfortError before training if the disk has no room for all checkpoints and the model that comes out.

    A checkpoint holds the trained weights and AdamW's two numbers for each; two are kept while a third is written.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    frozen = [p for p in model.parameters() if not p.requires_grad]  # some where an adapter is trained, else none
    weights = sum(p.numel() * p.element_size() for p in trained)
    tokens = len(tokenizer.backend_tokenizer.to_str(pretty=True).encode())  # the tokenizer lies beside each copy
    size = torch.finfo(getattr(torch, hyper.save_dtype or hyper.dtype)).bits // 8
    whole = sum(p.numel() for p in frozen or trained) * size + (weights if frozen else 0) + tokens
    needed = min(3, math.ceil(hyper.max_steps / hyper.save_steps)) * (3 * weights + tokens) + whole
    needed -= sum(path.stat().st_size for path in work_dir.rglob("*") if path.is_file())  # of a run that was killed
    free = shutil.disk_usage(work_dir.parent).free
    if needed > free:
        sizes = f"about {needed / 1e9:.2f} GB will be written, and {free / 1e9:.2f} GB are free"
        raise MedComfortError(f"out_dir: in {tidy(work_dir.parent)} {sizes}; make room, or choose another out_dir.")


def signature(model: str, revision: str, **inputs) -> str:
    """Sixteen hex digits over all that shapes a model: the weights (or hub id) it starts from, and `inputs`."""
    source, sums = engine.source_of(model), [model, revision]
    if Path(source).is_absolute():
        sums = []
        for path in sorted(Path(source).glob("*.safetensors")):
            with path.open("rb") as file:
                sums.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256(json.dumps([sums, inputs], sort_keys=True, default=str).encode()).hexdigest()[:16]


def is_finished(out_dir: Path, mark: str) -> bool:
    """Whether `out_dir` already holds the whole model of this signature: `replacing` puts a whole folder there."""
    with suppress(OSError, ValueError):
        training = json.loads((out_dir / "training.json").read_text(encoding="utf-8"))
        return training.get("signature") == mark and any(out_dir.glob("*.safetensors"))
    return False


def sweep(out_dir: Path, work_dir: Path) -> None:
    """Once the model is whole: keep a tracker's logs with it, and remove what its trainings left, killed ones too."""
    if (work_dir / "runs").is_dir():  # where TensorBoard's events were written
        shutil.move(work_dir / "runs", out_dir / "logs")
    for left in out_dir.parent.glob(f".{out_dir.name}-{'[0-9a-f]' * 16}"):
        remove(left)
