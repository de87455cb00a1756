"""Colab: each notebook alone, in a fresh environment, gets the package by git and runs to its end."""

import os
import shutil
import subprocess
import sysconfig
import venv

import nbformat
import pytest

from medcomfort_utils.paths import NOTEBOOKS, ROOT

NOTEBOOK_FILES = sorted(NOTEBOOKS.glob("0*.ipynb"))
NOT_COMMITTED = (".git", ".venv", "runs", "cache", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "shared",
                 ".ipynb_checkpoints", "unsloth_compiled_cache")  # fmt: skip


def run(*command, **options):
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=600, **options)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """The files as they are now, committed in a repository of their own: what `git clone` is pointed at."""
    if not shutil.which("git"):
        pytest.skip("git is not installed: on Debian, apt-get install git")
    folder = tmp_path_factory.mktemp("git") / "origin"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(*NOT_COMMITTED))
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false")
    for command in (["init"], ["add", "--all"], [*author, "commit", "--message", "as it is"]):
        ended = run("git", "-C", folder, *command)
        assert ended.returncode == 0, ended.stderr
    return folder


@pytest.fixture
def colab(tmp_path, repository):
    """A folder to work in, its Python and its environment: packages are there, as in Colab, and ours is not.

    pip may ask no index. So it fails if ours needs a package that the pins do not bring.
    """
    for name in ("content", "home", "bin"):
        (tmp_path / name).mkdir()
    venv.create(tmp_path / "venv")
    python = tmp_path / "venv/bin/python"
    own = sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})
    folders = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    with open(os.path.join(own, "packages.pth"), "w", encoding="utf-8") as file:
        file.writelines(f"{folder}\n" for folder in folders)
    (tmp_path / "bin/git").symlink_to(shutil.which("git"))  # the only command beside Python: no nvidia-smi
    environment = {
        "PATH": f"{python.parent}{os.pathsep}{tmp_path / 'bin'}",
        "HOME": str(tmp_path / "home"),
        "MEDCOMFORT_REPO": str(repository),
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's odd way to say --no-build-isolation: setuptools is there
        **{name: os.environ[name] for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ},
    }
    return tmp_path / "content", python, environment


@pytest.mark.parametrize("path", NOTEBOOK_FILES, ids=lambda path: path.stem)
def test_a_notebook_alone_runs_to_its_end(colab, path):
    folder, python, environment = colab
    shutil.copy(path, folder)
    asked = run(python, "-c", "import pandas, medcomfort_utils", cwd=folder, env=environment)
    assert "No module named 'medcomfort_utils'" in asked.stderr

    execute = ("-m", "nbconvert", "--to", "notebook", "--execute", "--inplace", path.name)
    ended = run(python, *execute, cwd=folder, env=environment)
    assert ended.returncode == 0, ended.stderr[-3000:]

    code = [cell for cell in nbformat.read(folder / path.name, as_version=4).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    asked = run(python, "-c", "import medcomfort_utils; print(medcomfort_utils.__file__)", cwd=folder, env=environment)
    assert asked.stdout.strip() == str(folder / "medcomfort/medcomfort_utils/__init__.py")


def test_the_first_cell_is_the_same_in_all_notebooks():
    first = {next(c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
             for path in NOTEBOOK_FILES}  # fmt: skip
    assert len(first) == 1
