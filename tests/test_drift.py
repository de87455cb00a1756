"""Every keyword that the code passes to a fast-moving library is known to the installed version; the pins agree."""

import ast
import importlib
import importlib.util
import inspect
import re
from importlib.metadata import requires, version
from pathlib import Path

import huggingface_hub
import nbclient
import papermill
import peft
import pytest
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from transformers.models.auto.auto_factory import _BaseAutoModelClass

from medcomfort_utils.paths import NOTEBOOKS, ROOT
from medcomfort_utils.schema import code_cells

LIBRARIES = ("trl", "peft", "transformers", "unsloth", "papermill", "accelerate", "datasets", "huggingface_hub")
TOKENIZER = transformers.PreTrainedTokenizerBase
# Methods of objects whose class no import tells.
INSTANCES = {
    "apply_chat_template": TOKENIZER.apply_chat_template,
    "pad": TOKENIZER.pad,
    "merge_and_unload": peft.tuners.lora.LoraModel.merge_and_unload,
    "delete_adapter": peft.PeftModel.delete_adapter,
    "create_repo": huggingface_hub.HfApi.create_repo,
    "upload_folder": huggingface_hub.HfApi.upload_folder,
}
# What takes any keyword and reads it by name, or hands it on.
MODEL = (transformers.PreTrainedModel.from_pretrained, _BaseAutoModelClass.from_pretrained)
OPEN = {
    "AutoModel.from_pretrained": MODEL,
    "AutoModelForCausalLM.from_pretrained": MODEL,
    "AutoTokenizer.from_pretrained": (transformers.AutoTokenizer.from_pretrained, TOKENIZER.from_pretrained),
    "cached_file": (transformers.utils.hub.cached_file, transformers.utils.hub.cached_files),
    "PreTrainedTokenizerFast": (transformers.PreTrainedTokenizerFast, TOKENIZER),
    "papermill.execute_notebook": (papermill.execute_notebook, nbclient.NotebookClient),
}
# Unsloth's functions for a GPU and for a CPU; it cannot be imported without changing the other libraries.
CPU = ("unsloth_zoo/cpu/loader.py", "FastCPUModel")
UNSLOTH = {
    "from_pretrained": [("unsloth/models/loader.py", "FastLanguageModel"), CPU],
    "get_peft_model": [("unsloth/models/llama.py", "FastLlamaModel"), CPU],
}
# Its CPU back end takes the first among its **kwargs and drops it; both hand the second on to transformers.
PASSED_ON = {"use_exact_model_name", "use_safetensors"}


def modules():
    """(name, syntax tree) of every module and benchmark, and of every notebook's code."""
    files = [*(ROOT / "medcomfort_utils").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    found = [(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")) for path in files]
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        found.append((path.name, "\n".join(cell["source"] for cell in code_cells(path))))
    return [(name, ast.parse(source)) for name, source in found]


def imported(tree):
    """Local name -> (library module, attribute or None) of what comes from one of the libraries."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in LIBRARIES:
            names |= {alias.asname or alias.name: (node.module, alias.name) for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.asname or a.name: (a.name, None) for a in node.names if a.name.split(".")[0] in LIBRARIES}
    return names


class Splat:
    """Finds the keys of what stands after ** in a call: dictionaries written out in the same module."""

    def __init__(self, tree):
        nodes = list(ast.walk(tree))
        self.functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef)}
        self.assigned = {}
        for node in nodes:
            if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) and node.value is not None:
                for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                    self.assign(target, node.value)

    def assign(self, target, value):
        if isinstance(target, ast.Name):
            self.assigned.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.IfExp):
            self.assign(target, value.body)
            self.assign(target, value.orelse)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for name, part in zip(target.elts, value.elts, strict=True):
                self.assign(name, part)

    def keys(self, node, seen=()):
        parts, found = [], set()
        if isinstance(node, ast.Dict):
            found = {key.value for key in node.keys if isinstance(key, ast.Constant)}
            parts = [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
        elif isinstance(node, ast.BinOp):
            parts = [node.left, node.right]
        elif isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.Name) and node.id not in seen:
            parts, seen = self.assigned.get(node.id, []), (*seen, node.id)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", None) in self.functions:
            parts = [n.value for n in ast.walk(self.functions[node.func.id]) if isinstance(n, ast.Return)]
        return found.union(*(self.keys(part, seen) for part in parts))


def calls():
    """(where, what is called, where it comes from, keywords) of each call into a library that passes keywords."""
    for name, tree in modules():
        known, splat = imported(tree), Splat(tree)
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not node.keywords:
                continue
            called = ast.unparse(node.func)
            head, attribute = called.split(".")[0], called.rsplit(".", 1)[-1]
            if head in known or ("." in called and attribute in INSTANCES):
                given = {key.arg for key in node.keywords if key.arg}
                given = given.union(*(splat.keys(key.value) for key in node.keywords if not key.arg))
                yield f"{name}:{node.lineno}", called, known.get(head), given


def parameters_of(file, owner, function):
    """The parameters of a method of Unsloth, read from its source without importing it."""
    found = importlib.util.find_spec("unsloth")
    if found is None:
        pytest.skip("Unsloth is not installed")
    node = ast.parse((Path(found.origin).parents[1] / file).read_text(encoding="utf-8"))
    for name in (owner, function):
        node = next(part for part in node.body if getattr(part, "name", None) == name)
    return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}


def unknown(called, origin, given):
    """The keywords that the installed version does not know."""
    attribute = called.rsplit(".", 1)[-1]
    if origin and origin[0] == "unsloth":
        return set().union(*(given - parameters_of(*place, attribute) for place in UNSLOTH[attribute])) - PASSED_ON
    if called in OPEN:
        named = re.findall(r"\"(\w+)\"", "".join(map(inspect.getsource, OPEN[called])))
        named += [name for place in OPEN[called] if inspect.isclass(place) for name in dir(place)]
        return given.difference(named, *(inspect.signature(place).parameters for place in OPEN[called]))
    return given - inspect.signature(target_of(called, *origin) if origin else INSTANCES[attribute]).parameters.keys()


def target_of(called, module, name):
    target = importlib.import_module(module)
    for part in ([name] if name else []) + called.split(".")[1:]:
        target = getattr(target, part)
    return target


def test_every_keyword_passed_to_a_library_is_known_there():
    found = [(where, called, unknown(called, origin, given)) for where, called, origin, given in calls()]
    assert len(found) > 15 and not [(where, called, sorted(bad)) for where, called, bad in found if bad]


def test_the_guard_sees_what_it_must_see():
    seen = {}
    for _, called, _, given in calls():
        seen[called] = seen.get(called, set()) | given
    assert {"learning_rate", "warmup_steps", "max_length", "completion_only_loss"} <= seen["SFTConfig"]
    assert {"beta", "loss_weights", "precompute_ref_log_probs"} <= seen["DPOConfig"]
    assert {"desirable_weight", "train_sampling_strategy", "bf16"} <= seen["KTOConfig"]
    assert {"processing_class", "peft_config"} <= seen["SFTTrainer"] and "ref_model" in seen["KTOTrainer"]
    assert {"r", "use_gradient_checkpointing", "random_state"} <= seen["FastLanguageModel.get_peft_model"]
    assert {"dtype", "revision", "full_finetuning"} <= seen["FastLanguageModel.from_pretrained"]
    assert {"cwd", "start_timeout"} <= seen["papermill.execute_notebook"]
    assert "private" in seen["hub.create_repo"] and "lora_alpha" in seen["LoraConfig"]


GONE = [
    ("SFTConfig", ("trl", "SFTConfig"), "max_seq_length"),
    ("DPOTrainer", ("trl", "DPOTrainer"), "tokenizer"),
    ("LoraConfig", ("peft", "LoraConfig"), "rank"),
    ("hub.create_repo", None, "visible"),
    ("FastLanguageModel.get_peft_model", ("unsloth", "FastLanguageModel"), "rank"),
    ("papermill.execute_notebook", ("papermill", None), "working_dir"),
    ("AutoModelForCausalLM.from_pretrained", ("transformers", "AutoModelForCausalLM"), "dtypes"),
]


@pytest.mark.parametrize(("called", "origin", "keyword"), GONE)
def test_a_keyword_that_is_gone_is_found(called, origin, keyword):
    assert unknown(called, origin, {keyword}) == {keyword}


def pins():
    lines = [
        line for name in ("cpu", "unsloth") for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()
    ]
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): pinned for name, pinned in pairs}


@pytest.mark.parametrize("name", ["torch", "trl", "peft", "transformers", "accelerate", "datasets", "papermill"])
def test_what_is_installed_is_what_is_pinned(name):
    assert version(name).split("+")[0] == pins()[name]


@pytest.mark.parametrize("name", ["unsloth", "unsloth_zoo"])
def test_unsloth_admits_the_pins(name):
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    wanted = [requirement for requirement in map(Requirement, requires(name)) if applies(requirement)]
    pinned = {r: pins()[canonicalize_name(r.name)] for r in wanted if canonicalize_name(r.name) in pins()}
    assert version(name) == pins()[canonicalize_name(name)] and {"trl", "datasets"} <= {r.name for r in pinned}
    refused = {r.name for r, found in pinned.items() if found not in r.specifier}
    assert refused <= {"certifi"}  # newer than package indices offer: requirements/gpu.txt says what to do


def applies(requirement):
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})
