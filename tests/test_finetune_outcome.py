"""What comes out: a whole model for plain transformers, its adapter, its card; nothing goes to a hub unasked."""

import os
import shutil
import sys
import types

import huggingface_hub
import pandas as pd
import pytest
import torch
import yaml
from finetuning import EACH, HYPER, fit, undisturbed, write_rewrites
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.integrations import integration_utils

from medcomfort_utils import paths
from medcomfort_utils.finetune import card, engine, hyperparameters, trainers
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.schema import code_cells


@pytest.fixture(scope="module")
def trained(tiny, rewrites, tmp_path_factory):
    return undisturbed(rewrites, tiny, tmp_path_factory.mktemp("run") / "models")


def head(folder):
    return yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])


def body(folder):
    return (folder / "README.md").read_text().split("---\n", 2)[2]


def dtypes(file):
    return {str(tensor.dtype) for tensor in load_file(file).values()}


@EACH
def test_plain_transformers_reads_and_runs_what_comes_out(trained, method):
    folder, _ = trained(method, "lora")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    asked = [{"role": "user", "content": "I have a cough."}]
    batch = tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert model.generate(**batch, max_new_tokens=3, do_sample=False).shape[1] > batch["input_ids"].shape[1]
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json", "README.md"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]


@pytest.mark.parametrize("way", ["lora", "full"])
def test_the_saved_model_has_the_dtype_asked_for(tiny, rewrites, tmp_path, trained, way):
    hyper = HYPER.model_copy(update={"save_dtype": "bfloat16"})
    fit("sft", way, rewrites, tiny, tmp_path / "sft", hyper=hyper)
    whole, half = trained("sft", way)[0], tmp_path / "sft"
    assert dtypes(whole / "model.safetensors") == {"torch.float32"}
    assert dtypes(half / "model.safetensors") == {"torch.bfloat16"}
    one, other = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32) for p in (whole, half))
    for left, right in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.allclose(left, right, rtol=2**-7, atol=1e-4)


@EACH
def test_the_card_tells_data_licence_method_parameters_results_and_use(tiny, rewrites, tmp_path, method):
    base = tmp_path / "base"
    shutil.copytree(tiny, base)
    (base / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# Base\n")
    folder = tmp_path / "models" / f"{method}-seed0"
    fit(method, "lora", rewrites, str(base), folder, data="corpus.parquet, rewritten by hand")
    assert head(folder)["license"] == "cc-by-4.0" and method in head(folder)["tags"]
    told = body(folder)
    for said in ("not medical advice", "corpus.parquet, rewritten by hand", "As the base model's: cc-by-4.0",
                 "| learning_rate | 0.003 |", "| lora_rank | 4 |", "Intended use", "Not evaluated yet",
                 f"Started from `{base}`"):  # fmt: skip
        assert said in told, said
    first, last = (float(f"{value:.4g}") for value in read_loss(folder)[[0, -1]])
    assert f"| loss | {first:.4g} | {last:.4g} |" in told


def read_loss(folder):
    return pd.read_csv(folder / "history.csv").query("metric == 'loss'")["value"].to_numpy()


def test_results_go_on_the_card_once_they_are_there(tiny, rewrites, tmp_path):
    folder = tmp_path / "models" / "sft-seed0"
    fit("sft", "lora", rewrites, tiny, folder)
    row = {"method": "sft", "test_set": "emotional", "metric": "comfort", "low": 1.0, "high": 3.0, "n": 9}
    rows = [row | {"model": "sft", "seed": seed, "value": 2.0 + seed} for seed in (0, 1)]
    results = paths.write_json(tmp_path / "results.json", [*rows, row | {"model": "dpo", "seed": 0, "value": 5.0}])
    fit("sft", "lora", rewrites, tiny, folder)  # finished already: only the card is written anew
    assert "| comfort | emotional | 2.000 | 1.000 to 3.000 | 9 |" in body(folder)
    assert "3.000 | 1.000" not in body(folder) and "5.000" not in body(folder)
    os.utime(results, (0, 0))  # older than the model: of another one
    assert "Not evaluated yet" in card.write(folder).read_text()


def test_the_evaluation_renews_the_cards_of_the_models_below_it(trained, tmp_path):
    folder, _ = trained("sft", "lora")
    models = tmp_path / "models"
    shutil.copytree(folder, models / "sft-seed0")
    (models / "notes").mkdir()
    told = paths.read_json(folder / "training.json", "training")
    row = {"model": told["model"], "seed": told["seed"], "test_set": "neutral", "metric": "comfort", "value": 1.5}
    paths.write_json(tmp_path / "results.json", [row | {"low": 1.0, "high": 2.0, "n": 4}])
    card.renew(tmp_path)
    assert "| comfort | neutral | 1.500 | 1.000 to 2.000 | 4 |" in body(models / "sft-seed0")
    cells = "\n".join(cell["source"] for cell in code_cells(paths.NOTEBOOKS / "03_evaluate.ipynb"))
    assert cells.index('out / "results.json"') < cells.index("card.renew(out)")


def test_the_adapter_names_its_base_as_the_parameters_did(tiny, rewrites, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    shutil.copytree(tiny, tmp_path / "data" / "base")
    fit("sft", "lora", rewrites, "data/base", tmp_path / "model")
    told = paths.read_json(tmp_path / "model" / "adapter" / "adapter_config.json", "adapter")
    assert told["base_model_name_or_path"] == "data/base"
    assert told["target_modules"] == sorted(engine.LORA_TARGETS)  # in one order, whatever the process
    texts = [path.read_bytes() for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert not [text for text in texts if str(tmp_path).encode() in text]


def test_the_licence_of_a_base_that_tells_none(tiny, rewrites, trained):
    folder, _ = trained("sft", "lora")
    assert head(folder)["license"] == "other" and "See the base model's card" in body(folder)
    assert card.licence_of("owner/model") == ""


class Hub:
    """Stands for the hub's client, and keeps what it is asked."""

    asked = []

    def create_repo(self, **options):
        self.asked.append(("create", options))
        return f"https://hub.invalid/{options['repo_id']}"

    def upload_folder(self, **options):
        self.asked.append(("upload", options))


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return Hub


def parameters(tmp_path, rewrites, base, **changes):
    """The notebook's parameters, for a run of three steps."""
    given = {"method": "sft", "name": "", "base": base, "revision": "", "init_from": "", "engine": "trl", "seeds": [0],
             "neutral_fraction": 1.0, "target": "emotional", "against": ["original"], "learning_rate": 3e-3, "max_steps": 3,
             "batch_size": 2, "more": {"save_steps": 3}, "report_to": "none", "push_to_hub": "", "lora_rank": 4,
             "out_dir": str(tmp_path / "models")}  # fmt: skip
    return given | {"rewrites": write_rewrites(tmp_path / "rewrites.parquet", rewrites)} | changes


def test_nothing_is_pushed_unasked_and_a_private_repository_when_asked(tiny, rewrites, tmp_path, hub, capsys):
    given = parameters(tmp_path, rewrites, tiny)
    trainers.train_seeds(given, "trl")
    assert not hub.asked
    trainers.train_seeds(given | {"push_to_hub": "me/sft-{seed}"}, "trl")
    (_, created), (_, uploaded) = hub.asked
    assert created["repo_id"] == uploaded["repo_id"] == "me/sft-0" and created["private"] is True
    assert uploaded["folder_path"] == str(tmp_path / "models" / "sft-seed0")
    assert "hf_secret" not in capsys.readouterr().out + str(hub.asked)


def test_pushing_against_a_refusal_is_one_sentence(trained, hub, monkeypatch):
    folder, _ = trained("sft", "lora")

    def refused(self, **options):
        raise ValueError("403 Forbidden\nYou need write access")

    monkeypatch.setattr(Hub, "upload_folder", refused)
    with pytest.raises(
        MedComfortError, match=r"^push_to_hub: me/it could not be written \(You need write access\); the"
    ):
        card.push(folder, "me/it")


def test_an_sft_run_is_started_from_and_is_the_reference(tiny, rewrites, tmp_path):
    """`init_from` takes another run's model of the same seed; DPO's first loss says that it is its own reference."""
    given = parameters(tmp_path, rewrites, tiny, seeds=[0, 1])
    trainers.train_seeds(given, "trl")
    again = {"method": "dpo", "init_from": str(tmp_path / "models" / "sft-seed{seed}"), "lora_rank": 0}
    curves = trainers.train_seeds(given | again, "trl")
    first = curves.query("metric == 'loss' and step == 1")["value"]
    assert first.tolist() == pytest.approx([0.6931, 0.6931], abs=1e-3)
    for seed in (0, 1):
        told = paths.read_json(tmp_path / "models" / f"dpo-seed{seed}" / "training.json", "training")
        assert told["base"] == tiny and told["start"].endswith(f"sft-seed{seed}")
    changed = {"init_from": "", "name": "dpo-from-base", "method": "dpo", "lora_rank": 0}
    trainers.train_seeds(given | changed | {"seeds": [0]}, "trl")
    assert len({dpo.read_bytes() for dpo in (tmp_path / "models").glob("dpo*-seed0/model.safetensors")}) == 2


def test_seeds_no_longer_asked_for_are_dropped_and_the_parameters_kept(tiny, rewrites, tmp_path):
    given = parameters(tmp_path, rewrites, tiny, name="gentle", seeds=[0, 1], max_steps=1)
    curves = trainers.train_seeds(given, "trl")
    assert set(curves["seed"]) == {0, 1} and set(curves["model"]) == {"gentle"}
    trainers.train_seeds(given | {"seeds": [1]}, "trl")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["gentle-seed1", "gentle.json"]
    assert paths.read_json(tmp_path / "models" / "gentle.json", "gentle")["parameters"] == given | {"seeds": [1]}


MORE = [({"warmup": 0.2}, "no .*'warmup'"), ({"lora_alpha": 0}, "^lora_alpha must")]


@pytest.mark.parametrize(("more", "told"), MORE)
def test_more_hyper_parameters_by_name(tmp_path, rewrites, tiny, more, told):
    given = parameters(tmp_path, rewrites, tiny, more={"warmup_ratio": 0.3, "lora_alpha": 8})
    hyper = hyperparameters.from_parameters(given)
    assert (hyper.warmup_ratio, hyper.lora_alpha, hyper.lora_rank) == (0.3, 8, 4)
    with pytest.raises(MedComfortError, match=told):
        hyperparameters.from_parameters(given | {"more": more})


def test_a_tracker_gets_the_curves_and_its_logs_stay_with_the_model(tiny, rewrites, tmp_path, monkeypatch):
    """TensorBoard's writer, replaced by one that writes a line a value, since TensorBoard is optional."""

    class Writer:
        def __init__(self, log_dir):
            os.makedirs(log_dir, exist_ok=True)
            self.file = open(f"{log_dir}/events", "a")  # noqa: SIM115

        def add_scalar(self, name, value, step):
            self.file.write(f"{step} {name}\n")

        def add_text(self, *given):
            pass

        add_hparams = add_text

        def flush(self):
            self.file.flush()

        def close(self):
            self.file.close()

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr(integration_utils, "is_tensorboard_available", lambda: True)
    assert issubclass(integration_utils.TensorBoardCallback, TrainerCallback)
    fit("sft", "lora", rewrites, tiny, tmp_path / "sft", report_to="tensorboard")
    (events,) = (tmp_path / "sft" / "logs").rglob("events")
    assert [line for line in events.read_text().splitlines() if line.endswith("train/loss")] == [
        f"{step} train/loss" for step in (1, 2, 3, 4, 5)
    ]
