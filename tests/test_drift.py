"""Unsloth's functions for a GPU know every keyword that the code passes; what is installed is what is pinned.

Calls that run on a CPU need no such test: the others run them.
"""

import ast
import importlib.util
import sys
from importlib.metadata import requires, version
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from medcomfort_utils.finetune import engine
from medcomfort_utils.paths import DATA, ROOT

# It cannot be imported without changing the other libraries, so its source is read.
CPU = ("unsloth_zoo/cpu/loader.py", "FastCPUModel")
UNSLOTH = {
    "from_pretrained": [("unsloth/models/loader.py", "FastLanguageModel"), CPU],
    "get_peft_model": [("unsloth/models/llama.py", "FastLlamaModel"), CPU],
}
# Its CPU back end takes the first among its **kwargs and drops it; the others are handed on to transformers.
PASSED_ON = {"use_exact_model_name", "use_safetensors"}


def parameters_of(file, owner, function):
    """The parameters of a method of Unsloth, read from its source without importing it."""
    found = importlib.util.find_spec("unsloth")
    if found is None:
        pytest.skip("Unsloth is not installed")
    node = ast.parse((Path(found.origin).parents[1] / file).read_text(encoding="utf-8"))
    for name in (owner, function):
        node = next(part for part in node.body if getattr(part, "name", None) == name)
    return {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}


@pytest.fixture
def passed(monkeypatch):
    """Function of Unsloth -> keywords that `engine.load` passes it."""
    known = {name: [parameters_of(*place, name) for place in places] for name, places in UNSLOTH.items()}
    given = {}
    loaded = SimpleNamespace(config=SimpleNamespace())

    def recorder(name, result):
        return lambda *_, **keywords: given.update({name: set(keywords)}) or result

    model = SimpleNamespace(
        from_pretrained=recorder("from_pretrained", (loaded, None)), get_peft_model=recorder("get_peft_model", loaded)
    )
    module = ModuleType("unsloth")
    module.FastLanguageModel = model
    monkeypatch.setitem(sys.modules, "unsloth", module)
    engine.load(str(DATA / "nano_base"), "unsloth", lora=engine.adapter(8, 16))
    return given, known


def test_unsloth_knows_every_keyword_that_it_is_passed(passed):
    given, known = passed
    assert {"dtype", "revision", "full_finetuning"} <= given["from_pretrained"]
    assert {"r", "use_gradient_checkpointing", "random_state"} <= given["get_peft_model"]
    for name, each in known.items():
        assert [given[name] - parameters - PASSED_ON for parameters in each] == [set(), set()]


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
