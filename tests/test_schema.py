"""What a parameter may be, and what a step reads, is settled before the first step of the shipped profiles."""

import pytest

from medcomfort_utils import inputs, paths, pipeline, profile, schema
from medcomfort_utils.paths import MedComfortError

# Step and parameter of nano, what is typed, and what is said of it.
REFUSED = [
    ("01_rewrite.limit", "-1", "limit must be greater than or equal to 0, not -1."),
    ("01_rewrite.per_condition", "0", "per_condition must be greater than or equal to 1, not 0."),
    ("01_rewrite.emotions", "6", "emotions must be less than or equal to 5, not 6."),
    ("01_rewrite.emotions", "0", "emotions must be greater than or equal to 1, not 0."),
    ("01_rewrite.seed", "-1", "seed must be greater than or equal to 0, not -1."),
    ("01_rewrite.rewriter", "gpt", "rewriter must be 'llm' or 'template', not 'gpt'."),
    ("01_rewrite.mode", "play", "mode must be 'auto', 'replay' or 'record', not 'play'."),
    ("01_rewrite.temperature", "-1", "temperature must be greater than or equal to 0, not -1.0."),
    ("01_rewrite.concurrency", "0", "concurrency must be greater than or equal to 1, not 0."),
    ("01_rewrite.max_cost", "1", "max_cost needs price_in and price_out, the prices per million tokens."),
    ("01_rewrite.price_in", ".nan", "price_in must be a finite number, not nan."),
    ("01_rewrite.source", "", "source must not be empty."),
    ("01_rewrite.out_dir", "", "out_dir must not be empty."),
    ("02_finetune-sft.method", "ppo", "method must be 'sft', 'dpo' or 'kto', not 'ppo'."),
    ("02_finetune-sft.name", "a/b", "name must hold only letters, digits, '_', '-' and '.', since it names files"),
    ("02_finetune-sft.engine", "tlr", "engine must be 'auto', 'unsloth' or 'trl', not 'tlr'."),
    ("02_finetune-sft.seeds", "[]", "seeds must not be empty."),
    ("02_finetune-sft.seeds", "[1, 1]", "seeds must be different numbers between 0 and 4294967295, not [1, 1]."),
    ("02_finetune-sft.seeds", "[-1]", "seeds must be different numbers between 0 and 4294967295, not [-1]."),
    ("02_finetune-sft.neutral_fraction", "1.5", "neutral_fraction must be less than or equal to 1, not 1.5."),
    ("02_finetune-sft.neutral_fraction", "-0.1", "neutral_fraction must be greater than or equal to 0, not -0.1."),
    ("02_finetune-sft.target", "all", "target must be emotional, soothing_answer, original or comfort_only, not"),
    ("02_finetune-sft.target", "original", "neutral_fraction must be 0 with target original, not 0.2: its questions are the"),
    ("02_finetune-dpo.target", "comfort_only", "target must be emotional, soothing_answer or original, not 'comf"),
    ("02_finetune-dpo.against", "[]", "against must not be empty."),
    ("02_finetune-dpo.against", "[base]", "against must be 'original', 'comfort_only' or 'soothing_answer', not"),
    ("02_finetune-sft.learning_rate", "0", "learning_rate must be greater than 0, not 0.0."),
    ("02_finetune-sft.learning_rate", "-1e-3", "learning_rate must be greater than 0, not -0.001."),
    ("02_finetune-sft.learning_rate", ".inf", "learning_rate must be a finite number, not inf."),
    ("02_finetune-sft.max_steps", "-5", "max_steps must be greater than 0, not -5."),
    ("02_finetune-sft.batch_size", "0", "batch_size must be greater than 0, not 0."),
    ("02_finetune-kto.batch_size", "1", "batch_size must be at least 2 for KTO, not 1."),
    ("02_finetune-sft.dtype", "float8", "dtype must be 'float32', 'bfloat16' or 'float16', not 'float8'."),
    ("02_finetune-sft.lora_rank", "-1", "lora_rank must be greater than or equal to 0, not -1."),
    ("02_finetune-sft.more", "{warmup: 1}", "more: there is no hyper-parameter 'warmup'; did you mean 'warmup_ratio'?"),
    ("02_finetune-sft.more", "{warmup_ratio: 1}", "warmup_ratio must be less than 1, not 1."),
    ("02_finetune-dpo.init_from", "runs/{sed}", "init_from must have no other braces than {seed}, not 'runs/{sed}'."),
    ("03_evaluate.limit", "-1", "limit must be greater than or equal to 0, not -1."),
    ("03_evaluate.max_new_tokens", "0", "max_new_tokens must be greater than or equal to 1, not 0."),
    ("03_evaluate.batch_size", "0", "batch_size must be greater than or equal to 1, not 0."),
    ("04_figures.results_dir", "", "results_dir must not be empty."),
]
ABSENT = [
    ("01_rewrite.source", "none.json", "source: there is no file or folder none.json"),
    ("02_finetune-sft.rewrites", "rewrites.parquet", "rewrites: there is no file or folder rewrites.parquet"),
    ("02_finetune-sft.base", "data/nano_bas", "base: there is no file or folder data/nano_bas"),
    ("02_finetune-kto.init_from", "${run}/models/stf-seed{seed}", "runs/unseen/models/stf-seed0, and no earlier step"),
    ("02_finetune-dpo.seeds", "[0, 7]", "init_from: there is no file or folder runs/unseen/models/sft-seed7"),
    ("03_evaluate.models_dir", "${run}/model", "models_dir: there is no file or folder runs/unseen/model, and"),
    ("03_evaluate.claims", "paper/claim.yaml", "claims: there is no file or folder paper/claim.yaml"),
    ("04_figures.results_dir", "runs/unknown", "results_dir: there is no file or folder runs/unknown"),
    ("04_figures.ablation_dir", "runs/unknown", "ablation_dir: there is no file or folder runs/unknown"),
]


@pytest.mark.parametrize(("target", "text", "sentence"), REFUSED)
def test_a_value_is_refused_before_the_first_step(target, text, sentence):
    with pytest.raises(MedComfortError) as error:
        profile.load("nano", [f"{target}={text}"])
    step = target.partition(".")[0]
    assert str(error.value).startswith(f"notebooks/profiles/nano.yaml, step {step}: {sentence}")


@pytest.mark.parametrize(("target", "text", "sentence"), ABSENT)
def test_what_will_not_be_there_is_named_before_the_first_step(target, text, sentence):
    with pytest.raises(MedComfortError) as error:
        pipeline.reproduce("nano", settings=[f"{target}={text}"], name="unseen")
    assert f"step {target.partition('.')[0]}: " in str(error.value) and sentence in str(error.value)
    assert not (paths.RUNS / "unseen").exists()


def test_a_model_of_other_settings_is_not_evaluated_with_this_runs_own(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    run = profile.load("smoke", name="unseen")
    for model, sentence in (("sft-seed7", ""), ("mine-seed0", "mine-seed0 is of an earlier run by other settings")):
        paths.write_json(run.folder / "models" / model / "training.json", {})
        if not sentence:  # of another seed: 02_finetune removes it
            inputs.check(run, run.steps)
            continue
        with pytest.raises(MedComfortError, match=sentence):
            inputs.check(run, run.steps)
        inputs.check(run, run.select("01_rewrite"))


@pytest.mark.parametrize("path", sorted(paths.PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_profiles_read_what_is_there_or_will_be(path):
    run = profile.load(path, name="unseen")
    inputs.check(run, run.steps)


def test_steps_that_are_not_run_are_not_asked_for_their_files():
    run = profile.load("nano", ["01_rewrite.source=none.json", "02_finetune.base=owner/name"])
    inputs.check(run, run.steps[1:])


def test_every_table_names_parameters_of_its_notebook():
    for notebook, model in schema.MODELS.items():
        declared = profile.declared(paths.NOTEBOOKS / f"{notebook}.ipynb").keys()
        needed = {name for name, field in model.model_fields.items() if field.is_required()}
        assert needed <= declared and set(inputs.READ[notebook]) <= declared
    assert schema.model_of("02_finetune", {"method": "of somebody else's notebook"}) is None


def test_every_setting_of_asking_is_a_parameter_of_01_rewrite():
    """The notebook hands on those that it has by name; how often a call is tried again is nobody's choice."""
    declared = profile.declared(paths.NOTEBOOKS / "01_rewrite.ipynb")
    assert set(schema.Settings.model_fields) - declared.keys() == {"retries"}
    assert set(schema.Sampling.model_fields) <= declared.keys()
