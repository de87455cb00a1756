r"""The results as tables and numbers: Markdown for README and summary, LaTeX and \mcvalue for the paper."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from medcomfort_utils.draw import style
from medcomfort_utils.draw.plots import sound, starts
from medcomfort_utils.draw.results import Results
from medcomfort_utils.paths import resolve, tidy, write_text

NONE = "–"
VERDICTS = ("supported", "not supported", "inconclusive", "no verdict")
_ALSO = ("held_out_facts_kept", "red_flags_kept", "invented_numbers", "length_ratio", "ended")
_REJECTED = {"original": "plain", "comfort_only": "hollow", "soothing_answer": "unasked"}
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "−": "$-$", NONE: "--",
}  # fmt: skip
_SYMBOLS = {"d_z": "$d_z$", "p": "$p$"}  # headings that are mathematics
_COMMAND = r"""% \mcvalue{NAME} prints a value. An unknown name is an error, never an empty place.
\providecommand{\mcvalue}[1]{\ifcsname mc.#1\endcsname\csname mc.#1\endcsname\else
  \errmessage{There is no value #1 in values.tex}\fi}
"""


def results_table(results: Results) -> pd.DataFrame:
    """One row a model, cells "3.91 [3.80, 4.02]": the value and its 95 % interval, seeds pooled.

    Columns: comfort and knowledge on both test sets, then `_ALSO` on emotional questions. A measure that the run lacks
    has no column; a model that lacks it has a dash.
    """
    columns = {f"{style.label(metric)}, {test_set}": (metric, test_set)
               for metric in ("comfort", results.knowledge) for test_set in ("emotional", "neutral")}  # fmt: skip
    columns |= {style.label(metric): (metric, "emotional") for metric in _ALSO}
    table = pd.DataFrame({"Model": map(style.label, results.methods)})
    for name, asked in columns.items():
        cells = {row.Index: cell(row.value, row.low, row.high) for row in results.values(*asked).itertuples()}
        if cells:
            table[name] = [cells.get(model, NONE) for model in results.methods]
    return table


def claims_table(results: Results) -> pd.DataFrame:
    """One row a claim and model: the difference with its 95 % interval, the effect size, the p value, the verdict."""
    rows = [(style.label(row.id), style.label(row.model), cell(row.estimate, row.low, row.high, _digits(row)),
             number(row.effect_size), _p(row.p_value), row.verdict + _reason(row))
            for row in results.claims.itertuples()]  # fmt: skip
    return pd.DataFrame(rows, columns=["Claim", "Model", "Difference", "d_z", "p", "Verdict"])


def tests_table(results: Results) -> pd.DataFrame:
    """How each claim is tested: one row a claim."""
    rows = []
    for c in results.claims.dropna(subset="test").drop_duplicates("id").itertuples():
        margin = NONE if pd.isna(c.margin) else setting(c.margin)
        how = (c.test_set, c.test.replace("_", " "), style.label(c.against), margin)
        rows.append((style.label(c.id), style.within(c.metric), *how))
    return pd.DataFrame(rows, columns=["Claim", "Measure", "Questions", "Test", "Against", "Margin"])


def adversarial_table(results: Results) -> pd.DataFrame:
    """What each broken model must score, and does: one row a model and measure."""
    found = results.adversarial
    return pd.DataFrame({"Broken model": found.model.map(style.label), "Measure": found.metric.map(style.within),
                         "Must be": found.expected, "Is": found.value.map(number),
                         "Holds": found.holds.map({True: "yes", False: "no"})})  # fmt: skip


def recipes_table(results: Results) -> pd.DataFrame:
    """One row a model of the profile: what it starts from, what it is taught against, and how."""
    return pd.DataFrame([_recipe(row) for row in results.recipes.itertuples()])


def _recipe(told: tuple) -> dict[str, str]:
    preference = told.method != "sft"
    rejected = ", ".join(_REJECTED.get(name, name) for name in told.against)
    return {
        "Model": style.label(told.Index),
        "Starts from": f"{style.label(told.after)}, same seed" if told.after else "base",
        "Taught": f"against {rejected}" if preference else f"imitates {_REJECTED.get(told.target, 'soothing')}",
        "Neutral": setting(told.neutral_fraction),
        "Steps": setting(told.max_steps),
        "Batch": setting(told.batch_size),
        "Learning rate": setting(told.learning_rate),
        "LoRA rank": setting(told.lora_rank) if told.lora_rank else "full",
        "Beta": setting(told.beta) if preference else NONE,
        "SFT term": setting(told.sft_weight) if told.method == "dpo" else NONE,
        "Seeds": setting(len(told.seeds)),
    }


def verdicts(results: Results, claim: str) -> str:
    """The verdicts of a claim in words: "supported for SFT and DPO; inconclusive for KTO"."""
    rows = results.claims[results.claims.id == claim]
    found = [(verdict, rows.model[rows.verdict == verdict]) for verdict in VERDICTS]
    return "; ".join(f"{verdict} for {listing(map(style.label, of))}" for verdict, of in found if len(of))


def verdict_items(results: Results) -> str:
    r"""One `\item` a claim: what it states, whose it is, and its verdicts."""
    claims = results.claims.dropna(subset="statement").drop_duplicates("id").itertuples()
    items = [f"{c.statement.rstrip('.')} ({c.origin}): {verdicts(results, c.id)}." for c in claims]
    return "".join(rf"\item {escape(item)}" + "\n" for item in items)


def values_tex(results: Results) -> str:
    r"""LaTeX that defines every pooled number, claim and run key for \mcvalue{sft.emotional.comfort} and the like.

    MODEL.TEST_SET.METRIC (.low, .high, .n; `knowledge` too), MODEL.seeds, MODEL.emotional.comfort.seeds,
    claim.ID.MODEL.verdict (.estimate, .low, .high, .p, .effect), claim.ID.verdicts, .margin, and run.KEY.
    """
    run = {key: value for key, value in results.run.items() if isinstance(value, str | int | float)}
    run |= {"profile": results.profile.get("name", ""), "knowledge": style.within(results.knowledge)}
    run |= {"versions": listing(f"{name} {version}" for name, version in results.run.get("versions", {}).items())}
    values = {f"run.{key}": value for key, value in run.items()} | _counts(results)
    for row in results.pooled.itertuples():
        names = [row.metric] + ["knowledge"] * (row.metric == results.knowledge)
        for name in (f"{row.model}.{row.test_set}.{name}" for name in names):
            values |= {name: number(row.value), f"{name}.n": row.n} | _bounds(name, row)
    comfort = results.table[(results.table.metric == "comfort") & (results.table.test_set == "emotional")]
    for model, rows in comfort[comfort.seed.notna()].groupby("model", sort=False):
        values |= {f"{model}.seeds": len(rows), f"{model}.emotional.comfort.seeds": listing(map(number, rows.value))}
    for row in results.claims.itertuples():
        name, digits = f"claim.{row.id}.{row.model}", _digits(row)
        values |= {f"{name}.verdict": row.verdict, f"{name}.estimate": number(row.estimate, digits)}
        values |= {f"{name}.p": _p(row.p_value), f"{name}.effect": number(row.effect_size)} | _bounds(name, row, digits)
        values |= {f"claim.{row.id}.verdicts": verdicts(results, row.id)}
        values |= {} if pd.isna(row.margin) else {f"claim.{row.id}.margin": setting(row.margin)}
    return definitions(values)


def ablation_tex(results: Results) -> str:
    r"""LaTeX that defines \mcvalue{ablation.METHOD-TARGET-SHARE.TEST_SET.comfort} and .knowledge (.low, .high).

    From the base: METHOD-TARGET-SHARE-from-base. Also ablation.base..., ablation.seeds and ablation.dialogues.
    """
    cells = {row.Index: f"{row.method}-{row.target}-{row.neutral_fraction:g}" for row in sound(results).itertuples()}
    cells |= {"base": "base"} | {model: f"{cells[twin]}-from-base" for model, twin in starts(results).items()}
    seeds = results.table.groupby("model").seed.nunique().max()
    values = {"ablation.seeds": seeds, "ablation.dialogues": results.scores.dialogue_id.nunique()}
    shown = {"comfort": "comfort", results.knowledge: "knowledge"}
    for row in results.pooled[results.pooled.metric.isin(shown) & results.pooled.model.isin(cells)].itertuples():
        name = f"ablation.{cells[row.model]}.{row.test_set}.{shown[row.metric]}"
        values |= {name: number(row.value)} | _bounds(name, row)
    return definitions(values)


def _counts(results: Results) -> dict[str, object]:
    """How many dialogues were read and tested, how many rewrites the gates checked and stopped; length and comfort."""
    cleaning = results.cleaning.set_index("reason")["count"]
    tuned = results.scores[~results.scores.method.isin(["reference", "base"])]
    return {
        "test.dialogues": setting(results.scores.dialogue_id.nunique()),
        **{f"corpus.{reason}": setting(count) for reason, count in cleaning.items() if reason in ("read", "kept")},
        "gates.rewrites": setting(results.gates.groupby("condition")["checked"].max().sum()),
        "gates.failed": setting(results.gates.failed.sum()),
        "comfort.length_correlation": number(tuned.comfort.corr(tuned["length"], method="spearman")),
    }


def write(results: Results, varied: Results, folder: str | Path) -> list[Path]:
    """Write values.tex and ablation.tex (of `varied`), and the tables below FOLDER/tables; returns the files."""
    made = (results_table, claims_table, tests_table, adversarial_table, recipes_table)
    texts = {f"tables/{table.__name__.removesuffix('_table')}.tex": to_latex(table(results)) for table in made}
    texts |= {"tables/verdicts.tex": verdict_items(results), "values.tex": values_tex(results)}
    texts |= {"ablation.tex": ablation_tex(varied)}
    head = "% Written by 04_figures; do not edit.\n"
    return [write_text(resolve(folder) / name, head + text) for name, text in texts.items()]


def summary_markdown(results: Results, figures_dir: str | Path) -> str:
    """The page that a run ends with: what it stands on, the results, the claims, and where the figures lie."""
    made_up = " The corpus is a made-up world: it shows the mechanism, not the paper's numbers." * results.synthetic
    figures = [f"- {tidy(file)}" for file in sorted(resolve(figures_dir).glob("*.p[dn][fg]"))]
    parts = [
        f"# Results: {results.profile.get('name', results.run['corpus'])}\n",
        f"This is a run on `{results.run['corpus']}` with `{results.run['base_model']}`.{made_up}",
        f"\n{to_markdown(results_table(results))}",
        "Brackets: 95 % intervals over questions and seeds. Columns that name no test set: emotional questions.",
        f"\n## Claims\n\n{to_markdown(claims_table(results)) if len(results.claims) else 'No claim was tested.'}",
        "## Figures\n",
        *figures,
    ]
    return "\n".join(parts) + "\n"


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table; the first column is aligned left, the others right."""
    lines = [list(table.columns), [":--", *["--:"] * (len(table.columns) - 1)], *table.to_numpy().tolist()]
    cells = [[re.sub(r"([|$])", r"\\\1", str(cell)) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def to_latex(table: pd.DataFrame) -> str:
    """A booktabs `tabular`, every cell escaped; words aligned left, numbers right; no breaks within an interval."""
    header, *rows = [" & ".join(map(_tied, line)) + r" \\" for line in [table.columns, *table.to_numpy().tolist()]]
    numeric = [column.astype(str).str.match(r"(< |−)?\d").any() for _, column in table.items()]
    aligned = "".join("r" if each else "l" for each in numeric[1:])
    begin = rf"\begin{{tabular}}{{l{aligned}}}"
    return "\n".join([begin, r"\toprule", header, r"\midrule", *rows, r"\bottomrule", r"\end{tabular}", ""])


def _tied(cell: object) -> str:
    return _SYMBOLS.get(cell) or re.sub(r"\[(\S+), (\S+)\]", r"[\1,~\2]", escape(cell))


def escape(text: object) -> str:
    """The text as LaTeX prints it; a letter that its fonts lack by its number."""
    return "".join(_LATEX.get(c) or (c if ord(c) < 0x180 else f"U+{ord(c):04X}") for c in str(text))


def definitions(values: Mapping[str, object]) -> str:
    r"""A line of LaTeX a value, which \mcvalue{NAME} prints."""
    lines = [rf"\expandafter\def\csname mc.{name}\endcsname{{{escape(value)}}}" for name, value in values.items()]
    return _COMMAND + "".join(f"{line}\n" for line in lines)


def listing(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *some, last = [*words] or [NONE]
    return f"{', '.join(some)} and {last}" if some else last


def setting(value: float) -> str:
    """A setting or count as people write it: 0.00005, 1,500; never 5e-05."""
    return f"{value:,}" if value == int(value) and abs(value) >= 1 else f"{value:.10f}".rstrip("0").rstrip(".")


def number(value: float, digits: int = 2) -> str:
    """Rounded, with a true minus sign; what rounds to zero has none."""
    return NONE if pd.isna(value) else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def cell(value: float, low: float, high: float, digits: int = 2) -> str:
    """A value with its interval: "3.91 [3.80, 4.02]", or a dash where there is none."""
    value, low, high = (number(each, digits) for each in (value, low, high))
    return value if value == NONE else f"{value} [{low}, {high}]"


def _digits(claim: tuple) -> int:
    """Differences of shares are small and judged by a margin of hundredths: three digits."""
    return 2 if abs(claim.estimate) >= 1 else 3


def _bounds(name: str, row: tuple, digits: int = 2) -> dict[str, str]:
    return {f"{name}.low": number(row.low, digits), f"{name}.high": number(row.high, digits)}


def _p(value: float) -> str:
    return NONE if pd.isna(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def _reason(row: tuple) -> str:
    return "" if pd.isna(row.reason) or not row.reason else f" ({row.reason})"
