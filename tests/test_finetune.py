"""Examples, training and what comes out, with a model so small that a run takes a second."""

import math
import re
import shutil
import typing
from pathlib import Path

import huggingface_hub
import pytest
import torch
import trl
import yaml
from conftest import turn
from datasets import Dataset
from finetuning import EACH, HYPER, RANKS, changed, fit, rows_of, same_weights, undisturbed
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from medcomfort_utils import parquet, paths, records, schema
from medcomfort_utils.finetune import card, data, engine, methods, trainers
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.paths import MedComfortError


@pytest.fixture(scope="module")
def trained(tiny, rewrites, tmp_path_factory):
    return undisturbed(rewrites, tiny, tmp_path_factory.mktemp("models"))


def row(answer, question="I have a cough.", **label):
    return {"prompt": turn("user", question), "completion": turn("assistant", answer)} | label


def pair(good, bad, question="I have a cough."):
    return {"prompt": turn("user", question), "chosen": turn("assistant", good), "rejected": turn("assistant", bad)}


@EACH
def test_rows_are_of_the_training_split_shuffled_by_seed_and_have_the_target(rewrites, method):
    assert set(typing.get_args(schema.Finetuning.model_fields["method"].annotation)) == set(METHODS)
    rows, other = data.rows_for(method, rewrites, 0), data.rows_for(method, rewrites, 1)
    assert not any("sore throat" in row["prompt"][0]["content"] for row in rows)
    assert rows == data.rows_for(method, rewrites, 0) != other and sorted(map(str, rows)) == sorted(map(str, other))
    with pytest.raises(MedComfortError, match=f"^target: .* no training example of emotional for {method}"):
        data.rows_for(method, [r for r in rewrites if r.condition != "emotional"], 0)


@EACH
def test_what_is_shown_is_trained_and_what_trl_would_make(tiny, rewrites, tmp_path, method):
    rows, kind = rows_of(method, rewrites), getattr(trl, f"{method.upper()}Trainer")
    examples, config = data.prepare(method, rows, tiny, HYPER), methods.config(method, HYPER, 0, tmp_path)
    theirs = kind(engine.load(tiny)[0], args=config, train_dataset=Dataset.from_list(rows),
                  processing_class=examples.tokenizer).train_dataset  # fmt: skip
    ours = examples.dataset(HYPER.batch_size)
    assert len(ours) == len(rows) and all(ours[name] == theirs[name] for name in ours.column_names)
    assert "&lt;|assistant|&gt; **" in examples.markdown() and "&lt;|end|&gt;**" in examples.markdown()
    trainer = trainers.build(examples, engine.load(tiny)[0], config, engine.adapter(4, 8))
    collate, (key, mask) = trainer.data_collator, ("labels", -100) if method == "sft" else ("completion_mask", 0)

    def spoilt(rows):  # as collators do that take the end token for padding
        batch = collate(rows)
        batch[key][batch["input_ids"] == examples.tokenizer.eos_token_id] = mask
        return batch

    trainer.data_collator = spoilt
    with pytest.raises(MedComfortError, match="end token carries no loss"):
        trainers.check_labels(trainer, examples.ends)


SOUND = {"sft": row, "dpo": lambda *told: pair("Rest.", *told), "kto": lambda *told: row(*told, label=True)}
BAD = [
    ("sft", [row("  ", "My back hurts.")], {}, r"^1 of 5 examples \(row 5: 'My back.*all labels are masked"),
    ("dpo", [pair("Rest.", "Rest.")], {}, r"^1 of 5 examples \(row 5: 'I have a c.* preferred to itself"),
    ("kto", [row("Tea.", label=True), row("Tea.", label=False)], {}, "^2 of 6 examples .* preferred to itself"),
    ("kto", [], {}, "KTO needs both kinds; 4 answers are desirable, 0 undesirable"),
    ("sft", [row("Walk. " * 40)], {"max_length": 64}, r"^1 of 5 examples \(row 5.* longer than 64 .*too_long"),
]


@pytest.mark.parametrize(("method", "rows", "hyper", "told"), BAD)
def test_examples_that_teach_nothing_are_named(tiny, method, rows, hyper, told):
    sound = [SOUND[method](f"Rest {n}.", "Why?") for n in range(4)]
    with pytest.raises(MedComfortError, match=told):
        data.prepare(method, sound + rows, tiny, changed(**hyper))


def test_few_long_examples_are_left_out_and_the_length_is_planned(tiny):
    rows = [row(f"Rest {n}.", "Why?") for n in range(199)] + [row("Walk. " * 40)]
    examples = data.prepare("sft", rows, tiny, changed(max_length=64))
    assert examples.rows == rows[:199] and examples.left_out == 1 and len(examples.prompts) == 199
    assert data.prepare("sft", rows[:199], tiny, changed(max_length=0)).hyper.max_length == 64


def test_a_last_batch_of_one_is_not_its_own_kl_partner(tiny):
    rows = [row(f"Rest {n}.", label=n > 3) for n in range(7)]
    examples = data.prepare("kto", rows, tiny, changed(batch_size=3))
    assert examples.rows == rows[:6] and examples.dataset(3)["KL_completion_ids"][0] == examples.answers[2][0]


@pytest.mark.parametrize("given", [(0, 0), (0, 1), (1, 0), (0, 2.5), (0.3, 0)])
@pytest.mark.parametrize(("wanted", "unwanted"), [(300, 100), (100, 300), (7, 6), (1, 999)])
def test_a_weight_of_zero_balances_ktos_classes(wanted, unwanted, given):
    hyper = data.kto_weights(wanted, unwanted, changed(desirable_weight=given[0], undesirable_weight=given[1]))
    assert 1 <= hyper.desirable_weight * wanted / (hyper.undesirable_weight * unwanted) <= 4 / 3
    assert all(new == old or not old for new, old in zip((hyper.desirable_weight, hyper.undesirable_weight), given))  # noqa: B905


NAMES = {"batch_size": "per_device_train_batch_size", "accumulation": "gradient_accumulation_steps"}


@EACH
def test_every_hyper_parameter_reaches_the_trainer(tmp_path, method):
    shared = {"learning_rate": 3e-3, "max_steps": 40, "batch_size": 6, "accumulation": 3, "weight_decay": 0.07,
              "max_grad_norm": 0.4, "max_length": 77, "save_steps": 9}  # fmt: skip
    own = {"beta": 0.37, "desirable_weight": 1.3, "undesirable_weight": 0.8}
    made = methods.config(method, schema.Hyper(**shared, **own, sft_weight=0.6, warmup_ratio=0.2), 5, tmp_path)
    assert {name: getattr(made, NAMES.get(name, name)) for name in shared} == shared
    assert (made.warmup_steps, made.seed, made.data_seed, made.report_to) == (8, 5, 5, [])
    assert all(getattr(made, name, value) == value for name, value in own.items())
    assert method != "dpo" or (made.loss_type, made.loss_weights) == (["sigmoid", "sft"], [1.0, 0.6])


@torch.no_grad()
def log_likelihoods(folder, rows):
    """The mean log-likelihoods of the chosen and of the rejected answers."""
    model, examples, found = engine.load(str(folder))[0], data.prepare("dpo", rows, str(folder), HYPER), []
    for prompt, answers in zip(examples.prompts, examples.answers, strict=True):
        for answer in answers:
            scores = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            found.append(float(scores.gather(1, torch.tensor(answer)[:, None]).sum()))
    return torch.tensor(found).reshape(-1, 2).mean(0)


@pytest.mark.parametrize("way", RANKS)
@EACH
def test_every_method_trains(trained, tiny, rewrites, method, way):
    folder, curves = trained(method, way)
    assert curves.query("metric == 'loss'")["step"].tolist() == [1, 2, 3, 4, 5]
    assert curves["value"].map(math.isfinite).all()
    before, after = (log_likelihoods(path, rows_of("dpo", rewrites)) for path in (tiny, folder))
    assert after[0] > before[0] if method == "sft" else after[0] - after[1] > before[0] - before[1]
    old, new = (AutoModelForCausalLM.from_pretrained(path).state_dict() for path in (tiny, folder))
    moved = {name for name in old if not torch.equal(old[name], new[name])}
    assert moved == {name for name in old if way == "full" or "_proj" in name}
    kept = {"model": f"{method}-{way}", "method": method, "seed": 0, "start": tiny, "learning_rate": 3e-3}
    assert kept.items() <= paths.read_json(folder / "training.json", "").items()
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


@EACH
def test_one_seed_one_model(trained, tiny, rewrites, tmp_path, method):
    folder, curves = trained(method, "full")
    assert fit(method, "full", rewrites, tiny, tmp_path / "again").equals(curves)
    fit(method, "full", rewrites, tiny, tmp_path / "other", seed=1)
    assert same_weights(folder, tmp_path / "again") and not same_weights(folder, tmp_path / "other")


@torch.no_grad()
def test_plain_transformers_reads_a_whole_model_and_its_adapter(trained, tiny):
    folder, _ = trained("dpo", "lora")
    ids = torch.tensor([AutoTokenizer.from_pretrained(folder)("I cough.")["input_ids"]])
    apart = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny), folder / "adapter")
    merged = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.allclose(merged.eval()(ids).logits, apart.eval()(ids).logits, atol=1e-4)


def parameters(tmp_path, rewrites, base, **changes):
    """The notebook's parameters, for a run of three steps."""
    given = {"method": "sft", "name": "", "base": base, "revision": "", "init_from": "", "engine": "trl", "seeds": [0],
             "neutral_fraction": 1.0, "target": "emotional", "against": ["original"], "learning_rate": 3e-3,
             "max_steps": 3, "batch_size": 2, "max_length": 0, "more": {"save_steps": 3, "lora_alpha": 8},
             "report_to": "none", "push_to_hub": "", "lora_rank": 4, "out_dir": str(tmp_path / "models")}  # fmt: skip
    path = parquet.write_records(tmp_path / "rewrites.parquet", rewrites, records.Rewrite)
    return given | {"rewrites": str(path)} | changes


def test_other_seeds_stay_and_an_sft_model_is_started_from(tiny, rewrites, tmp_path):
    given = parameters(tmp_path, rewrites, tiny, seeds=[0, 1])
    trainers.train_seeds(given, rewrites, "trl", data.examples_for(given, rewrites, 0))
    trainers.train_seeds(given | {"seeds": [3]}, rewrites, "trl")
    kept = {"sft-seed0", "sft-seed1", "sft-seed3", "sft.json"}
    assert {path.name for path in (tmp_path / "models").iterdir()} == kept
    after = {"method": "dpo", "init_from": str(tmp_path / "models" / "sft-seed{seed}"), "lora_rank": 0}
    losses = trainers.train_seeds(given | after, rewrites, "trl").query("metric == 'loss' and step == 1")["value"]
    assert losses.tolist() == pytest.approx([0.6931, 0.6931], abs=1e-3)  # it is its own reference
    made = paths.read_json(tmp_path / "models/dpo-seed1/training.json", "")
    assert made["base"] == tiny and made["start"].endswith("sft-seed1") and made["lora_alpha"] == 8


def test_the_card_has_its_results_only_where_the_signature_is_right(trained, tmp_path):
    folder, _ = trained("dpo", "lora")
    text = (folder / "README.md").read_text()
    head = yaml.safe_load(text.split("---\n")[1])
    assert head["license"] == "other" and "not medical advice" in text and "| learning_rate | 0.003 |" in text
    copy = Path(shutil.copytree(folder, tmp_path / "models" / folder.name)) / "README.md"
    row = {"model": "dpo-lora", "seed": 0, "test_set": "neutral", "metric": "comfort", "value": 1.5, "low": 1.0,
           "high": 2.0, "n": 4}  # fmt: skip
    paths.write_json(tmp_path / "results.json", [row, row | {"seed": 1, "value": 9.0}])
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
            raise ValueError("403 Forbidden: You need write access")


def test_a_model_is_pushed_to_a_private_repository_only_when_asked(tiny, rewrites, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    given = parameters(tmp_path, rewrites, tiny)
    trainers.train_seeds(given, rewrites, "trl")
    assert not Hub.asked
    trainers.train_seeds(given | {"push_to_hub": "me/sft-{seed}"}, rewrites, "trl")
    created, uploaded = Hub.asked
    assert created["repo_id"] == uploaded["repo_id"] == "me/sft-0" and created["private"] is True
    assert "hf_secret" not in capsys.readouterr().out + str(Hub.asked)
    with pytest.raises(MedComfortError, match=r"^push_to_hub: me/it-1 could not .*write access\); the model is saved"):
        card.push(tmp_path / "models/sft-seed0", "me/it-1")


def test_no_remote_code_and_no_pickle_in_the_package():
    code = "\n".join(file.read_text(encoding="utf-8") for file in (paths.ROOT / "medcomfort_utils").rglob("*.py"))
    given = re.findall(r"trust_remote_code\W+(\w+)", code)
    assert len(given) >= 3 and set(given) == {"False"}
    assert not re.search(r"\b(import|from) (pickle|dill|joblib)\b|torch\.load\(|yaml\.load\(|read_pickle", code)
