"""What is committed is what the code makes: smoke inputs, the tables of README and paper, clean notebooks."""

import nbformat
import pytest

from medcomfort_utils.draw import publish, tables
from medcomfort_utils.draw.results import read_results
from medcomfort_utils.parquet import read_records
from medcomfort_utils.paths import DATA, NOTEBOOKS, PAPER
from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.rewrite import clinic, gates, template

NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("0*.ipynb"))


def test_smoke_inputs_are_what_01_writes():
    dialogues = read_records(DATA / "smoke/dialogues.parquet", Dialogue)
    assert dialogues == list(clinic.generate(2))
    kept, _ = gates.sift(dialogues, template.rewrite_all(dialogues))
    assert read_records(DATA / "smoke/rewrites.parquet", Rewrite) == kept


def test_readme_and_paper_hold_the_committed_results():
    results = read_results(DATA / "results/nano")
    readme = publish.README.read_text(encoding="utf-8")
    assert publish.with_tables(readme, results) == readme
    assert (PAPER / "values.tex").read_text(encoding="utf-8") == tables.values_tex(results)
    latex = (PAPER / "tables/results.tex").read_text(encoding="utf-8")
    assert latex == tables.to_latex(tables.results_table(results))


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_notebooks_are_whole_and_define_nothing(path):
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(line.startswith(("def ", "class ")) for cell in code for line in cell.source.splitlines())
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    outputs = str([cell.outputs for cell in code])
    assert "'stderr'" not in outputs and "'error'" not in outputs
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert path.stat().st_size < 1_000_000  # GitHub shows larger ones slowly, or not at all
