"""The paper's figures. Each function takes the `Results` of one run and returns a figure with a caption line."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from medcomfort_utils.draw import marks, style
from medcomfort_utils.draw.results import BASE, TUNED, Results
from medcomfort_utils.paths import MedComfortError

_CURVES = ("loss", "rewards/margins", "mean_token_accuracy", "rewards/accuracies")  # the most telling first
_VALIDATION = "validation loss"
_INTERVALS = "Bars: 95 % intervals; small points: single seeds."


def balance(results: Results, margin: float = 0.05) -> Figure:
    """Comfort against knowledge on emotional questions: one point a model, an arrow from the base to each tuned one.

    Shaded: knowledge more than `margin` below the base's, the non-inferiority margin. The knowledge axis is cut, and
    says so; the comfort axis is whole (0-6).
    """
    drawn, axes = style.figure(style.COLUMN, 80 / 25.4)
    axes = axes[0, 0]
    points = _joined(results.pooled(results.knowledge, "emotional"), results.pooled("comfort", "emotional"), results)
    limit = points.loc[BASE, "value_x"] - margin
    left, right = _knowledge_range(points, limit)
    axes.set(xlim=(left, right), ylim=(-0.2, 6.2), ylabel="Comfort (0 to 6)")
    axes.set_xticks([tick for tick in axes.get_xticks() if max(left, 0) <= tick <= min(right, 1)])
    axes.set_xlabel(f"Knowledge: {style.within(results.knowledge)}" + _cut(left))
    if limit > 0:  # a base that knows less than the margin cannot lose more than it
        _region(axes, left, limit, f"{margin:g} or more below base")
    seeds = marks.seed_points(axes, results, list(points.index))
    obstacles = [seeds, np.array([[limit, height] for height in np.linspace(0, 6, 60)])]
    obstacles += [marks.cross(axes, model, row) for model, row in points.iterrows()]
    obstacles += [marks.arrow(axes, points.loc[BASE], row, model) for model, row in points.iterrows() if model in TUNED]
    style.caption(drawn, results.run, f"Emotional questions. {_INTERVALS}")
    texts = [(style.label(m), row.value_x, row.value_y, style.colour(m)) for m, row in points.iterrows()]
    marks.place_labels(axes, texts, np.vstack(obstacles))
    return drawn


def collapse(results: Results) -> Figure:
    """Recipes that collapse below their sound twins: knowledge and comfort on emotional questions, in two panels."""
    rows = [BASE]
    for method in TUNED:
        trials = [trial for trial in results.trials if results.method(trial) == method]
        rows += [method] * (bool(trials) and method in results.models) + trials
    rows += [trial for trial in results.trials if trial not in rows]
    rows = rows if results.trials else [model for model in results.models if model in (BASE, *TUNED)]
    drawn, axes = style.figure(style.PAGE, (22 + 5.5 * len(rows)) / 25.4, columns=2, sharey=True)
    for panel, metric, name in zip(axes[0], (results.knowledge, "comfort"), ("Knowledge", "Comfort"), strict=True):
        marks.dots(panel, results, metric, rows)
        marks.paths(panel, results, metric, rows)
        panel.axvline(results.pooled(metric, "emotional").value[BASE], color=style.FAINT, lw=0.7, ls=(0, (4, 2)))
        panel.set_title(name)
    note = f"Emotional questions; dashed: the base; arrows: from a method's sound recipe to the others. {_INTERVALS}"
    style.caption(drawn, results.run, note if results.trials else "This run tried no recipe beside the claims' own.")
    return drawn


def mechanisms(results: Results) -> Figure:
    """The three mechanisms of comfort (each 0-2) by model, on emotional questions."""
    drawn, axes = style.figure(style.PAGE, (20 + 6 * len(results.models)) / 25.4, columns=3, sharey=True)
    for panel, metric in zip(axes[0], marks.MECHANISMS, strict=True):
        marks.dots(panel, results, metric, results.models)
    style.caption(drawn, results.run, f"Emotional questions. {_INTERVALS}")
    return drawn


def neutral(results: Results) -> Figure:
    """Comfort on neutral questions (hollow) beside emotional ones (filled): does a model soothe those in no need?"""
    drawn, axes = style.figure(style.COLUMN, (24 + 6.5 * len(results.models)) / 25.4)
    marks.dots(axes[0, 0], results, "comfort", results.models, shift=-0.16)
    marks.dots(axes[0, 0], results, "comfort", results.models, test_set="neutral", shift=0.16)
    style.caption(drawn, results.run, f"Filled: emotional questions; hollow: neutral questions. {_INTERVALS}")
    return drawn


def by_emotion(results: Results, samples: int = 1000) -> Figure:
    """Comfort by the question's emotion and by model; 95 % bootstrap intervals over dialogues, seeds averaged."""
    scores = results.scores[(results.scores.test_set == "emotional") & results.scores.model.isin(results.models)]
    if scores.empty:
        raise MedComfortError("scores.parquet: there is no reply to an emotional question; run 03_evaluate again.")
    means = scores.groupby(["model", "emotion", "dialogue_id"], as_index=False)["comfort"].mean()
    models = [model for model in results.models if model in set(means.model)]
    emotions = sorted(means.emotion.unique())
    drawn, axes = style.figure(style.PAGE, 62 / 25.4)
    axes = axes[0, 0]
    looks = {"palette": [*map(style.colour, models)], "markers": [*map(style.marker, models)], "markersize": 4,
             "linestyle": "none", "dodge": 0.5 if len(models) > 1 else False, "err_kws": {"linewidth": 1}}  # fmt: skip
    sns.pointplot(means, x="emotion", y="comfort", hue="model", order=emotions, hue_order=models, ax=axes,
                  errorbar=("ci", 95), n_boot=samples, seed=0, **looks)  # fmt: skip
    axes.set(xlabel="", ylabel="Comfort (0 to 6)", ylim=(-0.2, 6.2))
    axes.set_xticks(range(len(emotions)), map(style.label, emotions))
    handles, names = axes.get_legend_handles_labels()
    axes.get_legend().remove()
    drawn.legend(handles, map(style.label, names), loc="outside upper center", ncols=len(names), frameon=False)
    style.caption(drawn, results.run, "Bars: 95 % intervals over dialogues, seeds averaged.")
    return drawn


def training_curves(results: Results) -> Figure:
    """Loss and the method's most telling metric beside it, a column a method, a line a seed; without the trials."""
    curves = results.training[results.training.model.isin(TUNED)]
    logged = {model: [m for m in _CURVES if m in set(rows.metric)][:2] for model, rows in curves.groupby("model")}
    models = [model for model in TUNED if logged.get(model)]
    if not models:
        raise MedComfortError(f"training.csv: no curve of {', '.join(TUNED)} is in it; run 02_finetune again.")
    rows, width = max(map(len, logged.values())), style.PAGE if len(models) > 1 else style.COLUMN
    drawn, axes = style.figure(width, (14 + 33 * rows) / 25.4, rows, len(models))
    for column, model in zip(axes.T, models, strict=True):
        for panel, metric in zip(column, logged[model], strict=False):
            _curves(panel, curves[curves.model == model], model, metric)
        column[len(logged[model]) - 1].set_xlabel("Step")
        for panel in column[len(logged[model]) :]:
            panel.set_axis_off()
    dashed = "; dashed: validation" if _VALIDATION in set(curves.metric) else ""
    style.caption(drawn, results.run, f"Thin: single seeds; thick: their mean{dashed}.")
    return drawn


def curves(training: pd.DataFrame) -> Figure:
    """What one model logged while it trained (columns model, seed, step, metric, value): a panel a metric."""
    logged = [metric for metric in _CURVES if metric in set(training.metric)]
    drawn, axes = style.figure(style.PAGE * len(logged) / 4, 42 / 25.4, columns=len(logged))
    for panel, metric in zip(axes[0], logged, strict=True):
        _curves(panel, training, training.model.iloc[0], metric)
        panel.set_xlabel("Step")
    return drawn


def gates(results: Results) -> Figure:
    """What was dropped: rewrites by gate and condition, and, beside them, source dialogues by reason of cleaning."""
    if results.gates.empty:
        raise MedComfortError("gates.csv: no gate was checked; run 01_rewrite again.")
    drops = results.cleaning[~results.cleaning.reason.isin(["read", "kept"])]
    rows = max(results.gates.gate.nunique(), len(drops), 3)
    drawn, axes = style.figure(style.PAGE, (26 + 4.5 * rows) / 25.4, columns=2, width_ratios=[1.7, 1])
    _failures(axes[0, 0], results.gates)
    _drops(axes[0, 1], drops, rows)
    style.caption(drawn, results.run, "Cells: rewrites that failed the gate, of those it checked; blank: not checked.")
    return drawn


def _joined(knowledge: pd.DataFrame, comfort: pd.DataFrame, results: Results) -> pd.DataFrame:
    """Both measures by model (suffixes _x, _y), in the order of `results.models`, where both are known."""
    points = knowledge.merge(comfort, left_index=True, right_index=True)  # pandas adds _x and _y
    if BASE not in points.index:
        raise MedComfortError("results.json: the base lacks comfort or knowledge; run 03_evaluate again.")
    return points.loc[[model for model in results.models if model in points.index]]


def _knowledge_range(points: pd.DataFrame, limit: float) -> tuple[float, float]:
    """The range that holds all points and some room beyond the margin; it starts at a multiple of 0.05 or about 0."""
    left = max(np.floor(20 * (min(points.low_x.min(), limit) - 0.03)) / 20, 0.0)
    room = 0.06 * (points.high_x.max() - left)
    return (left if left > 0 else min(left, limit) - room), points.high_x.max() + 5 * room  # for labels on the right


def _cut(left: float) -> str:
    return f" (share; axis starts at {left:.2f})" if left > 0 else " (share)"


def _region(axes: Axes, left: float, limit: float, text: str) -> None:
    axes.axvspan(left, limit, color="#f1e6e2", zorder=0, lw=0)
    axes.axvline(limit, color=style.FAINT, lw=0.7, ls=(0, (4, 2)))
    axes.annotate(text, (limit, 0.98), xycoords=("data", "axes fraction"), xytext=(-2, 0), textcoords="offset points",
                  rotation=90, ha="right", va="top", fontsize=5.5, color=style.FAINT)  # fmt: skip


def _curves(axes: Axes, curves: pd.DataFrame, model: str, metric: str) -> None:
    for name, line in ((metric, "-"), (_VALIDATION, "--")):
        rows = curves[curves.metric == name]
        if rows.empty or (line == "--" and metric != "loss"):
            continue
        for _, seed in rows.groupby("seed"):
            axes.plot(seed.step, seed.value, line, color=style.colour(model), lw=0.5, alpha=0.4)
        mean = rows.groupby("step")["value"].mean()
        axes.plot(mean.index, mean, line, color=style.colour(model), lw=1.2, label=name)
    axes.set_title(f"{style.label(model)}: {style.within(metric)}")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _failures(axes: Axes, table: pd.DataFrame) -> None:
    """A heat map of the share that failed, each cell with its counts; blank where a gate does not apply."""
    gate_order, conditions = table.gate.unique(), table.condition.unique()
    share, failed, checked = (
        table.pivot(index="gate", columns="condition", values=v).reindex(index=gate_order, columns=conditions)
        for v in ("share", "failed", "checked")
    )
    counts = (failed.map("{:.0f}".format) + checked.map("/{:.0f}".format)).where(failed > 0, "0")
    looks = {"cmap": sns.light_palette("#d55e00", as_cmap=True), "linewidths": 0.8, "cbar": False}
    sns.heatmap(share, mask=~(checked > 0), annot=counts, fmt="", annot_kws={"size": 6}, ax=axes, vmin=0,
                vmax=max(share.max().max(), 0.01), **looks)  # fmt: skip
    axes.set_xticklabels([style.label(c).replace(" ", "\n") for c in conditions], rotation=0)
    axes.set_yticklabels([style.label(g) for g in gate_order], rotation=0)
    total = int(table.failed.sum())
    axes.set(xlabel="", ylabel="", title=f"Gates: {total:,} failures" if total else "Gates: no rewrite was dropped")
    axes.tick_params(length=0)


def _drops(axes: Axes, drops: pd.DataFrame, rows: int) -> None:
    """A bar a reason, as high as if there were `rows` of them."""
    total = int(drops["count"].sum())
    axes.set_title(f"Cleaning: {total:,} dialogues dropped" if total else "Cleaning: no dialogue was dropped")
    bars = axes.barh(range(len(drops)), drops["count"], color=style.FAINT, height=0.6)
    axes.set_yticks(range(len(drops)), map(style.label, drops.reason))
    axes.bar_label(bars, fmt="{:,.0f}", padding=2, fontsize=6)
    axes.set(ylim=(rows - 0.5, -0.5), xlim=(0, 1.2 * max(total and drops["count"].max(), 1)), xticks=[])
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
