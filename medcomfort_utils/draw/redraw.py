"""Draw every figure and write every table anew from a folder of results, as 04_figures does, without a kernel."""

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from medcomfort_utils.draw import ablation, plots, style, tables
from medcomfort_utils.draw.results import Results, read_results
from medcomfort_utils.paths import MedComfortError, resolve, tidy, write_text

# By the name of the file: what 04_figures draws of every run.
FIGURES: dict[str, Callable[[Results], Figure]] = {
    "comfort_vs_knowledge": plots.balance,
    "collapse": plots.collapse,
    "comfort_by_emotion": plots.by_emotion,
    "mechanisms": plots.mechanisms,
    "neutral_questions": plots.neutral,
    "training_curves": plots.training_curves,
    "gates": plots.gates,
}


def redraw(results_dir: str | Path, out_dir: str | Path) -> tuple[list[Path], list[str]]:
    """Write OUT/figures, OUT/paper and OUT/summary.md; returns the figures' files and what could not be drawn.

    A figure that this run cannot have (no gate was checked, nothing was trained) is left out, and its reason told.
    Raises MedComfortError if the folder is not one of results.
    """
    results, out = read_results(results_dir), resolve(out_dir)
    files, figures, missing = [], {}, []
    for name, draw in FIGURES.items():
        try:
            figures[name] = draw(results)
        except MedComfortError as error:
            missing.append(f"{name}: {error}")
    varied = ablation.figures(results)
    for name, drawn in (figures | varied).items():
        drawn.draw_without_rendering()  # a notebook shows it before saving, and the layout's last digits hang on that
        files += style.save(drawn, name, out / "figures")
        plt.close(drawn)
    write_text(out / "paper/tables/results.tex", tables.to_latex(tables.results_table(results)))
    write_text(out / "paper/tables/claims.tex", tables.to_latex(tables.claims_table(results)))
    write_text(out / "paper/values.tex", tables.values_tex(results))
    if varied:
        write_text(out / "paper/ablation.tex", ablation.values_tex(results))
    write_text(out / "summary.md", tables.summary_markdown(results, [tidy(file) for file in files]))
    return files, missing
