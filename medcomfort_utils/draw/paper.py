"""From a run to the repository and the paper: `medcomfort publish` and `make paper`."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import yaml

from medcomfort_utils.draw import tables
from medcomfort_utils.draw.results import FILES, PROFILE, Results, read_results
from medcomfort_utils.draw.tables import number, setting
from medcomfort_utils.paths import DATA, FIGURES, PAPER, ROOT, MedComfortError, existing, replacing, tidy, write_text

RUN = "nano"  # the committed results that the README shows
README, LOG = ROOT / "README.md", ROOT / "EXPERIMENTS.md"
ATTEMPTS = "An adapter and more questions"  # heading of the log whose table the paper shows
_PLACE = re.compile(r"(<!-- results: begin[^>]*-->\n).*?(<!-- results: end -->)", re.DOTALL)
_HOW_TO_GET = (
    "make paper needs latexmk or tectonic: on Debian or Ubuntu, apt-get install latexmk texlive-latex-recommended."
)


def publish(run_dir: str | Path, name: str) -> Path:
    """Copy the result files of a whole run and its profile to `data/results/NAME`; returns that folder.

    The tables of the run `RUN` go into the README too. Raises MedComfortError if the run is not complete: nothing is
    replaced then.
    """
    folder = existing(run_dir, "run")
    results = read_results(folder)
    existing(folder / PROFILE, "the run's profile")
    readme = with_tables(README.read_text(encoding="utf-8"), results) if name == RUN else ""
    with replacing(DATA / "results" / name) as temporary:
        temporary.mkdir()
        for file in (*FILES, PROFILE):
            shutil.copyfile(folder / file, temporary / file)
    if readme:
        write_text(README, readme)
    return DATA / "results" / name


def with_tables(readme: str, results: Results) -> str:
    """The README's text with the tables of `results` between its two markers."""
    if not _PLACE.search(readme):
        raise MedComfortError(
            "README.md: the markers `<!-- results: begin -->` and `<!-- results: end -->` are missing."
        )
    shown = "\n".join(map(tables.to_markdown, (tables.results_table(results), tables.claims_table(results))))
    return _PLACE.sub(lambda place: f"{place[1]}\n{shown}\n{place[2]}", readme)


def write(folder: Path = PAPER) -> list[Path]:
    """Write what the paper says of data and log, which no run changes: setup.tex, tables/attempts.tex."""
    attempts = logged(ATTEMPTS, LOG.read_text(encoding="utf-8"))
    texts = {"setup.tex": tables.definitions(dict(_data())), "tables/attempts.tex": tables.to_latex(attempts)}
    head = "% Written by `make paper`; do not edit.\n"
    return [write_text(folder / name, head + text) for name, text in texts.items()]


def _data() -> Iterator[tuple[str, str]]:
    """Counts of the authored data, the size of the base model, and how well the comfort score agrees with labels."""
    conditions, emotions = (_read(f"clinic/{folder}/*.yaml") for folder in ("conditions", "emotions"))
    yield "clinic.conditions", setting(sum(len(file["conditions"]) for file in conditions))
    yield "clinic.specialties", setting(len({file["specialty"] for file in conditions}))
    yield "clinic.emotions", setting(len(emotions))
    for bank in ("train", "test"):
        phrases = sum(len(e[kind][bank]) for e in emotions for kind in ("expressions", "openers", "closers"))
        yield f"clinic.phrases.{bank}", setting(phrases)
    mini, responses = (pd.read_json(DATA / f"medcomfort_mini/{name}.jsonl", lines=True, dtype=False)
                       for name in ("dialogues", "responses"))  # fmt: skip
    yield "mini.dialogues", setting(len(mini))
    yield "mini.responses", setting(len(responses))
    yield "mini.topics", setting(mini.topic.nunique())
    yield "mini.facts", setting(mini.facts.map(len).sum())
    yield "mini.red_flags", setting(mini.red_flags.map(bool).sum())
    with (DATA / "nano_base/model.safetensors").open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    shapes = [pd.Series(tensor["shape"], dtype=int) for name, tensor in header.items() if name != "__metadata__"]
    yield "base.million_parameters", f"{sum(shape.prod() for shape in shapes) / 1e6:.1f}"
    labels = json.loads((DATA / "comfort_labels/report.json").read_text(encoding="utf-8"))["all"]
    yield "labels.replies", setting(labels["replies"])
    yield from ((f"labels.kappa.{name}", number(told["kappa"])) for name, told in labels.items() if name != "replies")


def _read(pattern: str) -> list[dict]:
    return [yaml.safe_load(path.read_text(encoding="utf-8")) for path in sorted(DATA.glob(pattern))]


def logged(heading: str, log: str) -> pd.DataFrame:
    """The first Markdown table below the heading of the experiment log that begins with `heading`."""
    found = re.search(rf"^#+ {re.escape(heading)}(?s:.*?)\n((?:\|.*\n)+)", log, re.MULTILINE)
    if not found:
        raise MedComfortError(f"{tidy(LOG)}: there is no table below a heading that begins with '{heading}'.")
    text = re.sub(r"(?<!\w)-(?=\d)", "−", found[1])  # minus signs, not hyphens
    header, _, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in text.splitlines()]
    return pd.DataFrame(rows, columns=header)


def fingerprint(folder: Path = PAPER, figures: Path = FIGURES) -> str:
    """Sixteen hex digits over all that the PDF is made from; the PDF carries them, so that an old one is noticed."""
    named = re.findall(r"\\includegraphics(?:\[[^]]*\])?\{([^}]*)\}", (folder / "main.tex").read_text(encoding="utf-8"))
    files = [*sorted(folder.glob("*.tex")), folder / "references.bib", *sorted((folder / "tables").glob("*.tex"))]
    files += [existing(figures / f"{Path(name).stem}.pdf", "a figure of main.tex") for name in named]
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0" + hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()[:16]


def build(folder: Path = PAPER, figures: Path = FIGURES) -> Path:
    """Typeset main.tex; returns main.pdf. The same files and the same TeX give the same bytes.

    Raises MedComfortError if there is no TeX, or if it stops: the message holds its first error.
    """
    with replacing(folder / "main.pdf") as pdf:
        work = pdf.with_suffix("")
        work.mkdir()
        try:
            _typeset(folder, work, fingerprint(folder, figures))
            shutil.copyfile(work / "main.pdf", pdf)
        finally:
            shutil.rmtree(work)
    return folder / "main.pdf"


def _typeset(folder: Path, work: Path, mark: str) -> None:
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1", "max_print_line": "1000"}
    ended = subprocess.run(_command(work, mark), cwd=folder, env=environment, capture_output=True, text=True)
    log = work / "main.log"
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ended.stdout + ended.stderr
    if ended.returncode or not (work / "main.pdf").exists():
        error = re.search(r"^(?:\./main\.tex:\d+: .*|! .*)", said, re.MULTILINE)
        raise MedComfortError(f"{tidy(folder / 'main.tex')} could not be typeset: {error[0] if error else said[-300:]}")
    for fault in dict.fromkeys(re.findall(r"^(?:LaTeX|Package \w+) Warning: .*undefined.*|^Overfull .*", said, re.M)):
        print(fault, file=sys.stderr)


def _command(work: Path, mark: str) -> list[str]:
    if latexmk := shutil.which("latexmk"):
        # -norc: nobody's own settings, and none of the folder's, are run.
        told = ["-norc", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error", "-no-shell-escape"]
        return [latexmk, *told, f"-outdir={work}", rf"-usepretex=\def\mcinputs{{{mark}}}", "./main.tex"]
    if tectonic := shutil.which("tectonic"):
        return [tectonic, "--untrusted", "--keep-logs", "--outdir", str(work), "main.tex"]
    raise MedComfortError(_HOW_TO_GET)


if __name__ == "__main__":
    try:
        write()
        print(tidy(build()))
    except MedComfortError as error:
        sys.exit(f"medcomfort: {error}")
