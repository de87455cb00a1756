"""Loading and saving models: Unsloth where it can be imported, plain transformers + PEFT elsewhere.

Call `prepare` first: Unsloth changes transformers, PEFT and TRL when it is imported and must come before them, hence
the imports inside the functions.
"""

import importlib.util
import json
import math
import os
import re
import shutil
import sys
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from medcomfort_utils.paths import MedComfortError, read_json, resolve, tidy, write_json

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
Limits = namedtuple("Limits", "context vocabulary")  # tokens read at once (infinite where nothing says), tokens known
SAFE = {"trust_remote_code": False, "use_safetensors": True}


def prepare(engine: str = "auto") -> str:
    """Settle on an engine and import it: `unsloth` or `trl`; `auto` takes Unsloth where it can be imported."""
    if engine == "trl" or (engine == "auto" and importlib.util.find_spec("unsloth") is None):
        return "trl"
    try:
        importlib.import_module("unsloth")
    except Exception as error:  # it raises many kinds, e.g. NotImplementedError without a supported accelerator
        if engine == "unsloth":
            raise MedComfortError(f"engine: Unsloth cannot be imported here ({error}); choose engine trl.") from error
        print(f"Unsloth cannot be imported here ({type(error).__name__}); plain TRL takes its place.", file=sys.stderr)
        return "trl"
    return "unsloth"


@contextmanager
def explained(what: str, hint: str = "", when: Callable[[Exception], bool] = lambda error: True) -> Iterator[None]:
    """Put what a library raises (`when` it is such an error) into one MedComfortError: what, its first line, hint."""
    import torch

    try:
        yield
    except Exception as error:
        if isinstance(error, MedComfortError | torch.cuda.OutOfMemoryError) or not when(error):
            raise  # in a smaller batch it may have room
        said = (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".: ")
        raise MedComfortError(f"{what} ({said}){hint}.") from error


def source_of(model: str) -> str:
    """A local model folder, as absolute path, or a hub id unchanged.

    Raises MedComfortError for a path without a model (a mistyped one must not be asked of the hub), and for files in it
    that would hang the libraries that load it, or lead them elsewhere.
    """
    folder = resolve(model)
    if not (folder / "config.json").exists():
        looks_local = folder.parent.exists() and model.split("/")[0] in {p.name for p in folder.parents} | {".", ".."}
        if folder.exists() or looks_local or not _HUB_ID.fullmatch(model):
            raise MedComfortError(f"model: {tidy(folder)} is no model folder (it has no config.json).")
        return model
    if odd := [path.name for path in folder.iterdir() if not (path.is_file() or path.is_dir())]:
        raise MedComfortError(f"model: {odd[0]} in {tidy(folder)} is no regular file.")
    if not any(folder.glob("*.safetensors")):
        raise MedComfortError(f"model: {tidy(folder)} holds no .safetensors weights, the only kind that is read.")
    for index in folder.glob("*.safetensors.index.json"):
        if any(Path(name).name != name for name in read_json(index, "model")["weight_map"].values()):
            raise MedComfortError(f"model: {index.name} in {tidy(folder)} points outside of it.")
    return str(folder)


def load_config(model: str, revision: str = ""):
    """The configuration of a local folder or hub id; a MedComfortError if it cannot be read, or is quantised."""
    from transformers import AutoConfig

    with explained(f"model: {model} cannot be loaded"):
        config = AutoConfig.from_pretrained(source_of(model), revision=revision or None, trust_remote_code=False)
    if getattr(config, "quantization_config", None):
        raise MedComfortError(f"model: the weights of {model} are quantised; take the model that it was made from.")
    return config


def load_tokenizer(model: str, revision: str = ""):
    """The tokenizer of a local folder or hub id; a MedComfortError if it cannot be read, or cannot chat."""
    from transformers import AutoTokenizer

    with explained(f"model: the tokenizer of {model} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(source_of(model), revision=revision or None, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.chat_template is None or tokenizer.pad_token is None:
        raise MedComfortError(f"model: {model} has no chat template, or no end token; take an instruct model.")
    return tokenizer


def limits(model: str, revision: str = "") -> Limits:
    """What a model can take, by its configuration and its tokenizer's."""
    config, length = load_config(model, revision).get_text_config(), load_tokenizer(model, revision).model_max_length
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    # a tokenizer without a limit names an absurdly large one
    return Limits(min(positions, length if length < 10**6 else math.inf), config.vocab_size)


def ends_of_turn(model: str, tokenizer, revision: str = "") -> set[int]:
    """The token ids that end a model's turn: those that its generation_config.json names, and the tokenizer's own."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(source_of(model), revision=revision or None).eos_token_id
    except OSError:  # a model need not have one
        named = load_config(model, revision).eos_token_id
    return {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}


def adapter(rank: int, alpha: int, dropout: float = 0.0):
    """LoRA (Hu et al., 2021) on all linear layers but the output's; `rank` 0 means full training: None."""
    from peft import LoraConfig

    shape = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    return LoraConfig(**shape, target_modules="all-linear", bias="none", task_type="CAUSAL_LM") if rank else None


def load(model: str, engine="trl", dtype="float32", revision="", max_length=512, lora=None, seed=0):
    """(model, tokenizer) from a local folder or hub id: only safetensors are read, and no remote code is run.

    `dtype`: float32, bfloat16 or float16. The rest is for Unsloth: on a GPU its trainers ignore TRL's `peft_config`,
    would train all weights, and say nothing; so it puts the adapter `lora` on here.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, source, cuda = load_tokenizer(model, revision), source_of(model), torch.cuda.is_available()
    options = {"dtype": getattr(torch, dtype), "revision": revision or None, **SAFE}
    with explained(f"model: {model} cannot be loaded"):
        if engine == "unsloth":
            from unsloth import FastLanguageModel

            shared = {"max_seq_length": max_length, "use_gradient_checkpointing": cuda and "unsloth"}
            # Else it takes its own mirror of the hub model, whose commits are others.
            options |= {"use_exact_model_name": True, "load_in_4bit": False, "full_finetuning": lora is None}
            loaded, _ = FastLanguageModel.from_pretrained(source, **options, **shared)
            if lora:
                shape = {"r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout, "bias": "none"}
                shape |= {"target_modules": "all-linear", "random_state": seed}
                loaded = FastLanguageModel.get_peft_model(loaded, **shape, **shared)
        else:  # one process a GPU under accelerate
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if cuda else "cpu"
            loaded = AutoModelForCausalLM.from_pretrained(source, **options).to(device)
    loaded.config.use_cache = False
    return loaded, tokenizer


def save(trained: Path, base: str, revision: str, tokenizer, folder: Path, dtype: str) -> None:
    """Save what a trainer left in `trained` as one whole model, safetensors in `dtype`.

    An adapter is merged into `base`, and kept apart in `adapter/` as well.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    lora = trained / "adapter_config.json"
    source, options = source_of(base) if lora.is_file() else str(trained), {"revision": revision or None, **SAFE}
    with warnings.catch_warnings(action="ignore"):
        model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), **options)
        if lora.is_file():
            config = json.loads(lora.read_text(encoding="utf-8"))
            # not where the base lies on this machine; and PEFT's set of layers has another order in each process
            config["base_model_name_or_path"] = tidy(source) if Path(source).is_absolute() else source
            if isinstance(config["target_modules"], list):  # Unsloth's is a pattern
                config["target_modules"].sort()
            write_json(folder / "adapter/adapter_config.json", config)
            shutil.copy(trained / "adapter_model.safetensors", folder / "adapter")
            model = PeftModel.from_pretrained(model, trained).merge_and_unload()
        model.config.use_cache = True
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
