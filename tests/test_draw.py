"""draw: figures with the right points, labels and bytes; tables with the right cells; one sentence for bad input."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from medcomfort_utils.draw import marks, plots, style, tables
from medcomfort_utils.draw.results import FILES, read_results
from medcomfort_utils.paths import ROOT, MedComfortError

MODELS = {  # model: (method, seeds, knowledge, comfort on emotional questions, on neutral questions)
    "base": ("base", 0, 0.93, 0.04, 0.03),
    "sft": ("sft", 3, 0.925, 3.91, 0.10),
    "dpo": ("dpo", 3, 0.921, 4.02, 0.21),
    "kto": ("kto", 3, 0.928, 3.98, 0.08),
    "original": ("reference", 0, 1.0, 0.05, 0.05),
    "template": ("reference", 0, 1.0, 4.05, 0.05),
    "dpo-from-base": ("dpo", 1, 0.02, 4.6, 4.4),
    "kto-from-base": ("kto", 1, 0.05, 4.4, 3.9),
    "sft-comfort-only": ("sft", 1, 0.31, 4.1, 0.3),
}
EMOTIONS = ("fear", "sadness", "anger", "guilt", "loneliness")
FIGURES = ("balance", "collapse", "by_emotion", "mechanisms", "training_curves", "gates", "neutral")


def result_rows(models, seed=0):
    """Rows as in results.json, made up around the means in `models`."""
    random, rows = np.random.default_rng(seed), []
    for model, (method, seeds, knowledge, emotional, neutral) in models.items():
        for test_set, comfort in (("emotional", emotional), ("neutral", neutral)):
            parts = dict(zip(marks.MECHANISMS, comfort * np.array([0.4, 0.38, 0.22]), strict=True))
            means = {"comfort": comfort, **parts, "facts_kept": knowledge, "red_flags_kept": knowledge}
            means |= {"rouge_l": 0.6 * knowledge, "length_ratio": 1 + comfort / 12, "ended": 0.99}
            for number in [*range(seeds), None]:
                for metric, mean in means.items():
                    top = marks.TOP.get(metric, 9 if metric == "length_ratio" else 1)
                    value = mean + (0 if number is None else random.normal(0, 0.012 * top))
                    low, value, high = np.clip(value + np.array([-1, 0, 1]) * 0.02 * top, 0, top).round(4).tolist()
                    rows.append({"model": model, "method": method, "seed": number, "test_set": test_set,
                                 "metric": metric, "value": value, "low": low, "high": high, "n": 200})  # fmt: skip
    return rows


def reply_rows(models, dialogues=12):
    """Rows as in scores.parquet; comfort only, the rest is not drawn from there."""
    random, rows = np.random.default_rng(1), []
    for model, (method, seeds, _, emotional, _) in models.items():
        for number in range(seeds) if seeds else [None]:
            for dialogue in range(dialogues):
                rows += [{"model": model, "method": method, "seed": number, "test_set": "emotional",
                          "dialogue_id": f"d{dialogue}", "emotion": emotion,
                          "comfort": float(np.clip(round(random.normal(emotional, 1)), 0, 6))}
                         for emotion in EMOTIONS]  # fmt: skip
    return rows


def training_rows(models):
    random, rows = np.random.default_rng(2), []
    for model, (method, seeds, *_) in models.items():
        names = ["loss", "validation loss"] + ["rewards/margins", "rewards/accuracies"] * (method in ("dpo", "kto"))
        for number in range(seeds):
            for metric in names:
                for step in range(10, 201, 40 if metric == "validation loss" else 10):
                    fall = np.exp(-step / 50)
                    value = 0.3 + 1.5 * fall if "loss" in metric else (3 if "margins" in metric else 0.97) * (1 - fall)
                    rows.append({"model": model, "method": method, "seed": number, "step": step, "metric": metric,
                                 "value": value + random.normal(0, 0.04)})  # fmt: skip
    return rows


def gate_rows(failing=True):
    failed = {("numbers_kept", "emotional"): 12, ("comfort_present", "soothing_answer"): 31, ("length", "multiturn"): 3}
    names = ("numbers_kept", "none_invented", "facts_kept", "red_flags_kept", "question_kept", "emotion_present",
             "comfort_present", "no_false_reassurance", "no_role_leak", "length")  # fmt: skip
    rows = []
    for gate in names:
        for condition in ("soothing_answer", "emotional", "comfort_only", "multiturn"):
            if condition == "comfort_only" and gate in ("facts_kept", "red_flags_kept", "length"):
                continue
            lost = failed.get((gate, condition), 0) * failing
            rows.append({"gate": gate, "condition": condition, "checked": 1400, "failed": lost, "share": lost / 1400})
    return rows


def claim_rows(models):
    rows = [{"id": claim, "model": model, "estimate": 3.87, "low": 3.8, "high": 3.94, "p_value": 0.0001,
             "verdict": "supported", "effect_size": 1.5, "effect_size_kind": "d_z"}
            for claim in ("comfort_superior", "knowledge_maintained") for model in ("sft", "dpo", "kto")
            if model in models]  # fmt: skip
    return [row | ({"estimate": -0.004, "low": -0.061, "high": 0.02, "p_value": 0.04, "verdict": "inconclusive"}
                   if row["id"] != "comfort_superior" else {}) for row in rows]  # fmt: skip


def write_results(folder, models=MODELS, **run):
    folder.mkdir(parents=True, exist_ok=True)
    run = {"corpus": "clinic", "base_model": "data/nano_base", "profile": "nano"} | run
    for name, value in (("results", result_rows(models)), ("claims", claim_rows(models)), ("run", run)):
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    pd.DataFrame(reply_rows(models)).astype({"seed": "Int64"}).to_parquet(folder / "scores.parquet")
    pd.DataFrame(training_rows(models)).to_csv(folder / "training.csv", index=False)
    pd.DataFrame(gate_rows()).to_csv(folder / "gates.csv", index=False)
    cleaning = {"read": 465, "too short": 3, "near duplicate": 11, "too long": 0, "kept": 451}
    pd.DataFrame(cleaning.items(), columns=["reason", "count"]).to_csv(folder / "cleaning.csv", index=False)
    broken = {"model": ["echo"], "metric": ["comfort"], "expected": ["at most 0.25 of template"], "value": [0.1]}
    pd.DataFrame(broken | {"bound": [0.8], "holds": [True]}).to_csv(folder / "adversarial.csv", index=False)
    return folder


@pytest.fixture
def folder(tmp_path):
    yield write_results(tmp_path / "results")
    plt.close("all")


@pytest.fixture
def results(folder):
    return read_results(folder)


def with_values(results, chosen, **values):
    """The results with `schema` set in the chosen rows of the table."""
    table = results.table.copy()
    table.loc[chosen(table), list(values)] = list(values.values())
    return replace(results, table=table)


def drawn_models(axes):
    return [container.get_label() for container in axes.containers]


def written_text(drawn):
    """Everything that the figure says, in one string."""
    return "\n".join(text.get_text() for text in drawn.findobj(matplotlib.text.Text))


def label_boxes(axes, models):
    """The extents in pixels of the direct labels of `models`, without their leader lines."""
    axes.figure.canvas.draw()
    names = [style.label(model) for model in models]
    notes = [text for text in axes.texts if text.get_text() in names]
    assert sorted(note.get_text() for note in notes) == sorted(names)
    return [matplotlib.text.Text.get_window_extent(note) for note in notes]


def _beyond_the_axis(axes):
    """Tick labels that exist, but lie outside the limits and are never drawn."""
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, sorted(axes.get_ylim()))):
        for tick in axis.get_major_ticks():
            if not low <= tick.get_loc() <= high or not tick.label1.get_visible():
                yield from (tick.label1, tick.label2)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_says_what_it_stands_on_and_fits_the_page(results, name):
    drawn = getattr(plots, name)(results)
    said = " ".join(written_text(drawn).split())
    assert "A made-up world and a model of about 2 million parameters: it shows the mechanism, not the paper" in said
    assert drawn.get_figwidth() in (style.COLUMN, style.PAGE)
    drawn.canvas.draw()
    hidden = [text for axes in drawn.axes if not axes.axison for text in axes.findobj(matplotlib.text.Text)]
    hidden += [label for axes in drawn.axes for label in _beyond_the_axis(axes)]
    for text in drawn.findobj(matplotlib.text.Text):
        if text.get_text() and text.figure is drawn and text not in hidden:
            box = text.get_window_extent()
            assert box.x0 >= -1 and box.x1 <= drawn.bbox.x1 + 1, text.get_text()


def test_balance_has_a_point_a_model_and_an_arrow_a_tuned_one(results):
    axes = plots.balance(results).axes[0]
    assert drawn_models(axes) == ["base", "sft", "dpo", "kto", "original", "template"]
    sft = axes.containers[1][0]
    assert (sft.get_xdata()[0], sft.get_ydata()[0]) == (0.925, 3.91)
    arrows = [text for text in axes.texts if not text.get_text()]
    assert [tuple(arrow.xyann) for arrow in arrows] == [(0.93, 0.04)] * 3
    assert len(axes.collections[0].get_offsets()) == 9  # three seeds of three models
    assert "axis starts at 0.85" in axes.get_xlabel() and axes.get_xlim()[0] == pytest.approx(0.85, abs=1e-6)


@pytest.mark.parametrize("same", [False, True])
def test_labels_of_balance_never_overlap(tmp_path, same):
    one_place = {model: (method, seeds, 0.95, 4.0, 0.1) for model, (method, seeds, *_) in MODELS.items()}
    results = read_results(write_results(tmp_path, one_place if same else MODELS))
    axes = plots.balance(results).axes[0]
    boxes = label_boxes(axes, results.models)
    assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    plt.close("all")


def test_margin_is_drawn_where_it_can_be_missed(results):
    axes = plots.balance(results, margin=0.04).axes[0]
    assert "0.04 or more below base" in written_text(axes.figure)
    assert any(line.get_xdata()[0] == pytest.approx(0.89) for line in axes.lines if line.get_linestyle() == "--")
    ignorant = with_values(results, lambda t: (t.model == "base") & (t.metric == "facts_kept"), value=0.01, low=0.0)
    assert "below base" not in written_text(plots.balance(ignorant))


def test_collapse_pairs_each_trial_with_its_sound_twin(results):
    drawn = plots.collapse(results)
    rows = ["base", "sft", "sft-comfort-only", "dpo", "dpo-from-base", "kto", "kto-from-base"]
    assert [drawn_models(axes) for axes in drawn.axes] == [rows, rows]
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == [style.label(model) for model in rows]
    arrow = drawn.axes[0].texts[0]
    assert (arrow.xyann, arrow.xy) == ((0.921, 3), (0.02, 4))  # the trial that comes first in the file: dpo


def test_collapse_without_trials_says_so(tmp_path):
    results = read_results(write_results(tmp_path, {model: MODELS[model] for model in ("base", "dpo", "original")}))
    drawn = plots.collapse(results)
    assert drawn_models(drawn.axes[0]) == ["base", "dpo"]
    assert "tried no recipe beside the claims' own" in written_text(drawn)


def test_mechanisms_and_neutral_have_all_models(results):
    assert [drawn_models(axes) for axes in plots.mechanisms(results).axes] == [results.models] * 3
    axes = plots.neutral(results).axes[0]
    assert drawn_models(axes) == results.models * 2
    assert [box[0].get_markerfacecolor() for box in axes.containers[6:8]] == ["white"] * 2
    assert axes.containers[1][0].get_xdata()[0] == 3.91 and axes.containers[7][0].get_xdata()[0] == 0.1


def test_by_emotion_averages_seeds_and_dialogues(results):
    scores = results.scores.assign(comfort=lambda t: (t.emotion == "guilt") * 4.0 + t.seed.fillna(0).astype(float))
    axes = plots.by_emotion(replace(results, scores=scores), samples=20).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["Anger", "Fear", "Guilt", "Loneliness", "Sadness"]
    points = [line.get_ydata() for line in axes.lines if line.get_marker() == style.marker("sft")]
    assert points[0].tolist() == [1, 1, 5, 1, 1]


def test_every_figure_but_the_curves_can_show_the_base_alone(tmp_path):
    alone = {model: MODELS[model] for model in ("base", "sft-comfort-only")}
    results = read_results(write_results(tmp_path, alone))
    for name in sorted(set(FIGURES) - {"training_curves"}):
        assert getattr(plots, name)(results).axes
    plt.close("all")


def test_training_curves_leave_trials_out(results):
    drawn = plots.training_curves(results)
    titles = {axes.get_title(loc="left"): axes for axes in drawn.axes if axes.get_title(loc="left")}
    assert list(titles) == ["SFT: loss", "DPO: loss", "KTO: loss", "DPO: reward margin", "KTO: reward margin"]
    assert len(titles["DPO: reward margin"].lines) == 4  # three seeds and their mean: `dpo-from-base` has no line
    assert len(titles["DPO: loss"].lines) == 8  # the validation loss beside it


def test_gates_show_failures_and_drops(results):
    drawn = plots.gates(results)
    cells = [text.get_text() for text in drawn.axes[0].texts]
    assert cells.count("0") == 34 and {"12/1400", "31/1400", "3/1400"} < set(cells)
    assert "Gates: 46 failures" in written_text(drawn) and "Cleaning: 14 dialogues dropped" in written_text(drawn)
    assert [bar.get_width() for bar in drawn.axes[1].patches] == [3, 11, 0]


def test_gates_say_when_nothing_was_dropped(results):
    kept = results.cleaning[results.cleaning.reason.isin(["read", "kept"])]
    drawn = plots.gates(replace(results, gates=results.gates.assign(failed=0, share=0.0), cleaning=kept))
    assert "Gates: no rewrite was dropped" in written_text(drawn)
    assert "Cleaning: no dialogue was dropped" in written_text(drawn)


def test_saved_bytes_are_the_same_in_another_process(folder, tmp_path):
    script = (
        "import sys; import matplotlib; matplotlib.use('Agg')\n"
        "from medcomfort_utils.draw import plots, style\n"
        "from medcomfort_utils.draw.results import read_results\n"
        "results = read_results(sys.argv[1])\n"
        "for name in sys.argv[3:]: style.save(getattr(plots, name)(results), name, sys.argv[2])"
    )
    names = ("balance", "by_emotion", "gates")  # placed labels, bootstrap, heat map
    command = [sys.executable, "-c", script, str(folder), str(tmp_path), *names]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONHASHSEED": "7"}, cwd=ROOT)
    results = read_results(folder)
    for name in names:
        for path in style.save(getattr(plots, name)(results), name, tmp_path / "here"):
            assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name
    pdf = (tmp_path / "balance.pdf").read_bytes()
    assert b"Date" not in pdf and b"/Type3" not in pdf and b"/FontFile2" in pdf  # TrueType, embedded


def test_save_returns_what_it_wrote_at_print_size(results, tmp_path):
    pdf, png = style.save(plots.neutral(results), "neutral", tmp_path)
    assert (pdf.name, png.name) == ("neutral.pdf", "neutral.png")
    assert plt.imread(png).shape[1] == pytest.approx(84 / 25.4 * 200, abs=1)


def test_colours_are_fixed_and_trials_are_tints():
    models = ("base", "sft", "dpo", "kto", "original", "template")
    assert len({(style.colour(model), style.marker(model)) for model in models}) == len(models)
    trial, dpo = (matplotlib.colors.to_rgb(style.colour(model)) for model in ("dpo-from-base", "dpo"))
    assert all(light > full for light, full in zip(trial, dpo, strict=True))
    assert style.marker("dpo-from-base") == "X" and style.colour("something-else")


def test_labels_are_plain_words():
    assert [style.label(name) for name in ("facts_kept", "dpo-from-base", "rouge_l", "original")] == [
        "Facts kept", "DPO from base", "ROUGE-L", "Plain answer"]  # fmt: skip
    assert [style.within(name) for name in ("facts_kept", "rouge_l")] == ["facts kept", "ROUGE-L"]


def test_results_table_cells(results):
    table = tables.results_table(results).set_index("Model")
    assert list(table.columns) == ["Comfort, emotional", "Comfort, neutral", "Facts kept, emotional",
                                   "Facts kept, neutral", "Red flags kept", "Length ratio", "Ended"]  # fmt: skip
    assert table.loc["SFT", "Comfort, emotional"] == "3.91 [3.79, 4.03]"
    assert list(table.index) == ["Base", "SFT", "DPO", "KTO", "DPO from base", "KTO from base", "SFT comfort only",
                                 "Plain answer", "Template rewrite"]  # fmt: skip


def test_results_table_without_facts_or_red_flags(results):
    rest = results.table[~results.table.metric.isin(["facts_kept", "red_flags_kept"])]
    rest = rest[(rest.model != "kto") | (rest.metric != "ended")]
    other = replace(results, table=rest, run={"corpus": "icliniqQAs.json", "base_model": "tiny/model"})
    table = tables.results_table(other).set_index("Model")
    assert "ROUGE-L, neutral" in table and "Red flags kept" not in table and table.loc["KTO", "Ended"] == "–"
    drawn = plots.balance(other)
    assert "ROUGE-L" in drawn.axes[0].get_xlabel()
    said = written_text(drawn)
    assert "icliniqQAs.json" in said and "made-up" not in said and "million" not in said


def test_knowledge_needs_half_of_the_replies(results):
    few = with_values(results, lambda t: t.metric == "facts_kept", n=90)
    assert (results.knowledge, few.knowledge) == ("facts_kept", "rouge_l")


def test_claims_table_shows_small_differences(results):
    table = tables.claims_table(results)
    assert table.iloc[0].tolist() == ["Comfort superior", "SFT", "3.87 [3.80, 3.94]", "1.50", "< 0.001", "supported"]
    assert table.iloc[4].tolist()[1:] == ["DPO", "−0.004 [−0.061, 0.020]", "1.50", "0.040", "inconclusive"]


def test_markdown_and_latex_escape():
    table = pd.DataFrame({"A & B": ["50 % of a|b", "x_1 < −2 ~ ^ # $ { } \\"], "n": [1, "–"]})
    assert tables.to_markdown(table).splitlines()[:3] == ["| A & B | n |", "| :-- | --: |", r"| 50 % of a\|b | 1 |"]
    lines = tables.to_latex(table).splitlines()
    assert lines[:4] == [r"\begin{tabular}{lr}", r"\toprule", r"A \& B & n \\", r"\midrule"]
    assert lines[4:] == [
        r"50 \% of a|b & 1 \\",
        r"x\_1 $<$ $-$2 \textasciitilde{} \textasciicircum{} \# \$ \{ \} \textbackslash{} & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_latex_aligns_words_left_and_numbers_right():
    table = pd.DataFrame({"Claim": ["x"], "d_z": ["−0.02"], "p": ["< 0.001"], "n": ["–"], "Verdict": ["supported"]})
    lines = tables.to_latex(table).splitlines()
    assert lines[0] == r"\begin{tabular}{lrrll}"
    assert lines[2] == r"Claim & $d_z$ & $p$ & n & Verdict \\"


def test_values_are_named_and_complete(results):
    text = tables.values_tex(results)
    for name, value in {
        "sft.emotional.comfort": "3.91",
        "sft.emotional.comfort.low": "3.79",
        "dpo-from-base.neutral.facts_kept": "0.02",
        "claim.comfort_superior.dpo.verdict": "supported",
        "claim.comfort_superior.dpo.p": "$<$ 0.001",
        "claim.comfort_superior.dpo.effect": "1.50",
        "claim.knowledge_maintained.kto.estimate": "$-$0.004",
        "run.base_model": r"data/nano\_base",
    }.items():
        assert rf"\expandafter\def\csname mc.{name}\endcsname{{{value}}}" in text.splitlines()
    names = [line.split("mc.")[1].split("\\")[0] for line in text.splitlines() if line.startswith(r"\expandafter")]
    assert len(names) == len(set(names))
    assert r"\errmessage" in text  # a name that is not there stops LaTeX


def test_summary_tells_all(results):
    text = tables.summary_markdown(results, ["figures/balance.pdf"])
    assert "This is a run on clinic with data/nano_base. A made-up world and a model of about 2 million" in text
    assert "| SFT | 3.91 [3.79, 4.03] |" in text and "| inconclusive |" in text and "- figures/balance.pdf\n" in text
    assert "No claim was tested." in tables.summary_markdown(replace(results, claims=results.claims[:0]), [])


@pytest.mark.parametrize("name", FILES)
def test_missing_and_broken_files_are_named(folder, name):
    (folder / name).write_text("{not a table", encoding="utf-8")
    with pytest.raises(MedComfortError, match=name.replace(".", r"\.")):
        read_results(folder)
    (folder / name).unlink()
    with pytest.raises(MedComfortError, match=rf"^{name}: there is no file"):
        read_results(folder)


def test_empty_files_are_named(folder):
    (folder / "training.csv").write_text("", encoding="utf-8")
    with pytest.raises(MedComfortError, match="training.csv cannot be read as a table; run 03_evaluate again"):
        read_results(folder)


def test_results_without_the_base_are_refused(folder):
    (folder / "results.json").write_text("[]", encoding="utf-8")
    with pytest.raises(MedComfortError, match="results.json has no row for the model base"):
        read_results(folder)


def test_a_run_without_claims_is_read(folder):
    (folder / "claims.json").write_text("[]", encoding="utf-8")
    assert read_results(folder).claims.empty


def test_what_cannot_be_drawn_is_said(results):
    with pytest.raises(MedComfortError, match="training.csv: no curve of sft, dpo, kto"):
        plots.training_curves(replace(results, training=results.training[results.training.model == "dpo-from-base"]))
    with pytest.raises(MedComfortError, match="scores.parquet: there is no reply to an emotional question"):
        plots.by_emotion(replace(results, scores=results.scores.assign(test_set="neutral")))
    with pytest.raises(MedComfortError, match="gates.csv: no gate was checked"):
        plots.gates(replace(results, gates=results.gates[:0]))
    without = results.table[~results.table.metric.isin(["facts_kept", "rouge_l"])]
    with pytest.raises(MedComfortError, match="the base has none of facts_kept, facts_supported, rouge_l"):
        plots.balance(replace(results, table=without))
