"""The figures. Each function takes the `Results` of one run; a MedComfortError says what the run lacks for it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medcomfort_utils.draw import style
from medcomfort_utils.draw.results import BASE, TUNED, Results
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import KNOWLEDGE

MECHANISMS = ("emotional_reactions", "interpretations", "explorations")
TOP = {"comfort": 6, **dict.fromkeys(MECHANISMS, 2)}  # the end of a metric's scale; 1 for all shares
TARGETS = {  # the condition that is taught: what the pairs are
    "original": "Neutral questions, plain answers",
    "soothing_answer": "Neutral questions, soothing answers",
    "emotional": "Emotional questions, soothing answers",
}
BOTH = "Filled: emotional questions; hollow: neutral ones."
DASHED = {"color": style.FAINT, "lw": 0.7, "ls": (0, (4, 2)), "zorder": 1}
_CURVES = ("loss", "rewards/margins", "mean_token_accuracy", "rewards/accuracies")  # the most telling first


def forest(values: pd.DataFrame, rows: Sequence[str], panels: Sequence[str], height: float = 6.0,
           look: Callable[[str], str] = str) -> tuple[Figure, dict[str, Axes]]:  # fmt: skip
    """A panel a metric, a row a model (so many mm high), each value with its interval; returns the axes by metric too.

    `values`: model, test_set, metric, value, low, high, and maybe seed; neutral questions are hollow, values of single
    seeds small and faint below. `rows`: models; any other text is a heading. `look`: model -> the one whose name,
    colour and marker it has.
    """
    values = values[values.model.isin(rows) & values.metric.isin(panels)]
    sets = [test_set for test_set in ("emotional", "neutral") if test_set in set(values.test_set)]
    drawn, grid = style.figure(style.PAGE if len(panels) > 1 else style.COLUMN, (22 + height * len(rows)) / 25.4,
                               columns=len(panels), sharey=True)  # fmt: skip
    axes = dict(zip(panels, grid[0], strict=True))
    for row in values.itertuples():
        panel, model = axes[row.metric], look(row.model)
        at = rows.index(row.model) + (0.32 * sets.index(row.test_set) - 0.16 if len(sets) > 1 else 0)
        shade = style.colour(model)
        if pd.isna(getattr(row, "seed", None)):
            arms = [[row.value - row.low], [row.high - row.value]]
            panel.errorbar(row.value, at, xerr=arms, fmt=style.marker(model), ms=4, mew=0.7, color=shade,
                           mfc="white" if row.test_set == "neutral" else shade, zorder=4)  # fmt: skip
        else:
            panel.scatter(row.value, at + 0.19, s=4, color=shade, alpha=0.4, lw=0, zorder=3)
    named = {number: style.label(look(row)) for number, row in enumerate(rows) if row in set(values.model)}
    for panel in axes.values():
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_yticks(list(named), named.values())
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", lw=0.4, color=style.GRID)
    for number in set(range(len(rows))) - set(named):
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
        grid[0, 0].text(0.01, number, rows[number], va="center", fontweight="bold", bbox=box, zorder=5,
                        transform=grid[0, 0].get_yaxis_transform(), in_layout=False)  # fmt: skip
    return drawn, axes


def _levels(results: Results, rows: Sequence[str], panels: Sequence[str], note: str = "Emotional questions.",
            height: float = 6.0, look: Callable[[str], str] = str) -> Figure:  # fmt: skip
    """A forest plot of scores on their whole scales; dashed: the base. Neutral questions too if the note is `BOTH`."""
    table = results.table if note == BOTH else results.table[results.table.test_set == "emotional"]
    several = table.groupby("model").seed.transform("nunique") > 1  # a single seed is the value itself
    drawn, axes = forest(table[table.seed.isna() | several], rows, panels, height, look)
    for metric, panel in axes.items():
        top = TOP.get(metric, 1)
        panel.set(xlim=(-0.03 * top, 1.03 * top), xlabel=f"{style.label(metric)} (0 to {top})")
        panel.axvline(results.values(metric).value.get(BASE, np.nan), **DASHED)
    over = "and seeds; small points: single seeds" if several.any() else "alone (one seed)"
    return _note(drawn, results, f"{note} Dashed: the base. Bars: 95 % intervals over questions {over}.")


def _note(drawn: Figure, results: Results, text: str) -> Figure:
    """Say how to read it, and, of a corpus that is not the synthetic clinic, what it stands on."""
    on = "" if results.synthetic else f" Corpus: {results.run['corpus']}; model: {results.run['base_model']}."
    return style.note(drawn, text + on)


def comfort_vs_knowledge(results: Results) -> Figure:
    """What each tuned model gained in comfort and lost in knowledge: the paired differences that the claims test."""
    claims = results.claims[(results.claims.against == BASE) & results.claims.estimate.notna()]
    claims = claims[(claims.metric == "comfort") | (claims.metric.isin(KNOWLEDGE) & claims.margin.notna())]
    values = claims.assign(metric=claims.metric.where(claims.metric == "comfort", "knowledge"), value=claims.estimate)
    if set(values.metric) != {"comfort", "knowledge"}:
        raise MedComfortError("claims.json: no claims compare models with the base in comfort and in knowledge.")
    models = [model for model in results.methods if model in set(values.model)]
    drawn, axes = forest(values, models, ("comfort", "knowledge"), height=8)
    for metric, panel in axes.items():
        name, scale = ("comfort", "scale 0 to 6") if metric == "comfort" else (results.knowledge, "share")
        panel.set_xlabel(f"Difference to the base in {style.within(name)} ({scale})")
        panel.axvline(0, **DASHED)
    margin, known = claims.margin.astype(float).max(), values[values.metric == "knowledge"]
    lowest, panel = min(known.low.min(), -margin) - margin / 2, axes["knowledge"]
    panel.set_xlim(lowest, max(known.high.max(), 0) + margin / 4)
    panel.axvspan(lowest, -margin, color="#f1e6e2", zorder=0, lw=0)
    panel.axvline(-margin, color="#a0522d", lw=0.9, zorder=1)
    kept = f"Shaded: a loss of {margin:g} or more, the margin; knowledge is kept where a whole bar lies to its right."
    return _note(drawn, results, f"{BOTH} Dashed: the base. {kept} Bars: 95 % intervals of paired differences.")


def collapse(results: Results) -> Figure:
    """Recipes that were tried and failed, each below the sound models of its method."""
    if not results.models("tried"):
        raise MedComfortError("this run tried no recipe beside the claims' own.")
    models = results.models(BASE, "tuned", "tried")
    order = list(dict.fromkeys(map(results.methods.get, models)))
    models = sorted(models, key=lambda model: order.index(results.methods[model]))
    return _levels(results, models, (results.knowledge, "comfort"), "Emotional questions. Crosses: recipes tried.")


def mechanisms(results: Results) -> Figure:
    """The three mechanisms of comfort (each 0-2) by model, on emotional questions."""
    return _levels(results, results.models(BASE, "tuned", "reference"), MECHANISMS)


def neutral_questions(results: Results) -> Figure:
    """Comfort on neutral questions beside emotional ones: does a model soothe those in no need?"""
    return _levels(results, results.models(BASE, "tuned", "reference"), ("comfort",), BOTH, height=7)


def comfort_by_emotion(results: Results) -> Figure:
    """Comfort by the question's emotion, a panel each."""
    rows = results.emotions[results.emotions.metric == "comfort"]
    if rows.empty:
        raise MedComfortError("results.json has no comfort by emotion; run 03_evaluate again.")
    questions = results.scores[results.scores.test_set == "emotional"].groupby("emotion").dialogue_id.nunique()
    models = results.models(BASE, "tuned", "reference")
    drawn, axes = forest(rows.assign(metric=rows.emotion), models, sorted(rows.emotion.unique()), height=5)
    for emotion, panel in axes.items():
        panel.set(xlim=(-0.3, 6.3), xticks=range(0, 7, 2), xlabel="Comfort (0 to 6)")
        panel.set_title(f"{style.label(emotion)} (n = {questions[emotion]})")
    return _note(drawn, results, "n: questions. Bars: 95 % intervals over questions and seeds.")


def comfort_by_length(results: Results) -> Figure:
    """Mean comfort by the length of the reply: is what comforts merely long?"""
    models = results.models(BASE, "tuned")
    asked = results.scores[(results.scores.test_set == "emotional") & results.scores.model.isin(models)]
    asked = asked.assign(words=asked["length"] // 20 * 20 + 10, model=asked.model.map(style.label))
    asked = asked[asked.groupby(["model", "words"]).comfort.transform("size") >= 10]
    if asked.empty:
        raise MedComfortError("no ten replies to emotional questions are of one length.")
    look = {style.label(model): model for model in models}
    drawn, axes = style.figure(style.COLUMN, 62 / 25.4)
    sns.lineplot(asked, x="words", y="comfort", hue="model", style="model", hue_order=look, style_order=look,
                 palette={name: style.colour(model) for name, model in look.items()}, dashes=False, ms=4, mew=0,
                 markers={name: style.marker(model) for name, model in look.items()}, err_style="bars", seed=0,
                 ax=axes[0, 0])  # fmt: skip
    axes[0, 0].set(xlabel="Words in the reply", ylabel="Comfort (0 to 6)", ylim=(-0.2, 6.2))
    axes[0, 0].legend(title=None, loc="upper left")
    return _note(drawn, results, "Emotional questions, steps of 20 words. Bars: 95 % intervals over replies.")


def training_curves(results: Results) -> Figure:
    """Loss and the method's most telling metric below it, a column a model; without the recipes that were tried."""
    models = [model for model in TUNED if model in set(results.training.model)]
    if not models:
        raise MedComfortError(f"training.csv: no curve of {', '.join(TUNED)} is in it; run 02_finetune again.")
    drawn, axes = style.figure(style.PAGE, 80 / 25.4, 2, len(models))
    for column, model in zip(axes.T, models, strict=True):
        _curves(column, results.training[results.training.model == model], f"{style.label(model)}: ")
    return _note(drawn, results, "Thin: single seeds; thick: their mean, smoothed.")


def curves(training: pd.DataFrame) -> Figure:
    """What one model logged while it trained (columns model, seed, step, metric, value): a panel a metric."""
    count = len(set(_CURVES) & set(training.metric))
    drawn, axes = style.figure(style.PAGE * count / 4, 42 / 25.4, columns=count)
    _curves(axes[0], training)
    return drawn


def _curves(panels: Iterable[Axes], training: pd.DataFrame, title: str = "") -> None:
    """A thin line a seed, and their mean, smoothed over a fifth of the steps; a panel a metric."""
    shade = style.colour(training.model.iloc[0])
    for panel, metric in zip(panels, [m for m in _CURVES if m in set(training.metric)], strict=False):
        rows = training[training.metric == metric]
        sns.lineplot(rows, x="step", y="value", units="seed", estimator=None, color=shade, lw=0.4, alpha=0.3, ax=panel)
        mean = rows.groupby("step")["value"].mean()
        panel.plot(mean.rolling(max(1, len(mean) // 5), center=True, min_periods=1).mean(), color=shade, lw=1.3)
        panel.set(title=title + (style.within if title else style.label)(metric), xlabel="Step", ylabel="")
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def ablation_pairs(results: Results) -> Figure:
    """Comfort and knowledge by the pairs that are taught, each alone, and by what preference training starts from."""
    recipes = results.recipes
    sound, direct = (recipes[recipes.start == start] for start in ("", "-from-base"))
    groups = {text: sound.index[(sound.target == target) & (sound.neutral_fraction == 0)]
              for target, text in TARGETS.items()}  # fmt: skip
    if sum(map(bool, map(len, groups.values()))) < 2:
        raise MedComfortError("this run teaches no two kinds of pairs, each without neutral pairs beside it.")
    for share, twins in direct[direct.cell.isin(sound.cell)].groupby("neutral_fraction"):
        beside = f"Emotional and {100 * share:g} % neutral questions"
        chain = sound[sound.cell.isin(twins.cell)]
        groups[f"{beside}, from SFT"] = [*chain.after.unique(), *chain.index]
        groups[f"{beside}, from the base"] = twins.index
    rows = [row for text, models in groups.items() if len(models) for row in (text, *models)]
    return _levels(results, rows, ("comfort", results.knowledge), BOTH, height=4.6, look=results.methods.get)


def ablation_neutral_fraction(results: Results) -> Figure:
    """Comfort on emotional and on neutral questions, and knowledge, by the share of neutral pairs and by method."""
    cells = results.recipes
    cells = cells[(cells.start == "") & (cells.target == "emotional")]
    varied = [method for method in TUNED if cells.neutral_fraction[cells.method == method].nunique() > 2]
    if not varied:
        raise MedComfortError("this run trains no method with three shares of neutral pairs.")
    drawn, axes = style.figure(style.PAGE, 66 / 25.4, columns=3)
    shown = (("comfort", "emotional"), ("comfort", "neutral"), (results.knowledge, "emotional"))
    for panel, (metric, test_set) in zip(axes[0], shown, strict=True):
        values, top = results.values(metric, test_set), TOP.get(metric, 1)
        panel.axhline(values.value[BASE], **DASHED)
        for place, method in enumerate(varied):
            rows = values.join(cells[cells.method == method], how="inner").sort_values("neutral_fraction")
            at = rows.neutral_fraction.astype(float) + 0.02 * (place - (len(varied) - 1) / 2)
            panel.errorbar(
                at,
                rows.value,
                (rows.value - rows.low, rows.high - rows.value),
                lw=0.8,
                ms=4,
                fmt=f"-{style.marker(method)}",
                color=style.colour(method),
                label=style.label(method),
            )
        panel.set(title=f"{style.label(metric)}, {test_set} questions", ylim=(-0.03 * top, 1.03 * top),
                  xlabel="Share of neutral pairs", xticks=sorted(cells.neutral_fraction.unique()))  # fmt: skip
    drawn.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=len(varied))
    return _note(drawn, results, "Dashed: the base. Bars: 95 % intervals over questions.")


FIGURES: dict[str, Callable[[Results], Figure]] = {
    draw.__name__: draw
    for draw in (comfort_vs_knowledge, collapse, comfort_by_emotion, comfort_by_length, mechanisms, neutral_questions,
                 training_curves, ablation_pairs, ablation_neutral_fraction)
}  # fmt: skip


def draw(name: str, results: Results, folder: str | Path) -> Figure | None:
    """Draw the figure and save it as FOLDER/NAME.pdf and .png; says why, where this run cannot have it."""
    try:
        drawn = FIGURES[name](results)
    except MedComfortError as error:
        print(f"{name} is left out: {error}")
        return None
    style.save(drawn, name, folder)
    return drawn
