"""The command `medcomfort reproduce`: the four notebooks' own parameters, with tiny cells, in a house of its own."""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml

from medcomfort_utils import fingerprint, flow, paths, profile, progress
from medcomfort_utils.__main__ import main
from medcomfort_utils.paths import MedComfortError

HERE, NOTEBOOKS = Path(paths.__file__).resolve().parents[1], paths.NOTEBOOKS
START = (
    "import json, os, pathlib, time\nout = pathlib.Path(out_dir if 'out_dir' in globals() else results_dir)\n"
    "out.mkdir(parents=True, exist_ok=True)\ndef log(word):\n    with open('log', 'a') as f: f.write(word + '\\n')"
)
CELLS = {
    "01_rewrite": [
        "log('rewrite'); (out / 'half.txt').write_text('begun')\nwhile os.path.exists('hold'): time.sleep(0.05)",
        "class MedComfortError(Exception): pass\nassert model != 'bad', 'model is\\nbad'",
        "if model == 'told': raise MedComfortError('told.txt, line 3: no answer.')\nif model == 'dead': os._exit(9)",
        "for name in ('dialogues', 'rewrites'): (out / f'{name}.parquet').write_text(f'{limit} {temperature}')",
        "(out / 'half.txt').unlink()\nif model == 'calls': (out / 'incomplete').write_text('3 calls failed')",
    ],
    "02_finetune": [
        "from medcomfort_utils import progress\nlog(name); threads = os.environ['OMP_NUM_THREADS']",
        "for seed in seeds:\n    made, start = out / f'{name}-seed{seed}', init_from.format(seed=seed)\n"
        "    before = pathlib.Path(start, 'training.json').read_text() if start else ''\n"
        "    if not made.exists():\n        made.mkdir()\n"
        "        (made / 'training.json').write_text(f'{before}{method} {learning_rate} {threads};')\n"
        "    progress.report(f'{name}: seeds', seed + 1, len(seeds))",
        "while name == 'dpo' and os.path.exists('hold-dpo'): time.sleep(0.05)",
    ],
    "03_evaluate": [
        "log('evaluate')\nfound = sorted(p for p in pathlib.Path(models_dir).iterdir() if p.name[:3] in models)",
        "for p in found: (p / 'README.md').write_text('its results')",
        "(out / 'results.json').write_text(json.dumps({p.name: (p / 'training.json').read_text() for p in found}))",
    ],
    "04_figures": ["log('figures'); pathlib.Path(summary).write_text('the table\\n')"],
}  # fmt: skip
PROFILE = """
name: tiny
rewrite: {source: clinic, rewriter: template, limit: 3}
train: {seeds: [0, 1], learning_rate: 2.0e-3}
models: {sft: {}, dpo: {after: sft, learning_rate: 1e-3}, kto: {after: sft}}
evaluate:
figures: {}
"""
ALL = ["rewrite", "sft", "dpo", "kto", "evaluate", "figures"]


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A repository with the four notebooks, one profile, a package and data."""
    root = tmp_path / "house"
    for name in ("notebooks/profiles", "medcomfort_utils", "data/nano_base", "data/smoke", "paper", "elsewhere"):
        (root / name).mkdir(parents=True)
    for name, place in {"ROOT": "", "NOTEBOOKS": "notebooks", "PROFILES": "notebooks/profiles", "RUNS": "runs",
                        "DATA": "data"}.items():  # fmt: skip
        monkeypatch.setattr(paths, name, root / place)
    for name in ("medcomfort_utils/tools.py", "data/world.yaml", "paper/claims.yaml"):
        (root / name).write_text("1")
    for name, cells in CELLS.items():
        ours = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells
        tagged = [cell for cell in ours if "parameters" in cell.metadata.get("tags", [])]
        notebook = nbformat.v4.new_notebook(cells=[*tagged, *map(nbformat.v4.new_code_cell, [START, *cells])])
        notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, root / f"notebooks/{name}.ipynb")
    (root / "notebooks/profiles/tiny.yaml").write_text(PROFILE)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.chdir(root / "elsewhere")
    return root


def run_it(*arguments):
    return main(["reproduce", "--profile", "tiny", *arguments])


def log(house):
    return (house / "log").read_text().split() if (house / "log").exists() else []


def results(house, run="tiny"):
    """Content of what the steps wrote, by path."""
    folder = house / "runs" / run
    found = [p for p in folder.rglob("*") if p.is_file() and p.relative_to(folder).parts[0] not in fingerprint.OWN]
    return {p.relative_to(folder).as_posix(): p.read_text() for p in found if p.name != ".lock"}


def stale(*settings):
    """Step -> why it would run again, for the steps that would."""
    run, common = profile.load("tiny", settings), fingerprint.shared()
    reasons = {s.name: fingerprint.stale(fingerprint.made_from(s, run, common), s, run) for s in run.steps}
    return {name: reason for name, reason in reasons.items() if reason}


def finish():
    """Leave records behind as if every step had run and written one file."""
    run, common = profile.load("tiny"), fingerprint.shared()
    for step in run.steps:
        paths.write_text(run.folder / f"{step.name}.txt", step.name)
        files = {f"{step.name}.txt": fingerprint.content(run.folder / f"{step.name}.txt")}
        record = {"step": step.name, "files": files, "seconds": 1, "peak_mb": 1, "incomplete": "",
                  "made_from": fingerprint.made_from(step, run, common)}  # fmt: skip
        paths.write_json(fingerprint.record_path(run, step.name), record)


def command_line(*arguments):
    """The command as a process of its own, in the house of the test."""
    moved = "".join(f"paths.{name} = Path({str(getattr(paths, name))!r});" for name in
                    ("ROOT", "NOTEBOOKS", "PROFILES", "RUNS", "DATA"))  # fmt: skip
    code = (
        f"from pathlib import Path; from medcomfort_utils import paths; {moved} "
        "import sys; from medcomfort_utils.__main__ import main; sys.exit(main())"
    )
    return subprocess.Popen([sys.executable, "-c", code, "reproduce", "--profile", "tiny", *arguments],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip


def wait_for(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_run_then_nothing_to_do_then_only_what_changed_whatever_the_jobs(house, capsys):
    assert run_it("--jobs", "1") == 0
    said = capsys.readouterr().out
    assert log(house) == ALL and said.endswith("the table\n") and "step             seconds  peak MB" in said
    assert "[2/6] 02_finetune-sft (not done yet)" in said and "[2/6] 02_finetune-sft done in " in said
    first = results(house)
    trained = json.loads(first["results.json"])
    assert trained["dpo-seed1"] == "sft 0.002 1;dpo 0.001 1;" and len(trained) == 6

    assert run_it() == 0
    assert len(log(house)) == 6 and capsys.readouterr().out.count("(up to date)") == 6
    (house / "runs/tiny/models/kto-seed1/training.json").unlink()
    (house / "runs/tiny/results.json").write_text("{}")
    assert stale() == {
        "02_finetune-kto": "runs/tiny/models/kto-seed1/training.json is missing or changed",
        "03_evaluate": "runs/tiny/results.json is missing or changed",
    }

    saved = yaml.safe_load((house / "runs/tiny/profile.yaml").read_text())
    assert saved["models"]["dpo"]["beta"] == 0.1 and saved["models"]["dpo"]["after"] == "sft"
    assert "out_dir" not in saved["rewrite"] and "runs/" not in str(saved)
    assert "python" in (house / "runs/tiny/versions.json").read_text()

    (house / "hold-dpo").touch()  # steps that do not need each other run side by side
    process = command_line("--profile", str(house / "runs/tiny/profile.yaml"), "--name", "two", "--jobs", "2")
    wait_for(lambda: (house / "runs/two/steps/02_finetune-kto.json").exists())
    assert not (house / "runs/two/steps/02_finetune-dpo.json").exists()
    (house / "hold-dpo").unlink()
    assert process.communicate(timeout=180) and process.returncode == 0 and results(house, "two") == first


def test_the_printed_command_works_in_a_shell(house, capsys):
    tricky = ["model=1e3", 'revision=it\'s $HOME; None "no"', "temperature=1.0e-3", "cache=a: #b"]
    settings = [word for pair in tricky for word in ("--set", f"rewrite.{pair}")]
    assert run_it("--dry-run", *settings) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (house / "runs").exists() and "papermill notebooks/01_rewrite.ipynb runs/tiny/notebooks/" in lines[2]
    shell = f"{lines[0]} && {shlex.quote(sys.executable)} -m {lines[2].strip()} --prepare-only --no-progress-bar"
    subprocess.run(shell, shell=True, check=True, cwd=house, capture_output=True)
    given = nbformat.read(house / "runs/tiny/notebooks/01_rewrite.ipynb", 4).metadata.papermill.parameters
    assert given == profile.load("tiny", [f"rewrite.{pair}" for pair in tricky]).steps[0].given
    assert (given["model"], given["temperature"], given["cache"]) == ("1e3", 0.001, "a: #b")


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("bad", "notebooks/01_rewrite.ipynb (01_rewrite), cell [5]: AssertionError: model is bad"),
        ("told", "notebooks/01_rewrite.ipynb (01_rewrite), cell [6]: told.txt, line 3: no answer."),
        ("dead", "notebooks/01_rewrite.ipynb (01_rewrite), cell [6]: the kernel died"),
    ],
)
def test_a_failing_cell_stops_the_run_and_is_shown(house, capsys, model, sentence):
    assert run_it("--set", f"rewrite.model={model}") == 1
    said = capsys.readouterr().err
    assert said.startswith(f"medcomfort: {sentence}") and said.count("\n") == 1 and log(house) == ["rewrite"]
    assert [p.name for p in (house / "runs/tiny/notebooks").iterdir()] == ["01_rewrite.failed.ipynb"]
    assert "01_rewrite" in stale()


def test_an_incomplete_step_is_not_up_to_date(house, capsys):
    assert run_it("--only", "rewrite", "--set", "rewrite.model=calls") == 1
    assert "01_rewrite is incomplete: 3 calls failed" in capsys.readouterr().err
    assert stale("rewrite.model=calls")["01_rewrite"] == "incomplete: 3 calls failed"
    assert "incomplete" not in results(house)


@pytest.mark.parametrize("how", ["error", "kill"])
def test_a_forced_step_that_does_not_finish_gives_earlier_results_back(house, how):
    assert run_it("--only", "rewrite") == 0
    before, settings = results(house), ("--only", "rewrite", "--force")
    if how == "error":
        assert run_it(*settings, "--set", "rewrite.model=bad") == 1
    else:
        (house / "hold").touch()
        killed = command_line(*settings)
        wait_for(lambda: "half.txt" in results(house))
        assert not (house / "runs/tiny/rewrites.parquet").exists()
        os.kill(killed.pid, signal.SIGKILL)
        killed.communicate()
        (house / "hold").unlink()
        assert run_it("--only", "rewrite") == 0
    after = results(house)
    assert after.pop("half.txt") == "begun" and after == before and "01_rewrite" not in stale()
    assert run_it(*settings, "--set", "rewrite.limit=7") == 0
    assert results(house)["rewrites.parquet"] == "7 0.7" and not list((house / "runs/tiny").glob(".*.before"))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_ended_in_mid_step_it_leaves_nothing_at_work_and_goes_on_from_there(house, how):
    (house / "hold").touch()
    process = command_line()
    wait_for(lambda: "half.txt" in results(house))
    kernels = psutil.Process(process.pid).children(recursive=True)
    (house / "runs/tiny/.made.txt.1.tmp.txt").touch()
    os.kill(process.pid, how)
    _, said = process.communicate(timeout=120)
    psutil.wait_procs(kernels, timeout=30)
    assert kernels and not any(kernel.is_running() for kernel in kernels)
    if how != signal.SIGKILL:
        assert process.returncode == 130 and said.startswith("medcomfort: interrupted") and said.count("\n") == 1
        assert list((house / "runs/tiny/notebooks").iterdir()) == [] and set(results(house)) == {"half.txt"}
    (house / "hold").unlink()
    assert run_it("--only", "rewrite") == 0
    assert log(house) == ["rewrite"] * 2 and set(results(house)) == {"dialogues.parquet", "rewrites.parquet"}


def test_one_process_works_on_a_run_and_what_outlived_another_is_ended(house, capsys, monkeypatch):
    (house / "runs/tiny").mkdir(parents=True)
    with (house / "runs/tiny/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        assert run_it() == 1
    assert "runs/tiny is being worked on by process 4711" in capsys.readouterr().err and log(house) == []
    monkeypatch.setattr(flow, "PATIENCE", 0.5)
    run = profile.load("tiny")
    mine, other = (subprocess.Popen(["sleep", "60"], env={**os.environ, flow.MARK: str(at)})
                   for at in (run.folder, house / "runs/other"))  # fmt: skip
    with flow._alone(run.folder):
        assert mine.poll() is not None and other.poll() is None
    other.kill()
    other.wait()


def test_what_makes_a_step_run_again(house):
    finish()
    assert stale() == {}
    trained = {f"02_finetune-{model}": "changed: parameters" for model in ("sft", "dpo", "kto")}
    assert stale("train.max_steps=9") == trained
    assert stale("sft.revision=x").keys() == {"02_finetune-sft", "03_evaluate"}, "the base of all that is evaluated"
    for file, part in {"medcomfort_utils/tools.py": "code", "data/world.yaml": "data"}.items():
        (house / file).write_text("2")
        assert set(stale().values()) == {f"changed: {part}"} and len(stale()) == 6
        (house / file).write_text("1")
    (house / "data/smoke/old.txt").write_text("what a step once wrote")
    assert stale() == {}
    (house / "paper/claims.yaml").write_text("[]")
    assert stale() == {"03_evaluate": "changed: input files"}
    (house / "paper/claims.yaml").write_text("1")
    notebook = nbformat.read(house / "notebooks/04_figures.ipynb", 4)
    notebook.cells.insert(0, nbformat.v4.new_markdown_cell("words"))
    nbformat.write(notebook, house / "notebooks/04_figures.ipynb")
    assert stale() == {}
    notebook.cells.append(nbformat.v4.new_code_cell("1"))
    nbformat.write(notebook, house / "notebooks/04_figures.ipynb")
    fingerprint.record_path(profile.load("tiny"), "02_finetune-dpo").write_text("{broken")
    assert stale() == {"02_finetune-dpo": "not done yet", "03_evaluate": "changed: needed steps",
                       "04_figures": "changed: notebook"}  # fmt: skip


def test_only_and_from_need_finished_steps_before_them(house, capsys):
    assert run_it("--only", "train") == 1
    assert "02_finetune-sft needs 01_rewrite, not finished in runs/tiny yet" in capsys.readouterr().err
    finish()
    assert run_it("--from", "figures") == 0 and log(house) == []
    assert run_it("--dry-run", "--set", "rewrite.limit=2") == 0
    said = capsys.readouterr().out
    assert "01_rewrite (changed: parameters)" in said and said.count("(a step it needs runs again)") == 5
    assert log(house) == []


def test_progress_is_told_from_time_to_time(tmp_path, monkeypatch):
    file = tmp_path / "progress"
    file.touch()
    monkeypatch.setenv(progress.FILE, str(file))
    moment = iter([100.0, 100.2, 130.0, 190.0])
    monkeypatch.setattr(progress.time, "time", lambda: next(moment))
    listener = progress.Listener(file)
    said = []
    for done in (0, 1, 10, 40):
        progress.report("sft seed 0: steps", done, 40)
        said.append(list(listener.lines()))
    assert said == [[], [], ["sft seed 0: steps 10 of 40, about 2 min left"], ["sft seed 0: steps 40 of 40"]]


def test_a_notebook_that_cannot_be_read_is_named(house):
    for text in ("{", "[]", "", '{"cells": 3}'):
        (house / "notebooks/01_rewrite.ipynb").write_text(text)
        with pytest.raises(MedComfortError, match="notebooks/01_rewrite.ipynb is not a readable notebook"):
            profile.load("tiny")
