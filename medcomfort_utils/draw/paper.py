"""`make paper`: renew what the paper takes from files, then build paper/main.pdf with latexmk or tectonic."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from medcomfort_utils import profile
from medcomfort_utils.draw import setup
from medcomfort_utils.draw.results import read_results
from medcomfort_utils.paths import DATA, FIGURES, PAPER, MedComfortError, existing, replacing, tidy

RUN = "nano"  # the profile, and the committed results, that the paper tells of
HOW_TO_GET = (
    "make paper needs latexmk or tectonic: on Debian or Ubuntu, apt-get install latexmk texlive-latex-recommended."
)


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
    raise MedComfortError(HOW_TO_GET)


def main() -> int:
    """Renew setup.tex and its tables, then build; 1 and one sentence if that fails."""
    try:
        setup.write(read_results(DATA / "results" / RUN), profile.load(RUN), PAPER)
        print(tidy(build()))
    except MedComfortError as error:
        print(f"medcomfort: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
