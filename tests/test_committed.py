"""What is committed is what the code makes: smoke inputs, figures, tables of README and paper, clean notebooks."""

import nbformat
import pytest

from medcomfort_utils.draw import paper, plots, tables
from medcomfort_utils.draw.results import read_results
from medcomfort_utils.parquet import read_records
from medcomfort_utils.paths import DATA, FIGURES, NOTEBOOKS, PAPER
from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.rewrite import clinic
from medcomfort_utils.rewrite.rewriter import judged as judge
from medcomfort_utils.rewrite.template import TemplateRewriter

NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("0*.ipynb"))


def test_smoke_inputs_are_what_01_writes():
    dialogues = read_records(DATA / "smoke/dialogues.parquet", Dialogue)
    assert dialogues == list(clinic.generate(2))
    judged = (judge(d, version) for d, made in TemplateRewriter().versions(dialogues) for version in made)
    kept = [rewrite for rewrite in judged if all(gate.passed for gate in rewrite.gates)]
    assert read_records(DATA / "smoke/rewrites.parquet", Rewrite) == kept


def test_figures_and_tables_are_those_of_the_committed_results(tmp_path):
    results, varied = (read_results(DATA / "results" / name) for name in ("nano", "nano-ablation"))
    for name in plots.FIGURES:
        assert plots.draw(name, varied if name.startswith("ablation") else results, tmp_path / "figures")
    made = [*(tmp_path / "figures").iterdir(), *tables.write(results, varied, tmp_path / "paper")]
    made.append(paper.write(tmp_path / "paper"))
    homes = {"figures": FIGURES, "paper": PAPER}
    for path in made:
        top, *rest = path.relative_to(tmp_path).parts
        assert path.read_bytes() == homes[top].joinpath(*rest).read_bytes(), f"{path.name}: run make paper"
    assert {path.name for path in FIGURES.iterdir()} == {path.name for path in (tmp_path / "figures").iterdir()}
    readme = paper.README.read_text(encoding="utf-8")
    assert paper.with_tables(readme, results) == readme


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
