"""The nano base, the engine and the trainers, with a model so small that a run takes a second."""

import ast
import filecmp
import importlib
import importlib.util
import itertools
import math
import os
import random
import re
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from conftest import turn
from finetuning import BOTH, EACH, HYPER, fit, notes, rows_of, same_weights, small_disk, undisturbed
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from medcomfort_utils import paths
from medcomfort_utils.finetune import engine, examples, hyperparameters, nano, trainers
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.rewrite import clinic


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return engine.load_tokenizer(tiny)


@pytest.fixture(scope="module")
def trained(tiny, rewrites, tmp_path_factory):
    return undisturbed(rewrites, tiny, tmp_path_factory.mktemp("models"))


@pytest.mark.parametrize(
    "text",
    ["It hurts!\n\tA lot…", "咳嗽三天了，很害怕", "🤒👩‍⚕️🇩🇪", "½ µg/ml", "\u202eno\u0301 \x00\ufeff", " a  b "],
)
def test_any_text_survives_the_tokenizer(tokenizer, text):
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(tokens, clean_up_tokenization_spaces=False).encode() == text.encode()


def test_the_template_renders_an_answer_after_its_prompt(tokenizer):
    prompt = turn("system", "Be kind.") + turn("user", "Why?") + turn("assistant", "So.") + turn("user", "And 咳嗽?")
    head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
    whole = tokenizer.apply_chat_template(
        prompt + turn("assistant", "Rest."), return_dict=True, return_assistant_tokens_mask=True
    )
    assert whole["input_ids"][: len(head)] == head
    assert whole["input_ids"][-1] == tokenizer.eos_token_id
    answers = [t for t, shown in zip(whole["input_ids"], whole["assistant_masks"], strict=True) if shown]
    assert tokenizer.decode(answers) == "So.<|end|>Rest.<|end|>"


def test_the_base_never_meets_what_is_kept_for_the_test_set(monkeypatch):
    monkeypatch.setattr(nano, "_blurred", lambda text, rng, loose: text)  # left out words would hide a phrase
    rng, loose = random.Random(1), nano.loose_texts()
    met = "\n".join("".join(nano.example(rng, loose)) for _ in range(2000))
    frames = yaml.safe_load((clinic.CLINIC / "questions.yaml").read_text(encoding="utf-8"))["test"]
    kept = [text for part in ("reports", "asks", "greetings") for text in frames[part] if text]
    patterns = [re.sub(r"\\\{\w+\\\}", ".+", re.escape(text)) for text in kept]
    patterns += [re.escape(p[-1]) for condition in clinic.load_conditions() for p in condition.symptoms]
    for found in clinic.load_emotions().values():
        patterns += [re.escape(p) for bank in (found.expressions, found.openers, found.closers) for p in bank.test]
    assert len(patterns) > 500 and not [pattern for pattern in patterns if re.search(pattern, met)]
    assert re.search("For .+ I have had .+", met) and any(passage in met for passage in clinic.load_passages())


def test_the_base_is_the_same_each_time(nano_built, tmp_path):
    again = nano.build_base(tmp_path / "again", steps=2, batch_size=2)
    files = ["model.safetensors", "tokenizer.json", "config.json", "README.md"]
    assert filecmp.cmpfiles(nano_built, again, files, shallow=False)[0] == files


def test_source_of_a_model(tiny, tmp_path, monkeypatch):
    assert engine.source_of(tiny) == tiny
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    shutil.copytree(tiny, tmp_path / "data" / "base")
    assert engine.source_of("data/base") == str(tmp_path / "data" / "base")
    assert engine.source_of("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"
    assert engine.source_of("gpt2") == "gpt2"


@pytest.mark.parametrize("model", ["data/nano_bse", "./nano", "../nano", "/no/nano", "a/b/c", "data", "hub name", ""])
def test_a_mistyped_path_is_not_asked_of_the_hub(model):
    with pytest.raises(MedComfortError, match="is no model folder"):
        engine.source_of(model)


@pytest.mark.parametrize("weights", [None, "pytorch_model.bin"])
def test_only_safetensors_are_read(tiny, tmp_path, weights):
    shutil.copy(f"{tiny}/config.json", tmp_path)
    if weights:
        (tmp_path / weights).write_bytes(b"a pickle")
    with pytest.raises(MedComfortError, match=r"holds no \.safetensors weights"):
        engine.source_of(str(tmp_path))


def test_a_model_that_the_hub_cannot_give_is_told_in_a_sentence(tiny, tmp_path):
    with pytest.raises(MedComfortError, match="model: nobody/nothing has no tokenizer here") as raised:
        engine.load("nobody/nothing")
    assert "\n" not in str(raised.value)
    shutil.copytree(tiny, tmp_path / "base")
    (tmp_path / "base" / "chat_template.jinja").unlink()
    with pytest.raises(MedComfortError, match="has no chat template"):
        engine.load(str(tmp_path / "base"))


def spoilt(tiny, folder, name, content):
    """A copy of the tiny model with one file changed: cut to half if `content` is None."""
    shutil.copytree(tiny, folder)
    file = folder / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content is None else content)
    return str(folder)


SPOILT = [
    ("model.safetensors", None, "cannot be loaded"),
    ("model.safetensors", b"", "cannot be loaded"),
    ("config.json", None, "not a valid JSON file"),
    ("config.json", b'{"model_type": "t5"}', "cannot be loaded"),
    ("tokenizer.json", None, "the tokenizer of .* cannot be read; copy or download the model again"),
    ("chat_template.jinja", b"{{ messages }", "chat template cannot render an example"),
    ("chat_template.jinja", b"{{ raise_exception('no such role') }}", r"cannot render an example \(no such role\)"),
]


@pytest.mark.parametrize(("name", "content", "told"), SPOILT)
def test_a_model_that_is_damaged_is_told_in_a_sentence(tiny, rewrites, tmp_path, name, content, told):
    with pytest.raises(MedComfortError, match=told) as raised:
        fit("sft", "lora", rewrites, spoilt(tiny, tmp_path / "base", name, content), tmp_path / "model")
    assert "\n" not in str(raised.value) and not (tmp_path / "model").exists()


def test_an_adapter_needs_its_projections(tiny, rewrites, tmp_path, tokenizer):
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=8, n_layer=1, n_head=1, n_positions=128)
    config.eos_token_id, config.bos_token_id = tokenizer.eos_token_id, None
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    with pytest.raises(MedComfortError, match="^lora_rank: .*gpt2 has none of the projections q_proj, .* set it to 0"):
        fit("sft", "lora", rewrites, str(tmp_path / "gpt2"), tmp_path / "model")


def without_unsloth(monkeypatch, found):
    def broken(name):
        raise NotImplementedError("no accelerator")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    monkeypatch.setattr(importlib, "import_module", broken)


def test_the_engine_is_settled(monkeypatch):
    assert engine.prepare("trl") == "trl" and "unsloth" not in sys.modules
    with pytest.raises(MedComfortError, match="engine must be auto, unsloth or trl, not 'vllm'"):
        engine.prepare("vllm")
    for found in (None, "there, but broken"):
        without_unsloth(monkeypatch, found)
        assert engine.prepare("auto") == "trl"
        with pytest.raises(MedComfortError, match="Unsloth cannot be imported here .*; choose engine trl"):
            engine.prepare("unsloth")


def test_no_remote_code_and_no_pickle_in_the_package():
    forbidden, remote, seen = {"pickle", "dill", "joblib", "cloudpickle"}, "trust_remote_code", 0
    for file in (paths.ROOT / "medcomfort_utils").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not forbidden & names, file
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) not in ("torch.load", "yaml.load", "pd.read_pickle", "eval", "exec"), file
            if isinstance(node, ast.keyword) and node.arg == remote:
                seen += 1
                assert ast.unparse(node.value) == "False", file
            if isinstance(node, ast.Dict):
                given = [v for k, v in zip(node.keys, node.values, strict=True) if getattr(k, "value", "") == remote]
                seen += len(given)
                assert all(ast.unparse(value) == "False" for value in given), file
    assert seen >= 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_is_loaded_in_its_dtype(tiny, dtype):
    model, _ = engine.load(tiny, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}


def test_the_adapter():
    assert engine.adapter(0, 32) is None
    lora = engine.adapter(8, 16, 0.05)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16, 0.05)
    assert lora.target_modules == set(engine.LORA_TARGETS)


@torch.no_grad()
def logits(model, tokenizer):
    asked = tokenizer.apply_chat_template(turn("user", "I cough."), add_generation_prompt=True, return_tensors="pt")
    return model.eval()(**asked).logits


@EACH
def test_a_merged_model_is_the_base_with_its_adapter(trained, tiny, tokenizer, method):
    folder, _ = trained(method, "lora")
    merged = logits(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    plain = logits(AutoModelForCausalLM.from_pretrained(tiny), tokenizer)
    apart = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder / "adapter")
    assert torch.allclose(merged, logits(apart, tokenizer), atol=1e-4)
    assert (merged - plain).abs().max() > 2e-3


def test_a_model_is_saved_whole_or_not_at_all(tiny, tmp_path):
    trained, out, tokenizer = Path(tiny), tmp_path / "model", engine.load_tokenizer(tiny)
    engine.save(trained, tiny, tokenizer, out, "float32", {"training.json": "{}"})
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "training.json"} <= set(before)
    with pytest.raises(TypeError):
        engine.save(trained, tiny, tokenizer, out, "float32", {"training.json": None})
    with small_disk(100_000), pytest.raises(MedComfortError, match="model could not be written"):
        engine.save(trained, tiny, tokenizer, out, "float32", {})
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before
    assert os.listdir(tmp_path) == ["model"]


def taught(method, row):
    """(prompt, answer) token ids of each answer in a row of the trainer's own data set."""
    if method == "sft":
        start = row["labels"].count(-100)
        assert row["labels"] == [-100] * start + row["input_ids"][start:]
        return [(row["input_ids"][:start], row["input_ids"][start:])]
    sides = ("chosen_ids", "rejected_ids") if method == "dpo" else ("completion_ids",)
    return [(row["prompt_ids"], row[side]) for side in sides]


@EACH
def test_the_rendered_example_is_what_the_trainer_sees(tiny, rewrites, tmp_path, method):
    rows = rows_of(method, rewrites)
    model, tokenizer = engine.load(tiny)
    config = hyperparameters.arguments(method, HYPER, 0, tmp_path)
    seen = trainers.build(method, model, tokenizer, rows, config, engine.adapter(4, 8)).train_dataset
    assert len(seen) == len(rows)
    for row, real in zip(rows, seen, strict=True):
        shown = examples.rendered(row, tokenizer).drop(columns="answer").itertuples(index=False, name=None)
        for (head, tail, without, with_loss), (prompt, answer) in zip(shown, taught(method, real), strict=True):
            for text, count, ids in ((head, without, prompt), (tail, with_loss, answer)):
                assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids and count == len(ids)
            assert answer[-1] == tokenizer.eos_token_id


def test_a_template_that_breaks_training_is_refused(tokenizer, rewrites):
    row = rows_of("sft", rewrites)[0]
    broken = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    for old, new in (("{{ message.content }}<|end|>{%", "{{ message.content }}{%"), ("{% if add", "So:{% if add")):
        broken.chat_template = tokenizer.chat_template.replace(old, new)
        assert broken.chat_template != tokenizer.chat_template
        with pytest.raises(MedComfortError, match="must render the answer after its prompt and close it"):
            examples.rendered(row, broken)


def test_token_lengths_and_markdown_of_an_example(tokenizer, rewrites):
    rows = rows_of("dpo", rewrites)[:3]
    shown = examples.rendered(rows[0], tokenizer)
    longest = (shown["tokens without"] + shown["tokens with"]).max()
    assert examples.token_lengths(rows, tokenizer).tolist()[0] == longest
    text = examples.as_markdown(shown)
    assert "**chosen**" in text and "**rejected**" in text and "&lt;|end|&gt;**" in text


UNUSUAL = hyperparameters.Hyper(
    learning_rate=3e-3, max_steps=40, batch_size=6, accumulation=3, beta=0.37, sft_weight=0.6, desirable_weight=1.3,
    undesirable_weight=0.8, warmup_ratio=0.2, weight_decay=0.07, max_grad_norm=0.4, max_length=77, save_steps=9,
)  # fmt: skip
SHARED = {
    "learning_rate": ("learning_rate", 3e-3),
    "max_steps": ("max_steps", 40),
    "batch_size": ("per_device_train_batch_size", 6),
    "accumulation": ("gradient_accumulation_steps", 3),
    "warmup_ratio": ("warmup_steps", 8),
    "weight_decay": ("weight_decay", 0.07),
    "max_grad_norm": ("max_grad_norm", 0.4),
    "max_length": ("max_length", 77),
    "save_steps": ("save_steps", 9),
}
OWN = {
    "sft": {},
    "dpo": {"beta": ("beta", 0.37), "sft_weight": ("loss_weights", [1.0, 0.6])},
    "kto": {
        "beta": ("beta", 0.37),
        "desirable_weight": ("desirable_weight", 1.3),
        "undesirable_weight": ("undesirable_weight", 0.8),
    },
}


@EACH
def test_every_hyper_parameter_reaches_the_trainer(tmp_path, method):
    expected = SHARED | OWN[method]
    effective = hyperparameters.arguments(method, UNUSUAL, 5, tmp_path)
    assert {name: getattr(effective, name) for name, _ in expected.values()} == dict(expected.values())
    assert (effective.seed, effective.data_seed, effective.report_to) == (5, 5, [])
    elsewhere = {"dtype", "save_dtype", "too_long", "lora_rank", "lora_alpha", "lora_dropout"}
    assert set(SHARED).union(*OWN.values()) | elsewhere == set(hyperparameters.Hyper.model_fields)


def test_the_sft_term_of_dpo(tmp_path):
    assert hyperparameters.arguments("dpo", UNUSUAL, 0, tmp_path).loss_type == ["sigmoid", "sft"]
    assert hyperparameters.arguments("dpo", HYPER, 0, tmp_path).loss_type == ["sigmoid"]


@torch.no_grad()
def log_likelihoods(folder, rows):
    """The mean log-likelihoods of the chosen and of the rejected answers."""
    model, tokenizer = engine.load(str(folder))
    found = []
    for row, side in itertools.product(rows, ("chosen", "rejected")):
        start = examples.rendered(row, tokenizer)["tokens without"][0]
        whole = tokenizer.apply_chat_template(row["prompt"] + row[side], return_dict=True, return_tensors="pt")
        scores = model(**whole).logits[0, start - 1 : -1].log_softmax(-1)
        found.append(float(scores.gather(1, whole["input_ids"][0, start:, None]).sum()))
    return torch.tensor(found).reshape(-1, 2).mean(0)


@BOTH
@EACH
def test_every_method_trains(trained, tiny, rewrites, method, way):
    folder, curves = trained(method, way)
    assert curves.query("metric == 'loss'")["step"].tolist() == [1, 2, 3, 4, 5]
    assert curves["value"].map(math.isfinite).all()
    before, after = (log_likelihoods(path, rows_of("dpo", rewrites)) for path in (tiny, folder))
    if method == "sft":
        assert after[0] > before[0]
    else:
        assert after[0] - after[1] > before[0] - before[1]


@BOTH
@EACH
def test_lora_changes_its_projections_only(trained, tiny, method, way):
    folders = (tiny, trained(method, way)[0])
    before, after = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in folders)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    projections = {name for name in before if any(part in name for part in engine.LORA_TARGETS)}
    assert changed == (projections if way == "lora" else set(before))


@EACH
def test_what_is_kept_beside_the_weights(trained, tiny, method):
    folder, curves = trained(method, "lora")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), curves)
    expected = {"model": f"{method}-lora", "method": method, "seed": 0, "start": tiny} | HYPER.model_dump()
    assert (expected | {"lora_rank": 4}).items() <= notes(folder).items()


@EACH
def test_one_seed_one_model(trained, tiny, rewrites, tmp_path, method):
    folder, curves = trained(method, "full")
    again = fit(method, "full", rewrites, tiny, tmp_path / "again")
    assert same_weights(folder, tmp_path / "again") and again.equals(curves)
    fit(method, "full", rewrites, tiny, tmp_path / "other", seed=1)
    assert not same_weights(folder, tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0), ("learning_rate", "fast"), ("learning_rate", float("nan")), ("max_steps", 1.5),
     ("batch_size", 0), ("beta", -0.1), ("warmup_ratio", 1), ("dtype", "float8")],
)  # fmt: skip
def test_a_bad_hyper_parameter_is_named(name, value):
    given = {"learning_rate": 1e-3, "max_steps": 2, "batch_size": 2, name: value}
    with pytest.raises(MedComfortError, match=rf"^{name} must .*, not {value!r}\.$"):
        hyperparameters.Hyper(**given)


def test_an_unknown_hyper_parameter_is_named():
    with pytest.raises(MedComfortError, match=r"^there is no parameter 'max_step'; did you mean 'max_steps'\?$"):
        hyperparameters.Hyper(learning_rate=1e-3, max_steps=2, batch_size=2, max_step=3)


def test_bad_rows_are_refused(rewrites):
    with pytest.raises(MedComfortError, match="method must be one of sft, dpo, kto, not 'ppo'"):
        examples.rows_for("ppo", rewrites, 0)
    with pytest.raises(MedComfortError, match="no training example for dpo"):
        examples.rows_for("dpo", [r for r in rewrites if r.split == "test"], 0)


@EACH
def test_rows_are_of_the_training_split_and_shuffled_by_seed(rewrites, method):
    rows = examples.rows_for(method, rewrites, 0)
    assert not any("sore throat" in row["prompt"][0]["content"] for row in rows)
    assert rows == examples.rows_for(method, rewrites, 0)
    other = examples.rows_for(method, rewrites, 1)
    assert rows != other and sorted(map(str, rows)) == sorted(map(str, other))
