"""What differs between two runs: parameters, data, versions, and scores with intervals; as Markdown and as a figure."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from medcomfort_utils import paths
from medcomfort_utils.draw import plots, style, tables
from medcomfort_utils.draw.results import BASE, KNOWLEDGE, Results, read_results
from medcomfort_utils.paths import MedComfortError, resolve, tidy, write_text

ALSO = ("red_flags_kept", "invented_numbers", "length_ratio", "ended")
_HOW = (
    "Differences are B − A with 95 % intervals that take the two runs as independent; where both answered the same "
    "questions they are rather too wide. Bold: the interval leaves out 0."
)


def compare(run_a: str, run_b: str, out_dir: str | Path) -> str:
    """Write OUT/A-vs-B.md, .pdf and .png; returns the Markdown with the names of the files. Raises as `find` does."""
    a, b = read_results(find(run_a)), read_results(find(run_b))
    name = f"{Path(run_a).name}-vs-{Path(run_b).name}"
    text = f"# {run_a} (A) and {run_b} (B)\n\n{to_markdown(a, b)}"
    note = f"A: {run_a}; B: {run_b}. Filled: emotional questions; hollow: neutral ones. Bars: 95 % intervals."
    files = style.save(style.note(figure(a, b), note), name, out_dir)
    files.append(write_text(resolve(out_dir) / f"{name}.md", text))
    return f"{text}\nWritten: {', '.join(map(tidy, files))}"


def find(run: str) -> Path:
    """The folder of a run: a name in runs/ or data/results/, or a path; a MedComfortError if none holds results."""
    places = [paths.RUNS / run, paths.DATA / "results" / run, Path(run).expanduser().resolve()]
    for place in places:
        if (place / "results.json").is_file():
            return place
    looked = ", ".join(tidy(place) for place in places)
    raise MedComfortError(f"There is no run {run!r} with results: no results.json in {looked}.")


def differences(a: Results, b: Results) -> pd.DataFrame:
    """A row for each model, test set and measure of both: `value_a`, `value_b` ...; b - a as `value`, `low`, `high`.

    Measures: comfort, the best one of knowledge that both have, and `ALSO`. The interval of b - a comes from the two
    intervals alone (MOVER; Zou & Donner 2008, Stat. Med. 27, 1693-1702).
    """
    both = set(a.table.metric) & set(b.table.metric)
    knowledge = [metric for metric in (a.knowledge, b.knowledge, *KNOWLEDGE) if metric in both][:1]
    shown = [metric for metric in ("comfort", *knowledge, *ALSO) if metric in both]
    table = a.pooled.merge(b.pooled, on=["model", "test_set", "metric"], suffixes=("_a", "_b"))
    table = table[table.metric.isin(shown)].assign(value=table.value_b - table.value_a)
    table["low"] = table.value - np.hypot(table.value_b - table.low_b, table.high_a - table.value_a)
    table["high"] = table.value + np.hypot(table.high_b - table.value_b, table.value_a - table.low_a)
    order = [*shown, *a.methods]
    return table.sort_values(["metric", "model"], key=lambda names: names.map(order.index), kind="stable")


def figure(a: Results, b: Results) -> Figure:
    """The differences B - A in comfort and knowledge, a row a model."""
    table = differences(a, b)
    metrics = [metric for metric in table.metric.unique() if metric in ("comfort", *KNOWLEDGE)]
    rows = [plots.Row(style.label(model), model) for model in a.methods if model in b.methods]
    drawn, axes = plots.forest(table, rows, metrics)
    for metric, panel in axes.items():
        panel.axvline(0, color=style.FAINT, lw=0.7, ls=(0, (4, 2)))
        panel.set_xlabel(f"Difference in {style.within(metric)} (of {plots.TOP.get(metric, 1)}), B − A")
    return drawn


def to_markdown(a: Results, b: Results) -> str:
    """The whole comparison: parameters, data, versions, scores."""
    table = differences(a, b)
    other = table[table.value_a != table.value_b]
    asked_a, asked_b = (set(r.scores.dialogue_id) for r in (a, b))
    parts = ["## Parameters", *_parameters(a, b), "## Data", _changed(_data(a), _data(b)),
             f"Test dialogues in common: {len(asked_a & asked_b)} of {len(asked_a | asked_b)}.",
             "## Versions", _changed(a.run.get("versions", {}), b.run.get("versions", {})),
             "## Scores", *([tables.to_markdown(_scores(other)), _HOW] if len(other) else []),
             f"{len(table) - len(other)} of {len(table)} scores that both have are the same.",
             *_only(a.methods, b.methods)]  # fmt: skip
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _scores(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for r in table.itertuples():
        text = tables.cell(r.value, r.low, r.high, 3)
        a, b = tables.cell(r.value_a, r.low_a, r.high_a), tables.cell(r.value_b, r.low_b, r.high_b)
        sure = r.low > 0 or r.high < 0
        rows.append((style.label(r.model), r.test_set, style.label(r.metric), a, b, f"**{text}**" if sure else text))
    return pd.DataFrame(rows, columns=["Model", "Questions", "Measure", "A", "B", "Difference"])


def _parameters(a: Results, b: Results) -> list[str]:
    """What differs within the steps that both have, and the steps that only one has."""
    whole = bool(a.profile and b.profile)
    told_a, told_b = (_steps(run, whole) for run in (a, b))
    both = [step for step in told_a if step in told_b]
    flat = [{f"{s}.{k}": v for s in both for k, v in told[s].items()} for told in (told_a, told_b)]
    note = [] if whole else ["A run without profile.yaml: the parameters of 03_evaluate only."]
    return [_changed(*flat), *_only(told_a, told_b), *note]


def _steps(results: Results, whole: bool) -> dict[str, dict[str, Any]]:
    """The parameters of each step; of 03_evaluate alone unless `whole`, without the run's own folders."""
    if whole:
        told = {**results.profile, **results.profile["models"]}
        return {name: step for name, step in told.items() if isinstance(step, dict) and name != "models"}
    given = results.run.get("parameters", {})
    own = str(given.get("out_dir", "-"))
    return {"evaluate": {name: value for name, value in given.items() if not str(value).startswith(own)}}


def _data(results: Results) -> dict[str, Any]:
    counts = results.cleaning.set_index("reason")["count"]
    told = {"corpus": results.run["corpus"], "base model": results.run["base_model"]}
    told |= {f"dialogues {reason}": int(counts[reason]) for reason in ("read", "kept") if reason in counts}
    replies = results.scores[results.scores.model == BASE].groupby("test_set").size()
    return told | {f"{test_set} questions": int(count) for test_set, count in replies.items()}


def _changed(a: dict[str, Any], b: dict[str, Any]) -> str:
    """A table of the keys whose values differ; a key that one of them lacks has a dash."""
    rows = [(key, *(str(told.get(key, tables.NONE)) for told in (a, b)))
            for key in dict.fromkeys([*a, *b]) if key not in a or key not in b or a[key] != b[key]]  # fmt: skip
    return tables.to_markdown(pd.DataFrame(rows, columns=["", "A", "B"])) if rows else "The same."


def _only(a: Iterable[str], b: Iterable[str]) -> list[str]:
    """A sentence for what stands in one list alone, if anything does."""
    alone = {"A": [name for name in a if name not in b], "B": [name for name in b if name not in a]}
    return [f"Only in {run}: {', '.join(names)}." for run, names in alone.items() if names]
