"""The ablation: a profile that changes one thing at a time, and its figures, on a made-up table of results."""

from dataclasses import replace
from functools import cache

import matplotlib
import matplotlib.pyplot as plt
import pytest
import yaml
from test_draw import MODELS, write_results, written_text

from medcomfort_utils import profile
from medcomfort_utils.draw import ablation, publish, redraw, style
from medcomfort_utils.draw.results import read_results
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import TARGETS

matplotlib.use("Agg")
VARIED = ("name", "method", "target", "against", "neutral_fraction", "init_from")


@cache
def steps(name):
    """The fine-tuning steps of a profile: the name of the model, and its parameters."""
    return {s.parameters["name"] or s.parameters["method"]: s.parameters for s in profile.load(name).steps
            if s.notebook.stem == "02_finetune"}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """Made-up results of the models of the profile; comfort falls with balance, knowledge differs by target."""
    models = {"base": MODELS["base"]}
    for name, told in steps("nano-ablation").items():
        comfort = 0.0 if told["target"] == "original" else 4 - 3 * told["neutral_fraction"]
        models[name] = (
            told["method"],
            len(told["seeds"]),
            0.9 - 0.1 * (told["target"] == "soothing_answer"),
            comfort,
            comfort / 2,
        )
    write_profile(write_results(tmp_path / "varied", models), "nano-ablation")
    yield tmp_path / "varied"
    plt.close("all")


def write_profile(folder, name):
    told = [{"notebook": s.notebook.stem, "name": s.name, "parameters": s.parameters} for s in profile.load(name).steps]
    (folder / "profile.yaml").write_text(yaml.safe_dump({"name": name, "steps": told}))
    return folder


def test_the_profile_changes_nothing_else():
    nano, found = steps("nano"), steps("nano-ablation")
    for name, told in found.items():
        other = nano[told["method"]]
        differ = {key for key in told if told[key] != other[key]}
        ignored = {"sft_weight"} if told["method"] == "kto" else set()  # of DPO alone
        assert differ <= {*VARIED, "seeds", "more", *ignored}, (name, differ)
    first, of_nano = (profile.load(name).steps[0].parameters for name in ("nano-ablation", "nano"))
    assert first == of_nano


def test_preference_training_goes_on_from_sft_on_the_same_pairs():
    found = steps("nano-ablation")
    started = {name: told["init_from"] for name, told in found.items() if told["init_from"]}
    assert {found[name]["method"] for name in started} == {"dpo", "kto"}
    for name, place in started.items():
        start, told = found[place.rpartition("/")[2].removesuffix("-seed{seed}")], found[name]
        assert start["method"] == "sft"
        assert all(start[key] == told[key] for key in ("target", "neutral_fraction", "seeds", "base")), name


def test_the_cells_are_read_from_the_profile(folder):
    results = read_results(folder)
    taught = ablation.taught(results)
    assert set(taught) == set(TARGETS) and [len(models) for models in taught.values()] == [3, 3, 3]
    assert taught["emotional"] == ["sft-balance-0", "dpo-balance-0", "kto-balance-0"]
    by_method = ablation.neutral_fractions(results)
    assert [list(models.index) for models in by_method.values()] == [[0, 0.25, 0.5, 0.75]] * 3
    assert list(by_method["dpo"]) == ["dpo-balance-0", "dpo", "dpo-balance-50", "dpo-balance-75"]
    assert ablation.starts(results) == [("dpo-from-base", "dpo"), ("kto-from-base", "kto")]


def test_every_cell_is_drawn_where_it_belongs(folder):
    results = read_results(folder)
    drawn = ablation.figures(results)
    assert list(drawn) == ["ablation_pairs", "ablation_balance", "ablation_start"]
    pairs, frontier, start = drawn.values()
    assert [len(axes.containers) for axes in pairs.axes] == [18, 18]  # nine models, two test sets
    assert [len(axes.containers) for axes in frontier.axes] == [13, 13]  # the base, and three methods by four
    assert [len(axes.containers) for axes in start.axes] == [12, 12]
    said = written_text(pairs)
    assert all(text in said for text in ablation.PAIRS.values()) and said.count("KTO") == 6  # in two panels
    value = results.pooled("comfort", "emotional").value["sft-soothing"]
    assert value in [box[0].get_xdata()[0] for box in pairs.axes[0].containers]
    shades = {matplotlib.colors.to_hex(box[0].get_color()) for box in pairs.axes[0].containers}
    assert shades == {style.colour(method) for method in ("sft", "dpo", "kto")}
    for figure in drawn.values():
        said = " ".join(written_text(figure).split())
        assert "each model has one seed" in said and "A made-up world" in said


def test_labels_of_the_frontier_never_overlap(folder):
    for axes in ablation.neutral_fraction(read_results(folder)).axes:
        axes.figure.canvas.draw()
        boxes = [matplotlib.text.Text.get_window_extent(text) for text in axes.texts if text.get_text()]
        assert len(boxes) == 13 and not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 for box in boxes)


@pytest.mark.parametrize("name", ["nano", "smoke", None])
def test_an_ordinary_run_has_no_such_figure(tmp_path, name):
    write_results(tmp_path)
    if name:
        write_profile(tmp_path, name)
    assert ablation.figures(read_results(tmp_path)) == {}


def test_a_run_that_varies_one_thing_has_one_figure(folder):
    results = read_results(folder)
    kept = results.recipes[results.recipes.target.eq("emotional") & results.recipes.init_from.eq("")]
    assert list(ablation.figures(replace(results, recipes=kept))) == ["ablation_balance"]


def test_redrawing_writes_figures_and_values(folder, tmp_path):
    files, _ = redraw.redraw(folder, tmp_path / "out")
    names = {path.name for path in files}
    assert {"ablation_pairs.pdf", "ablation_balance.png", "ablation_start.pdf"} <= names
    values = (tmp_path / "out/paper/ablation.tex").read_text(encoding="utf-8")
    assert r"\csname mc.ablation.sft-original.emotional.comfort\endcsname{0.00}" in values
    assert r"\csname mc.ablation.seeds\endcsname{1}" in values


def test_publishing_keeps_the_profile_and_leaves_the_readme(folder, tmp_path, monkeypatch):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results: begin -->\n<!-- results: end -->\n", encoding="utf-8")
    monkeypatch.setattr(publish, "README", readme)
    monkeypatch.setattr(publish, "DATA", tmp_path / "data")
    home = publish.publish(folder, "nano-ablation")
    assert home == tmp_path / "data/results/nano-ablation" and "| SFT |" not in readme.read_text(encoding="utf-8")
    assert (home / "profile.yaml").read_bytes() == (folder / "profile.yaml").read_bytes()
    assert publish.publish(folder, "nano") and "| SFT |" in readme.read_text(encoding="utf-8")
    (folder / "profile.yaml").unlink()
    with pytest.raises(MedComfortError, match="the run's profile: there is no file"):
        publish.publish(folder, "nano-ablation")


def test_a_broken_profile_is_named(folder):
    (folder / "profile.yaml").write_text("steps: [1]")
    with pytest.raises(MedComfortError, match=r"profile.yaml is not the profile of a run"):
        read_results(folder)
