"""compare and figures: any two runs told apart, any folder of results redrawn."""

import ast
import json
import shutil
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from test_draw import MODELS, with_values, write_results, written_text

from medcomfort_utils import paths
from medcomfort_utils.__main__ import main
from medcomfort_utils.draw import compare, redraw
from medcomfort_utils.draw.results import read_results
from medcomfort_utils.paths import DATA, FIGURES, NOTEBOOKS, PAPER, MedComfortError

matplotlib.use("Agg")
COMMITTED = DATA / "results/nano"


def write_run(folder, beta=0.1, models=MODELS, **run):
    """A folder of results with the effective profile beside them."""
    write_results(folder, models, **run)
    steps = [{"name": "01_rewrite", "parameters": {"source": "clinic", "out_dir": "${run}"}},
             {"name": "02_finetune-dpo", "parameters": {"beta": beta, "seeds": [0, 1]}}]  # fmt: skip
    (folder / "profile.yaml").write_text(yaml.safe_dump({"name": "nano", "steps": steps}))
    return folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A runs/ folder with the run `plain`, and the empty place of another."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    write_run(tmp_path / "runs/plain")
    yield tmp_path / "runs"
    plt.close("all")


def told(a, b):
    return compare.to_markdown(compare.read_run(str(a)), compare.read_run(str(b)))


def test_a_run_is_the_same_as_itself(runs):
    text = told("plain", "plain")
    assert text.count("The same.") == 3 and "Test dialogues in common: 12 of 12." in text
    assert " scores that both have are the same." in text and "| Model |" not in text


def test_other_parameters_data_and_versions_are_told(runs):
    versions = {"torch": "2.13.0"}
    write_run(runs / "gentle", beta=0.5, corpus="other.jsonl", versions=versions)
    shutil.copy(COMMITTED / "cleaning.csv", runs / "gentle")
    text = told("plain", "gentle")
    assert "| 02_finetune-dpo.beta | 0.1 | 0.5 |" in text and "seeds" not in text
    assert "| corpus | clinic | other.jsonl |" in text and "| dialogues read | 465 |" in text
    assert "| torch | – | 2.13.0 |" in text


def test_steps_and_models_of_one_run_alone_are_named(runs):
    write_run(runs / "small", models={model: MODELS[model] for model in ("base", "sft")})
    profile = yaml.safe_load((runs / "small/profile.yaml").read_text())
    (runs / "small/profile.yaml").write_text(yaml.safe_dump(profile | {"steps": profile["steps"][:1]}))
    text = told("plain", "small")
    assert "Only in A: 02_finetune-dpo." in text and "Only in A: dpo, kto, original" in text and "beta" not in text


def test_without_a_profile_the_evaluation_is_compared(runs):
    for name, limit in (("plain", 0), ("bare", 16)):
        parameters = {"limit": limit, "rewrites": f"runs/{name}/rewrites.parquet", "out_dir": f"runs/{name}"}
        run = {"corpus": "clinic", "base_model": "data/nano_base", "parameters": parameters}
        write_results(runs / name)
        (runs / name / "run.json").write_text(json.dumps(run))
    text = told("plain", "bare")
    assert "| 03_evaluate.limit | 0 | 16 |" in text and "bare keeps no profile.yaml" in text
    assert "rewrites.parquet" not in text  # it lies in each run's own folder


def test_scores_that_differ_have_the_interval_of_their_difference(runs):
    a = read_results(runs / "plain")
    warm = {"model": "sft", "metric": "comfort", "test_set": "emotional"}
    b = with_values(a, lambda t: (t[list(warm)] == warm).all(axis=1) & t.seed.isna(), value=4.5, low=4.3, high=4.6)
    table = compare.differences(a, b)
    row = table[table.value_a != table.value_b].iloc[0]
    assert (row.model, row.metric, row.test_set) == ("sft", "comfort", "emotional")
    # By hand: 0.59 - sqrt(0.2² + 0.12²), 0.59 + sqrt(0.1² + 0.12²); the made-up interval of A is 3.79 to 4.03.
    assert (row.difference, row.low, row.high) == pytest.approx((0.59, 0.3568, 0.7462), abs=1e-4)
    run = compare.read_run("plain")
    text = compare.to_markdown(run, replace(run, results=b))
    assert "| SFT | emotional | Comfort | 3.91 [3.79, 4.03] | 4.50 [4.30, 4.60] | **0.590 [0.357, 0.746]** |" in text
    assert text.count("\n| SFT |") == 1


def test_the_interval_of_a_difference_covers_it(runs):
    """2,000 pairs of independent samples, each pair a model of its own; the true difference is 0.5."""
    random, plain = np.random.default_rng(0), read_results(runs / "plain")
    sides = []
    for mean, spread in ((1.0, 2.0), (1.5, 1.0)):
        samples = random.normal(mean, spread, (2000, 100))
        value, arm = samples.mean(axis=1), 1.96 * samples.std(axis=1, ddof=1) / 10
        table = pd.DataFrame({"model": map(str, range(2000)), "value": value, "low": value - arm, "high": value + arm})
        table = table.assign(seed=np.nan, test_set="emotional", metric="comfort", n=100)
        known = plain.table[(plain.table.model == "base") & (plain.table.metric != "comfort")]
        sides.append(replace(plain, table=pd.concat([known, table])))
    rows = compare.differences(*sides).query("metric == 'comfort'")
    assert len(rows) == 2000 and 0.935 <= ((rows.low <= 0.5) & (rows.high >= 0.5)).mean() <= 0.965


def test_the_figure_has_a_point_a_model_and_names_both_runs(runs):
    write_run(runs / "small", models={model: MODELS[model] for model in ("base", "sft", "dpo-from-base")})
    drawn = compare.figure(*map(compare.read_run, ("plain", "small")))
    names = [f"{model} {asked}" for model in ("base", "sft", "dpo-from-base") for asked in ("emotional", "neutral")]
    for axes in drawn.axes:
        assert sorted(container.get_label() for container in axes.containers) == sorted(names)
    said = " ".join(written_text(drawn).split())
    assert "A: plain; B: small." in said and "Difference in comfort (of 6), B − A" in said


def test_the_command_prints_and_writes(runs, capsys):
    write_run(runs / "gentle", beta=0.5)
    assert main(["compare", "plain", "gentle", "--out", str(runs / "told")]) == 0
    assert "| 02_finetune-dpo.beta | 0.1 | 0.5 |" in capsys.readouterr().out
    assert {p.name for p in (runs / "told").iterdir()} == {f"plain-vs-gentle.{end}" for end in ("md", "pdf", "png")}


def test_what_is_no_run_is_said(runs, capsys):
    assert main(["compare", "plain", "nothing"]) == 1
    assert "There is no run 'nothing' with results" in capsys.readouterr().err
    (runs / "plain/profile.yaml").write_text("steps: [1]")
    with pytest.raises(MedComfortError, match=r"plain/profile.yaml is not the profile of a run"):
        compare.read_run("plain")


def test_redrawing_the_committed_results_changes_no_byte(tmp_path):
    files, missing = redraw.redraw(COMMITTED, tmp_path / "nano")
    varied, left_out = redraw.redraw(DATA / "results/nano-ablation", tmp_path / "varied")
    files += [path for path in varied if path.name.startswith("ablation")]
    assert not missing and not left_out and {path.name for path in files} == {path.name for path in FIGURES.iterdir()}
    values = [*(tmp_path / "nano/paper").rglob("*.tex"), tmp_path / "varied/paper/ablation.tex"]
    homes = {"figures": FIGURES, "paper": PAPER}
    for path in [*files, *values]:
        _, top, *rest = path.relative_to(tmp_path).parts
        assert path.read_bytes() == homes[top].joinpath(*rest).read_bytes(), path.name
    assert len(values) == 4
    plt.close("all")


def test_the_notebook_draws_the_same_figures():
    cells = nbformat.read(NOTEBOOKS / "04_figures.ipynb", as_version=4).cells
    source = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    assigned = {node.targets[0].id: node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)
                and isinstance(node.targets[0], ast.Name)}  # fmt: skip
    saved = assigned["figures"]
    drawn = {k.value: ast.unparse(assigned[v.id]) for k, v in zip(saved.keys, saved.values, strict=True) if k}
    assert drawn == {name: f"plots.{draw.__name__}(results)" for name, draw in redraw.FIGURES.items()}
    added = [ast.unparse(assigned[v.id]) for k, v in zip(saved.keys, saved.values, strict=True) if not k]
    assert added == ["ablation.figures(varied)"]


def test_a_folder_of_results_is_redrawn_as_far_as_it_goes(tmp_path, capsys):
    folder = write_results(tmp_path / "mine", {model: MODELS[model] for model in ("base", "sft-comfort-only")})
    assert main(["figures", "--results", str(folder), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "left out: training_curves: training.csv: no curve of sft, dpo, kto" in said and "12 figure files" in said
    assert (tmp_path / "out/figures/gates.pdf").is_file() and (tmp_path / "out/paper/values.tex").is_file()
    assert "| SFT comfort only |" in (tmp_path / "out/summary.md").read_text(encoding="utf-8")
    assert main(["figures", "--results", str(tmp_path / "out")]) == 1
    assert "run.json: there is no file" in capsys.readouterr().err
