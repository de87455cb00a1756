"""Loading and saving models: Unsloth where it can be imported, plain transformers + PEFT elsewhere.

Call `prepare` first: Unsloth changes transformers, PEFT and TRL when it is imported and must come before them, hence
the imports inside the functions.
"""

import importlib
import importlib.util
import json
import math
import os
import re
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from medcomfort_utils.paths import MedComfortError, replacing, resolve, tidy

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")  # as configurations name them
CONTEXTLESS = 10**6  # a tokenizer without a limit names an absurdly large one


class Limits(NamedTuple):
    """How many tokens a model reads at once (infinite where nothing says), and how many it knows."""

    context: float
    vocabulary: int


def prepare(engine: str = "auto") -> str:
    """Settle on an engine and import it: `unsloth` or `trl`; `auto` takes Unsloth where it can be imported.

    Raises MedComfortError for an unknown name, and where `unsloth` is asked for and cannot be imported.
    """
    if engine not in ("auto", "unsloth", "trl"):
        raise MedComfortError(f"engine must be auto, unsloth or trl, not '{engine}'.")
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


def source_of(model: str) -> str:
    """A local model folder, checked, as absolute path, or a hub id unchanged.

    Raises MedComfortError for a path without a model (a mistyped folder must not be asked of the hub), and for a folder
    that would hang or mislead the libraries that load it.
    """
    folder = resolve(model)
    if (folder / "config.json").exists():
        _check_folder(folder)
        return str(folder)
    looks_local = folder.parent.exists() and model.split("/")[0] in {p.name for p in folder.parents} | {".", ".."}
    if folder.exists() or looks_local or not _HUB_ID.fullmatch(model):
        raise MedComfortError(f"model: {tidy(folder)} is no model folder (it has no config.json).")
    return model


def _check_folder(folder: Path) -> None:
    """Only regular files, safetensors inside the folder, and no more layers than there are weights for."""
    from safetensors import safe_open

    odd = [path.name for path in folder.iterdir() if not (path.is_file() or path.is_dir())]
    if odd:
        raise MedComfortError(f"model: {odd[0]} in {tidy(folder)} is no regular file.")
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise MedComfortError(f"model: {tidy(folder)} holds no .safetensors weights, the only kind that is read.")
    with _loading(tidy(folder)):
        for index in folder.glob("*.safetensors.index.json"):
            outside = [name for name in json.loads(index.read_text())["weight_map"].values() if Path(name).name != name]
            if outside:
                raise MedComfortError(f"model: {index.name} in {tidy(folder)} points outside of it ({outside[0]}).")
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tensors = 0
        for path in weights:
            with safe_open(path, "np") as file:
                tensors += len(file.keys())
        parts = [config, *(part for part in config.values() if isinstance(part, dict))]  # of text, of images
        layers = max(int(part.get(name) or 0) for part in parts for name in LAYERS)
    if layers > tensors:
        raise MedComfortError(f"model: {tidy(folder)} names {layers} layers and holds {tensors} weights.")


@contextmanager
def _loading(model: str) -> Iterator[None]:
    """Tell in one sentence what libraries raise for a model that they cannot load, which may be anything."""
    import torch

    try:
        yield
    except (MedComfortError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        raise MedComfortError(f"model: {model} cannot be loaded ({first_line(error)}).") from error


def load_config(model: str, revision: str = ""):
    """The configuration of a local folder or hub id; a MedComfortError if it cannot be read, or is quantised."""
    from transformers import AutoConfig

    source = source_of(model)
    with _loading(model):
        config = AutoConfig.from_pretrained(source, revision=revision or None, trust_remote_code=False)
    if quantised := config.to_dict().get("quantization_config"):
        raise MedComfortError(
            f"model: the weights of {model} are quantised ({quantised['quant_method']}), and such are neither trained "
            "nor merged here; take the model that it was made from."
        )
    return config


def limits(model: str, tokenizer, revision: str = "") -> Limits:
    """What a model can take, by its configuration and its tokenizer's."""
    config, length = load_config(model, revision).get_text_config(), tokenizer.model_max_length
    positions = getattr(config, "max_position_embeddings", None) or math.inf
    return Limits(min(positions, length if length < CONTEXTLESS else math.inf), config.vocab_size)


def ends_of_turn(model: str, tokenizer, revision: str = "") -> set[int]:
    """The token ids that end a model's turn: those that its generation_config.json names, and the tokenizer's own."""
    from transformers import GenerationConfig

    try:
        named = GenerationConfig.from_pretrained(source_of(model), revision=revision or None).eos_token_id
    except OSError:  # a model need not have one
        named = load_config(model, revision).eos_token_id
    return {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}


def load_tokenizer(model: str, revision: str = ""):
    """The tokenizer of a local folder or hub id; a MedComfortError if it cannot be read or has no chat template."""
    from transformers import AutoTokenizer

    source = source_of(model)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision or None, trust_remote_code=False)
    except Exception as error:  # what a broken file raises is a plain Exception in tokenizers
        if isinstance(error, OSError):  # also for a hub id that does not exist, and without a network
            what = f"model: {model} has no tokenizer here, nor can the hub give one"
        else:
            what = f"model: the tokenizer of {model} cannot be read; copy or download the model again"
        raise MedComfortError(f"{what} ({first_line(error)}).") from error
    if tokenizer.chat_template is None:
        raise MedComfortError(f"model: {model} has no chat template; take an instruct model.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise MedComfortError(f"model: the tokenizer of {model} has no end token; name one in tokenizer_config.json.")
    return tokenizer


def load(
    model: str,
    engine: str = "trl",
    dtype: str = "float32",
    revision: str = "",
    max_length: int = 512,
    full: bool = False,
):
    """(model, tokenizer) from a local folder or hub id, ready to be trained in full or given an adapter.

    `dtype`: float32, bfloat16 or float16. `full`: all weights will be trained, which Unsloth wants to know.
    Only safetensors are read and no remote code is run. Raises MedComfortError if the weights cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer, source = load_tokenizer(model, revision), source_of(model)
    load_config(model, revision)
    options = {"dtype": getattr(torch, dtype), **_safe(revision)}
    with _loading(model):
        if engine == "unsloth":
            from unsloth import FastLanguageModel

            options |= {"max_seq_length": max_length, "load_in_4bit": False, "full_finetuning": full}
            # Else it takes its own mirror of the hub model, whose commits are others.
            options |= {"use_exact_model_name": True, "use_gradient_checkpointing": _checkpointing()}
            loaded, _ = FastLanguageModel.from_pretrained(source, **options)
        else:  # one process a GPU under accelerate
            device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
            loaded = AutoModelForCausalLM.from_pretrained(source, **options).to(device)
    loaded.config.use_cache = False
    return loaded, tokenizer


def first_line(error: Exception) -> str:
    """The first line of what a library says, at most 200 characters, for a message of one sentence."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".: ")


def _safe(revision: str) -> dict[str, Any]:
    return {"revision": revision or None, "trust_remote_code": False, "use_safetensors": True}


def _checkpointing() -> str | bool:
    """Unsloth's gradient checkpointing: its own (activations wait in the machine's memory) on a GPU, none on a CPU."""
    import torch

    return "unsloth" if torch.cuda.is_available() else False


def of_a_file(error: Exception) -> bool:
    """Whether an error tells of a file that could not be written or read.

    Of a full disk or half a file torch raises RuntimeError, and tokenizers a plain Exception, with these words.
    """
    from safetensors import SafetensorError

    words = ("os error", "PytorchStream", "inline_container")
    return isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in words)


def adapter(rank: int, alpha: int, dropout: float = 0.0):
    """LoRA (Hu et al., 2021) on all linear layers but the output's; `rank` 0 means full training: None."""
    from peft import LoraConfig

    if rank == 0:
        return None
    shape = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}
    return LoraConfig(**shape, target_modules="all-linear", bias="none", task_type="CAUSAL_LM")


def adapted(model) -> list[str]:
    """The names of the layers that an adapter was put on, each once; empty where there is none."""
    from peft.tuners.lora import LoraLayer

    return sorted({name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, LoraLayer)})


def attach(model, lora, seed: int, max_length: int):
    """The model with the adapter `lora` put on by Unsloth itself.

    On a GPU its trainers ignore TRL's `peft_config`: they would train all weights, and say nothing.
    """
    from unsloth import FastLanguageModel

    return FastLanguageModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=lora.target_modules,
        bias="none",
        use_gradient_checkpointing=_checkpointing(),
        random_state=seed,
        max_seq_length=max_length,
    )


def save(
    trained: Path, base: str, tokenizer, out_dir: str | Path, dtype: str, notes: dict[str, str], revision: str = ""
) -> Path:
    """Save what a trainer left in `trained` as one whole model under `out_dir`, atomically, safetensors in `dtype`.

    An adapter is merged into `base`, and kept apart in `adapter/` as well. `notes`: texts by file name, put beside.
    """
    try:
        with replacing(out_dir) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _write(trained, base, temporary, dtype, revision)
            tokenizer.save_pretrained(temporary)
            for name, text in notes.items():
                (temporary / name).write_text(text, encoding="utf-8")
    except Exception as error:
        if not of_a_file(error):
            raise
        raise MedComfortError(f"{tidy(resolve(out_dir))} could not be written: {first_line(error)}.") from error
    return resolve(out_dir)


def _write(trained: Path, base: str, folder: Path, dtype: str, revision: str) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    alone = (trained / "adapter_config.json").is_file()  # an adapter, not a whole model
    source, options = (source_of(base), _safe(revision)) if alone else (str(trained), _safe(""))
    model = AutoModelForCausalLM.from_pretrained(source, dtype=getattr(torch, dtype), **options)
    if alone:
        files = [path for path in trained.iterdir() if path.name.startswith("adapter_")]
        (folder / "adapter").mkdir(parents=True)
        for path in files:
            shutil.copy(path, folder / "adapter")
        _name_base(folder / "adapter" / "adapter_config.json", base)
        model = PeftModel.from_pretrained(model, trained).merge_and_unload()
    model.config.use_cache = True
    model.save_pretrained(folder)


def _name_base(path: Path, base: str) -> None:
    """Name the adapter's base as the parameters did: where it lies on this machine is nobody else's path.

    PEFT keeps the layers' names as a set, whose order is another in each process: they are sorted, so that equal
    trainings leave equal files.
    """
    config = json.loads(path.read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])
    source = source_of(base)
    config["base_model_name_or_path"] = tidy(source) if Path(source).is_absolute() else source
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
