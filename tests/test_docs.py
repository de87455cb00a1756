"""The pages are true: the tutorial runs, the architecture is what the code imports, files and links exist."""

import ast
import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from medcomfort_utils.fingerprint import code_cells
from medcomfort_utils.paths import NOTEBOOKS, ROOT
from medcomfort_utils.rewrite import gates, sources, template

PACKAGE = ROOT / "medcomfort_utils"
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
PAGES = ("docs/tutorial.md", "docs/architecture.md", "CONTRIBUTING.md")
BY_HAND = {"make setup", ". .venv/bin/activate"}  # the one-time set-up, which a test has behind it


def imports(code, package=""):
    """The package's modules that Python source imports, at any depth: `rewrite.sources`, `paths`."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            names |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    own = {name.removeprefix("medcomfort_utils.") for name in names if name.startswith("medcomfort_utils.")}
    return {name for name in own if PACKAGE.joinpath(*name.split(".")).with_suffix(".py").is_file() or is_folder(name)}


def is_folder(name):
    return (PACKAGE.joinpath(*name.split(".")) / "__init__.py").is_file()


def edges():
    """(importer, imported) among the top-level modules and subpackages, `paths` left out."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        inside = path.relative_to(PACKAGE)
        package = ".".join(["medcomfort_utils", *inside.parent.parts])
        for name in imports(path.read_text(encoding="utf-8"), package):
            found.add((inside.with_suffix("").parts[0], name.partition(".")[0]))
    return {(importer, name) for importer, name in found if importer != name and name != "paths"}


def test_the_picture_of_imports_is_the_code():
    drawn = set(re.findall(r"^ +(\w+) --> (\w+)$", ARCHITECTURE, re.MULTILINE))
    lines = {f"{a} --> {b}" for a, b in drawn}, {f"{a} --> {b}" for a, b in edges()}
    assert drawn == edges(), f"add {sorted(lines[1] - lines[0])}, remove {sorted(lines[0] - lines[1])}"


def test_imports_run_one_way():
    order = ["llm", "records", "rewrite", "finetune", "evaluate"]
    later = {(a, b) for a, b in edges() if a in order and b in order and order.index(a) < order.index(b)}
    assert not later
    assert {b for a, b in edges() if a == "draw"} <= {"profile"}


def test_the_table_of_notebooks_is_what_they_import():
    told = {name: set(re.findall(r"`([\w.]+)`", cells)) for name, cells in re.findall(r"^\| `(0\w+)` \| (.*) \|$",
            ARCHITECTURE, re.MULTILINE)}  # fmt: skip
    called = {}
    for path in NOTEBOOKS.glob("0*.ipynb"):
        names = set().union(*map(imports, code_cells(path)))
        called[path.stem] = {name for name in names if not is_folder(name)} - {"paths"}
    assert told.keys() == called.keys()
    for notebook, names in called.items():
        assert told[notebook] == names, f"the row of {notebook} should name {', '.join(sorted(names))}"


def test_every_part_of_the_package_is_on_the_page():
    table = ARCHITECTURE[ARCHITECTURE.index("## The modules") :]
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or is_folder(path.name)} - {"__init__"}
    assert parts <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:medcomfort_utils|notebooks|tests|docs|paper|data)/[\w/.-]+\.(?:py|ipynb|yaml|md))`", text)
    made = {"notebooks/profiles/example.yaml"}
    absent = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not absent + [file for file in files if file not in made and not (ROOT / file).exists()]


def test_the_readme_shows_each_screenshot_and_says_what_is_on_it():
    """They are small, and there are no others."""
    shown = dict(map(reversed, re.findall(r"!\[([^]]{40,})\]\((docs/screenshots/\w+\.png)\)", README)))
    files = {path.relative_to(ROOT).as_posix(): path.stat().st_size for path in (ROOT / "docs/screenshots").iterdir()}
    assert shown.keys() == files.keys() and len(files) >= 3
    assert max(files.values()) < 200_000


def test_the_example_passes_every_check():
    records = [json.loads(line) for line in (ROOT / "docs/example_dialogues.jsonl").open(encoding="utf-8")]
    assert len(records) == 24 and all(set(r) == {"topic", "question", "answer", "facts", "red_flags"} for r in records)
    for record in records:  # facts and red flags are sentences of the answer, so that keeping them can be measured
        assert all(text in record["answer"] for text in [*record["facts"], *record["red_flags"]])
    dialogues, counts = sources.load_dialogues("docs/example_dialogues.jsonl")
    assert counts.set_index("reason")["count"][["read", "kept"]].tolist() == [24, 24]
    assert sum(dialogue.split == "test" for dialogue in dialogues) in (3, 4)
    kept, _ = gates.sift(dialogues, template.rewrite_all(dialogues))
    assert len(kept) == 24 * 4


@pytest.fixture
def house(tmp_path):
    """A copy of what the tutorial needs, so that its runs and its profile stay out of the repository."""
    ignored = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "example.yaml")
    for name in ("medcomfort_utils", "notebooks", "docs", "data", "requirements", "paper"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    return tmp_path


def test_the_tutorial_runs_as_it_stands(house):
    blocks = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL, re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if line not in BY_HAND]
    assert len(commands) >= 5 and all(command.startswith("medcomfort ") for command in commands)
    environment = {**os.environ, "PYTHONPATH": str(house), "HF_HUB_OFFLINE": "1", "OMP_WAIT_POLICY": "passive"}
    said = {}
    for command in commands:
        words = [sys.executable, "-m", "medcomfort_utils", *shlex.split(command)[1:]]
        ended = subprocess.run(words, cwd=house, env=environment, capture_output=True, text=True, timeout=600)
        assert ended.returncode == 0, f"{command}\n{ended.stdout}\n{ended.stderr}"
        said[command.split()[1]] = ended.stdout
    for written in re.findall(r"^\| (`.*?) \|", TUTORIAL[TUTORIAL.index("## 4.") :], re.MULTILINE):
        assert all((house / "runs/example" / name).exists() for name in re.findall(r"`([^`]+)`", written)), written
    assert "will work here: medcomfort reproduce --profile nano" in said["doctor"]
    assert "| corpus | example_dialogues | clinic |" in said["compare"]
    assert (house / "runs/compare/example-vs-nano.pdf").is_file() and (house / "runs/example-figures/figures").is_dir()
    assert "inconclusive" in (house / "runs/example/claims.json").read_text()
