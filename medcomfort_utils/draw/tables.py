r"""The results as tables and numbers: Markdown for README and summary, LaTeX and \mcvalue for the paper."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd

from medcomfort_utils.draw import style
from medcomfort_utils.draw.results import BASE, Results
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


def results_table(results: Results) -> pd.DataFrame:
    """One row a model, cells "3.91 [3.80, 4.02]": the value and its 95 % interval, seeds pooled.

    Columns: comfort and knowledge on both test sets, then `_ALSO` on emotional questions. A measure that the run lacks
    has no column; a model that lacks it has a dash.
    """
    columns = {(metric, test_set): f"{style.label(metric)}, {test_set}"
               for metric in ("comfort", results.knowledge) for test_set in ("emotional", "neutral")}  # fmt: skip
    columns |= {(metric, "emotional"): style.label(metric) for metric in _ALSO}
    rows = results.pooled
    table = rows.assign(cell=[cell(row.value, row.low, row.high) for row in rows.itertuples()])
    table = table.pivot(index="model", columns=["metric", "test_set"], values="cell").reindex(results.methods)
    named = {style.label(model): table.loc[model].reindex(columns) for model in results.methods}
    table = pd.DataFrame(named).T.dropna(axis=1, how="all").fillna(NONE)
    return table.set_axis([columns[key] for key in table], axis=1).rename_axis("Model").reset_index()


def claims_table(results: Results) -> pd.DataFrame:
    """One row a claim and model: the difference with its 95 % interval, the effect size, the p value, the verdict."""
    rows, names = [], ["Claim", "Model", "Against", "Difference", "d_z", "p", "Verdict"]
    for row in results.claims.itertuples():
        p = "< 0.001" if row.p_value < 0.001 else number(row.p_value, 3)
        verdict = f"{row.verdict} ({row.reason})" if row.verdict == "no verdict" else row.verdict
        rows.append(
            (
                *map(style.label, (row.id, row.model, row.against)),
                cell(row.estimate, row.low, row.high, _digits(row)),
                number(row.effect_size),
                p,
                verdict,
            )
        )
    return pd.DataFrame(rows, columns=names)


def adversarial_table(results: Results) -> pd.DataFrame:
    """What each broken model must score, and does: one row a model and measure."""
    found = results.adversarial
    return pd.DataFrame({"Broken model": found.model.map(style.label), "Measure": found.metric.map(style.within),
                         "Must be": found.expected, "Is": found.value.map(number),
                         "Holds": found.holds.map({True: "yes", False: "no"})})  # fmt: skip


def recipes_table(results: Results) -> pd.DataFrame:
    """One row a model of the profile: what it starts from, what it is taught against, and how."""
    rows = []
    for model in results.recipes.itertuples():
        preference = model.method != "sft"
        against = ", ".join(_REJECTED.get(name, name) for name in model.against)
        rows.append({
            "Model": style.label(model.Index),
            "Starts from": f"{style.label(model.after)}, same seed" if model.after else "base",
            "Taught": f"against {against}" if preference else f"imitates {_REJECTED.get(model.target, 'soothing')}",
            "Neutral": setting(model.neutral_fraction),
            "Steps": setting(model.max_steps),
            "Batch": setting(model.batch_size),
            "Learning rate": setting(model.learning_rate),
            "LoRA rank": setting(model.lora_rank) if model.lora_rank else "full",
            "Beta": setting(model.beta) if preference else NONE,
            "SFT term": setting(model.sft_weight) if model.method == "dpo" else NONE,
            "Seeds": setting(len(model.seeds)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def verdicts(results: Results, claim: str) -> str:
    """The verdicts of a claim in words: "supported for SFT and DPO; inconclusive for KTO"."""
    rows = results.claims[results.claims.id == claim]
    found = [(verdict, rows.model[rows.verdict == verdict]) for verdict in VERDICTS]
    return "; ".join(f"{verdict} for {listing(map(style.label, of))}" for verdict, of in found if len(of))


def verdict_items(results: Results) -> str:
    r"""One `\item` a claim: what it states, whose it is, and its verdicts."""
    claims = results.claims.drop_duplicates("id").itertuples()
    items = [f"{c.statement.rstrip('.')} ({c.origin}): {verdicts(results, c.id)}." for c in claims]
    return "".join(rf"\item {escape(item)}" + "\n" for item in items)


def values_tex(results: Results) -> str:
    r"""LaTeX that defines every pooled number, claim and run key for \mcvalue{sft.emotional.comfort} and the like.

    MODEL.TEST_SET.METRIC (.low, .high; `knowledge` too), MODEL.seeds, MODEL.emotional.comfort.seeds,
    claim.ID.MODEL.estimate (claim.ID.MODEL.low, .high), claim.ID.verdicts, .margin, run.KEY, and counts.
    """
    values = {f"run.{key}": value for key, value in results.run.items() if isinstance(value, str | int | float)}
    versions = listing(f"{name} {version}" for name, version in results.run.get("versions", {}).items())
    values |= {"run.profile": results.profile.get("name", ""), "run.knowledge": style.within(results.knowledge),
               "run.versions": versions, "test.dialogues": setting(results.scores.dialogue_id.nunique()),
               "gates.rewrites": setting(results.gates.groupby("condition")["checked"].max().sum()),
               "gates.failed": setting(results.gates.failed.sum())}  # fmt: skip
    values |= {f"corpus.{row.reason}": setting(row.count) for row in results.cleaning.itertuples(index=False)}
    tuned = results.scores[~results.scores.method.isin(["reference", BASE])]
    values["comfort.length_correlation"] = number(tuned.comfort.corr(tuned["length"], method="spearman"))
    for row in results.pooled.itertuples():
        names = [row.metric, "knowledge"] if row.metric == results.knowledge else [row.metric]
        for name in (f"{row.model}.{row.test_set}.{name}" for name in names):
            values |= {name: number(row.value)} | _bounds(name, row)
    comfort = results.table[(results.table.metric == "comfort") & (results.table.test_set == "emotional")]
    for model, rows in comfort[comfort.seed.notna()].groupby("model", sort=False):
        values |= {f"{model}.seeds": len(rows), f"{model}.emotional.comfort.seeds": listing(map(number, rows.value))}
    for row in results.claims.itertuples():
        name, digits = f"claim.{row.id}.{row.model}", _digits(row)
        values |= {f"{name}.estimate": number(row.estimate, digits)} | _bounds(name, row, digits)
        values |= {f"claim.{row.id}.verdicts": verdicts(results, row.id), f"claim.{row.id}.margin": setting(row.margin)}
    return definitions(values)


def ablation_tex(results: Results) -> str:
    r"""LaTeX that defines \mcvalue{ablation.METHOD-TARGET-SHARE.TEST_SET.comfort} and .knowledge (.low, .high).

    From the base: METHOD-TARGET-SHARE-from-base. Also ablation.base..., ablation.seeds and ablation.dialogues.
    """
    cells = dict(results.recipes.cell + results.recipes.start) | {BASE: BASE}
    seeds = results.table.groupby("model").seed.nunique().max()
    values = {"ablation.seeds": seeds, "ablation.dialogues": results.scores.dialogue_id.nunique()}
    shown = {"comfort": "comfort", results.knowledge: "knowledge"}
    for row in results.pooled[results.pooled.metric.isin(shown) & results.pooled.model.isin(cells)].itertuples():
        name = f"ablation.{cells[row.model]}.{row.test_set}.{shown[row.metric]}"
        values |= {name: number(row.value)} | _bounds(name, row)
    return definitions(values)


def write(results: Results, varied: Results, folder: str | Path) -> list[Path]:
    """Write values.tex and ablation.tex (of `varied`), and the tables below FOLDER/tables; returns the files."""
    made = (results_table, claims_table, adversarial_table, recipes_table)
    texts = {f"tables/{table.__name__.removesuffix('_table')}.tex": to_latex(table(results)) for table in made}
    texts |= {"tables/verdicts.tex": verdict_items(results), "values.tex": values_tex(results)}
    texts |= {"ablation.tex": ablation_tex(varied)}
    head = "% Written by 04_figures; do not edit.\n"
    return [write_text(resolve(folder) / name, head + text) for name, text in texts.items()]


def summary_markdown(results: Results, figures_dir: str | Path) -> str:
    """The page that a run ends with: what it stands on, results, claims, judge, figures."""
    made_up = " The corpus is a made-up world: it shows the mechanism, not the paper's numbers." * results.synthetic
    parts = [f"# Results: {results.profile.get('name', results.run['corpus'])}\n",
             f"This is a run on `{results.run['corpus']}` with `{results.run['base_model']}`.{made_up}",
             f"\n{to_markdown(results_table(results))}",
             "Brackets: 95 % intervals over questions and seeds. Columns that name no test set: emotional questions.",
             f"\n## Claims\n\n{to_markdown(claims_table(results)) if len(results.claims) else 'No claim was tested.'}",
             *([f"## Judge\n\n{to_markdown(results.judge.round(3))}"] if len(results.judge) else []),
             "## Figures\n",
             *(f"- {tidy(file)}" for file in sorted(resolve(figures_dir).glob("*.p[dn][fg]")))]  # fmt: skip
    return "\n".join(parts) + "\n"


def to_markdown(table: pd.DataFrame) -> str:
    """A GitHub table; the first column is aligned left, the others right."""
    lines = [list(table.columns), [":--", *["--:"] * (len(table.columns) - 1)], *table.to_numpy().tolist()]
    cells = [[re.sub(r"([|$])", r"\\\1", str(cell)) for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def to_latex(table: pd.DataFrame) -> str:
    """A booktabs `tabular`, every cell escaped; words aligned left, numbers right; no breaks within an interval."""
    table = table.astype(str)
    aligned = ["r" if column.str.match(r"(< |−)?\d").any() else "l" for _, column in table.iloc[:, 1:].items()]
    table = table.map(lambda text: re.sub(r"\[(\S+), (\S+)\]", r"[\1,~\2]", escape(text)))
    header = [_SYMBOLS.get(name) or escape(name) for name in table]
    return table.to_latex(index=False, escape=False, header=header, column_format="".join(["l", *aligned]))


def escape(text: object) -> str:
    """The text as LaTeX prints it; a letter that its fonts lack by its number."""
    return "".join(_LATEX.get(c) or (c if ord(c) < 0x180 else f"U+{ord(c):04X}") for c in str(text))


def definitions(values: Mapping[str, object]) -> str:
    r"""A line of LaTeX a value, which \mcvalue{NAME} prints."""
    lines = (rf"\expandafter\def\csname mc.{name}\endcsname{{{escape(value)}}}" for name, value in values.items())
    return "".join(f"{line}\n" for line in lines)


def listing(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *some, last = [*words] or [NONE]
    return f"{', '.join(some)} and {last}" if some else last


def setting(value: float) -> str:
    """A setting or count as people write it: 0.00005, 1,500; never 5e-05; a dash where there is none."""
    if pd.isna(value):
        return NONE
    return f"{value:,.0f}" if value == int(value) else f"{value:.10f}".rstrip("0")


def number(value: float, digits: int = 2) -> str:
    """Rounded, with a true minus sign; what rounds to zero has none."""
    return NONE if pd.isna(value) else f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def cell(value: float, low: float, high: float, digits: int = 2) -> str:
    """A value with its interval: "3.91 [3.80, 4.02]", or a dash where there is none."""
    return NONE if pd.isna(value) else f"{number(value, digits)} [{number(low, digits)}, {number(high, digits)}]"


def _digits(claim: tuple) -> int:
    """Differences of shares are small and judged by a margin of hundredths: three digits."""
    return 2 if abs(claim.estimate) >= 1 else 3


def _bounds(name: str, row: tuple, digits: int = 2) -> dict[str, str]:
    return {f"{name}.low": number(row.low, digits), f"{name}.high": number(row.high, digits)}
