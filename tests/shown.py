"""What a reader's browser shows: the site, and JupyterLab, each on a server of this machine alone."""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import nbformat
from IPython.core.inputtransformer2 import TransformerManager

from medcomfort_utils import schema
from medcomfort_utils.paths import NOTEBOOKS, ROOT

NOTEBOOK = "04_figures.ipynb"
# JavaScript: how many pictures the outputs of the notebook show.
FIGURES = "[...document.querySelectorAll('.jp-OutputArea-output img')].filter(i => i.naturalWidth).length"
# JavaScript: what its cells say on stderr, error messages too.
FAULTS = """[...document.querySelectorAll('[data-mime-type="application/vnd.jupyter.stderr"]')]
    .map(e => e.innerText).join('')"""


@contextmanager
def site(folder):
    """Yield the address of a folder of pages."""
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@contextmanager
def lab(folder):
    """Yield the address of 04_figures in JupyterLab: a copy without outputs, in `folder`, as are the settings."""
    (folder / "notebooks").mkdir()
    news = folder / "settings/@jupyterlab/apputils-extension/notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false", "checkForUpdates": false}')  # else it asks, and covers the notebook
    nbformat.write(_bare(folder / "made"), folder / "notebooks" / NOTEBOOK)
    token = secrets.token_hex()
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("RUNTIME", "CONFIG", "DATA")}
    own |= {"JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(folder / "work")}
    environment = {**os.environ, **own, "JUPYTER_TOKEN": token, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--ip=127.0.0.1",
               "--ServerApp.port=0", str(folder / "notebooks")]  # fmt: skip
    log = folder / "log.txt"
    with log.open("w") as file, subprocess.Popen(command, env=environment, stdout=file, stderr=file) as server:
        try:
            yield f"{_url(folder / 'runtime', server, log)}lab/tree/{NOTEBOOK}?token={token}"
        finally:
            server.terminate()


def _bare(made):
    """04_figures with no outputs, which writes into a folder of its own."""
    notebook = nbformat.read(NOTEBOOKS / NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
            cell.source = cell.source.replace('"runs/smoke', f'"{made}')
    return notebook


def _url(runtime, server, log, seconds=180):
    """The address that the server has chosen, once it has written it down."""
    deadline = time.monotonic() + seconds
    while not (files := list(runtime.glob("jpserver-*.json"))):
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    return json.loads(files[0].read_text())["url"]


def run_by_menu(page, address, seconds=300):
    """Open the notebook, choose Run > Run All Cells, and wait until the last cell has run, or one has failed."""
    page.open(address)
    page.click("document.querySelector('.jp-Notebook h1')")  # the status bar tells of the notebook that has the focus
    page.until("document.body.innerText.includes('(ipykernel) | Idle')")
    page.click(_labelled("lm-MenuBar", "Run"))
    page.click(_labelled("lm-Menu", "Run All Cells"))
    cells = sum(cell.cell_type == "code" for cell in nbformat.read(NOTEBOOKS / NOTEBOOK, as_version=4).cells)
    page.until(f"document.querySelector('.jp-Notebook')?.innerText.includes('[{cells}]:') || {FAULTS}", seconds)


def _labelled(kind, text):
    """JavaScript: the entry of a menu or a menu bar with that text."""
    label = f"e.querySelector('.{kind}-itemLabel')?.textContent === {text!r}"
    return f"[...document.querySelectorAll('.{kind}-item')].find(e => {label})"


def code_cells(notebook):
    """The code cells as plain Python: `%` and `!` lines become calls, as in IPython."""
    return [TransformerManager().transform_cell(cell["source"]) for cell in schema.code_cells(notebook)]
