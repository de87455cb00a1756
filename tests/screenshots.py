"""`make screenshots`: what a reader sees, from the site in build/site and from JupyterLab, into docs/screenshots."""

import sys
import tempfile
from pathlib import Path

import shown
from browser import CHROMIUM, MISSING, browser

from medcomfort_utils.paths import ROOT

FOLDER = ROOT / "docs/screenshots"
DESKTOP, TELEPHONE = (1280, 860), (390, 844)  # CSS pixels
_FIGURE = "document.querySelector('article img, .jp-OutputArea-output img')"  # the first one


def take(page, name):
    """Bring the first figure to the middle of the window and save what is seen."""
    page.call("Emulation.setScrollbarsHidden", hidden=True)
    page.evaluate(f"{_FIGURE}.scrollIntoView({{behavior: 'instant', block: 'center'}})")
    page.screenshot(FOLDER / f"{name}.png")


def main():
    """Three pictures: the notebook on the site, the front page on a telephone, the notebook run in JupyterLab."""
    if not CHROMIUM:
        sys.exit(MISSING)
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, browser(Path(folder)) as page:
        with shown.site(ROOT / "build/site") as address:
            page.open(f"{address}/notebooks/04_figures.html", *DESKTOP)
            take(page, "site")
            page.open(f"{address}/index.html", *TELEPHONE)
            take(page, "telephone")
        with shown.lab(Path(folder)) as address:
            shown.run_by_menu(page, address)
            page.until(shown.FIGURES)
            take(page, "lab")


if __name__ == "__main__":
    main()
