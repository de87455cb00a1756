"""The pages are true: the tutorial runs, the architecture is what the code imports, files and links exist."""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from medcomfort_utils.paths import ROOT
from medcomfort_utils.rewrite import sources
from medcomfort_utils.rewrite.rewriter import judged as judge
from medcomfort_utils.rewrite.template import TemplateRewriter

PACKAGE = ROOT / "medcomfort_utils"
FLOORS = ["llm", "rewrite", "finetune", "evaluate"]  # each may import those before it, and the ground floor
TUTORIAL = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
PAGES = ("README.md", "docs/tutorial.md", "docs/architecture.md", "CONTRIBUTING.md")
BY_HAND = {"make setup", ". .venv/bin/activate"}  # the one-time set-up, which a test has behind it


def imports(path):
    """The modules and subpackages of the package that a file imports, by their first names."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("medcomfort_utils"):
            yield from node.module.split(".")[1:2] or [alias.name for alias in node.names]


def test_imports_run_one_way():
    ground = {"paths", "records", "schema", "text", "medical"}
    for path in PACKAGE.rglob("*.py"):
        name = path.relative_to(PACKAGE).with_suffix("").parts[0]
        above = FLOORS[FLOORS.index(name) + 1 :] if name in FLOORS else FLOORS if name in {"draw", *ground} else []
        assert not {*above, "draw", "flow"}.intersection(imports(path)) - {name} or name == "__main__", path


def test_the_architecture_names_modules_that_exist():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    known = {path.relative_to(PACKAGE).with_suffix("").as_posix().replace("/", ".") for path in PACKAGE.rglob("*.py")}
    floors = "|".join([*FLOORS, "draw"])
    assert {name for name in re.findall(rf"`((?:{floors})\.\w+)`", page)} - known == set()


@pytest.mark.parametrize("page", PAGES)
def test_links_and_files_exist(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    files = re.findall(r"`((?:medcomfort_utils|notebooks|tests|docs|paper|data)/[\w/.-]+\.(?:py|ipynb|yaml|md))`", text)
    made = {"notebooks/profiles/example.yaml"}
    absent = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert not absent + [file for file in files if file not in made and not (ROOT / file).exists()]


def test_the_example_passes_every_check():
    records = [json.loads(line) for line in (ROOT / "docs/example_dialogues.jsonl").open(encoding="utf-8")]
    assert len(records) == 24 and all(set(r) == {"topic", "question", "answer", "facts", "red_flags"} for r in records)
    for record in records:  # facts and red flags are sentences of the answer, so that keeping them can be measured
        assert all(text in record["answer"] for text in [*record["facts"], *record["red_flags"]])
    corpus = sources.open_source("docs/example_dialogues.jsonl")
    dialogues, counts = list(corpus), corpus.counts()
    assert counts.set_index("reason")["count"][["read", "kept"]].tolist() == [24, 24]
    assert sum(dialogue.split == "test" for dialogue in dialogues) in (3, 4)
    judged = (judge(d, version) for d, made in TemplateRewriter().versions(dialogues) for version in made)
    kept = [rewrite for rewrite in judged if all(gate.passed for gate in rewrite.gates)]
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
    assert "no verdict" in (house / "runs/example/claims.json").read_text()
