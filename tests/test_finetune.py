"""Methods, examples, training and what comes out, with a model so small that a run takes a second."""

import ast
import importlib
import itertools
import math
import shutil
import typing
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
import torch
import trl
import yaml
from conftest import turn
from datasets import Dataset
from finetuning import BOTH, EACH, HYPER, changed, fit, notes, rows_of, same_weights, undisturbed, write_rewrites
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from medcomfort_utils import paths, schema
from medcomfort_utils.finetune import card, data, engine, methods, trainers
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import MedComfortError


@pytest.fixture(scope="module")
def trained(tiny, rewrites, tmp_path_factory):
    return undisturbed(rewrites, tiny, tmp_path_factory.mktemp("models"))


def row(answer, other=None, label=None, question="I have a cough."):
    made = {"prompt": turn("user", question)}
    if other is not None:
        return made | {"chosen": turn("assistant", answer), "rejected": turn("assistant", other)}
    return made | {"completion": turn("assistant", answer)} | ({} if label is None else {"label": label})


def test_the_parameters_know_the_methods():
    assert set(typing.get_args(schema.Finetuning.model_fields["method"].annotation)) == set(METHODS)


@EACH
def test_rows_are_of_the_training_split_and_shuffled_by_seed(rewrites, method):
    rows, other = data.rows_for(method, rewrites, 0), data.rows_for(method, rewrites, 1)
    assert not any("sore throat" in row["prompt"][0]["content"] for row in rows)
    assert rows == data.rows_for(method, rewrites, 0) != other and sorted(map(str, rows)) == sorted(map(str, other))


@EACH
def test_nothing_is_trained_on_a_target_without_rows(rewrites, method):
    plain = [r for r in rewrites if r.condition != "emotional"]
    with pytest.raises(
        MedComfortError, match=rf"^target: .* no training example of emotional for {method} \(\d others\)"
    ):
        data.rows_for(method, plain, 0)
    with pytest.raises(MedComfortError, match="^method: there is no 'ppo'"):
        data.rows_for("ppo", rewrites, 0)


@EACH
def test_tokens_are_those_that_trl_would_make(tiny, rewrites, tmp_path, method):
    """The example that is shown is what is trained, and what TRL itself would train on."""
    rows, kind = rows_of(method, rewrites), getattr(trl, METHODS[method].trainer)
    examples = data.prepare(method, rows, tiny, HYPER)
    config = methods.config(method, HYPER, 0, tmp_path)
    theirs = kind(model=engine.load(tiny)[0], args=config, train_dataset=Dataset.from_list(rows),
                  processing_class=examples.tokenizer).train_dataset  # fmt: skip
    ours = examples.dataset(HYPER.batch_size)
    assert len(ours) == len(rows) and set(ours.column_names) <= set(theirs.column_names)
    assert all(ours[name] == theirs[name] for name in ours.column_names)
    text = examples.markdown()
    assert "&lt;|assistant|&gt; **" in text and "&lt;|end|&gt;**" in text
    assert f"{len(rows)} of {len(rows)} examples of prompt" in str(
        examples
    ) and f"longest {max(examples.lengths)}" in str(examples)


BAD = [
    ("sft", [row("  ", question="My back hurts.")], {}, r"^All labels are masked in 1 of 5 examples \(row 5: 'My back"),
    ("sft", [row("<|end|>")], {}, "^All labels are masked in 1 of 5"),
    ("dpo", [row("Rest.", "Rest.")], {}, r"^1 of 5 examples prefer an answer to itself.* \(row 5: 'I have a c"),
    ("kto", [row("Tea.", label=True), row("Tea.", label=False)], {}, "^2 of 6 examples prefer an answer to itself"),
    ("sft", [row("Walk. " * 40)], {"max_length": 64}, r"^max_length: 1 of 5 examples are longer than 64 .*\(row 5"),
    ("sft", [], {"max_length": 129}, "^max_length: the model reads 128 tokens, not 129; lower it"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "rows", "hyper", "told"), BAD)
def test_examples_that_teach_nothing_are_named(tiny, method, rows, hyper, told):
    other = {"sft": {}, "dpo": {"other": "Walk."}, "kto": {"label": True}}[method]
    sound = [row(f"Rest {n}.", question="Why?", **other) for n in range(4)]
    with pytest.raises(MedComfortError, match=told):
        data.prepare(method, sound + rows, tiny, changed(**hyper))


def test_few_long_examples_are_left_out_and_the_length_is_planned(tiny):
    rows = [row(f"Rest {n}.", question="Why?") for n in range(199)] + [row("Walk. " * 40)]
    examples = data.prepare("sft", rows, tiny, changed(max_length=64))
    assert examples.rows == rows[:199] and examples.left_out == 1 and len(examples.prompts) == 199
    examples = data.prepare("sft", rows[:199], tiny, changed(max_length=0))
    assert examples.hyper.max_length == 64 > max(examples.lengths)


def test_kto_needs_both_kinds_and_whole_batches(tiny):
    with pytest.raises(
        MedComfortError, match="KTO needs desirable and undesirable answers; all 4 here are undesirable"
    ):
        data.prepare("kto", [row(f"Rest {n}.", label=False) for n in range(4)], tiny, HYPER)
    rows = [row(f"Rest {n}.", label=n > 3) for n in range(7)]
    examples = data.prepare("kto", rows, tiny, changed(batch_size=3))  # a last batch of one would be its own KL partner
    assert examples.rows == rows[:6] and examples.dataset(3)["KL_completion_ids"][0] == examples.answers[2][0]


@pytest.mark.parametrize("given", [(0, 0), (0, 1), (1, 0), (0, 2.5), (0.3, 0)])
@pytest.mark.parametrize(("wanted", "unwanted"), [(300, 100), (100, 300), (7, 6), (1, 999)])
def test_a_weight_of_zero_balances_ktos_classes(wanted, unwanted, given):
    hyper = data.kto_weights(wanted, unwanted, changed(desirable_weight=given[0], undesirable_weight=given[1]))
    assert 1 <= hyper.desirable_weight * wanted / (hyper.undesirable_weight * unwanted) <= 4 / 3
    for weight, before in zip((hyper.desirable_weight, hyper.undesirable_weight), given, strict=True):
        assert weight == before if before else weight > 0


@EACH
def test_the_trainers_own_tensors_are_looked_at(tiny, rewrites, tmp_path, method):
    examples = data.prepare(method, rows_of(method, rewrites), tiny, HYPER)
    trainer = trainers.build(
        examples, engine.load(tiny)[0], methods.config(method, HYPER, 0, tmp_path), engine.adapter(4, 8)
    )
    collate = trainer.data_collator
    for spare, told in ((-1, "All labels of an example are masked"), (None, "end token carries no loss")):

        def spoilt(rows, spare=spare):
            batch, (key, mask) = collate(rows), ("labels", -100) if method == "sft" else ("completion_mask", 0)
            batch[key][
                batch["input_ids"] != spare if spare else batch["input_ids"] == examples.tokenizer.eos_token_id
            ] = mask
            return batch

        trainer.data_collator = spoilt
        with pytest.raises(MedComfortError, match=told):
            trainers.check_labels(trainer, examples.ends)


UNUSUAL = {"learning_rate": 3e-3, "max_steps": 40, "batch_size": 6, "accumulation": 3, "weight_decay": 0.07,
           "max_grad_norm": 0.4, "max_length": 77, "save_steps": 9}  # fmt: skip
NAMES = {"batch_size": "per_device_train_batch_size", "accumulation": "gradient_accumulation_steps"}


@EACH
def test_every_hyper_parameter_reaches_the_trainer(tmp_path, method):
    own = {"beta": 0.37, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    made = methods.config(method, schema.Hyper(**UNUSUAL, **own, sft_weight=0.6, warmup_ratio=0.2), 5, tmp_path)
    assert {name: getattr(made, NAMES.get(name, name)) for name in UNUSUAL} == UNUSUAL
    assert (made.warmup_steps, made.seed, made.data_seed, made.report_to) == (8, 5, 5, [])
    assert all(getattr(made, name, value) == value for name, value in own.items())
    assert method != "dpo" or (made.loss_type, made.loss_weights) == (["sigmoid", "sft"], [1.0, 0.6])
    rest = {"beta", "sft_weight", "desirable_weight", "undesirable_weight", "warmup_ratio", "dtype", "save_dtype",
            "too_long", "lora_rank", "lora_alpha", "lora_dropout"}  # fmt: skip
    assert UNUSUAL.keys() | rest == schema.Hyper.model_fields.keys()


def test_what_cannot_be_trained_here_is_told(tmp_path, monkeypatch):
    with pytest.raises(MedComfortError, match="report_to: mytracker is not installed or not known; there are: none"):
        methods.config("sft", HYPER, 0, tmp_path, report_to="mytracker")
    with pytest.raises(MedComfortError, match="dtype: float16 is trained on a GPU only"):
        methods.config("sft", changed(dtype="float16"), 0, tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda emulated=True: False)
    for dtype, told in (
        ("bfloat16", "this GPU has no bfloat16 .* take float16"),
        ("float16", "trains an adapter only; set lora"),
    ):
        with pytest.raises(MedComfortError, match=f"dtype: .*{told}"):
            methods.config("sft", changed(dtype=dtype), 0, tmp_path)


@torch.no_grad()
def log_likelihoods(folder, rows):
    """The mean log-likelihoods of the chosen and of the rejected answers."""
    model, examples, found = engine.load(str(folder))[0], data.prepare("dpo", rows, str(folder), HYPER), []
    for prompt, answers in zip(examples.prompts, examples.answers, strict=True):
        for answer in answers:
            scores = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(float(scores.gather(1, torch.tensor(answer)[:, None]).sum()))
    return torch.tensor(found).reshape(-1, 2).mean(0)


@BOTH
@EACH
def test_every_method_trains(trained, tiny, rewrites, method, way):
    folder, curves = trained(method, way)
    assert (
        curves.query("metric == 'loss'")["step"].tolist() == [1, 2, 3, 4, 5]
        and curves["value"].map(math.isfinite).all()
    )
    before, after = (log_likelihoods(path, rows_of("dpo", rewrites)) for path in (tiny, folder))
    assert after[0] > before[0] if method == "sft" else after[0] - after[1] > before[0] - before[1]
    old, new = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny, folder))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {name for name in old if way == "full" or "_proj" in name}
    pd.testing.assert_frame_equal(pd.read_csv(folder / "history.csv"), curves)
    kept = {"model": f"{method}-{way}", "method": method, "seed": 0, "start": tiny, "learning_rate": 3e-3}
    assert kept.items() <= notes(folder).items()


@EACH
def test_one_seed_one_model(trained, tiny, rewrites, tmp_path, method):
    folder, curves = trained(method, "full")
    again = fit(method, "full", rewrites, tiny, tmp_path / "again")
    assert same_weights(folder, tmp_path / "again") and again.equals(curves)
    fit(method, "full", rewrites, tiny, tmp_path / "other", seed=1)
    assert not same_weights(folder, tmp_path / "other")


@torch.no_grad()
def logits(model, tokenizer):
    asked = tokenizer.apply_chat_template(turn("user", "I cough."), add_generation_prompt=True, return_tensors="pt")
    return model.eval()(**asked).logits


@EACH
def test_plain_transformers_reads_a_whole_model_and_its_adapter(trained, tiny, method):
    folder, _ = trained(method, "lora")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    merged = logits(AutoModelForCausalLM.from_pretrained(folder), tokenizer)
    apart = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder / "adapter")
    assert torch.allclose(merged, logits(apart, tokenizer), atol=1e-4)
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_the_saved_model_has_the_dtype_asked_for(tiny, rewrites, tmp_path):
    for way in ("lora", "full"):
        fit("sft", way, rewrites, tiny, tmp_path / way, hyper=changed(save_dtype="bfloat16"))
        assert {p.dtype for p in AutoModelForCausalLM.from_pretrained(tmp_path / way).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("method", ["dpo", "kto"])
@pytest.mark.parametrize(("way", "steps", "copies"), [("lora", 2, 0), ("full", 2, 1), ("full", 9, 0)])
def test_the_reference_is_copied_only_where_it_must_be(
    tiny, rewrites, tmp_path, monkeypatch, method, way, steps, copies
):
    """An adapter is switched off; full training computes it once where rows are seen more than once."""
    loads, load = [], engine.load
    monkeypatch.setattr(engine, "load", lambda *a, **k: (loads.append(a), load(*a, **k))[1])
    hyper = changed(max_steps=steps, lora_rank=4 if way == "lora" else 0)
    trainer = trainers.fit(data.prepare(method, rows_of(method, rewrites), tiny, hyper), hyper, "trl", tmp_path)
    assert len(loads) == 1 + copies and (trainer.ref_model is not None) == bool(copies)
    assert trainer.args.precompute_ref_log_probs == (steps == 9)
    assert set(getattr(trainer.model, "peft_config", {"default": 0})) == {"default"}


def parameters(tmp_path, rewrites, base, **changes):
    """The notebook's parameters, for a run of three steps."""
    given = {"method": "sft", "name": "", "base": base, "revision": "", "init_from": "", "engine": "trl", "seeds": [0],
             "neutral_fraction": 1.0, "target": "emotional", "against": ["original"], "learning_rate": 3e-3,
             "max_steps": 3, "batch_size": 2, "max_length": 0, "more": {"save_steps": 3, "lora_alpha": 8},
             "report_to": "none", "push_to_hub": "", "lora_rank": 4, "out_dir": str(tmp_path / "models")}  # fmt: skip
    return given | {"rewrites": write_rewrites(tmp_path / "rewrites.parquet", rewrites)} | changes


def test_other_seeds_stay_and_an_sft_model_is_started_from(tiny, rewrites, tmp_path):
    given = parameters(tmp_path, rewrites, tiny, seeds=[0, 1])
    first = data.examples_for(given, rewrites, 0)
    assert set(trainers.train_seeds(given, rewrites, "trl", first)["seed"]) == {0, 1}
    trainers.train_seeds(given | {"seeds": [3]}, rewrites, "trl")
    assert {path.name for path in (tmp_path / "models").iterdir()} == {
        "sft-seed0",
        "sft-seed1",
        "sft-seed3",
        "sft.json",
    }
    assert paths.read_json(tmp_path / "models/sft.json", "sft")["parameters"]["seeds"] == [3]
    after = {"method": "dpo", "init_from": str(tmp_path / "models" / "sft-seed{seed}"), "lora_rank": 0}
    curves = trainers.train_seeds(given | after, rewrites, "trl")
    losses = curves.query("metric == 'loss' and step == 1")["value"]
    assert losses.tolist() == pytest.approx([0.6931, 0.6931], abs=1e-3)  # it is its own reference
    made = notes(tmp_path / "models/dpo-seed1")
    assert (
        made["base"] == tiny
        and (made["save_steps"], made["lora_alpha"]) == (3, 8)
        and made["start"].endswith("sft-seed1")
    )


@EACH
def test_the_card_has_its_results_only_where_the_signature_is_right(trained, tmp_path, method):
    folder, _ = trained(method, "lora")
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "other" and method in head["tags"] and "base_model" not in head
    for said in ("not medical advice", "| learning_rate | 0.003 |", "Intended use", "Not evaluated yet", "| loss |"):
        assert said in text
    copy = Path(shutil.copytree(folder, tmp_path / "models" / folder.name)) / "README.md"
    row = {
        "model": f"{method}-lora",
        "seed": 0,
        "test_set": "neutral",
        "metric": "comfort",
        "value": 1.5,
        "low": 1.0,
        "high": 2.0,
    }
    paths.write_json(tmp_path / "results.json", [row | {"n": 4}, row | {"n": 5, "seed": 1, "value": 9.0}])
    card.add_results(tmp_path, {folder.name: "another training's"})
    assert copy.read_text() == text
    card.add_results(tmp_path, card.signatures(folder.parent))
    assert "| comfort | neutral | 1.500 | 1.000 to 2.000 | 4 |" in copy.read_text() and "9.000" not in copy.read_text()
    assert (folder / "README.md").read_text() == text  # it lies elsewhere


class Hub:
    """Stands for the hub's client, and keeps what it is asked."""

    asked = []

    def create_repo(self, **options):
        self.asked.append(options)
        return f"https://hub.invalid/{options['repo_id']}"

    def upload_folder(self, **options):
        self.asked.append(options)
        if options["repo_id"].endswith("-1"):
            raise ValueError("403 Forbidden\nYou need write access")


def test_a_model_is_pushed_to_a_private_repository_only_when_asked(tiny, rewrites, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    given = parameters(tmp_path, rewrites, tiny)
    trainers.train_seeds(given, rewrites, "trl")
    assert not Hub.asked
    trainers.train_seeds(given | {"push_to_hub": "me/sft-{seed}"}, rewrites, "trl")
    created, uploaded = Hub.asked
    assert created["repo_id"] == uploaded["repo_id"] == "me/sft-0" and created["private"] is True
    assert uploaded["folder_path"] == str(tmp_path / "models/sft-seed0")
    said = capsys.readouterr().out
    assert "hf_secret" not in said + str(Hub.asked)
    assert "sft-seed0 with an adapter on down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in said
    with pytest.raises(
        MedComfortError, match=r"^push_to_hub: me/it-1 could not be written \(You need write access\); the"
    ):
        card.push(tmp_path / "models/sft-seed0", "me/it-1")
    for repository, told in (("me/sft", "is one repository for all seeds"), ("me/a/{seed}", "is no repository's name")):
        with pytest.raises(MedComfortError, match=f"^push_to_hub: '{repository}' {told}"):
            card.check_push(repository, [0, 1])
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(MedComfortError, match="^push_to_hub: set HF_TOKEN in the environment"):
        trainers.train_seeds(given | {"push_to_hub": "me/sft-{seed}"}, rewrites, "trl")


@pytest.mark.parametrize("model", ["data/nano_bse", "./nano", "../nano", "/no/nano", "a/b/c", "data", "hub name", ""])
def test_a_mistyped_path_is_not_asked_of_the_hub(model):
    with pytest.raises(MedComfortError, match="is no model folder"):
        engine.source_of(model)
    assert engine.source_of("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


def test_only_safetensors_are_read(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(MedComfortError, match=r"holds no \.safetensors weights"):
        engine.source_of(str(tmp_path))


def test_the_engine_is_settled(monkeypatch):
    assert engine.prepare("trl") == "trl"
    with pytest.raises(MedComfortError, match="engine must be auto, unsloth or trl, not 'vllm'"):
        engine.prepare("vllm")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "there, but broken")
    monkeypatch.setattr(importlib, "import_module", lambda name: 1 / 0)
    assert engine.prepare("auto") == "trl"
    with pytest.raises(MedComfortError, match="Unsloth cannot be imported here .*; choose engine trl"):
        engine.prepare("unsloth")


def test_no_remote_code_and_no_pickle_in_the_package():
    forbidden, remote, seen = {"pickle", "dill", "joblib", "cloudpickle"}, "trust_remote_code", 0
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (paths.ROOT / "medcomfort_utils").rglob("*.py")]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert not forbidden & ({alias.name for alias in node.names} | {getattr(node, "module", None)})
        if isinstance(node, ast.Call):
            assert ast.unparse(node.func) not in ("torch.load", "yaml.load", "pd.read_pickle", "eval", "exec")
        pairs = [(node.arg, node.value)] if isinstance(node, ast.keyword) else []
        pairs += (
            [(getattr(k, "value", ""), v) for k, v in zip(node.keys, node.values, strict=True)]
            if isinstance(node, ast.Dict)
            else []
        )
        given = [value for name, value in pairs if name == remote]
        seen += len(given)
        assert all(ast.unparse(value) == "False" for value in given)
    assert seen >= 2
