"""What differs between two runs: parameters, data, versions, and scores with intervals; as Markdown and as a figure."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from medcomfort_utils import paths
from medcomfort_utils.draw import marks, style, tables
from medcomfort_utils.draw.results import BASE, KNOWLEDGE, PROFILE, Results, read_profile, read_results
from medcomfort_utils.paths import MedComfortError, resolve, tidy, write_text

ALSO = ("red_flags_kept", "invented_numbers", "length_ratio", "ended")
_KEY = ["model", "test_set", "metric"]
_HOW = (
    "Differences are B − A with 95 % intervals that take the two runs as independent; where both answered the same "
    "questions they are rather too wide. Bold: the interval leaves out 0."
)


@dataclass(frozen=True)
class Compared:
    """A run to compare: its name, its results, and its parameters by STEP.PARAMETER.

    `whole`: whether these are the parameters of all steps (profile.yaml), or of 03_evaluate alone (run.json).
    """

    name: str
    results: Results
    parameters: dict[str, Any]
    whole: bool


def compare(run_a: str, run_b: str, out_dir: str | Path) -> str:
    """Write OUT/A-vs-B.md, .pdf and .png; returns the Markdown with the names of the files. Raises as `find` does."""
    a, b = read_run(run_a), read_run(run_b)
    name = f"{Path(run_a).name}-vs-{Path(run_b).name}"
    text = to_markdown(a, b)
    files = [*style.save(figure(a, b), name, out_dir), write_text(resolve(out_dir) / f"{name}.md", text)]
    return f"{text}\nWritten: {', '.join(map(tidy, files))}"


def find(run: str) -> Path:
    """The folder of a run: a name in runs/ or data/results/, or a path; a MedComfortError if none holds results."""
    places = [paths.RUNS / run, paths.DATA / "results" / run, Path(run).expanduser().resolve()]
    for place in places:
        if (place / "results.json").is_file():
            return place
    looked = ", ".join(tidy(place) for place in places)
    raise MedComfortError(f"There is no run {run!r} with results: no results.json in {looked}.")


def read_run(run: str) -> Compared:
    """Read a run's results, and its profile.yaml if it lies beside them."""
    folder = find(run)
    results = read_results(folder)
    if (folder / PROFILE).is_file():
        return Compared(run, results, _profile(folder / PROFILE), True)
    return Compared(run, results, _evaluation(results.run), False)


def differences(a: Results, b: Results) -> pd.DataFrame:
    """A row for each model, test set and measure of both: `value_a`, `value_b` ..., `difference`, `low`, `high`.

    The interval of b - a comes from the two intervals alone (MOVER; Zou & Donner 2008, Stat. Med. 27, 1693-1702).
    """
    shown = _measures(a, b)
    known = [r.table[r.table.seed.isna() & r.table.metric.isin(shown)] for r in (a, b)]
    table = known[0].merge(known[1], on=_KEY, suffixes=("_a", "_b"))
    table["difference"] = table.value_b - table.value_a
    table["low"] = table.difference - np.hypot(table.value_b - table.low_b, table.high_a - table.value_a)
    table["high"] = table.difference + np.hypot(table.high_b - table.value_b, table.value_a - table.low_a)
    return table.sort_values("metric", key=lambda names: names.map(shown.index), kind="stable")


def _measures(a: Results, b: Results) -> list[str]:
    """Comfort, the best measure of knowledge that both have, and `ALSO`."""
    both = set(a.table.metric) & set(b.table.metric)
    knowledge = [metric for metric in (a.knowledge, b.knowledge, *KNOWLEDGE) if metric in both][:1]
    return [metric for metric in ("comfort", *knowledge, *ALSO) if metric in both]


def to_markdown(a: Compared, b: Compared) -> str:
    """The whole comparison: parameters, data, versions, scores; A and B are the two names."""
    parts = [f"# {a.name} (A) and {b.name} (B)", "## Parameters", _parameters(a, b)]
    parts += ["## Data", _changed(_data(a.results), _data(b.results)), _questions(a.results, b.results)]
    parts += ["## Versions", _changed(a.results.run.get("versions", {}), b.results.run.get("versions", {}))]
    parts += ["## Scores", *_scores(a.results, b.results)]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def figure(a: Compared, b: Compared) -> Figure:
    """The differences B - A in knowledge and comfort, a row a model; hollow: on neutral questions."""
    table = differences(a.results, b.results)
    metrics = [metric for metric in _measures(a.results, b.results) if metric in ("comfort", *KNOWLEDGE)]
    models = _models(a.results, b.results)
    drawn, axes = style.figure(style.PAGE, (26 + 6.5 * len(models)) / 25.4, columns=len(metrics), sharey=True)
    for panel, metric in zip(axes[0], metrics, strict=True):
        _forest(panel, table[table.metric == metric], models, metric)
    note = f"A: {a.name}; B: {b.name}. Filled: emotional questions; hollow: neutral ones. Bars: 95 % intervals."
    stands_on = {key: " / ".join(_unique(r.results.run[key] for r in (a, b))) for key in ("corpus", "base_model")}
    style.caption(drawn, stands_on, note)
    return drawn


def _forest(axes: Axes, table: pd.DataFrame, models: list[str], metric: str) -> None:
    axes.axvline(0, color=style.FAINT, lw=0.7, ls=(0, (4, 2)))
    for row in table[table.model.isin(models)].itertuples():
        shade, neutral = style.colour(row.model), row.test_set == "neutral"
        arms = [[row.difference - row.low], [row.high - row.difference]]
        axes.errorbar(row.difference, models.index(row.model) + (0.16 if neutral else -0.16), xerr=arms,
                      fmt=style.marker(row.model), ms=4, mew=0.7, color=shade, mfc="white" if neutral else shade,
                      label=f"{row.model} {row.test_set}")  # fmt: skip
    axes.set_xlabel(f"Difference in {style.within(metric)} (of {marks.TOP.get(metric, 1)}), B − A")
    axes.set_yticks(range(len(models)), [style.label(model) for model in models])
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", lw=0.4, color="#e6e6e6")


def _profile(path: Path) -> dict[str, Any]:
    return {f"{step['name']}.{key}": value for step in read_profile(path) for key, value in step["parameters"].items()}


def _evaluation(run: dict) -> dict[str, Any]:
    """The parameters in run.json, the run's own folder told as `${run}`, since two runs differ in it always."""
    given = run.get("parameters", {})
    own = str(given.get("out_dir", ""))
    return {f"03_evaluate.{k}": v.replace(own, "${run}") if own and isinstance(v, str) else v for k, v in given.items()}


def _parameters(a: Compared, b: Compared) -> str:
    """What differs within the steps that both have, and the steps that only one has."""
    if a.whole == b.whole:
        told_a, told_b, note = a.parameters, b.parameters, ""
    else:
        told_a, told_b = _evaluation(a.results.run), _evaluation(b.results.run)
        note = f"{b.name if a.whole else a.name} keeps no profile.yaml: the parameters of 03_evaluate only."
    steps_a, steps_b = (_unique(map(_step, told)) for told in (told_a, told_b))
    told_a = {key: value for key, value in told_a.items() if _step(key) in steps_b}
    told_b = {key: value for key, value in told_b.items() if _step(key) in steps_a}
    return "\n\n".join(filter(None, [_changed(told_a, told_b), *_only(steps_a, steps_b), note]))


def _step(key: str) -> str:
    return key.rpartition(".")[0]


def _only(a: list[str], b: list[str]) -> list[str]:
    """A sentence for what stands in one list alone, if anything does."""
    alone = {"A": [name for name in a if name not in b], "B": [name for name in b if name not in a]}
    return [f"Only in {run}: {', '.join(names)}." for run, names in alone.items() if names]


def _data(results: Results) -> dict[str, Any]:
    counts = results.cleaning.set_index("reason")["count"]
    told = {"corpus": results.run["corpus"], "base model": results.run["base_model"]}
    told |= {f"dialogues {reason}": int(counts[reason]) for reason in ("read", "kept") if reason in counts}
    replies = results.scores[results.scores.model == BASE].groupby("test_set").size()
    return told | {f"{test_set} questions": int(count) for test_set, count in replies.items()}


def _questions(a: Results, b: Results) -> str:
    asked_a, asked_b = (set(r.scores.dialogue_id) for r in (a, b))
    return f"Test dialogues in common: {len(asked_a & asked_b)} of {len(asked_a | asked_b)}."


def _scores(a: Results, b: Results) -> list[str]:
    """The scores that differ; those that are the same are counted."""
    table = differences(a, b)
    other = table[table.value_a != table.value_b]
    rows = [(style.label(r.model), r.test_set, style.label(r.metric), tables.cell(r.value_a, r.low_a, r.high_a),
             tables.cell(r.value_b, r.low_b, r.high_b), _difference(r)) for r in other.itertuples()]  # fmt: skip
    shown = pd.DataFrame(rows, columns=["Model", "Questions", "Measure", "A", "B", "Difference"])
    told = [tables.to_markdown(shown), _HOW] if rows else []
    same = f"{len(table) - len(other)} of {len(table)} scores that both have are the same."
    return [*told, same, *_only(_unique(a.table.model), _unique(b.table.model))]


def _difference(row: Any) -> str:
    text = tables.cell(row.difference, row.low, row.high, 3)
    return f"**{text}**" if row.low > 0 or row.high < 0 else text


def _changed(a: dict[str, Any], b: dict[str, Any]) -> str:
    """A table of the keys whose values differ; a key that one of them lacks has a dash."""
    rows = [(key, *(str(told[key]) if key in told else tables.NONE for told in (a, b)))
            for key in dict.fromkeys([*a, *b]) if key not in a or key not in b or a[key] != b[key]]  # fmt: skip
    return tables.to_markdown(pd.DataFrame(rows, columns=["", "A", "B"])) if rows else "The same."


def _models(a: Results, b: Results) -> list[str]:
    """The models of both runs: base, tuned and baselines first, then the trials."""
    theirs = {*b.models, *b.trials}
    return [model for model in [*a.models, *a.trials] if model in theirs]


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(map(str, values)))
