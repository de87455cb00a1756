"""JupyterLab: 04_figures, opened in a browser and run by the menu, shows its figures."""

import nbformat
import pytest
from browser import CHROMIUM, MISSING, browser
from shown import FAULTS, FIGURES, NOTEBOOK, lab, run_by_menu

from medcomfort_utils.paths import NOTEBOOKS


@pytest.fixture
def page(tmp_path):
    if not CHROMIUM:
        pytest.skip(MISSING)
    (tmp_path / "chromium").mkdir()
    with browser(tmp_path / "chromium") as opened:
        yield opened


def test_run_by_the_menu_it_shows_its_figures(page, tmp_path):
    kept = [output for cell in nbformat.read(NOTEBOOKS / NOTEBOOK, as_version=4).cells
            for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]  # fmt: skip
    with lab(tmp_path) as address:
        run_by_menu(page, address)
        assert page.evaluate(FAULTS) == ""
        assert page.until(FIGURES) == len(kept) >= 7
    assert len(list((tmp_path / "made/figures").glob("*.png"))) >= 7
