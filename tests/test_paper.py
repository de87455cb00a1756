"""The paper: no result is typed, all that it asks for is there, and the PDF is built from what is committed."""

import os
import re
import shutil
from dataclasses import replace

import pytest

from medcomfort_utils import profile
from medcomfort_utils.draw import paper, setup
from medcomfort_utils.draw.results import read_results
from medcomfort_utils.paths import DATA, FIGURES, PAPER, MedComfortError

SOURCE = (PAPER / "main.tex").read_text(encoding="utf-8")
# What may hold a digit: names of values, files and labels; equations (as single constants); years.
NAMES = (
    r"\\(?:mcvalue|with|difference|ref|label|input|includegraphics|bibliography|cite[pt]|fitted\{[^}]*\})\{[^}]*\}"
)
EQUATION = re.compile(r"\\begin\{equation\}.*?\\end\{equation\}", re.DOTALL)
IN_TEXT = {"$z_0$", "$a_e$"}  # the only mathematics within a line that may hold a digit
# How a table or an arrow is set, not what a result is.
LAYOUT = r"\\(?:setlength|renewcommand|newcolumntype)\{[^}]*\}(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})"


def typed_numbers(source):
    """The lines of the document's text in which a digit is typed."""
    text = re.sub(r"(?<!\\)%.*", "", source.partition(r"\begin{document}")[2])
    text = EQUATION.sub(lambda found: re.sub(r"(?<![\d.])\d(?![\d.])", "", found[0]), text)
    text = re.sub(LAYOUT, "", re.sub(NAMES, "", text))
    for allowed in IN_TEXT:
        text = text.replace(allowed, "")
    text = re.sub(r"(?<!\d)(?:19|20)\d\d(?![\d.,]*\d)", "", text)
    return [line.strip() for line in text.splitlines() if re.search(r"\d", line)]


def read_values(*names):
    """Name -> LaTeX of what is defined in files of the paper's folder."""
    text = "".join((PAPER / name).read_text(encoding="utf-8") for name in names)
    return dict(re.findall(r"^\\expandafter\\def\\csname mc\.(.*?)\\endcsname\{(.*)\}$", text, re.MULTILINE))


@pytest.fixture(scope="module")
def results():
    return read_results(DATA / "results" / paper.RUN)


@pytest.fixture(scope="module")
def run():
    return profile.load(paper.RUN)


def test_no_number_is_typed():
    assert typed_numbers(SOURCE) == []


@pytest.mark.parametrize(
    "typed",
    [
        "Comfort rises to 1.35.",
        "in 93 of the cases",
        "$p < 0.001$",
        r"\begin{equation} x = 0.93 \end{equation}",
        "a 7 %",
    ],
)
def test_a_typed_number_is_found(typed):
    assert typed_numbers(SOURCE.replace(r"\section{Limits}", rf"\section{{Limits}} {typed}"))


def test_no_verdict_is_typed():
    """A sentence that names a verdict takes it from the results, save the two that explain the words."""
    text = re.sub(NAMES, "", SOURCE)
    named = re.findall(r"[^.]*\b(?:supported|inconclusive|significant(?:ly)?|superior to)\b[^.]*\.", text)
    told = ("report", "A claim is supported", "original abstract says", "earlier whole run", "\\title")
    assert [sentence.strip() for sentence in named if not any(word in sentence for word in told)] == []


def test_every_value_is_defined_once():
    written, told = read_values("values.tex", "ablation.tex"), read_values("setup.tex")
    assert not written.keys() & told.keys()
    shapes = {"mcvalue": ("",), "with": ("", ".low", ".high"), "difference": (".estimate", ".low", ".high")}
    asked = {name + end for command, name in re.findall(r"\\(mcvalue|with|difference)\{([^}#]*)\}", SOURCE)
             for end in shapes[command]}  # fmt: skip
    assert len(asked) > 50
    assert asked <= written.keys() | told.keys()


def test_setup_and_its_tables_are_what_the_code_makes(results, run, tmp_path):
    for made in setup.write(results, run, tmp_path):
        committed = PAPER / made.relative_to(tmp_path)
        assert made.read_text() == committed.read_text(), f"{committed.name} is not up to date: run make paper"


def test_the_pdf_is_built_from_what_is_committed():
    inputs = re.search(rb"/MedComfortInputs \((\w+)\)", (PAPER / "main.pdf").read_bytes())
    assert inputs and inputs[1].decode() == paper.fingerprint(), "paper/main.pdf is not up to date: run make paper"


def test_each_figure_names_its_notebook_and_is_a_committed_one():
    figures = re.findall(r"\\begin\{(figure\*?)\}(.*?)\\end\{\1\}", SOURCE, re.DOTALL)
    assert figures
    for _, figure in figures:
        assert (FIGURES / (re.search(r"\\includegraphics\{(.*?)\}", figure)[1] + ".pdf")).exists()
        assert r"\drawn" in figure
    assert r"\newcommand{\drawn}{Drawn by the notebook \figuresnb.}" in SOURCE


def test_every_citation_is_in_the_bibliography_and_used():
    entries = re.findall(r"^@\w+\{(.*?),", (PAPER / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
    cited = {key for keys in re.findall(r"\\cite[a-z]*\{(.*?)\}", SOURCE) for key in keys.split(",")}
    assert len(entries) == len(set(entries))
    assert cited == set(entries)


def test_verdicts_in_words_follow_the_results(results):
    assert setup.listing(["a"]) == "a" and setup.listing("abc") == "a, b and c"
    rows = results.claims.copy()
    of = rows.id == "knowledge_maintained"
    rows.loc[of, "verdict"] = ["inconclusive", "supported", "not supported"]
    changed = replace(results, claims=rows)
    models = dict(zip(rows[of].verdict, rows[of].model.str.upper(), strict=True))
    told = "; ".join(f"{verdict} for {models[verdict]}" for verdict in ("supported", "not supported", "inconclusive"))
    assert setup.verdicts(changed, "knowledge_maintained") == told
    assert told in setup.verdict_items(changed, setup.read_claims(changed))


def test_settings_are_those_of_the_profile(run):
    table = setup.recipes(run).set_index("Model")
    told = {step.name: step.parameters for step in run.steps}["02_finetune-dpo"]
    assert float(table.loc["DPO", "Learning rate"]) == told["learning_rate"]
    assert table["Starts from"].tolist() == ["base", "SFT, same seed", "SFT, same seed", "base", "base", "base"]
    assert table.loc["DPO", "Seeds"] == str(len(told["seeds"]))
    assert setup.plain(5e-5) == "0.00005" and setup.plain(1500) == "1,500" and setup.plain(1.0) == "1"


def test_a_table_of_the_log_is_found_by_its_heading():
    log = "## One\n\ntext\n\n| | b |\n|---|---|\n| x | -0.5 |\n\nmore\n\n| c |\n|---|\n| y |\n"
    assert setup.logged("One", log).to_numpy().tolist() == [["x", "−0.5"]]
    with pytest.raises(
        MedComfortError, match="EXPERIMENTS.md: there is no table below a heading that begins with 'Tw'"
    ):
        setup.logged("Tw", log)


def test_without_tex_one_line_says_how_to_get_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MedComfortError, match="apt-get install latexmk texlive-latex-recommended"):
        paper.build(sources(tmp_path / "paper"), FIGURES)
    assert not list((tmp_path / "paper").glob("*.pdf"))


def sources(folder):
    """A copy of the paper's sources, without the PDF."""
    return shutil.copytree(PAPER, folder, ignore=shutil.ignore_patterns("*.pdf"))


@pytest.fixture
def typeset(tmp_path):
    """The copied sources beside the figures, where latexmk is installed."""
    if not shutil.which("latexmk"):
        pytest.skip("latexmk is not installed: on Debian, apt-get install latexmk texlive-latex-recommended")
    os.symlink(FIGURES, tmp_path / "figures")
    return sources(tmp_path / "paper")


def test_it_typesets_without_a_fault(typeset, capfd):
    pdf = paper.build(typeset, FIGURES).read_bytes()
    assert capfd.readouterr().err == ""  # neither an undefined reference nor a line beyond its margin
    pages = len(re.findall(rb"/Type ?/Page\b", pdf))
    assert 4 <= pages <= 8
    assert b"/Type3" not in pdf  # bitmap fonts
    assert [path.name for path in typeset.glob("*.*") if path.suffix in (".aux", ".log", ".tmp")] == []


def test_an_unknown_value_stops_it_by_name(typeset):
    main = typeset / "main.tex"
    main.write_text(SOURCE.replace(r"\section{Limits}", r"\section{Limits} \mcvalue{sft.emotional.joy}"))
    with pytest.raises(MedComfortError, match="There is no value sft.emotional.joy in values.tex"):
        paper.build(typeset, FIGURES)
    assert not (typeset / "main.pdf").exists()
