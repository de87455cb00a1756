"""Profiles, and what parameters may be: all is settled before the first step, in one sentence."""

import nbformat
import pytest

from medcomfort_utils import flow, paths, profile, schema
from medcomfort_utils.paths import MedComfortError

# What is typed for nano, and what is said of it.
REFUSED = {
    "rewrite.limit=-1": "limit must be greater than or equal to 0, not -1.",
    "rewrite.limit=true": "limit must be a valid integer, not True.",
    "rewrite.limit=": "limit must be a valid integer, not None.",
    "rewrite.emotions=6": "emotions must be less than or equal to 5, not 6.",
    "rewrite.rewriter=gpt": "rewriter must be 'llm' or 'template', not 'gpt'.",
    "rewrite.temperature=hot": "temperature must be a valid number, not 'hot'.",
    "rewrite.max_cost=1": "max_cost needs price_in and price_out, the prices per million tokens.",
    "rewrite.price_in=.nan": "price_in must be a finite number, not nan.",
    "rewrite.base_url=http://me:pw@host/v1": "base_url must hold no key or password",
    "rewrite.source=": "source must not be empty.",
    "rewrite.sorce=x": "there is no parameter 'sorce'; did you mean 'source'?",
    "sft.method=ppo": "method must be 'sft', 'dpo' or 'kto', not 'ppo'.",
    "sft.seeds=[]": "seeds must not be empty.",
    "sft.seeds=[1, 1]": "seeds must be different numbers between 0 and 4294967295, not [1, 1].",
    "sft.name=a/b": "name must hold only letters, digits, '_', '-' and '.', since it names files, not 'a/b'.",
    "sft.target=original": "neutral_fraction must be 0 with target original, not 0.2",
    "dpo.against=[base]": "against must be 'original', 'comfort_only' or 'soothing_answer', not",
    "sft.learning_rate=0": "learning_rate must be greater than 0, not 0.",
    "kto.batch_size=1": "batch_size must be at least 2 for KTO, not 1.",
    "sft.more={warmup: 1}": "more: there is no hyper-parameter 'warmup'; did you mean 'warmup_ratio'?",
    "sft.more={warmup_ratio: 1}": "warmup_ratio must be less than 1, not 1",
    "dpo.init_from=runs/{sed}": "init_from must have no other braces than {seed}, not 'runs/{sed}'.",
    "evaluate.models=sft": "models must be a valid list, not 'sft'.",
    "sftt.beta=1": "has no step 'sftt'; did you mean 'sft'?",
    "beta=1": "--set beta=1: write it as STEP.PARAM=VALUE.",
    "sft.seeds=[": "--set sft.seeds=[, line 1: not valid YAML",
}
ABSENT = {
    "rewrite.source=none.json": "source: there is no file or folder none.json",
    "train.base=data/nano_bas": "base: there is no file or folder data/nano_bas",
    "dpo.seeds=[0, 7]": "init_from: there is no file or folder runs/unseen/models/sft-seed7, and no earlier step",
    "evaluate.claims=paper/claim.yaml": "claims: there is no file or folder paper/claim.yaml",
}
HOSTILE = {
    "name: a\nname: b": "line 2: not valid YAML",
    "- 1": "it must hold a `name` and sections",
    "description: x": "name must not be empty",
    "name: x\ndescription: 2024-02-30": "a value cannot be read: day",
    f"name: x\ntrain: {{limit: {'9' * 6000}}}": "a value cannot be read: Exceeds the limit",
    f"name: x\ntrain: {'[' * 3000}": "it is nested more than 20 deep",
    "name: x\ntrain: &me {a: *me}": "line 2: aliases (*) are not read",
    "name: x\ntrain: !!python/object/apply:os.system [ls]": "not valid YAML: could not determine a constructor",
    f"name: {'x' * 200_000}": "has more than 100000 bytes",
    "name: \x00": "not valid YAML",
    "name: 7": "name must be a valid string, not 7",
    "name: a/b": "since it names files, not 'a/b'",
    "name: x\nmodels: {a/b: {}}": "since it names files, not 'a/b'",
    "name: x\nevaluat: {}": "there is no section 'evaluat'; did you mean 'evaluate'?",
    "name: x\nmodels: {dpo: {after: sft}}": "after: 'sft' is no model that stands before it",
    "name: x\nmodels: {mine: {}}": "step 02_finetune-mine: method must be 'sft', 'dpo' or 'kto', not 'mine'.",
    "name: x\nmodels: [sft]": "models must be a valid dictionary",
    "name: x\nthreads: 0": "threads must be greater than or equal to 1",
}


@pytest.mark.parametrize("setting", REFUSED)
def test_a_value_is_refused_before_the_first_step(setting):
    with pytest.raises(MedComfortError) as error:
        profile.load("nano", [setting])
    assert REFUSED[setting] in str(error.value)


@pytest.mark.parametrize("setting", ABSENT)
def test_what_will_not_be_there_is_named_before_the_first_step(setting):
    with pytest.raises(MedComfortError) as error:
        flow.reproduce("nano", settings=[setting], name="unseen")
    assert ABSENT[setting] in str(error.value) and not (paths.RUNS / "unseen").exists()


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: text[:40])
def test_a_hostile_profile_ends_in_one_sentence(tmp_path, text):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(MedComfortError) as error:
        profile.load(tmp_path / "bad.yaml")
    assert HOSTILE[text] in str(error.value) and len(str(error.value)) < 400 and "\n" not in str(error.value)


def test_what_is_typed_is_what_is_meant_and_reaches_every_step_of_a_section(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("[]")
    typed = {"rewrite.model=01": "01", "rewrite.model=null": "null", "rewrite.model=": "", "rewrite.model='a b'": "a b",
             "rewrite.temperature=2": 2.0, "train.learning_rate=5e-6": 5e-6, "02_finetune.seeds=[7]": [7],
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
    assert judged.parameters["base"] == "owner/name" and drawn.parameters["summary"] == "runs/mine/summary.md"
    assert len(run.select("train")) == len(judged.needs) - 1
    more, sft = (run.select(name)[0].parameters for name in ("sft-more", "sft"))
    assert more["max_steps"] == dpo.parameters["max_steps"] and more["learning_rate"] == sft["learning_rate"]


@pytest.mark.parametrize("path", sorted(paths.PROFILES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_profiles_are_sound(path):
    run = profile.load(path, name="unseen")
    run.check_inputs(run.steps)


def test_names_of_runs_and_profiles_are_checked():
    for name in ("", "..", "../tiny", "a b"):
        with pytest.raises(MedComfortError, match="since it names files"):
            profile.load("smoke", name=name)
    with pytest.raises(MedComfortError, match="There is no profile 'pper'; did you mean 'paper'"):
        profile.load("pper")


@pytest.mark.parametrize("notebook", profile.SECTIONS)
def test_a_notebooks_defaults_are_in_their_ranges(notebook):
    defaults = {name: default for name, (_, default) in schema.declared(notebook).items()}
    checked = schema.check(notebook, {})
    assert checked == defaults and [type(value) for value in checked.values()] == [*map(type, defaults.values())]
    unknown = {name for name in schema.RANGES for other in profile.SECTIONS if name in schema.declared(other)}
    assert unknown == schema.RANGES.keys(), "every range is of a parameter"


@pytest.mark.parametrize("cell", ["x = 1", "x: int = 1 + y", "import os", "x: int ="])
def test_a_parameters_cell_that_cannot_be_read_is_named(tmp_path, monkeypatch, cell):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    tagged = nbformat.v4.new_code_cell(f"ok: int = 1\n{cell}", metadata={"tags": ["parameters"]})
    nbformat.write(nbformat.v4.new_notebook(cells=[tagged]), tmp_path / "odd.ipynb")
    with pytest.raises(MedComfortError, match=r"odd\.ipynb, parameters cell"):
        schema.declared("odd")


def test_a_notebook_keeps_its_parameters_and_nothing_else():
    namespace = {"__annotations__": {"method": str}, "method": "dpo", "address": "https://user:token@host/repo.git"}
    assert paths.effective_parameters(namespace) == {"method": "dpo"}
