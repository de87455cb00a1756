"""The profiles for a GPU hold together: names, types, ranges, pins, and where each value comes from."""

import re

import pytest

from medcomfort_utils import paths, profile
from medcomfort_utils.finetune import engine, examples, hyperparameters

GPU = pytest.mark.parametrize("name", ["colab", "paper"])
COMMIT = re.compile(r"[0-9a-f]{40}")


def steps(name):
    """The fine-tuning steps of a profile, by name; loading checks every parameter against its notebook."""
    return {s.name: s.parameters for s in profile.load(name).steps if s.notebook.stem == "02_finetune"}


@GPU
def test_every_step_can_be_trained_as_told(name, tmp_path, monkeypatch):
    found = steps(name)
    assert [p["method"] for p in found.values()][:3] == list(examples.METHODS)
    monkeypatch.setattr(hyperparameters, "_trainable", lambda method, hyper: None)  # no GPU is needed to look
    for parameters in found.values():
        hyper = hyperparameters.from_parameters(parameters)
        arguments = hyperparameters.arguments(parameters["method"], hyper, 0, tmp_path)
        assert arguments.max_steps == parameters["max_steps"] and hyper.lora_alpha == 32
        assert engine.source_of(parameters["base"]) == parameters["base"]  # a hub id, not a mistyped folder


@GPU
def test_hub_ids_are_pinned_to_a_commit(name):
    told = profile.load(name)
    for step in told.steps:
        for key in ("base", "source"):
            value = step.parameters.get(key, "")
            if value and not paths.resolve(value).exists():
                assert COMMIT.fullmatch(step.parameters["revision"]), step.name


@GPU
def test_preferences_start_from_the_sft_model_of_their_seed(name):
    found = steps(name)
    for method in ("dpo", "kto"):
        parameters, sft = found[f"02_finetune-{method}"], found["02_finetune-sft"]
        assert parameters["init_from"] == f"{sft['out_dir']}/sft-seed{{seed}}" and parameters["seeds"] == sft["seeds"]
    trials = {key: p["init_from"] for key, p in found.items() if key.endswith("-from-base")}
    assert set(trials.values()) <= {""} and (name == "colab") == (not trials)


@GPU
def test_an_optimiser_step_has_enough_examples_for_kto(name):
    told = steps(name)["02_finetune-kto"]
    assert told["batch_size"] >= 4 and 16 <= told["batch_size"] * told["accumulation"] <= 128
    assert 5e-7 <= told["learning_rate"] <= 5e-6 and told["desirable_weight"] == 0


def test_the_t4_gets_float16_and_the_large_gpu_bfloat16():
    assert {p["dtype"] for p in steps("colab").values()} == {"float16"}
    assert {p["dtype"] for p in steps("paper").values()} == {"bfloat16"}


@GPU
def test_each_value_of_training_says_where_it_comes_from(name):
    text = (paths.PROFILES / f"{name}.yaml").read_text(encoding="utf-8")
    part = text[text.index("\ntrain:") : text.index("\nevaluate:")]
    values = [line for line in part.splitlines() if re.match(r"\s+\w+: [^\s]", line)]
    silent = [line for line in values if "  # " not in line]
    assert len(values) > 20 and not silent
