"""draw: figures and tables from result files alone, the same numbers and the same bytes; two runs compared."""

import os
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import yaml

from medcomfort_utils import paths, profile
from medcomfort_utils.__main__ import main
from medcomfort_utils.draw import compare, paper, plots, style, tables
from medcomfort_utils.draw.results import FILES, read_results
from medcomfort_utils.paths import DATA, ROOT, MedComfortError, read_json, write_json

NANO = DATA / "results/nano"


@pytest.fixture
def results():
    yield read_results(NANO)
    plt.close("all")


@pytest.fixture
def ablation():
    yield read_results(DATA / "results/nano-ablation")
    plt.close("all")


@pytest.fixture
def folder(tmp_path):
    """A run's folder to change."""
    return shutil.copytree(NANO, tmp_path / "mine")


def change(folder, **values):
    """Values of run.json."""
    write_json(folder / "run.json", read_json(folder / "run.json", "") | values)


def texts(drawn):
    """The figure's visible texts with their boxes in pixels."""
    drawn.canvas.draw()
    shown = [text for text in drawn.findobj(matplotlib.text.Text) if text.get_text().strip() and text.get_visible()]
    hidden = {label for axes in drawn.axes for axis in (axes.xaxis, axes.yaxis) for tick in axis.get_major_ticks()
              if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
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


def test_bars_are_what_the_claims_test_and_what_the_results_say(results):
    def bars(axes):
        return [bar.get_segments()[0][:, 0].tolist() for point in axes.containers for bar in point[2]]

    drawn = plots.comfort_vs_knowledge(results)
    for axes, claim in zip(drawn.axes, ("comfort_superior", "knowledge_maintained"), strict=True):
        for row in results.claims[results.claims.id == claim].itertuples():
            assert any([row.low, row.high] == pytest.approx(bar) for bar in bars(axes))
    assert any(line.get_xdata()[0] == -0.05 for line in drawn.axes[1].lines)
    sft = results.emotions[results.emotions.model == "sft"].sort_values("emotion").iloc[0]
    assert any([sft.low, sft.high] == pytest.approx(bar) for bar in bars(plots.comfort_by_emotion(results).axes[0]))
    with pytest.raises(MedComfortError, match=r"claims.json: no claims compare models with the base"):
        plots.comfort_vs_knowledge(replace(results, claims=results.claims[:0]))


def test_ablation_figures_hold_the_cells_of_the_profile(results, ablation):
    said = [text for text, _ in texts(plots.ablation_pairs(ablation))]
    assert {*plots.TARGETS.values(), "Emotional and 25 % neutral questions, from SFT",
            "Emotional and 25 % neutral questions, from the base"} <= set(said)  # fmt: skip
    names = [f"sft-neutral_fraction-{share}" for share in (0, 50, 75)]
    comfort = ablation.values("comfort").value
    drawn = [list(line.get_ydata()) for line in plots.ablation_neutral_fraction(ablation).axes[0].lines]
    assert [comfort[names[0]], comfort["sft"], *comfort[names[1:]]] in drawn
    value = tables.number(comfort[names[1]])
    assert f"mc.ablation.sft-emotional-0.5.emotional.comfort\\endcsname{{{value}}}" in tables.ablation_tex(ablation)
    with pytest.raises(MedComfortError, match="no method with three shares"):
        plots.ablation_neutral_fraction(results)


def test_saved_bytes_are_the_same_in_another_process(results, tmp_path):
    script = ("import sys; import matplotlib; matplotlib.use('Agg')\n"
              "from medcomfort_utils.draw import plots\nfrom medcomfort_utils.draw.results import read_results\n"
              "for name in sys.argv[3:]: plots.draw(name, read_results(sys.argv[1]), sys.argv[2])")  # fmt: skip
    names = ("comfort_vs_knowledge", "comfort_by_length")
    command = [sys.executable, "-c", script, str(NANO), str(tmp_path / "there"), *names]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=ROOT)
    for name in names:
        plots.draw(name, results, tmp_path / "here")
        for suffix in ("pdf", "png"):
            here, there = ((tmp_path / place / f"{name}.{suffix}").read_bytes() for place in ("here", "there"))
            assert here == there
    pdf = (tmp_path / "here/comfort_by_length.pdf").read_bytes()
    assert b"Date" not in pdf and b"/Type3" not in pdf and b"/FontFile2" in pdf  # TrueType, embedded


@pytest.mark.parametrize("corpus", ["医疗对话语料", "cost$2024$", "clinic"])  # clinic: a file of that name
def test_names_that_people_give_are_shown_as_they_are(folder, tmp_path, corpus):
    change(folder, corpus=corpus)
    (folder / "profile.yaml").write_text("rewrite: {source: clinic.jsonl}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of a glyph that is missing
        drawn = plots.draw("mechanisms", read_results(folder), tmp_path)
    note = " ".join(drawn.get_supxlabel().split())
    assert f"Corpus: {style.readable(corpus)}; model: data/nano_base." in note
    assert not drawn.findobj(matplotlib.text.Text)[0].get_parse_math()
    assert "made-up" not in tables.summary_markdown(read_results(folder), tmp_path)
    assert tables.values_tex(read_results(folder)).isascii()


def test_results_table_has_the_numbers_of_the_results_in_order(results):
    table = tables.results_table(results).set_index("Model")
    assert list(table.index) == ["Base", "SFT", "SFT continued", "DPO", "KTO", "DPO from base", "KTO from base",
                                 "SFT comfort only", "Plain answer", "Rewrite"]  # fmt: skip
    assert list(table.columns)[:4] == ["Comfort, emotional", "Comfort, neutral", "Facts kept, emotional",
                                       "Facts kept, neutral"]  # fmt: skip
    assert table.loc["SFT", "Comfort, emotional"] == tables.cell(*results.values("comfort").loc["sft"][:3])
    assert table.loc["Rewrite", "Ended"] == "–"
    free = results.table.assign(n=results.table.n.where(results.table.metric != "facts_kept", 1))  # by chance
    assert "Facts supported, neutral" in tables.results_table(replace(results, table=free))


def test_claims_show_small_differences_and_why_there_is_no_verdict(results):
    claims = results.claims[:3].assign(
        verdict=["supported", "inconclusive", "no verdict"], reason=["", "by chance", "no flag"],
        estimate=[3.87, -0.02, None], low=[3.8, -0.061, None], high=[3.94, 0.02, None],
        p_value=[0.0001, 0.04, None], effect_size=[1.5, -0.1, None])  # fmt: skip
    results = replace(results, claims=claims)
    assert tables.claims_table(results).iloc[:, 3:].to_numpy().tolist() == [
        ["3.87 [3.80, 3.94]", "1.50", "< 0.001", "supported"],
        ["−0.020 [−0.061, 0.020]", "−0.10", "0.040", "inconclusive"],
        ["–", "–", "–", "no verdict (no flag)"],
    ]
    said = tables.verdicts(results, "comfort_superior")
    assert said == "supported for SFT; inconclusive for DPO; no verdict for KTO"
    plots.comfort_vs_knowledge(replace(results, claims=pd.concat([claims, read_results(NANO).claims])))


def test_latex_and_markdown_print_every_character():
    table = pd.DataFrame({"A & B": ["50 % of a|b", "x_1 < −2 ~ ^ # $ { } \\"], "n": ["3.1 [2.9, 3.3]", "–"]})
    assert tables.to_markdown(table).splitlines()[2] == r"| 50 % of a\|b | 3.1 [2.9, 3.3] |"
    lines = tables.to_latex(table).splitlines()
    assert lines[0] == r"\begin{tabular}{lr}" and lines[4] == r"50 \% of a|b & 3.1 [2.9,~3.3] \\"
    assert lines[5] == r"x\_1 $<$ $-$2 \textasciitilde{} \textasciicircum{} \# \$ \{ \} \textbackslash{} & -- \\"


@pytest.mark.parametrize("name", FILES)
def test_missing_and_broken_files_are_named(folder, name):
    (folder / name).write_text("{not a table", encoding="utf-8")
    with pytest.raises(MedComfortError, match=name.replace(".", r"\.")):
        read_results(folder)
    (folder / name).unlink()
    with pytest.raises(MedComfortError, match=rf"^{name}: there is no file"):
        read_results(folder)


def test_the_command_draws_what_the_run_can_have(folder, tmp_path, capsys):
    for name in ("results", "claims"):
        rows = [row for row in read_json(folder / f"{name}.json", "") if row["model"] in ("base", "sft-comfort-only")]
        write_json(folder / f"{name}.json", rows)
    (folder / "training.csv").write_text("model,method,seed,step,metric,value\n")
    assert main(["figures", "--results", str(folder), "--out", str(tmp_path / "out")]) == 0
    assert {path.stem for path in (tmp_path / "out/figures").glob("*.png")} == {
        "collapse", "comfort_by_emotion", "comfort_by_length", "mechanisms", "neutral_questions"}  # fmt: skip
    notebook = (tmp_path / "out/04_figures.ipynb").read_text(encoding="utf-8")
    assert "training_curves is left out: training.csv: no curve of sft" in notebook
    assert "| SFT comfort only |" in (tmp_path / "out/summary.md").read_text(encoding="utf-8")
    (folder / "results.json").write_text("[]")
    assert main(["figures", "--results", str(folder), "--out", str(tmp_path / "out")]) == 1
    assert "results.json has no row for the model base" in capsys.readouterr().err


def test_two_runs_are_compared(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    change(folder, corpus="other.jsonl")
    recipes = yaml.safe_load((folder / "profile.yaml").read_text())
    recipes["models"]["dpo"]["beta"] = 0.5
    (folder / "profile.yaml").write_text(yaml.safe_dump(recipes))
    rows = pd.DataFrame(read_json(folder / "results.json", "")).query("model != 'kto'")
    chosen = (rows.model == "dpo") & (rows.metric == "comfort") & rows.seed.isna() & rows.emotion.isna()
    rows.loc[chosen, ["value", "low", "high"]] = 5.0, 4.9, 5.1
    rows.to_json(folder / "results.json", orient="records")
    assert main(["compare", "nano", "mine", "--out", str(tmp_path / "told")]) == 0
    said = capsys.readouterr().out
    assert "| dpo.beta | 0.1 | 0.5 |" in said and "| corpus | clinic | other.jsonl |" in said
    assert "Only in A: kto." in said and "| 5.00 [4.90, 5.10] | **" in said
    assert {p.name for p in (tmp_path / "told").iterdir()} == {f"nano-vs-mine.{end}" for end in ("md", "pdf", "png")}
    found = compare.differences(read_results(NANO), read_results(folder)).set_index(["model", "test_set", "metric"])
    row = found.loc[("dpo", "emotional", "comfort")]  # by hand, from the two intervals' arms
    assert row.low == pytest.approx(5 - row.value_a - ((row.high_a - row.value_a) ** 2 + 0.1**2) ** 0.5)
    assert main(["compare", "nano", "nothing"]) == 1
    assert "There is no run 'nothing' with results" in capsys.readouterr().err


def test_only_a_whole_run_is_published(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(paper, "DATA", tmp_path / "data")
    monkeypatch.setattr(paper, "README", tmp_path / "README.md")
    (tmp_path / "README.md").write_text("a\n<!-- results: begin -->\nold\n<!-- results: end -->\nb\n")
    (folder / "judge.csv").write_text("model,seed,aspect,value,low,high\nsft,0,comfort,0.75,0.6,0.9\n")
    assert "| sft | 0 | comfort | 0.75 |" in tables.summary_markdown(read_results(folder), tmp_path)
    kept = paper.publish(folder, "nano")
    assert {path.name for path in kept.iterdir()} == {*FILES, "profile.yaml", "judge.csv"}
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "| Comfort superior | SFT | Base |" in readme and "old" not in readme
    (folder / "scores.parquet").unlink()
    with pytest.raises(MedComfortError, match="scores.parquet"):
        paper.publish(folder, "nano")
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
