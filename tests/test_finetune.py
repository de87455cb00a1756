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
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pandas as pd
import pytest
import torch
import yaml
from conftest import turn
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from medcomfort_utils import paths
from medcomfort_utils.finetune import engine, examples, nano, trainers
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.rewrite import clinic

HYPER = trainers.hyper(learning_rate=3e-3, max_steps=5, batch_size=2, max_length=96, save_steps=2)
RANKS = {"lora": 4, "full": 0}
BOTH = pytest.mark.parametrize("way", RANKS)
EACH = pytest.mark.parametrize("method", examples.METHODS)


@pytest.fixture(scope="module")
def tokenizer(tiny):
    return engine.load_tokenizer(tiny)


def rows_of(method, rewrites, seed=0):
    return examples.rows_for(method, rewrites, seed, against=["original", "comfort_only"])


def fit(method, way, rewrites, base, folder, seed=0, hyper=HYPER):
    """One run of a few steps; the curves."""
    return trainers.train(method, rows_of(method, rewrites, seed), hyper, seed, base, folder, lora_rank=RANKS[way])


@pytest.fixture(scope="module")
def trained(tiny, rewrites, tmp_path_factory):
    """Folders of undisturbed runs, each trained once, when a test first asks for it."""
    folder, curves = tmp_path_factory.mktemp("models"), {}

    def run(method, way):
        out = folder / f"{method}-{way}-seed0"
        if out not in curves:
            curves[out] = fit(method, way, rewrites, tiny, out)
        return out, curves[out]

    return run


@contextmanager
def small_disk(size):
    """No file can grow beyond `size` bytes: the operating system refuses it, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def same_weights(one, other):
    return filecmp.cmp(one / "model.safetensors", other / "model.safetensors", shallow=False)


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
    lora = engine.adapter(8, 16)
    assert (lora.r, lora.lora_alpha, lora.lora_dropout) == (8, 16, 0.0)
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
    model, tokenizer = engine.load(tiny)
    engine.save(model, tokenizer, tmp_path / "model", {"training.json": "{}"})
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "chat_template.jinja", "training.json"} <= set(before)
    with pytest.raises(TypeError):
        engine.save(model, tokenizer, tmp_path / "model", {"training.json": None})
    with small_disk(100_000), pytest.raises(MedComfortError, match="model could not be written"):
        engine.save(model, tokenizer, tmp_path / "model", {})
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
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
    config = trainers.arguments(method, HYPER, 0, tmp_path)
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


UNUSUAL = trainers.Hyper(
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
    effective = trainers.arguments(method, UNUSUAL, 5, tmp_path)
    assert {name: getattr(effective, name) for name, _ in expected.values()} == dict(expected.values())
    assert (effective.seed, effective.data_seed, effective.report_to) == (5, 5, [])
    assert set(SHARED).union(*OWN.values()) | {"dtype"} == set(trainers.Hyper.model_fields)


def test_the_sft_term_of_dpo(tmp_path):
    assert trainers.arguments("dpo", UNUSUAL, 0, tmp_path).loss_type == ["sigmoid", "sft"]
    assert trainers.arguments("dpo", HYPER, 0, tmp_path).loss_type == ["sigmoid"]


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
def test_what_is_kept_beside_the_weights(trained, method):
    folder, curves = trained(method, "lora")
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), curves)
    notes = paths.read_json(folder / "training.json", "training")
    expected = {"model": f"{method}-lora", "method": method, "seed": 0, "lora_rank": 4, **HYPER.model_dump()}
    assert expected.items() <= notes.items()


@EACH
def test_one_seed_one_model(trained, tiny, rewrites, tmp_path, method):
    folder, curves = trained(method, "full")
    again = fit(method, "full", rewrites, tiny, tmp_path / "again")
    assert same_weights(folder, tmp_path / "again") and again.equals(curves)
    fit(method, "full", rewrites, tiny, tmp_path / "other", seed=1)
    assert not same_weights(folder, tmp_path / "other")


class Killed(TrainerCallback):
    """Ends a run after its third step; a checkpoint lies at the second."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("method", "way"), [("sft", "lora"), ("dpo", "lora"), ("kto", "lora"), ("dpo", "full")])
def test_a_killed_run_ends_like_an_undisturbed_one(trained, tiny, rewrites, tmp_path, monkeypatch, method, way):
    folder, curves = trained(method, way)
    built, steps = trainers.build, []

    def disturbed(*parts):
        trainer = built(*parts)
        trainer.add_callback(Killed)
        return trainer

    monkeypatch.setattr(trainers, "build", disturbed)
    with pytest.raises(KeyboardInterrupt):
        fit(method, way, rewrites, tiny, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    (work_dir,) = tmp_path.glob(".model-*")
    (work_dir / "checkpoint-4").mkdir()  # as if cut short while it was being saved
    monkeypatch.setattr(trainers, "build", lambda *parts: watched(built(*parts), steps))
    resumed = fit(method, way, rewrites, tiny, tmp_path / "model")
    assert steps == [3, 4, 5]
    assert same_weights(folder, tmp_path / "model") and resumed.equals(curves)
    assert os.listdir(tmp_path) == ["model"]


def watched(trainer, steps):
    class Count(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            steps.append(state.global_step)

    trainer.add_callback(Count)
    return trainer


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    assert trainers.last_checkpoint(tmp_path) is None
    for step, state in ((2, "{}"), (10, "{}"), (12, ""), (14, None)):
        (tmp_path / f"checkpoint-{step}").mkdir()
        if state is not None:
            (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text(state)
    assert trainers.last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_finished_run_is_repeated_only_if_something_changed(trained, tiny, rewrites, tmp_path, monkeypatch):
    folder, curves = trained("sft", "full")
    shutil.copytree(folder, tmp_path / folder.name)
    built = (tmp_path / folder.name / "model.safetensors").stat().st_mtime_ns
    again = fit("sft", "full", rewrites, tiny, tmp_path / folder.name)
    assert (tmp_path / folder.name / "model.safetensors").stat().st_mtime_ns == built
    pd.testing.assert_frame_equal(again, curves.reset_index(drop=True))

    def begun(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "load", begun)
    usual = {"method": "sft", "way": "full", "rewrites": rewrites, "base": tiny, "folder": tmp_path / folder.name}
    for change in ({"hyper": HYPER.model_copy(update={"beta": 0.2})}, {"rewrites": rewrites[4:]}, {"way": "lora"}):
        with pytest.raises(KeyboardInterrupt):
            fit(**usual | change)
    assert same_weights(folder, tmp_path / folder.name)


def test_another_base_is_another_signature(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "base")
    assert trainers.digest(tiny, "") == trainers.digest(str(tmp_path / "base"), "")
    assert trainers.digest("org/model", "abc") == "org/model@abc"
    model, _ = engine.load(tiny)
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    model.save_pretrained(tmp_path / "base")
    assert trainers.digest(tiny, "") != trainers.digest(str(tmp_path / "base"), "")


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", 0), ("learning_rate", "fast"), ("learning_rate", float("nan")), ("max_steps", 1.5),
     ("batch_size", 0), ("beta", -0.1), ("warmup_ratio", 1), ("dtype", "float8"), ("epochs", 3)],
)  # fmt: skip
def test_a_bad_hyper_parameter_is_named(name, value):
    given = {"learning_rate": 1e-3, "max_steps": 2, "batch_size": 2, name: value}
    with pytest.raises(MedComfortError, match=rf"^{name}: .*, not {value!r}\.$"):
        trainers.hyper(**given)


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


def test_kto_with_batches_of_one_is_refused(tiny, rewrites, tmp_path):
    with pytest.raises(MedComfortError, match="batch_size: KTO needs at least 2 examples a batch, not 1"):
        fit("kto", "lora", rewrites, tiny, tmp_path / "kto", hyper=HYPER.model_copy(update={"batch_size": 1}))
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_while_training(tiny, rewrites, tmp_path):
    with small_disk(100_000), pytest.raises(MedComfortError, match="A checkpoint in .* could not be written"):
        fit("sft", "full", rewrites, tiny, tmp_path / "sft")
    assert not (tmp_path / "sft").exists()


def test_only_other_seeds_of_the_same_name_are_dropped(tmp_path):
    kept = ["sft-seed0", "sft-seed10", "sft-wide-seed1", "dpo-seed1", "sft-seeds", "sft-seed1b"]
    for name in [*kept, "sft-seed1", "sft-seed2"]:
        (tmp_path / name).mkdir()
    trainers.drop_other_seeds(tmp_path, "sft", [0, 10])
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


BY_UNSLOTH = """
import json, sys
from medcomfort_utils.finetune import engine
engine.prepare("unsloth")
from medcomfort_utils.finetune import trainers
plan = json.load(open("plan.json"))
for method, rows in plan["rows"].items():
    hyper = trainers.hyper(learning_rate=3e-3, max_steps=3, batch_size=2, max_length=96)
    trainers.train(method, rows, hyper, 0, plan["base"], plan["out"] + "/" + method, "unsloth", lora_rank=4)
"""


@pytest.fixture(scope="module")
def by_unsloth(tiny, rewrites, tmp_path_factory):
    """Three models trained by Unsloth in a process of its own: importing it changes transformers, PEFT and TRL."""
    if importlib.util.find_spec("unsloth") is None:
        pytest.skip("Unsloth is not installed")
    folder = tmp_path_factory.mktemp("unsloth")
    plan = {"base": tiny, "out": str(folder), "rows": {m: rows_of(m, rewrites) for m in examples.METHODS}}
    paths.write_json(folder / "plan.json", plan)
    options = {"cwd": folder, "env": os.environ | {"PYTHONPATH": str(paths.ROOT)}}
    done = subprocess.run([sys.executable, "-c", BY_UNSLOTH], capture_output=True, text=True, timeout=300, **options)
    if done.returncode and "Unsloth cannot be imported" in done.stderr:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert not done.returncode, done.stderr[-2000:]
    return folder


@EACH
def test_unsloth_trains_what_trl_trains(by_unsloth, trained, tokenizer, method):
    folder = by_unsloth / method
    loss = pd.read_csv(folder / "history.csv").query("metric == 'loss'")["value"]
    assert len(loss) == 3 and loss.map(math.isfinite).all()
    plain = trained(method, "lora")[1].query("metric == 'loss'")["value"]
    assert loss.iloc[0] == pytest.approx(plain.iloc[0], abs=1e-3)  # before the first step the engines agree
    reloaded = logits(AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder))
    untrained = AutoModelForCausalLM.from_pretrained(tokenizer.name_or_path)
    assert reloaded.isfinite().all() and not torch.allclose(reloaded, logits(untrained, tokenizer), atol=1e-3)
    assert PeftModel.from_pretrained(untrained, folder / "adapter").peft_config["default"].r == 4
