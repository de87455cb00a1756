"""What differs between two runs: parameters, and scores with intervals; as Markdown and as a figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medcomfort_utils import paths
from medcomfort_utils.draw import plots, style, tables
from medcomfort_utils.draw.results import Results, read_results
from medcomfort_utils.paths import MedComfortError, resolve, tidy, write_text
from medcomfort_utils.records import KNOWLEDGE

SHOWN = ("comfort", *KNOWLEDGE, "red_flags_kept", "invented_numbers", "length_ratio", "ended")
_HOW = "B − A with 95 % intervals that take the runs as independent. Bold: the interval leaves out 0."


def compare(run_a: str, run_b: str, out_dir: str | Path) -> str:
    """Write OUT/A-vs-B.md, .pdf and .png; returns the Markdown with the names of the files. Raises as `find` does."""
    a, b = read_results(find(run_a)), read_results(find(run_b))
    name = f"{Path(run_a).name}-vs-{Path(run_b).name}"
    text = f"# {run_a} (A) and {run_b} (B)\n\n{to_markdown(a, b)}"
    drawn = style.note(figure(a, b), f"A: {run_a}; B: {run_b}. {plots.BOTH} Bars: 95 % intervals.")
    files = [*style.save(drawn, name, out_dir), write_text(resolve(out_dir) / f"{name}.md", text)]
    return f"{text}\nWritten: {', '.join(map(tidy, files))}"


def find(run: str) -> Path:
    """The folder of a run: a name in runs/ or data/results/, or a path; a MedComfortError if none holds results."""
    places = [paths.RUNS / run, paths.DATA / "results" / run, Path(run).expanduser().resolve()]
    for place in places:
        if (place / "results.json").is_file():
            return place
    looked = ", ".join(map(tidy, places))
    raise MedComfortError(f"There is no run {run!r} with results: no results.json in {looked}.")


def differences(a: Results, b: Results) -> pd.DataFrame:
    """A row for each model, test set and measure of both: `value_a`, `value_b` ...; b - a as `value`, `low`, `high`.

    The interval of b - a comes from the two intervals alone (MOVER; Zou & Donner 2008, Stat. Med. 27, 1693-1702).
    """
    table = a.pooled.merge(b.pooled, on=["model", "test_set", "metric"], suffixes=("_a", "_b"))
    table = table[table.metric.isin(SHOWN)].assign(value=table.value_b - table.value_a)
    table["low"] = table.value - np.hypot(table.value_b - table.low_b, table.high_a - table.value_a)
    table["high"] = table.value + np.hypot(table.high_b - table.value_b, table.value_a - table.low_a)
    return table.sort_values("metric", key=lambda names: names.map(SHOWN.index), kind="stable")


def figure(a: Results, b: Results) -> Figure:
    """The differences B - A in comfort and knowledge, a row a model."""
    table = differences(a, b)
    metrics = ["comfort", next((m for m in (a.knowledge, b.knowledge) if m in set(table.metric)), KNOWLEDGE[-1])]
    drawn, axes = plots.forest(table, list(table.model.unique()), metrics)
    for metric, panel in axes.items():
        panel.axvline(0, **plots.DASHED)
        panel.set_xlabel(f"Difference in {style.within(metric)} (of {plots.TOP.get(metric, 1)}), B − A")
    return drawn


def to_markdown(a: Results, b: Results) -> str:
    """Parameters and scores that differ."""
    changed, steps_a, steps_b = [], _steps(a), _steps(b)
    for step in (name for name in steps_a if name in steps_b):
        for name in dict.fromkeys([*steps_a[step], *steps_b[step]]):
            values = [str(given[step].get(name, tables.NONE)) for given in (steps_a, steps_b)]
            changed += [(f"{step}.{name}".lstrip("."), *values)] if values[0] != values[1] else []
    scores = []
    for r in differences(a, b).query("value_a != value_b").itertuples():
        text = tables.cell(r.value, r.low, r.high, 3)
        before, after = tables.cell(r.value_a, r.low_a, r.high_a), tables.cell(r.value_b, r.low_b, r.high_b)
        scores.append((style.label(r.model), r.test_set, style.label(r.metric), before, after,
                       f"**{text}**" if r.low > 0 or r.high < 0 else text))  # fmt: skip
    parts = ["## Parameters", *_alone(a.methods, b.methods), _table(changed, ["", "A", "B"]), "## Scores",
             _table(scores, ["Model", "Questions", "Measure", "A", "B", "Difference"]), _HOW]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _steps(results: Results) -> dict[str, dict[str, Any]]:
    """The parameters of each step as the profile has them; those of the whole run under an empty name."""
    whole = {"corpus": results.run["corpus"], "base model": results.run["base_model"]}
    steps = {"": whole, **results.profile, **results.profile.get("models", {})}
    return {step: given for step, given in steps.items() if isinstance(given, dict) and step != "models"}


def _table(rows: list[tuple], columns: list[str]) -> str:
    return tables.to_markdown(pd.DataFrame(rows, columns=columns)) if rows else "The same."


def _alone(a: Iterable[str], b: Iterable[str]) -> list[str]:
    """A sentence for the models that only one run has, if there are any."""
    alone = {"A": [name for name in a if name not in b], "B": [name for name in b if name not in a]}
    return [f"Only in {run}: {', '.join(names)}." for run, names in alone.items() if names]
