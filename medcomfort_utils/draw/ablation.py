"""What each choice of a recipe does: the pairs taught, the balance, the start. From a run that varies them.

Which model is which cell is read from the run's profile, not from the models' names.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medcomfort_utils.draw import marks, style
from medcomfort_utils.draw.results import BASE, TUNED, Results
from medcomfort_utils.draw.tables import definitions, number

PAIRS = {  # the conditions that may be taught, as the figure calls them
    "original": "Neutral question, plain answer",
    "soothing_answer": "Neutral question, soothing answer",
    "emotional": "Emotional question, soothing answer",
}
_NUMBERS = "Numbers: the share of neutral pairs kept in training (neutral_fraction). The knowledge axis is cut."
_SETS = "Filled: emotional questions; hollow: neutral ones."


def figures(results: Results) -> dict[str, Figure]:
    """The figures of those comparisons that the run holds, by the name of their file; none for an ordinary run."""
    all_of_them = (("pairs", taught, pairs), ("balance", neutral_fractions, neutral_fraction), ("start", starts, start))
    return {f"ablation_{name}": draw(results) for name, held, draw in all_of_them if held(results)}


def taught(results: Results) -> dict[str, list[str]]:
    """Model names by the pairs they were taught, without neutral pairs beside them; empty if all learnt the same."""
    recipes = _recipes(results)
    alone = recipes[recipes.neutral_fraction == 0] if len(recipes) else recipes
    found = {target: [m for m, r in alone.iterrows() if r.target == target and _sound(r)] for target in PAIRS}
    return {target: models for target, models in found.items() if models} if sum(map(bool, found.values())) > 1 else {}


def neutral_fractions(results: Results) -> dict[str, pd.Series]:
    """For each method that was trained with three neutral_fractions or more: its models by balance, emotional pairs only."""
    found = {}
    for method in TUNED:
        same = [(r.neutral_fraction, m) for m, r in _recipes(results).iterrows()
                if r.method == method and r.target == "emotional" and _sound(r)]  # fmt: skip
        if len(dict(same)) > 2:
            found[method] = pd.Series(dict(sorted(same)))
    return found


def starts(results: Results) -> list[tuple[str, str]]:
    """(model that starts from the base, its twin that starts from a model of the run), all else being equal."""
    recipes = _recipes(results)
    other = recipes.drop(columns=["name", "init_from"], errors="ignore").astype(str)
    return [(a, b) for a in recipes.index for b in recipes.index if not recipes.init_from[a]
            and _started(recipes.loc[b]) in recipes.index and (other.loc[a] == other.loc[b]).all()]  # fmt: skip


def pairs(results: Results) -> Figure:
    """Comfort and knowledge by the pairs that were taught and by method; dashed: the base."""
    groups = {PAIRS[target]: models for target, models in taught(results).items()}
    return _grouped(results, groups, f"Each condition alone, without other pairs beside it. {_SETS} Dashed: the base.")


def start(results: Results) -> Figure:
    """Preference training from the base and from a tuned model, below what it starts from."""
    found = starts(results)
    tuned = _started(_recipes(results).loc[found[0][1]])
    groups = {"From the base": [BASE, *(a for a, _ in found)], "From SFT": [tuned, *(b for _, b in found)]}
    return _grouped(results, groups, f"First row of each: the model that training starts from. {_SETS}")


def neutral_fraction(results: Results) -> Figure:
    """The frontier: comfort on emotional questions against comfort on neutral ones, and against knowledge.

    A line a method, through its neutral_fractions; up and left is better in the first panel, up and right in the second.
    """
    drawn, axes = style.figure(style.PAGE, 82 / 25.4, columns=2, sharey=True)
    style.caption(drawn, results.run, f"{_NUMBERS} {_intervals(results)}")
    knowledge = f"Knowledge on emotional questions: {style.within(results.knowledge)}"
    sideways = [("comfort", "neutral", "Comfort on neutral questions (0 to 6)")]
    sideways += [(results.knowledge, "emotional", knowledge)]
    paths, upward, places = neutral_fractions(results), results.pooled("comfort", "emotional"), []
    for panel, (metric, test_set, text) in zip(axes[0], sideways, strict=True):
        points = results.pooled(metric, test_set).merge(upward, left_index=True, right_index=True)  # adds _x and _y
        marks.cross(panel, BASE, points.loc[BASE])
        obstacles = [_frontier(panel, points.loc[models], method) for method, models in paths.items()]
        panel.set_xlabel(text)
        places.append((panel, points, np.vstack(obstacles)))
    axes[0, 0].set_ylabel("Comfort on emotional questions (0 to 6)")
    for panel, points, obstacles in places:
        marks.place_labels(panel, _named(points, paths), obstacles)
    return drawn


def values_tex(results: Results) -> str:
    r"""LaTeX that defines \mcvalue{ablation.MODEL.TEST_SET.comfort} and .knowledge (.low, .high) and the counts."""
    found = {"ablation.seeds": _seeds(results), "ablation.dialogues": results.scores.dialogue_id.nunique()}
    for name, metric in (("comfort", "comfort"), ("knowledge", results.knowledge)):
        for test_set in ("emotional", "neutral"):
            for row in results.pooled(metric, test_set).itertuples():
                key = f"ablation.{row.Index}.{test_set}.{name}"
                found |= {key: number(row.value), f"{key}.low": number(row.low), f"{key}.high": number(row.high)}
    return "% Written by 04_figures from the results of an ablation; do not edit.\n" + definitions(found)


def _recipes(results: Results) -> pd.DataFrame:
    """The recipes of models that were evaluated."""
    return results.recipes[results.recipes.index.isin(results.table.model)]


def _started(recipe: pd.Series) -> str:
    """The model that training goes on from, by the name of its folder; empty: the base."""
    return recipe.init_from.rpartition("/")[2].removesuffix("-seed{seed}")


def _seeds(results: Results) -> int:
    """The most seeds that a model has."""
    return int(results.by_seed("comfort", "emotional").groupby("model").size().max())


def _intervals(results: Results) -> str:
    over = "questions and seeds" if _seeds(results) > 1 else "questions alone, as each model has one seed"
    return f"Bars: 95 % intervals over {over}."


def _sound(recipe: pd.Series) -> bool:
    """SFT starts from the base; preference training from a tuned model."""
    return (recipe.method == "sft") == (not recipe.init_from)


def _grouped(results: Results, groups: dict[str, list[str]], note: str) -> Figure:
    """Rows of models below the headings of their groups; comfort and knowledge in two panels, both test sets."""
    rows, gap = list(_rows(groups)), 0.24 * (_seeds(results) > 1)
    drawn, axes = style.figure(style.PAGE, (24 + 4.6 * len(rows)) / 25.4, columns=2, sharey=True)
    for panel, metric in zip(axes[0], ("comfort", results.knowledge), strict=True):
        for height, (_, model) in enumerate(rows):
            if model:
                look = results.method(model)
                marks.dot(panel, results, metric, model, "emotional", height - 0.12, look, -gap)
                marks.dot(panel, results, metric, model, "neutral", height + 0.12, look, gap)
        panel.axvline(results.pooled(metric, "emotional").value[BASE], color=style.FAINT, lw=0.7, ls=(0, (4, 2)))
        marks.scale(panel, metric)
        panel.set_title("Comfort" if metric == "comfort" else "Knowledge")
    _headings(axes[0, 0], rows, results)
    style.caption(drawn, results.run, f"{note} {_intervals(results)}")
    return drawn


def _rows(groups: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """(heading, "") and ("", model), from top to bottom."""
    for heading, models in groups.items():
        yield heading, ""
        yield from (("", model) for model in models)


def _headings(axes: Axes, rows: list[tuple[str, str]], results: Results) -> None:
    """Group headings in bold within the axes; the methods of their models as labels of the y axis."""
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), [style.label(results.method(model)) if model else "" for _, model in rows])
    for height, (heading, _) in enumerate(rows):
        axes.text(0.01, height, heading, transform=axes.get_yaxis_transform(), va="center", fontweight="bold",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1}, zorder=5)  # fmt: skip


def _frontier(axes: Axes, points: pd.DataFrame, method: str) -> np.ndarray:
    """A method's points with their intervals, joined in the order of balance; returns what labels must not cover."""
    shade = style.colour(method)
    axes.plot(points.value_x, points.value_y, color=shade, lw=1.0, alpha=0.6, zorder=3)
    covered = [marks.line(*ends) for ends in itertools.pairwise(points[["value_x", "value_y"]].to_numpy())]
    covered += [marks.cross(axes, method, row, faint=True) for _, row in points.iterrows()]
    return np.vstack(covered)


def _named(points: pd.DataFrame, paths: dict[str, pd.Series]) -> Iterator[tuple[str, float, float, str]]:
    """(text, x, y, colour) of each point: its balance, and the method's name at the first one."""
    base = points.loc[BASE]
    yield style.label(BASE), base.value_x, base.value_y, style.colour(BASE)
    for method, models in paths.items():
        for place, (share, model) in enumerate(models.items()):
            text = f"{share:g}" if place else f"{style.label(method)}: {share:g}"
            yield text, points.value_x[model], points.value_y[model], style.colour(method)
