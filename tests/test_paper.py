"""The paper: no result is typed, all that it asks for is there, and the PDF is built from what is committed."""

import os
import re
import shutil

import pytest

from medcomfort_utils.draw import paper
from medcomfort_utils.paths import FIGURES, PAPER, MedComfortError

SOURCE = (PAPER / "main.tex").read_text(encoding="utf-8")
# What may hold a digit: names of values, files, labels; how a table is set; $z_0$; years; constants of equations.
ALLOWED = re.compile(
    r"\\(?:mcvalue|with|difference|ref|label|input|includegraphics|bibliography|cite[pt]|fitted\{[^}]*\})\{[^}]*\}"
    r"|\\(?:setlength|renewcommand|newcolumntype)\{[^}]*\}(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})"
    r"|(?<!\\)%.*|\$z_0\$|\$a_e\$|(?<!\d)(?:19|20)\d\d(?![\d.,]*\d)"
)
EQUATION = re.compile(r"\\begin\{equation\}.*?\\end\{equation\}", re.DOTALL)


def typed_numbers(source):
    """The lines of the document's text in which a digit is typed."""
    text = source.partition(r"\begin{document}")[2]
    text = EQUATION.sub(lambda found: re.sub(r"(?<![\d.])\d(?![\d.])", "", found[0]), text)
    return [line.strip() for line in ALLOWED.sub("", text).splitlines() if re.search(r"\d", line)]


def test_no_number_is_typed():
    assert typed_numbers(SOURCE) == []
    for typed in ("Comfort rises to 1.35.", "$p < 0.001$", r"\begin{equation} x = 0.93 \end{equation}", "a 7 %"):
        assert typed_numbers(SOURCE.replace(r"\section{Limits}", rf"\section{{Limits}} {typed}")), typed


def test_every_value_figure_and_citation_is_there():
    defined = set()
    for name in ("values", "ablation", "setup"):
        found = re.findall(r"\\csname mc\.(.*?)\\endcsname\{", (PAPER / f"{name}.tex").read_text(encoding="utf-8"))
        assert len(found) == len(set(found)) and not defined & set(found)
        defined |= set(found)
    ends = {"mcvalue": ("",), "with": ("", ".low", ".high"), "difference": (".estimate", ".low", ".high")}
    asked = {name + end for command, name in re.findall(r"\\(mcvalue|with|difference)\{([^}#]*)\}", SOURCE)
             for end in ends[command]}  # fmt: skip
    assert len(asked) > 50 and not asked - defined
    assert all((FIGURES / f"{name}.pdf").is_file() for name in re.findall(r"\\includegraphics\{(.*?)\}", SOURCE))
    entries = re.findall(r"^@\w+\{(.*?),", (PAPER / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    cited = {key for keys in re.findall(r"\\cite[a-z]*\{(.*?)\}", SOURCE) for key in keys.split(",")}
    assert cited == set(entries) and len(entries) == len(set(entries))


def test_the_pdf_is_built_from_what_is_committed(tmp_path):
    shutil.copytree(PAPER / "tables", tmp_path / "tables")
    for made in paper.write(tmp_path):
        assert made.read_text() == (PAPER / made.relative_to(tmp_path)).read_text(), f"{made.name}: run make paper"
    inputs = re.search(rb"/MedComfortInputs \((\w+)\)", (PAPER / "main.pdf").read_bytes())
    assert inputs and inputs[1].decode() == paper.fingerprint(), "paper/main.pdf is not up to date: run make paper"


@pytest.fixture
def sources(tmp_path):
    """A copy of the paper's sources, without the PDF, beside the figures."""
    os.symlink(FIGURES, tmp_path / "figures")
    return shutil.copytree(PAPER, tmp_path / "paper", ignore=shutil.ignore_patterns("*.pdf"))


def test_without_tex_one_line_says_how_to_get_it(monkeypatch, sources):
    monkeypatch.setenv("PATH", str(sources))
    with pytest.raises(MedComfortError, match="apt-get install latexmk texlive-latex-recommended"):
        paper.build(sources, FIGURES)
    assert not list(sources.glob("*.pdf"))


@pytest.mark.skipif(not shutil.which("latexmk"), reason="apt-get install latexmk texlive-latex-recommended")
def test_it_is_typeset_without_a_fault_or_stops_at_an_unknown_value(sources, capfd):
    assert b"/Type3" not in paper.build(sources, FIGURES).read_bytes()  # bitmap fonts
    assert capfd.readouterr().err == ""  # neither an undefined reference nor a line beyond its margin
    main = sources / "main.tex"
    main.write_text(SOURCE.replace(r"\section{Limits}", r"\section{Limits} \mcvalue{sft.emotional.joy}"))
    (sources / "main.pdf").unlink()
    with pytest.raises(MedComfortError, match="There is no value sft.emotional.joy in values.tex"):
        paper.build(sources, FIGURES)
    assert not (sources / "main.pdf").exists()
