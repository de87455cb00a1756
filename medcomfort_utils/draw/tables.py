"""The results as tables and numbers: Markdown for the README and the summary, LaTeX for the paper."""

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from medcomfort_utils.draw import style
from medcomfort_utils.draw.results import BASELINES, Results

NONE = "–"
_ALSO = ("held_out_facts_kept", "red_flags_kept", "invented_numbers", "length_ratio", "ended")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "−": "$-$", NONE: "--",
}  # fmt: skip
_SYMBOLS = {"d_z": "$d_z$", "p": "$p$"}  # headings that are mathematics
_VALUE_COMMAND = r"""% Written by 04_figures from results.json and claims.json; do not edit.
% \mcvalue{MODEL.TEST_SET.METRIC} (also .low, .high, .n), \mcvalue{claim.ID.MODEL.verdict} (also .estimate, .low,
% .high, .p, .effect), \mcvalue{run.KEY}. An unknown name is an error, never an empty place.
\newcommand{\mcvalue}[1]{\ifcsname mc.#1\endcsname\csname mc.#1\endcsname\else
  \errmessage{There is no value #1 in values.tex}\fi}"""


def results_table(results: Results) -> pd.DataFrame:
    """One row a model (trials too), cells "3.91 [3.80, 4.02]": the value and its 95 % interval, seeds pooled.

    Columns: comfort and knowledge on both test sets, then `_ALSO` on emotional questions. A measure that the run lacks
    has no column; a model that lacks it has a dash.
    """
    columns = {f"{style.label(metric)}, {test_set}": (metric, test_set)
               for metric in ("comfort", results.knowledge) for test_set in ("emotional", "neutral")}  # fmt: skip
    columns |= {style.label(metric): (metric, "emotional") for metric in _ALSO}
    trained = [model for model in results.models if model not in BASELINES] + results.trials
    models = trained + [model for model in results.models if model in BASELINES]
    table = pd.DataFrame({"Model": [style.label(model) for model in models]})
    for name, asked in columns.items():
        cells = {row.Index: cell(row.value, row.low, row.high) for row in results.pooled(*asked).itertuples()}
        if cells:
            table[name] = [cells.get(model, NONE) for model in models]
    return table


def claims_table(results: Results) -> pd.DataFrame:
    """One row a claim and model: the estimate with its 95 % interval, the effect size, the p value, the verdict."""
    rows = [
        (style.label(row.id), style.label(row.model), _difference(row), number(row.effect_size), _p(row.p_value),
         row.verdict)
        for row in results.claims.itertuples()
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Claim", "Model", "Difference", "d_z", "p", "Verdict"])


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table; the first column is aligned left, the others right."""
    lines = [list(table.columns), [":--", *["--:"] * (len(table.columns) - 1)], *table.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


def to_latex(table: pd.DataFrame) -> str:
    """A booktabs `tabular`, every cell escaped; words aligned left, numbers right; no breaks within an interval."""
    header, *rows = [" & ".join(map(_tied, line)) + r" \\" for line in [table.columns, *table.to_numpy().tolist()]]
    numeric = [column.astype(str).str.match(r"(< |−)?\d").any() for _, column in table.items()]
    aligned = "".join("r" if each else "l" for each in numeric[1:])
    begin = rf"\begin{{tabular}}{{l{aligned}}}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _tied(cell: object) -> str:
    return _SYMBOLS.get(cell) or re.sub(r"\[(\S+), (\S+)\]", r"[\1,~\2]", escape(cell))


def escape(text: object) -> str:
    """The text as LaTeX prints it."""
    return "".join(_LATEX.get(character, character) for character in str(text))


def values_tex(results: Results) -> str:
    r"""LaTeX that defines every pooled number, claim and run key for \mcvalue{sft.emotional.comfort} and the like."""
    values = {f"run.{key}": value for key, value in results.run.items() if isinstance(value, str | int | float)}
    for row in results.table[results.table.seed.isna()].itertuples():
        name = f"{row.model}.{row.test_set}.{row.metric}"
        values |= {name: number(row.value), f"{name}.n": row.n} | _bounds(name, row)
    for row in results.claims.itertuples():
        name = f"claim.{row.id}.{row.model}"
        estimate = number(row.estimate, _digits(row))
        values |= {f"{name}.verdict": row.verdict, f"{name}.estimate": estimate, f"{name}.p": _p(row.p_value)}
        values |= _bounds(name, row, _digits(row)) | {f"{name}.effect": number(row.effect_size)}
    return f"{_VALUE_COMMAND}\n{definitions(values)}"


def definitions(values: Mapping[str, object]) -> str:
    r"""A line of LaTeX a value, which \mcvalue{NAME} prints."""
    lines = [rf"\expandafter\def\csname mc.{name}\endcsname{{{escape(value)}}}" for name, value in values.items()]
    return "".join(f"{line}\n" for line in lines)


def summary_markdown(results: Results, figures: Iterable[str]) -> str:
    """The page that a run ends with: what it stands on, the results, the claims, and where the `figures` lie."""
    claims = to_markdown(claims_table(results)) if len(results.claims) else "No claim was tested.\n"
    run = results.run
    parts = [
        f"# Results: {run.get('profile', run['corpus'])}\n",
        f"This is a run on {run['corpus']} with {run['base_model']}. {style.limits(run)}".rstrip(),
        f"\n{to_markdown(results_table(results))}",
        "Brackets: 95 % intervals over questions and seeds. Columns that name no test set: emotional questions.",
        f"\n## Claims\n\n{claims}\n## Figures\n",
        *(f"- {figure}" for figure in figures),
    ]
    return "\n".join(parts) + "\n"


def number(value: float, digits: int = 2) -> str:
    """Rounded, with a true minus sign; what rounds to zero has none."""
    return NONE if pd.isna(value) else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def cell(value: float, low: float, high: float, digits: int = 2) -> str:
    """A value with its interval: "3.91 [3.80, 4.02]", or a dash where there is none."""
    value, low, high = (number(each, digits) for each in (value, low, high))
    return value if value == NONE else f"{value} [{low}, {high}]"


def _digits(claim: object) -> int:
    """Differences of shares are small and judged by a margin of hundredths: three digits."""
    return 2 if abs(claim.estimate) >= 1 else 3


def _difference(claim: object) -> str:
    return cell(claim.estimate, claim.low, claim.high, _digits(claim))


def _bounds(name: str, row: object, digits: int = 2) -> dict[str, str]:
    return {f"{name}.low": number(row.low, digits), f"{name}.high": number(row.high, digits)}


def _p(value: float) -> str:
    return NONE if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"
