"""The figures. Each function takes the `Results` of one run; a MedComfortError says what the run lacks for it."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medcomfort_utils.draw import style
from medcomfort_utils.draw.results import BASE, KNOWLEDGE, TUNED, Results
from medcomfort_utils.paths import MedComfortError

MECHANISMS = ("emotional_reactions", "interpretations", "explorations")
TOP = {"comfort": 6, **dict.fromkeys(MECHANISMS, 2)}  # the end of a metric's scale; 1 for all shares
TARGETS = {  # the condition that is taught: what the pairs are
    "original": "Neutral questions, plain answers",
    "soothing_answer": "Neutral questions, soothing answers",
    "emotional": "Emotional questions, soothing answers",
}
_CURVES = ("loss", "rewards/margins", "mean_token_accuracy", "rewards/accuracies")  # the most telling first
_VALIDATION = "validation loss"
_SETS = "Filled: emotional questions; hollow: neutral ones."
_DASHED = {"color": style.FAINT, "lw": 0.7, "ls": (0, (4, 2)), "zorder": 1}


class Row(NamedTuple):
    """A line of a forest plot: its label, the model that it shows and in whose look; without a model, a heading."""

    label: str
    model: str = ""
    look: str = ""


def forest(
    values: pd.DataFrame, rows: Sequence[Row], panels: Sequence[str], height: float = 6.0
) -> tuple[Figure, dict[str, Axes]]:
    """A panel a metric, a row a model (so many mm high), each value with its interval; returns the axes by metric too.

    `values`: model, test_set, metric, value, low, high, and maybe seed; neutral questions are hollow, values of single
    seeds small and faint below.
    """
    sets = [test_set for test_set in ("emotional", "neutral") if test_set in set(values.test_set)]
    values = values[values.test_set.isin(sets) & values.metric.isin(list(panels))]
    width = style.PAGE if len(panels) > 1 else style.COLUMN
    drawn, grid = style.figure(width, (22 + height * len(rows)) / 25.4, columns=len(panels), sharey=True)
    axes = dict(zip(panels, grid[0], strict=True))
    place = {row.model: (number, row.look or row.model) for number, row in enumerate(rows) if row.model}
    for row in values[values.model.isin(list(place))].itertuples():
        number, look = place[row.model]
        at = number + (0.32 * sets.index(row.test_set) - 0.16 if len(sets) > 1 else 0)
        if pd.isna(getattr(row, "seed", None)):
            _point(axes[row.metric], row, at, look, hollow=row.test_set == "neutral")
        else:
            below = at + (0.16 if len(sets) > 1 else 0.22)
            axes[row.metric].scatter(row.value, below, s=4, color=style.colour(look), alpha=0.4, lw=0, zorder=3)
    for panel in axes.values():
        panel.set_ylim(len(rows) - 0.4, -0.6)
        panel.set_yticks([number for number, _ in place.values()], [row.label for row in rows if row.model])
        panel.tick_params(axis="y", length=0)
        panel.grid(axis="y", lw=0.4, color=style.GRID)
    for number, row in enumerate(rows):
        if not row.model:
            box = {"facecolor": "white", "edgecolor": "none", "pad": 1}
            text = grid[0, 0].text(0.01, number, row.label, va="center", fontweight="bold", bbox=box, zorder=5,
                                   transform=grid[0, 0].get_yaxis_transform())  # fmt: skip
            text.set_in_layout(False)
    return drawn, axes


def _point(axes: Axes, row: tuple, at: float, look: str, hollow: bool, across: bool = False) -> None:
    """A value with its interval, lying, or upright where x runs `across` categories; no interval where it is nan."""
    shade, arms = style.colour(look), [[max(row.value - row.low, 0)], [max(row.high - row.value, 0)]]
    x, y, bars = (at, row.value, {"yerr": arms}) if across else (row.value, at, {"xerr": arms})
    axes.errorbar(x, y, **(bars if row.low == row.low else {}), fmt=style.marker(look), ms=4, mew=0.7, color=shade,
                  mfc="white" if hollow else shade, label=style.label(look), zorder=4)  # fmt: skip


def _levels(results: Results, rows: Sequence[Row], panels: Sequence[str], test_sets: Iterable[str] = ("emotional",),
            height: float = 6.0) -> tuple[Figure, dict[str, Axes]]:  # fmt: skip
    """A forest plot of scores on their whole scales; dashed: the base."""
    table = results.table[results.table.test_set.isin(list(test_sets))]
    several = table.groupby("model").seed.transform("nunique") > 1  # a single seed is the value itself
    drawn, axes = forest(table[table.seed.isna() | several], rows, panels, height)
    for metric, panel in axes.items():
        top = TOP.get(metric, 1)
        panel.set(xlim=(-0.03 * top, 1.03 * top), xlabel=f"{style.label(metric)} (0 to {top})")
        panel.axvline(results.values(metric).value.get(BASE, np.nan), **_DASHED)
    return drawn, axes


def _rows(models: Iterable[str]) -> list[Row]:
    return [Row(style.label(model), model) for model in models]


def _note(drawn: Figure, results: Results, text: str) -> Figure:
    """Say how to read it, and, of a corpus that is not the synthetic clinic, what it stands on."""
    on = "" if results.synthetic else f" Corpus: {results.run['corpus']}; model: {results.run['base_model']}."
    return style.note(drawn, text + on)


def _intervals(results: Results) -> str:
    many = results.table.groupby("model").seed.nunique().max() > 1
    over = "and seeds; small points: single seeds" if many else "alone (one seed)"
    return f"Bars: 95 % intervals over questions {over}."


def comfort_vs_knowledge(results: Results) -> Figure:
    """What each tuned model gained in comfort and lost in knowledge: the paired differences that the claims test."""
    claims = results.claims[(results.claims.against == BASE) & results.claims.estimate.notna()]
    claims = claims[(claims.metric == "comfort") | (claims.metric.isin(KNOWLEDGE) & claims.margin.notna())]
    values = claims.assign(metric=np.where(claims.metric == "comfort", "comfort", "knowledge"), value=claims.estimate)
    if set(values.metric) != {"comfort", "knowledge"}:
        raise MedComfortError("claims.json: no claims compare models with the base in comfort and in knowledge.")
    models = [model for model in results.methods if model in set(values.model)]
    drawn, axes = forest(values, _rows(models), ("comfort", "knowledge"), height=8)
    margin = claims.margin[claims.metric != "comfort"].astype(float).max()
    axes["comfort"].set_xlabel("Difference to the base in comfort (scale 0 to 6)")
    axes["knowledge"].set_xlabel(f"Difference to the base in {style.within(results.knowledge)} (share)")
    for panel in axes.values():
        panel.axvline(0, **_DASHED)
    lowest = min(values.low[values.metric == "knowledge"].min(), -margin) - margin / 2
    axes["knowledge"].set_xlim(lowest, max(values.high[values.metric == "knowledge"].max(), 0) + margin / 4)
    axes["knowledge"].axvspan(lowest, -margin, color="#f1e6e2", zorder=0, lw=0)
    axes["knowledge"].axvline(-margin, color="#a0522d", lw=0.9, zorder=1)
    kept = f"Shaded: a loss of {margin:g} or more, the margin; knowledge is kept where a whole bar lies to its right."
    return _note(drawn, results, f"{_SETS} Dashed: the base. {kept} Bars: 95 % intervals of paired differences.")


def collapse(results: Results) -> Figure:
    """Recipes that were tried and failed, each below the sound model of its method."""
    if not results.tried:
        raise MedComfortError("this run tried no recipe beside the claims' own.")
    order = list(dict.fromkeys(map(results.methods.get, [BASE, *results.tuned, *results.tried])))
    models = sorted([BASE, *results.tuned, *results.tried], key=lambda model: order.index(results.methods[model]))
    drawn, _ = _levels(results, _rows(models), (results.knowledge, "comfort"))
    how = "Emotional questions. Crosses: recipes that were tried; dashed: the base."
    return _note(drawn, results, f"{how} {_intervals(results)}")


def mechanisms(results: Results) -> Figure:
    """The three mechanisms of comfort (each 0-2) by model, on emotional questions."""
    rows = _rows([BASE, *results.tuned, *results.baselines])
    drawn, _ = _levels(results, rows, MECHANISMS)
    return _note(drawn, results, f"Emotional questions. Dashed: the base. {_intervals(results)}")


def neutral_questions(results: Results) -> Figure:
    """Comfort on neutral questions beside emotional ones: does a model soothe those in no need?"""
    rows = _rows([BASE, *results.tuned, *results.baselines])
    drawn, _ = _levels(results, rows, ("comfort",), ("emotional", "neutral"), height=7)
    return _note(drawn, results, f"{_SETS} {_intervals(results)}")


def comfort_by_emotion(results: Results) -> Figure:
    """Comfort by the question's emotion and by model, as 03_evaluate summed it up; of older runs means without bars."""
    rows = results.emotions[(results.emotions.metric == "comfort") & results.emotions.get("seed", np.nan).isna()]
    if rows.empty:
        asked = results.scores[results.scores.test_set == "emotional"]
        rows = asked.groupby(["model", "emotion"], as_index=False)["comfort"].mean().assign(low=np.nan, high=np.nan)
        rows = rows.rename(columns={"comfort": "value"})
    models = [model for model in [BASE, *results.tuned, *results.baselines] if model in set(rows.model)]
    emotions = sorted(rows.emotion[rows.model.isin(models)].unique())
    if not emotions:
        raise MedComfortError("there is no reply to an emotional question; run 03_evaluate again.")
    drawn, axes = style.figure(style.PAGE, 62 / 25.4)
    rows = rows[rows.model.isin(models)].sort_values("model", key=lambda names: names.map(models.index), kind="stable")
    for row in rows.itertuples():
        at = emotions.index(row.emotion) + (models.index(row.model) - (len(models) - 1) / 2) * 0.1
        _point(axes[0, 0], row, at, row.model, hollow=False, across=True)
    axes[0, 0].set(ylabel="Comfort (0 to 6)", ylim=(-0.2, 6.2))
    axes[0, 0].set_xticks(range(len(emotions)), map(style.label, emotions))
    _legend(drawn, axes[0, 0])
    bars = "" if rows.low.isna().all() else " Bars: 95 % intervals over questions and seeds."
    return _note(drawn, results, f"Means over questions and seeds.{bars}")


def training_curves(results: Results) -> Figure:
    """Loss and the method's most telling metric below it, a column a model; without the recipes that were tried."""
    training = results.training[results.training.model.isin(TUNED)]
    logged = {model: [m for m in _CURVES if m in set(rows.metric)][:2] for model, rows in training.groupby("model")}
    models = [model for model in TUNED if logged.get(model)]
    if not models:
        raise MedComfortError(f"training.csv: no curve of {', '.join(TUNED)} is in it; run 02_finetune again.")
    depth, width = max(map(len, logged.values())), style.PAGE if len(models) > 1 else style.COLUMN
    drawn, axes = style.figure(width, (14 + 33 * depth) / 25.4, depth, len(models))
    for column, model in zip(axes.T, models, strict=True):
        for panel, metric in zip(column, logged[model], strict=False):
            _curve(panel, training[training.model == model], metric)
            panel.set_title(f"{style.label(model)}: {style.within(metric)}")
        column[len(logged[model]) - 1].set_xlabel("Step")
        for panel in column[len(logged[model]) :]:
            panel.set_axis_off()
    dashed = "; dashed: validation" if _VALIDATION in set(training.metric) else ""
    return _note(drawn, results, f"Thin: single seeds; thick: their mean, smoothed{dashed}.")


def curves(training: pd.DataFrame) -> Figure:
    """What one model logged while it trained (columns model, seed, step, metric, value): a panel a metric."""
    logged = [metric for metric in _CURVES if metric in set(training.metric)]
    drawn, axes = style.figure(style.PAGE * len(logged) / 4, 42 / 25.4, columns=len(logged))
    for panel, metric in zip(axes[0], logged, strict=True):
        _curve(panel, training, metric)
        panel.set(title=style.label(metric), xlabel="Step")
    return drawn


def _curve(axes: Axes, training: pd.DataFrame, metric: str) -> None:
    """A thin line a seed, and their mean, smoothed over a fifth of the steps; the validation loss dashed beside it."""
    shade = style.colour(training.model.iloc[0])
    for name, line in ((metric, "-"), (_VALIDATION, "--")):
        rows = training[training.metric == name]
        if line == "-" or (metric == "loss" and len(rows)):
            for _, seed in rows.groupby("seed"):
                axes.plot(seed.step, seed.value, line, color=shade, lw=0.4, alpha=0.3)
            mean = rows.groupby("step")["value"].mean()
            window = max(1, len(mean) // 5) if line == "-" else 1
            axes.plot(mean.index, mean.rolling(window, center=True, min_periods=1).mean(), line, color=shade, lw=1.3)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def ablation_pairs(results: Results) -> Figure:
    """Comfort and knowledge by the pairs that are taught, each alone, and by what preference training starts from."""
    cells = sound(results)
    groups = {text: list(cells.index[(cells.target == target) & (cells.neutral_fraction == 0)])
              for target, text in TARGETS.items()}  # fmt: skip
    groups = {text: models for text, models in groups.items() if models}
    if len(groups) < 2:
        raise MedComfortError("this run teaches no two kinds of pairs, each without neutral pairs beside it.")
    twins = starts(results)
    if twins:
        beside = f"Emotional and {100 * cells.neutral_fraction[next(iter(twins.values()))]:g} % neutral questions"
        groups |= {f"{beside}, from SFT": [*cells.after[list(twins.values())].unique(), *twins.values()]}
        groups |= {f"{beside}, from the base": list(twins)}
    rows = []
    for text, models in groups.items():
        rows += [Row(text), *(Row(style.label(results.methods[m]), m, results.methods[m]) for m in models)]
    drawn, axes = _levels(results, rows, ("comfort", results.knowledge), ("emotional", "neutral"), height=4.6)
    return _note(drawn, results, f"{_SETS} Dashed: the base. {_intervals(results)}")


def ablation_neutral_fraction(results: Results) -> Figure:
    """Comfort on emotional and on neutral questions, and knowledge, by the share of neutral pairs and by method."""
    cells = sound(results)
    cells = cells[cells.target == "emotional"]
    varied = [method for method in TUNED if cells.neutral_fraction[cells.method == method].nunique() > 2]
    if not varied:
        raise MedComfortError("this run trains no method with three shares of neutral pairs.")
    shown = [("comfort", "emotional"), ("comfort", "neutral"), (results.knowledge, "emotional")]
    drawn, axes = style.figure(style.PAGE, 66 / 25.4, columns=3)
    for panel, (metric, test_set) in zip(axes[0], shown, strict=True):
        values, top = results.values(metric, test_set), TOP.get(metric, 1)
        bottom = 0 if top > 1 else max(np.floor(10 * values.low[cells.index].min() - 0.5) / 10, 0)  # they differ little
        panel.axhline(values.value[BASE], **_DASHED)
        for place, method in enumerate(varied):
            rows = values.join(cells[cells.method == method], how="inner").sort_values("neutral_fraction")
            at = rows.neutral_fraction.astype(float) + 0.02 * (place - (len(varied) - 1) / 2)
            panel.plot(at, rows.value, color=style.colour(method), lw=0.8, alpha=0.6, zorder=3)
            for x, row in zip(at, rows.itertuples(), strict=True):
                _point(panel, row, x, method, hollow=test_set == "neutral", across=True)
        room = 0.03 * (top - bottom)
        panel.set(title=f"{style.label(metric)}, {test_set} questions", ylim=(bottom - room, top + room))
        panel.set_ylabel(f"{bottom:g} to {top}" + " (the axis is cut)" * bool(bottom))
        panel.set(xlabel="Share of neutral pairs", xticks=sorted(cells.neutral_fraction.unique()))
    _legend(drawn, axes[0, 0])
    return _note(drawn, results, f"{_SETS} Dashed: the base. {_intervals(results)}")


def sound(results: Results) -> pd.DataFrame:
    """The recipes of which SFT starts from the base, and DPO and KTO from a model of the run."""
    recipes = results.recipes
    return recipes[(recipes.method == "sft") == (recipes.after == "")] if len(recipes) else recipes.reindex(
        columns=["method", "target", "neutral_fraction", "after"])  # fmt: skip


def starts(results: Results) -> dict[str, str]:
    """DPO and KTO from the base -> its twin from a model of the run, all else being equal."""
    recipes, chain = results.recipes, sound(results)
    other = recipes.drop(columns="after", errors="ignore").astype(str)
    return {a: b for a in recipes.index.difference(chain.index, sort=False) for b in chain.index
            if recipes.after[a] == "" and chain.after[b] and (other.loc[a] == other.loc[b]).all()}  # fmt: skip


def _legend(drawn: Figure, axes: Axes) -> None:
    """The models' names in one row above; each once."""
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    drawn.legend(handles.values(), handles, loc="outside upper center", ncols=len(handles))


FIGURES: dict[str, Callable[[Results], Figure]] = {
    draw.__name__: draw
    for draw in (comfort_vs_knowledge, collapse, comfort_by_emotion, mechanisms, neutral_questions, training_curves,
                 ablation_pairs, ablation_neutral_fraction)
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
