"""draw: figures and tables from result files alone, the same numbers and the same bytes; two runs compared."""

import json
import os
import subprocess
import sys
import warnings
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import yaml

from medcomfort_utils import paths, profile
from medcomfort_utils.__main__ import main
from medcomfort_utils.draw import compare, paper, plots, style, tables
from medcomfort_utils.draw.results import FILES, read_results
from medcomfort_utils.paths import ROOT, MedComfortError

MODELS = {  # model: (method, seeds, knowledge, comfort on emotional questions, on neutral questions)
    "original": ("reference", 0, 1.0, 0.05, 0.05),
    "template": ("reference", 0, 1.0, 4.05, 0.05),
    "base": ("base", 0, 0.93, 0.04, 0.03),
    "sft": ("sft", 3, 0.925, 3.91, 0.10),
    "dpo": ("dpo", 3, 0.921, 4.02, 0.21),
    "kto": ("kto", 3, 0.928, 3.98, 0.08),
    "sft-comfort-only": ("sft", 1, 0.31, 4.1, 0.3),
    "sft-more": ("sft", 3, 0.92, 3.95, 0.2),
}
RECIPE = {"target": "emotional", "against": ["original"], "neutral_fraction": 0.25, "seeds": [0, 1, 2], "max_steps": 25,
          "batch_size": 8, "learning_rate": 5e-5, "lora_rank": 0, "beta": 0.1, "sft_weight": 0.2}  # fmt: skip
SHARES = {f"{method}-{share}": share for method in ("sft", "dpo", "kto") for share in (0.0, 0.25, 0.5)}


def result_rows(models):
    """Rows as in results.json: the means in `models`, the single seeds beside them, comfort by emotion."""
    rows, random = [], np.random.default_rng(0)
    for model, (method, seeds, knowledge, *comfort) in models.items():
        for test_set, comforted in zip(("emotional", "neutral"), comfort, strict=True):
            means = dict.fromkeys(plots.MECHANISMS, comforted / 3) | {"comfort": comforted, "facts_kept": knowledge}
            means |= {"rouge_l": knowledge / 2, "ended": 0.99}
            for metric, mean in means.items():
                for seed in [*range(seeds), None]:
                    value = mean if seed is None else mean + random.normal(0, 0.02)
                    rows.append([model, method, seed, test_set, None, metric, value, value - 0.1, value + 0.2, 200])
        for emotion in ("anger", "fear"):
            low, high = comfort[0] - 0.3, comfort[0] + 0.3
            rows.append([model, method, None, "emotional", emotion, "comfort", comfort[0], low, high, 9])
    columns = ("model", "method", "seed", "test_set", "emotion", "metric", "value", "low", "high", "n")
    return [dict(zip(columns, row, strict=True)) for row in rows]


def claim_rows(models):
    for model in [model for model in models if model in ("sft", "dpo", "kto")]:
        worse = {"estimate": -0.02, "low": -0.061, "high": 0.02, "verdict": "inconclusive", "effect_size": -0.1}
        yield {"id": "comfort_superior", "model": model, "estimate": 3.87, "low": 3.8, "high": 3.94, "p_value": 0.0001,
               "verdict": "supported", "effect_size": 1.5}  # fmt: skip
        yield {"id": "knowledge_maintained", "model": model, "p_value": 0.04} | worse
        yield {"id": "red_flags_kept", "model": model, "verdict": "no verdict", "reason": "no flag", "estimate": None}
        none = {"verdict": "no verdict", "reason": "too few questions", "estimate": -0.01, "low": -0.04, "high": 0.02}
        yield {"id": "knowledge_maintained_neutral", "model": model} | none


def write_results(folder, models=MODELS, recipes=None, **run):
    """A made-up folder of results, with the effective profile beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    recipes = recipes or {model: {"method": told[0]} for model, told in models.items() if told[1]}
    told = {"rewrite": {"source": "clinic"}, "models": {model: RECIPE | own for model, own in recipes.items()}}
    (folder / "profile.yaml").write_text(yaml.safe_dump({"name": "mine", **told}))
    run = {"corpus": "clinic", "base_model": "data/nano_base"} | run
    for name, value in (("results", result_rows(models)), ("claims", list(claim_rows(models))), ("run", run)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    replies = [{"model": model, "method": told[0], "seed": None, "test_set": "emotional", "dialogue_id": f"d{n}",
                "emotion": emotion, "comfort": told[3] + n, "length": n} for model, told in models.items()
               for n, emotion in enumerate(("anger", "fear"))]  # fmt: skip
    pd.DataFrame(replies).astype({"seed": "Int64"}).to_parquet(folder / "scores.parquet")
    steps = [{"model": model, "method": told[0], "seed": seed, "step": step, "metric": metric, "value": 1 / step + seed}
             for model, told in models.items() for seed in range(told[1]) for step in range(1, 13)
             for metric in ("loss", "rewards/margins")]  # fmt: skip
    broken = {"model": "echo", "metric": "comfort", "expected": "at most 1", "value": 0.1, "holds": True}
    tables = {"training": steps or [dict.fromkeys(("model", "method", "seed", "step", "metric", "value"))],
              "gates": [{"gate": "facts_kept", "condition": "emotional", "checked": 1400, "failed": 12}],
              "cleaning": [{"reason": "read", "count": 465}, {"reason": "kept", "count": 451}],
              "adversarial": [broken]}  # fmt: skip
    for name, rows in tables.items():
        pd.DataFrame(rows).to_csv(folder / f"{name}.csv", index=False)
    return folder


def write_ablation(folder):
    """Three kinds of pairs, three shares of neutral pairs, and DPO from the base."""
    recipes = {name: {"method": name[:3], "neutral_fraction": share} for name, share in SHARES.items()}
    for name, share in SHARES.items():
        recipes[name] |= {} if name.startswith("sft") else {"after": f"sft-{share}"}
    recipes["sft-plain"] = {"method": "sft", "neutral_fraction": 0.0, "target": "original"}
    recipes["dpo-from-base"] = {"method": "dpo"}
    models = {"base": MODELS["base"]}
    models |= {name: (of["method"], 1, 0.9, 4 - 3 * of.get("neutral_fraction", 0), 1) for name, of in recipes.items()}
    return write_results(folder, models, recipes)


@pytest.fixture
def results(tmp_path):
    yield read_results(write_results(tmp_path / "mine"))
    plt.close("all")


@pytest.fixture
def ablation(tmp_path):
    yield read_results(write_ablation(tmp_path / "ablation"))
    plt.close("all")


def texts(drawn):
    """The figure's visible texts with their boxes in pixels."""
    drawn.canvas.draw()
    shown = [text for text in drawn.findobj(matplotlib.text.Text) if text.get_text().strip() and text.get_visible()]
    hidden = {label for axes in drawn.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()
              if not axes.axison or not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
              for label in (tick.label1, tick.label2)}  # fmt: skip
    return [(text.get_text(), text.get_window_extent()) for text in shown if text not in hidden]


@pytest.mark.parametrize("name", plots.FIGURES)
def test_every_label_lies_on_the_page_and_off_the_others(name, results, ablation):
    drawn = plots.FIGURES[name](ablation if name.startswith("ablation") else results)
    assert drawn.get_figwidth() in (style.COLUMN, style.PAGE)
    found = texts(drawn)
    assert all(box.x0 >= -1 and box.x1 <= drawn.bbox.x1 + 1 and box.y0 >= -1 for _, box in found)
    assert not [(a, b) for i, (a, one) in enumerate(found) for b, other in found[:i] if one.overlaps(other)]
    assert all(text.get_window_extent().x1 <= axes.bbox.x1 for axes in drawn.axes for text in axes.texts)  # headings


def test_bars_of_comfort_vs_knowledge_are_what_the_claims_test(results):
    drawn = plots.comfort_vs_knowledge(results)
    for axes, claim in zip(drawn.axes, ("comfort_superior", "knowledge_maintained"), strict=True):
        rows = results.claims[results.claims.id == claim]
        bars = [bar.get_segments()[0][:, 0].tolist() for point in axes.containers for bar in point[2]]
        assert all([row.low, row.high] == pytest.approx(bars[2 * i if claim != "comfort_superior" else i], abs=1e-9)
                   for i, row in enumerate(rows.itertuples()))  # fmt: skip
    assert any(line.get_xdata()[0] == -0.05 for line in drawn.axes[1].lines)
    with pytest.raises(MedComfortError, match=r"claims.json: no claims compare models with the base"):
        plots.comfort_vs_knowledge(replace(results, claims=results.claims[:0]))


def test_intervals_by_emotion_are_those_of_the_results_or_none(results):
    drawn = plots.comfort_by_emotion(results), plots.comfort_by_emotion(replace(results, emotions=results.emotions[:0]))
    with_bars, without = (next(c for c in d.axes[0].containers if c.get_label() == "SFT") for d in drawn)
    assert with_bars[0].get_ydata()[0] == without[0].get_ydata()[0] == 3.91
    assert with_bars[2][0].get_segments()[0][:, 1] == pytest.approx([3.61, 4.21]) and not without.has_yerr


def test_ablation_figures_hold_the_cells_of_the_profile(results, ablation):
    said = [text for text, _ in texts(plots.ablation_pairs(ablation))]
    assert {plots.TARGETS["original"], plots.TARGETS["emotional"], "Emotional and 25 % neutral questions, from SFT",
            "Emotional and 25 % neutral questions, from the base"} <= set(said)  # fmt: skip
    axes = plots.ablation_neutral_fraction(ablation).axes[0]
    assert [line.get_ydata().tolist() for line in axes.lines if len(line.get_ydata()) == 3] == [[4, 3.25, 2.5]] * 3
    text = tables.ablation_tex(ablation)
    for name in ("sft-original-0", "kto-emotional-0.5", "dpo-emotional-0.25", "dpo-emotional-0.25-from-base"):
        assert f"mc.ablation.{name}.emotional.comfort\\endcsname" in text
    with pytest.raises(MedComfortError, match="no method with three shares"):
        plots.ablation_neutral_fraction(results)


def test_saved_bytes_are_the_same_in_another_process(results, tmp_path):
    script = ("import sys; import matplotlib; matplotlib.use('Agg')\n"
              "from medcomfort_utils.draw import plots\nfrom medcomfort_utils.draw.results import read_results\n"
              "for name in sys.argv[3:]: plots.draw(name, read_results(sys.argv[1]), sys.argv[2])")  # fmt: skip
    names = ("comfort_vs_knowledge", "comfort_by_emotion")
    command = [sys.executable, "-c", script, str(tmp_path / "mine"), str(tmp_path / "there"), *names]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=ROOT)
    for name in names:
        plots.draw(name, results, tmp_path / "here")
        for suffix in ("pdf", "png"):
            here, there = ((tmp_path / place / f"{name}.{suffix}").read_bytes() for place in ("here", "there"))
            assert here == there
    pdf = (tmp_path / "here/comfort_by_emotion.pdf").read_bytes()
    assert b"Date" not in pdf and b"/Type3" not in pdf and b"/FontFile2" in pdf  # TrueType, embedded


@pytest.mark.parametrize("corpus", ["医疗对话语料", "cost$2024$", "clinic"])  # clinic: a file of that name
def test_names_that_people_give_are_shown_as_they_are(tmp_path, corpus):
    folder = write_results(tmp_path / "mine", corpus=corpus, synthetic=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        plots.draw("mechanisms", read_results(folder), tmp_path)
        drawn = plots.mechanisms(read_results(folder))
    note = " ".join(drawn.get_supxlabel().split())
    assert f"Corpus: {style.readable(corpus)}; model: data/nano_base." in note
    assert not drawn.findobj(matplotlib.text.Text)[0].get_parse_math()
    assert "made-up" not in tables.summary_markdown(read_results(folder), tmp_path)
    assert tables.values_tex(read_results(folder)).isascii()
    plt.close("all")


def test_results_table_has_the_numbers_of_the_results_in_order(results):
    table = tables.results_table(results).set_index("Model")
    assert list(table.index) == ["Base", "SFT", "SFT continued", "DPO", "KTO", "SFT comfort only", "Plain answer",
                                 "Rewrite"]  # fmt: skip
    assert list(table.columns) == ["Comfort, emotional", "Comfort, neutral", "Facts kept, emotional",
                                   "Facts kept, neutral", "Ended"]  # fmt: skip
    assert table.loc["SFT", "Comfort, emotional"] == "3.91 [3.81, 4.11]"
    free = results.table.assign(n=np.where(results.table.metric == "facts_kept", 90, 200))  # below half of the replies
    assert "ROUGE-L, neutral" in tables.results_table(replace(results, table=free))


def test_claims_table_shows_small_differences_and_reasons(results):
    rows = tables.claims_table(results).to_numpy().tolist()
    assert rows[0] == ["Comfort superior", "SFT", "3.87 [3.80, 3.94]", "1.50", "< 0.001", "supported"]
    assert rows[1][2:] == ["−0.020 [−0.061, 0.020]", "−0.10", "0.040", "inconclusive"]
    assert rows[2][2:] == ["–", "–", "–", "no verdict (no flag)"]
    assert rows[3][3:] == ["–", "–", "no verdict (too few questions)"]
    assert tables.verdicts(results, "comfort_superior") == "supported for SFT, DPO and KTO"


def test_latex_and_markdown_print_every_character():
    table = pd.DataFrame({"A & B": ["50 % of a|b", "x_1 < −2 ~ ^ # $ { } \\"], "n": ["3.1 [2.9, 3.3]", "–"]})
    assert tables.to_markdown(table).splitlines()[2] == r"| 50 % of a\|b | 3.1 [2.9, 3.3] |"
    lines = tables.to_latex(table).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}" and lines[4] == r"50 \% of a|b & 3.1 [2.9,~3.3] \\"
    assert lines[5] == r"x\_1 $<$ $-$2 \textasciitilde{} \textasciicircum{} \# \$ \{ \} \textbackslash{} & -- \\"


@pytest.mark.parametrize("name", FILES)
def test_missing_and_broken_files_are_named(tmp_path, name):
    folder = write_results(tmp_path)
    (folder / name).write_text("{not a table", encoding="utf-8")
    with pytest.raises(MedComfortError, match=name.replace(".", r"\.")):
        read_results(folder)
    (folder / name).unlink()
    with pytest.raises(MedComfortError, match=rf"^{name}: there is no file"):
        read_results(folder)


def test_the_command_draws_what_the_run_can_have(tmp_path, capsys):
    folder = write_results(tmp_path / "mine", {model: MODELS[model] for model in ("base", "sft-comfort-only")})
    assert main(["figures", "--results", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert {path.stem for path in (tmp_path / "out/figures").glob("*.png")} == {
        "collapse", "comfort_by_emotion", "mechanisms", "neutral_questions"}  # fmt: skip
    notebook = (tmp_path / "out/04_figures.ipynb").read_text(encoding="utf-8")
    assert "training_curves is left out: training.csv: no curve of sft" in notebook
    assert "| SFT comfort only |" in (tmp_path / "out/summary.md").read_text(encoding="utf-8")
    (folder / "results.json").write_text("[]")
    assert main(["figures", "--results", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "results.json has no row for the model base" in capsys.readouterr().err


def test_two_runs_are_compared(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    write_results(tmp_path / "plain")
    recipes = {"sft": {"method": "sft"}, "dpo": {"method": "dpo", "beta": 0.5}}
    warm = {model: MODELS[model] for model in ("base", "sft")} | {"dpo": ("dpo", 3, 0.921, 4.62, 0.21)}
    write_results(tmp_path / "warm", warm, recipes, versions={"torch": "2.13.0"}, corpus="other.jsonl")
    assert main(["compare", "plain", "warm", "--out", str(tmp_path / "told")]) == 0
    said = capsys.readouterr().out
    for row in ("| dpo.beta | 0.1 | 0.5 |", "| corpus | clinic | other.jsonl |", "| torch | – |"):
        assert row in said
    assert "Only in A: kto, sft-comfort-only, sft-more." in said and "Test dialogues in common: 2 of 2." in said
    # By hand: 0.6 ± sqrt(0.1² + 0.2²), both ways.
    assert "| DPO | emotional | Comfort | 4.02 [3.92, 4.22] | 4.62 [4.52, 4.82] | **0.600 [0.376, 0.824]** |" in said
    assert {p.name for p in (tmp_path / "told").iterdir()} == {f"plain-vs-warm.{end}" for end in ("md", "pdf", "png")}
    a = read_results(tmp_path / "plain")
    assert compare.to_markdown(a, a).count("The same.") == 3
    assert main(["compare", "plain", "nothing"]) == 1
    assert "There is no run 'nothing' with results" in capsys.readouterr().err


def test_only_a_whole_run_is_published(tmp_path, monkeypatch, results):
    monkeypatch.setattr(paper, "DATA", tmp_path / "data")
    monkeypatch.setattr(paper, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("a\n<!-- results: begin -->\nold\n<!-- results: end -->\nb\n")
    kept = paper.publish(tmp_path / "mine", "nano")
    assert {path.name for path in kept.iterdir()} == {*FILES, "profile.yaml"}
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert tables.to_markdown(tables.results_table(results)) in readme and "old" not in readme
    (tmp_path / "mine/scores.parquet").unlink()
    with pytest.raises(MedComfortError, match="scores.parquet"):
        paper.publish(tmp_path / "mine", "nano")
    assert (kept / "scores.parquet").is_file()


def test_the_ablation_changes_nothing_else():
    nano, varied = ({step.model: step.parameters for step in profile.load(name).steps if step.model}
                    for name in ("nano", "nano-ablation"))  # fmt: skip
    changed = {"name", "target", "against", "neutral_fraction", "init_from", "seeds", "more", "out_dir", "rewrites"}
    for model, told in varied.items():
        other = nano[told["method"]]
        differ = {key for key in told if told[key] != other[key] and (key != "sft_weight" or told["method"] == "dpo")}
        assert differ <= changed, (model, differ)
        start = varied.get(told["init_from"].rpartition("/")[2].removesuffix("-seed{seed}"), told)
        assert all(start[key] == told[key] for key in ("target", "neutral_fraction", "seeds", "base")), model
