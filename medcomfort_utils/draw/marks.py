"""What the figures are made of: points with intervals, arrows, and labels that stay off each other."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from medcomfort_utils.draw import style
from medcomfort_utils.draw.results import Results

MECHANISMS = ("emotional_reactions", "interpretations", "explorations")
TOP = {"comfort": 6, **dict.fromkeys(MECHANISMS, 2)}  # the end of a metric's scale; 1 for all shares
_ARROW = {"arrowstyle": "-|>", "lw": 0.8, "alpha": 0.55, "shrinkA": 4, "shrinkB": 4, "mutation_scale": 7}


def dots(
    axes: Axes, results: Results, metric: str, models: Sequence[str], test_set: str = "emotional", shift: float = 0.0
) -> None:
    """A row a model: its value with the interval, single seeds small and faint; hollow for neutral questions."""
    known = results.pooled(metric, test_set).index
    for height, model in enumerate(models):
        if model in known:
            dot(axes, results, metric, model, test_set, height + shift, model)
    scale(axes, metric)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_yticks(range(len(models)), [style.label(model) for model in models])
    axes.grid(axis="y", lw=0.4, color="#e6e6e6")


def dot(
    axes: Axes, results: Results, metric: str, model: str, test_set: str, height: float, look: str, gap: float = 0.2
) -> None:
    """One value with its interval, in the colour and with the marker of `look`.

    Its seeds lie `gap` below it, or above if that is negative; 0 hides them.
    """
    row, shade = results.pooled(metric, test_set).loc[model], style.colour(look)
    seeds = results.by_seed(metric, test_set)
    alone = seeds[seeds.index.get_level_values("model") == model]
    axes.scatter(alone, [height + gap] * len(alone), s=4, color=shade, alpha=0.4, lw=0, zorder=3)
    axes.errorbar(row.value, height, xerr=_arms(row.value, row.low, row.high), fmt=style.marker(look), ms=4, mew=0.7,
                  color=shade, mfc=shade if test_set == "emotional" else "white", label=model, zorder=4)  # fmt: skip


def scale(axes: Axes, metric: str) -> None:
    """The metric's whole scale and its name on the x axis; no tick marks on the y axis."""
    top = TOP.get(metric, 1)
    axes.set_xlim(-0.03 * top, 1.03 * top)
    axes.set_xlabel(f"{style.label(metric)} (0 to {top})")
    axes.tick_params(axis="y", length=0)


def paths(axes: Axes, results: Results, metric: str, rows: Sequence[str]) -> None:
    """An arrow from each method's sound model to each of its trials."""
    values = results.pooled(metric, "emotional")["value"]
    for trial in results.trials:
        twin = results.method(trial)
        if twin in rows and {twin, trial} <= set(values.index):
            start, end = ((values[model], rows.index(model)) for model in (twin, trial))
            axes.annotate("", end, start, arrowprops=_ARROW | {"color": style.colour(trial)})


def seed_points(axes: Axes, results: Results, models: Sequence[str]) -> np.ndarray:
    """Small faint points, one a seed; returns where they lie, [n, 2]."""
    knowledge, comfort = (results.by_seed(m, "emotional") for m in (results.knowledge, "comfort"))
    seeds = pd.concat([knowledge, comfort], axis=1, keys=["x", "y"]).dropna()
    seeds = seeds[seeds.index.get_level_values("model").isin(models)]
    colours = [style.colour(model) for model, _ in seeds.index]
    axes.scatter(seeds.x, seeds.y, s=5, c=colours, alpha=0.4, lw=0, label="seeds", zorder=3)
    return seeds.to_numpy().reshape(-1, 2)


def cross(axes: Axes, model: str, row: pd.Series, faint: bool = False) -> np.ndarray:
    """A model's point with its intervals both ways, `faint` or not; returns points along them, [n, 2]."""
    axes.errorbar(row.value_x, row.value_y, xerr=_arms(row.value_x, row.low_x, row.high_x),
                  yerr=_arms(row.value_y, row.low_y, row.high_y), fmt=style.marker(model), ms=4.5, mew=0.4, mec="white",
                  color=style.colour(model), elinewidth=0.9, ecolor=(style.colour(model), 0.35 if faint else 1),
                  label=model, zorder=4)  # fmt: skip
    ends = np.array([[row.low_x, row.value_y], [row.high_x, row.value_y], [row.value_x, row.low_y],
                     [row.value_x, row.high_y]])  # fmt: skip
    return np.vstack([line(*ends[:2]), line(*ends[2:])])


def _arms(value: float, low: float, high: float) -> list[list[float]]:
    """Lengths of an error bar; never negative, as the mean may leave a bootstrap interval by a rounding."""
    return [[max(value - low, 0)], [max(high - value, 0)]]


def arrow(axes: Axes, start: pd.Series, end: pd.Series, model: str) -> np.ndarray:
    """An arrow from one row's point to the other's; returns points along it, [n, 2]."""
    ends = np.array([[start.value_x, start.value_y], [end.value_x, end.value_y]])
    axes.annotate("", ends[1], ends[0], arrowprops=_ARROW | {"color": style.colour(model)})
    return line(*ends)


def place_labels(axes: Axes, texts: Iterable[tuple[str, float, float, str]], obstacles: np.ndarray) -> None:
    """Write each (text, x, y, colour) close to its point: off the `obstacles` and off each other, with a leader line.

    `obstacles`: data coordinates [n, 2] of what must stay visible. Greedy over rings of positions, nearest first.
    """
    axes.figure.draw_without_rendering()  # the layout must stand before anything is measured
    taken, blocked = [], axes.transData.transform(obstacles)
    for text, x, y, shade in texts:
        note = axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", color=shade, fontsize=7,
                             ha="center", va="center",
                             arrowprops={"arrowstyle": "-", "color": shade, "lw": 0.5})  # fmt: skip
        note.set_in_layout(False)
        size = Text.get_window_extent(note)  # the text alone, without its line
        start = axes.transData.transform((x, y))
        boxes = _positions(start, size, axes.figure.dpi / 72)
        box = min(boxes, key=lambda box: _cost(box, start, taken, blocked, axes))
        note.set_position((_centre(box) - start) * 72 / axes.figure.dpi)
        taken.append(box)
        blocked = np.vstack([blocked, line(start, _centre(box))])


def _positions(start: np.ndarray, size: Bbox, point: float) -> list[Bbox]:
    """Boxes for a text of this `size` around `start`, in rings, nearest first; in pixels, 1/72 inch being `point`."""
    half = np.array([size.width, size.height]) / 2
    angles = np.arange(16) * np.pi / 8
    rings = [(gap, np.array([np.cos(angle), np.sin(angle)])) for gap in (5, 10, 16, 23, 31, 40) for angle in angles]
    centres = [start + way * (half + gap * point) for gap, way in rings]
    return [Bbox([centre - half - point, centre + half + point]) for centre in centres]


def _cost(box: Bbox, start: np.ndarray, taken: list[Bbox], blocked: np.ndarray, axes: Axes) -> float:
    """What the text would hide, most for leaving the axes or covering another text; then how far off it stands."""
    leader = line(start, _centre(box))
    outside = axes.bbox.count_contains(box.get_points()) < 2
    covers = sum(box.overlaps(other) + (other.count_contains(leader) > 0) for other in taken)
    return 1000 * outside + 100 * covers + box.count_contains(blocked) + 0.01 * np.hypot(*(_centre(box) - start))


def _centre(box: Bbox) -> np.ndarray:
    return box.get_points().mean(axis=0)


def line(start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Points along a straight line, [30, 2]."""
    return start + np.linspace(0, 1, 30)[:, None] * (end - start)
