"""From a run to the repository and the paper: `medcomfort publish` and `make paper`."""

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
from medcomfort_utils.draw.results import FILES, JUDGE, PROFILE, Results, read_results
from medcomfort_utils.draw.tables import number, setting
from medcomfort_utils.paths import DATA, PAPER, ROOT, MedComfortError, existing, replacing, tidy, write_text

RUN = "nano"  # the committed results that the README shows
README = ROOT / "README.md"
_PLACE = re.compile(r"(<!-- results: begin[^>]*-->\n).*?(<!-- results: end -->)", re.DOTALL)


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
        for file in (*FILES, PROFILE, *([JUDGE] if len(results.judge) else [])):
            shutil.copyfile(folder / file, temporary / file)
    if readme:
        write_text(README, readme)
    return DATA / "results" / name


def with_tables(readme: str, results: Results) -> str:
    """The README's text with the tables of `results`, the first columns of each, between its two markers."""
    if not _PLACE.search(readme):
        raise MedComfortError("README.md: `<!-- results: begin -->` and `<!-- results: end -->` are missing.")
    shown = (tables.results_table(results).iloc[:, :4], tables.claims_table(results).drop(columns=["d_z", "p"]))
    text = "\n".join(map(tables.to_markdown, shown))
    return _PLACE.sub(lambda place: f"{place[1]}\n{text}\n{place[2]}", readme)


def write(folder: Path = PAPER) -> Path:
    """Write setup.tex: what the paper says of the data, which no run changes."""
    head = "% Written by `make paper`; do not edit.\n"
    return write_text(folder / "setup.tex", head + tables.definitions(dict(_data())))


def _data() -> Iterator[tuple[str, str]]:
    """Counts of the authored data, the size of the base model, and how well the comfort score agrees with labels."""
    conditions, emotions = ([yaml.safe_load(path.read_text(encoding="utf-8"))
                             for path in DATA.glob(f"clinic/{folder}/*.yaml")]
                            for folder in ("conditions", "emotions"))  # fmt: skip
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
    labels = json.loads((DATA / "comfort_labels/report.json").read_text(encoding="utf-8"))
    yield "labels.replies", setting(labels["replies"])
    agreement = labels["both"]["kappa"]["all but first_sight"]
    yield from ((f"labels.kappa.{name}", number(kappa)) for name, kappa in agreement.items())


def build(folder: Path = PAPER) -> Path:
    """Typeset main.tex; returns main.pdf. The same files and the same TeX give the same bytes.

    Raises MedComfortError if there is no TeX, or if it stops: the message holds its first error.
    """
    environment = {**os.environ, "SOURCE_DATE_EPOCH": "0", "FORCE_SOURCE_DATE": "1", "max_print_line": "1000"}
    with replacing(folder / "main.pdf") as pdf:
        work = pdf.with_suffix("")
        work.mkdir()
        try:
            ended = subprocess.run(_command(work), cwd=folder, env=environment, capture_output=True, text=True)
            log = work / "main.log"
            said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ended.stdout + ended.stderr
            if ended.returncode:
                error = re.search(r"^(?:\./main\.tex:\d+: .*|! .*)", said, re.MULTILINE)
                raise MedComfortError(f"{tidy(folder / 'main.tex')}: {error[0] if error else said[-300:]}")
            shutil.copyfile(work / "main.pdf", pdf)
        finally:
            shutil.rmtree(work)
    print(*re.findall(r"^.*Warning: .*undefined.*|^Overfull .*", said, re.MULTILINE), sep="\n", end="", file=sys.stderr)
    return folder / "main.pdf"


def _command(work: Path) -> list[str]:
    if latexmk := shutil.which("latexmk"):
        # -norc: nobody's own settings, and none of the folder's, are run.
        options = ("-norc", "-pdf", "-interaction=nonstopmode", "-halt-on-error", "-file-line-error")
        return [latexmk, *options, "-no-shell-escape", f"-outdir={work}", "./main.tex"]
    if tectonic := shutil.which("tectonic"):
        return [tectonic, "--untrusted", "--keep-logs", "--outdir", str(work), "main.tex"]
    raise MedComfortError("make paper needs TeX: on Debian, apt-get install latexmk texlive-latex-recommended.")


if __name__ == "__main__":
    try:
        write()
        print(tidy(build()))
    except MedComfortError as error:
        sys.exit(f"medcomfort: {error}")
