"""Profiles, and what parameters may be: all is settled before the first step, in one sentence."""

import ast

import nbformat
import pytest

from medcomfort_utils import flow, paths, profile, schema
from medcomfort_utils.paths import MedComfortError

# Step and parameter of nano, what is typed, and what is said of it.
REFUSED = [
    ("rewrite.limit", "-1", "limit must be greater than or equal to 0, not -1."),
    ("rewrite.limit", "1.5", "limit must be a valid integer, not 1.5."),
    ("rewrite.limit", "true", "limit must be a valid integer, not True."),
    ("rewrite.limit", "", "limit must be a valid integer, not None."),
    ("rewrite.emotions", "6", "emotions must be less than or equal to 5, not 6."),
    ("rewrite.rewriter", "gpt", "rewriter must be 'llm' or 'template', not 'gpt'."),
    ("rewrite.temperature", "hot", "temperature must be a valid number, not 'hot'."),
    ("rewrite.max_cost", "1", "max_cost needs price_in and price_out, the prices per million tokens."),
    ("rewrite.price_in", ".nan", "price_in must be a finite number, not nan."),
    ("rewrite.base_url", "http://me:pw@host/v1", "base_url must hold no key or password"),
    ("rewrite.source", "", "source must not be empty."),
    ("rewrite.sorce", "x", "notebooks/01_rewrite.ipynb has no parameter 'sorce'; did you mean 'source'?"),
    ("rewrite.cache", "${run}/cache.sqlite", "${run} means nothing: folders between steps are not written down."),
    ("sft.method", "ppo", "method must be 'sft', 'dpo' or 'kto', not 'ppo'."),
    ("sft.seeds", "[]", "seeds must not be empty."),
    ("sft.seeds", "3", "seeds must be a valid list, not 3."),
    ("sft.seeds", "[1, 1]", "seeds must be different numbers between 0 and 4294967295, not [1, 1]."),
    ("sft.target", "original", "neutral_fraction must be 0 with target original, not 0.2"),
    ("dpo.target", "comfort_only", "target must be emotional, soothing_answer or original, not 'comf"),
    ("dpo.against", "[base]", "against must be 'original', 'comfort_only' or 'soothing_answer', not"),
    ("sft.learning_rate", "0", "learning_rate must be greater than 0, not 0."),
    ("sft.learning_rate", ".inf", "learning_rate must be a finite number, not inf."),
    ("kto.batch_size", "1", "batch_size must be at least 2 for KTO, not 1."),
    ("sft.more", "{warmup: 1}", "more: there is no hyper-parameter 'warmup'; did you mean 'warmup_ratio'?"),
    ("sft.more", "{warmup_ratio: 1}", "warmup_ratio must be less than 1, not 1"),
    ("dpo.init_from", "runs/{sed}", "init_from must have no other braces than {seed}, not 'runs/{sed}'."),
    ("evaluate.models", "sft", "models must be a valid list, not 'sft'."),
    ("figures.results_dir", "", "results_dir must not be empty."),
]
ABSENT = [
    ("rewrite.source", "none.json", "source: there is no file or folder none.json"),
    ("sft.rewrites", "rewrites.parquet", "rewrites: there is no file or folder rewrites.parquet"),
    ("train.base", "data/nano_bas", "base: there is no file or folder data/nano_bas"),
    ("dpo.seeds", "[0, 7]", "init_from: there is no file or folder runs/unseen/models/sft-seed7, and no earlier step"),
    ("evaluate.claims", "paper/claim.yaml", "claims: there is no file or folder paper/claim.yaml"),
    ("figures.ablation_dir", "runs/unknown", "ablation_dir: there is no file or folder runs/unknown"),
]
BOMB = "name: &a [x]\n" + "".join(f"k{n}: &b{n} [*a, *a]\n" for n in range(9))
HOSTILE = {
    "name: a: b": "line 1: not valid YAML",
    "name: a\nname: b": "line 2: not valid YAML",
    "": "it must hold a `name` and sections",
    "- 1": "it must hold a `name` and sections",
    "name: x\ndescription: 2024-02-30": "a value cannot be read: day",
    "name: x\ntrain: {limit: !!int abc}": "a value cannot be read: invalid literal",
    f"name: x\ntrain: {{limit: {'9' * 6000}}}": "a value cannot be read: Exceeds the limit",
    f"name: x\ntrain: {'[' * 3000}": "it is nested more than 20 deep",
    "name: x\ntrain: &me {a: *me}": "line 2: aliases (*) are not read",
    BOMB: "line 2: aliases (*) are not read",
    "name: x\ntrain: !!python/object/apply:os.system [ls]": "not valid YAML: could not determine a constructor",
    f"name: {'x' * 200_000}": "has more than 100000 bytes",
    "name: \x00": "not valid YAML",
    "name: 7": "name: Input should be a valid string",
    "name: a/b": "the run's name 'a/b' names files",
    "name: x\nmodels: {a/b: {}}": "a model's name 'a/b' names files",
    "name: x\nevaluat: {}": "there is no key 'evaluat'; did you mean 'evaluate'?",
    "name: x\nmodels: {dpo: {after: sft}}": "dpo: after: 'sft' is no model that stands before it",
    "name: x\nmodels: {mine: {}}": "step 02_finetune-mine: method must be 'sft', 'dpo' or 'kto', not 'mine'.",
    "name: x\nmodels: [sft]": "models: Input should be a valid dictionary",
    "name: x\nthreads: 0": "threads: Input should be greater than or equal to 1",
}


@pytest.mark.parametrize(("target", "text", "sentence"), REFUSED)
def test_a_value_is_refused_before_the_first_step(target, text, sentence):
    with pytest.raises(MedComfortError) as error:
        profile.load("nano", [f"{target}={text}"])
    assert str(error.value).startswith("notebooks/profiles/nano.yaml, step 0") and sentence in str(error.value)


@pytest.mark.parametrize(("target", "text", "sentence"), ABSENT)
def test_what_will_not_be_there_is_named_before_the_first_step(target, text, sentence):
    with pytest.raises(MedComfortError) as error:
        flow.reproduce("nano", settings=[f"{target}={text}"], name="unseen")
    assert sentence in str(error.value) and not (paths.RUNS / "unseen").exists()


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_a_hostile_profile_ends_in_one_sentence(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(MedComfortError) as error:
        profile.load(tmp_path / "bad.yaml")
    assert HOSTILE[text] in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("sftt.beta=1", "has no step 'sftt'; did you mean 'sft'?"),
        ("beta=1", "--set beta=1: write it as STEP.PARAM=VALUE."),
        ("sft.beta", "--set sft.beta: write it as STEP.PARAM=VALUE."),
        ("sft.seeds=[", "--set sft.seeds=[, line 1: not valid YAML"),
    ],
)
def test_settings_are_checked(setting, sentence):
    with pytest.raises(MedComfortError) as error:
        profile.load("nano", [setting])
    assert sentence in str(error.value)


def test_what_is_typed_is_what_is_meant_and_reaches_every_step_of_a_section(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("[]")
    typed = {"rewrite.model=01": "01", "rewrite.model=null": "null", "rewrite.model=": "", "rewrite.model='a b'": "a b",
             "rewrite.temperature=2": 2.0, "train.learning_rate=5e-6": 5e-6, "rewrite.limit=010": 10,
             "train.seeds=[7]": [7],
             "rewrite.source=mine.json": str(tmp_path / "mine.json")}  # fmt: skip
    for setting, value in typed.items():
        name, parameter = setting.partition("=")[0].split(".")
        for step in profile.load("nano", [setting]).select(name):
            found = step.given[parameter]
            assert found == value and type(found) is type(value), setting


def test_the_plan_fills_in_what_need_not_be_written():
    run = profile.load("nano", ["train.base=owner/name"], name="mine")
    (dpo,), (judged,), (drawn,) = (run.select(name) for name in ("dpo", "evaluate", "04_figures"))
    assert dpo.needs == ["01_rewrite", "02_finetune-sft"] and dpo.parameters["method"] == "dpo"
    assert dpo.parameters["init_from"] == "runs/mine/models/sft-seed{seed}" and dpo.parameters["base"] == "owner/name"
    assert judged.parameters["models"][:4] == ["sft", "dpo", "kto", "sft-more"]
    assert judged.parameters["base"] == "owner/name"
    assert judged.parameters["limit"] == 0 and drawn.parameters["summary"] == "runs/mine/summary.md"
    assert len(run.select("train")) == len(run.select("02_finetune")) == len(judged.needs) - 1
    more, sft = (run.select(name)[0].parameters for name in ("sft-more", "sft"))
    assert more["max_steps"] == dpo.parameters["max_steps"] and more["batch_size"] == dpo.parameters["batch_size"]
    assert more["learning_rate"] == sft["learning_rate"] and more["lora_rank"] == sft["lora_rank"]


@pytest.mark.parametrize("path", sorted(paths.PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_profiles_are_sound(path):
    run = profile.load(path, name="unseen")
    profile.check_inputs(run, run.steps)
    assert path.read_text().count("$") == 0


@pytest.mark.parametrize("name", ["", "..", "../tiny", "a b"])
def test_a_run_is_called_by_a_plain_name(name):
    with pytest.raises(MedComfortError, match="names files"):
        profile.load("smoke", name=name)


def test_an_unknown_profile_is_guessed_at():
    with pytest.raises(MedComfortError, match="There is no profile 'pper'; did you mean 'paper'"):
        profile.load("pper")


@pytest.mark.parametrize("notebook", schema.MODELS)
def test_the_tables_and_the_notebooks_cells_agree(notebook):
    """On names, types and defaults; hyper-parameters of `more` and the client's retries have no name in a cell."""
    cells = nbformat.read(paths.NOTEBOOKS / f"{notebook}.ipynb", 4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    types = {node.target.id: ast.unparse(node.annotation).partition("[")[0] for node in ast.parse(source).body}
    unnamed = (schema.Hyper.model_fields.keys() - types.keys()) | {"retries"}
    assert set(schema.MODELS[notebook].model_fields) - unnamed == types.keys()
    defaults = profile.declared(paths.NOTEBOOKS / f"{notebook}.ipynb")
    checked = schema.check(notebook, defaults)
    assert checked == defaults and {name: type(value).__name__ for name, value in checked.items()} == types
    assert all("  # " in line for line in source.splitlines() if ": " in line.partition("#")[0])


@pytest.mark.parametrize("cell", ["x = 1", "x: int = 1 + y", "import os", "x: int ="])
def test_a_parameters_cell_that_cannot_be_read_is_named(tmp_path, cell):
    tagged = nbformat.v4.new_code_cell(f"ok: int = 1\n{cell}", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[tagged]), tmp_path / "odd.ipynb")
    with pytest.raises(MedComfortError, match="odd.ipynb, parameters cell"):
        profile.declared(tmp_path / "odd.ipynb")


def test_a_notebook_keeps_its_parameters_and_nothing_else():
    namespace = {"__annotations__": {"method": str}, "method": "dpo", "address": "https://user:token@host/repo.git"}
    assert paths.effective_parameters(namespace) == {"method": "dpo"}
