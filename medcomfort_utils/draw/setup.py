r"""What the paper tells beside a run's scores: the set-up, the data, and the verdicts as words; for \mcvalue too."""

import json
import re
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import yaml

from medcomfort_utils import profile
from medcomfort_utils.draw import style
from medcomfort_utils.draw.results import Results
from medcomfort_utils.draw.tables import NONE, definitions, escape, number, to_latex
from medcomfort_utils.paths import DATA, ROOT, MedComfortError, existing, tidy, write_text

LOG = ROOT / "EXPERIMENTS.md"
VERDICTS = ("supported", "not supported", "inconclusive")
_HEAD = "% Written by `make paper`; do not edit.\n"
_TESTS = {"superior": "superior", "not_inferior": "not inferior"}
_REJECTED = {"original": "plain", "comfort_only": "hollow", "soothing_answer": "unasked"}


def write(results: Results, run: profile.Run, folder: Path) -> list[Path]:
    """Write setup.tex and the tables that 04_figures does not make into the paper's `folder`; returns the files."""
    claims = read_claims(results)
    texts = {
        "setup.tex": definitions(values(results, run, claims)),
        "tables/recipes.tex": to_latex(recipes(run)),
        "tables/tests.tex": to_latex(tests(claims)),
        "tables/adversarial.tex": to_latex(adversarial(results)),
        "tables/verdicts.tex": verdict_items(results, claims),
        "tables/attempts.tex": to_latex(logged("An adapter and more questions", LOG.read_text(encoding="utf-8"))),
    }
    return [write_text(folder / name, _HEAD + text) for name, text in texts.items()]


def read_claims(results: Results) -> list[dict]:
    """The claims that the run tested: the file of claims it names, those without a result left out."""
    path = existing(results.run.get("parameters", {}).get("claims", "paper/claims.yaml"), "claims")
    return [c for c in yaml.safe_load(path.read_text(encoding="utf-8")) if c["id"] in set(results.claims.id)]


def values(results: Results, run: profile.Run, claims: list[dict]) -> dict[str, object]:
    r"""All names and values of setup.tex: run, step, data, corpus, gates, claim and knowledge."""
    return {
        "run.profile": run.name,
        "run.versions": listing(f"{name} {version}" for name, version in results.run["versions"].items()),
        **_steps(run),
        **_data(),
        **_agreement(),
        **_counts(results),
        **_knowledge(results),
        **_seeds(results),
        **{f"claim.{claim['id']}.verdicts": verdicts(results, claim["id"]) for claim in claims},
        **{f"claim.{claim['id']}.margin": plain(claim["margin"]) for claim in claims if claim.get("margin")},
    }


def plain(value: float) -> str:
    """A setting as people write it: 0.00005, 1,500; never 5e-05."""
    return f"{value:,}" if isinstance(value, int) else f"{value:.10f}".rstrip("0").rstrip(".")


def listing(words: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *some, last = words
    return f"{', '.join(some)} and {last}" if some else last


def _steps(run: profile.Run) -> dict[str, str]:
    """step.NAME.PARAMETER for every number, and step.NAME.seeds: how many."""
    found = {}
    for step in run.steps:
        for key, value in step.parameters.items():
            if key == "seeds":
                found[f"step.{step.name}.{key}"] = plain(len(value))
            elif isinstance(value, int | float) and not isinstance(value, bool):
                found[f"step.{step.name}.{key}"] = plain(value)
    return found


def _data() -> dict[str, str]:
    """Counts of the authored data and of the base model's parameters."""
    read = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((DATA / "clinic/conditions").iterdir())]
    banks = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted((DATA / "clinic/emotions").iterdir())]
    phrases = {bank: sum(len(b[k][bank]) for b in banks for k in ("expressions", "openers", "closers"))
               for bank in ("train", "test")}  # fmt: skip
    mini = _lines(DATA / "medcomfort_mini/dialogues.jsonl")
    return {
        "clinic.conditions": plain(sum(len(file["conditions"]) for file in read)),
        "clinic.specialties": plain(len({file["specialty"] for file in read})),
        "clinic.emotions": plain(len(banks)),
        "clinic.phrases.train": plain(phrases["train"]),
        "clinic.phrases.test": plain(phrases["test"]),
        "mini.dialogues": plain(len(mini)),
        "mini.responses": plain(len(_lines(DATA / "medcomfort_mini/responses.jsonl"))),
        "mini.topics": plain(len({dialogue["topic"] for dialogue in mini})),
        "mini.facts": plain(sum(len(dialogue["facts"]) for dialogue in mini)),
        "mini.red_flags": plain(sum(bool(dialogue["red_flags"]) for dialogue in mini)),
        "base.million_parameters": f"{_parameters(DATA / 'nano_base/model.safetensors') / 1e6:.1f}",
    }


def _agreement() -> dict[str, str]:
    """labels.replies, and labels.kappa.MECHANISM of the comfort score: quadratic weighted, each file held out."""
    told = json.loads((DATA / "comfort_labels/report.json").read_text(encoding="utf-8"))["all"]
    kappas = {f"labels.kappa.{name}": number(told[name]["kappa"]) for name in told if name != "replies"}
    return {"labels.replies": plain(told["replies"]), **kappas}


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _parameters(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [pd.Series(tensor["shape"], dtype=int) for name, tensor in header.items() if name != "__metadata__"]
    return int(sum(shape.prod() for shape in shapes))


def _counts(results: Results) -> dict[str, str]:
    """How many dialogues were tested and read, how many rewrites the gates checked and stopped; length and comfort."""
    cleaning = results.cleaning.set_index("reason")["count"]
    checked = results.gates.groupby("condition")["checked"].max().sum()
    tuned = results.scores[~results.scores.method.isin(["reference", "base"])]
    return {
        "test.dialogues": plain(int(results.scores.dialogue_id.nunique())),
        "corpus.read": plain(int(cleaning["read"])),
        "corpus.kept": plain(int(cleaning["kept"])),
        "gates.rewrites": plain(int(checked)),
        "gates.failed": plain(int(results.gates.failed.sum())),
        "comfort.length_correlation": number(tuned.comfort.corr(tuned.length, method="spearman")),
    }


def _knowledge(results: Results) -> dict[str, str]:
    """MODEL.TEST_SET.knowledge (.low, .high): the measure of knowledge that this run goes by, whichever it is."""
    found = {"knowledge.measure": style.within(results.knowledge)}
    for test_set in ("emotional", "neutral"):
        for row in results.pooled(results.knowledge, test_set).itertuples():
            name = f"{row.Index}.{test_set}.knowledge"
            found |= {name: number(row.value), f"{name}.low": number(row.low), f"{name}.high": number(row.high)}
    return found


def _seeds(results: Results) -> dict[str, str]:
    """MODEL.emotional.comfort.seeds: the value of each seed."""
    by_model = results.by_seed("comfort", "emotional").groupby("model", sort=False)
    return {f"{model}.emotional.comfort.seeds": listing(map(number, of_model)) for model, of_model in by_model}


def verdicts(results: Results, claim: str) -> str:
    """The verdicts of a claim in words: "supported for SFT and DPO; inconclusive for KTO"."""
    rows = results.claims[results.claims.id == claim]
    found = [(verdict, rows.model[rows.verdict == verdict]) for verdict in VERDICTS]
    return "; ".join(f"{verdict} for {listing(map(style.label, of))}" for verdict, of in found if len(of))


def verdict_items(results: Results, claims: list[dict]) -> str:
    r"""One `\item` a claim: what it states, whose it is, and its verdicts."""
    items = [f"{c['statement'].rstrip('.')} ({c['origin']}): {verdicts(results, c['id'])}." for c in claims]
    return "".join(rf"\item {escape(item)}" + "\n" for item in items)


def tests(claims: list[dict]) -> pd.DataFrame:
    """How each claim is tested: one row a claim."""
    rows = [
        (style.label(c["id"]), style.within(c["metric"]), c["test_set"], _TESTS[c["test"]], style.label(c["against"]),
         plain(c["margin"]) if c.get("margin") else NONE)
        for c in claims
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["Claim", "Measure", "Questions", "Test", "Against", "Margin"])


def adversarial(results: Results) -> pd.DataFrame:
    """What each broken model must score, and does: one row a model and measure."""
    found = results.adversarial
    return pd.DataFrame({
        "Broken model": found.model.map(style.label),
        "Measure": found.metric.map(style.within),
        "Must be": found.expected,
        "Is": found.value.map(number),
        "Holds": found.holds.map({True: "yes", False: "no"}),
    })


def recipes(run: profile.Run) -> pd.DataFrame:
    """One row a training step of the profile: what it starts from, what it is taught against, and how."""
    return pd.DataFrame([_recipe(step) for step in run.steps if step.notebook.stem == "02_finetune"])


def _recipe(step: profile.Step) -> dict[str, str]:
    told = step.parameters
    preference = told["method"] != "sft"
    rejected = ", ".join(_REJECTED.get(name, name) for name in told["against"])
    imitates = "imitates hollow" if told["target"] == "comfort_only" else "imitates soothing"
    return {
        "Model": style.label(told["name"] or told["method"]),
        "Starts from": "SFT, same seed" if told["init_from"] else "base",
        "Taught": f"against {rejected}" if preference else imitates,
        "Neutral": plain(told["neutral_fraction"]),
        "Steps": plain(told["max_steps"]),
        "Batch": plain(told["batch_size"]),
        "Learning rate": plain(told["learning_rate"]),
        "LoRA rank": plain(told["lora_rank"]) if told["lora_rank"] else "full",
        "Beta": plain(told["beta"]) if preference else NONE,
        "SFT term": plain(told["sft_weight"]) if told["method"] == "dpo" else NONE,
        "Seeds": plain(len(told["seeds"])),
    }


def logged(heading: str, log: str) -> pd.DataFrame:
    """The first Markdown table below the heading of the experiment log that begins with `heading`.

    Raises MedComfortError if there is none.
    """
    found = re.search(rf"^#+ {re.escape(heading)}(?s:.*?)\n((?:\|.*\n)+)", log, re.MULTILINE)
    if not found:
        raise MedComfortError(f"{tidy(LOG)}: there is no table below a heading that begins with '{heading}'.")
    text = re.sub(r"(?<!\w)-(?=\d)", "−", found[1])  # minus signs, not hyphens
    header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()]
    return pd.DataFrame(rows, columns=header)
