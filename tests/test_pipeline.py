"""The command `medcomfort reproduce`, on tiny notebooks in a house of its own."""

import errno
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
import papermill
import psutil
import pytest
import yaml

from medcomfort_utils import fingerprint, paths, pipeline, processes, profile
from medcomfort_utils.__main__ import main
from medcomfort_utils.paths import MedComfortError

HERE = Path(paths.__file__).resolve().parents[1]
MAKE_PARAMETERS = """# what 01_make takes
text: str = "a"  # what is written
count: int = 1  # how often
rate: float = 0.1  # a float
numbers: list[int] = [1, 2]  # a list
options: dict = {}  # a mapping
note: str | None = None  # text or nothing
source: str = "none"  # a file
wait: bool = False  # wait until somebody removes the file `hold`
out_dir: str = "runs/smoke"  # where files go
"""
START = "import os, pathlib, time\nout = pathlib.Path(out_dir); out.mkdir(parents=True, exist_ok=True)"
MAKE = [
    START,
    "with open('log', 'a') as log: log.write('make\\n')",
    "(out / 'half.txt').write_text('begun')\nwhile wait and os.path.exists('hold'): time.sleep(0.05)",
    "assert text != 'bad', 'text is\\nbad'\nif text == 'dead': os._exit(9)",
    "class MedComfortError(Exception): pass\nif text == 'told': raise MedComfortError('told.txt, line 3: no answer.')",
    "(out / 'half.txt').unlink(); (out / 'made.txt').write_text(f'{text * count} {rate} {numbers} {note}')",
]
USE = [
    START,
    "with open('log', 'a') as log: log.write(method + '\\n')",
    "(out / f'{method}.txt').write_text((out / 'made.txt').read_text() + method)",
    "(out / 'summary.md').write_text(f'the table of {method}\\n')",
]
PROFILE = """
name: tiny
description: two notebooks
steps:
  - notebook: 01_make
    parameters: {text: b, numbers: [3, 4], out_dir: "${run}"}
  - notebook: 02_use
    matrix: {method: [dpo, kto]}
    needs: [01_make]
    parameters: {out_dir: "${run}"}
"""


def write_notebook(path, parameters, cells):
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    notebook = nbformat.v4.new_notebook(cells=[tagged, *map(nbformat.v4.new_code_cell, cells)])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, path)


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A repository with two notebooks, one profile, a package with two modules, and data."""
    root = tmp_path / "house"
    for name in ("notebooks/profiles", "medcomfort_utils/draw", "data/results", "elsewhere"):
        (root / name).mkdir(parents=True)
    for name, place in {"ROOT": "", "NOTEBOOKS": "notebooks", "PROFILES": "notebooks/profiles"}.items():
        monkeypatch.setattr(paths, name, root / place)
    monkeypatch.setattr(paths, "RUNS", root / "runs")
    monkeypatch.setattr(paths, "DATA", root / "data")
    for name in ("__init__", "tools", "base", "draw/__init__", "draw/plots"):
        (root / f"medcomfort_utils/{name}.py").write_text("")
    (root / "data/world.yaml").write_text("1")
    write_notebook(root / "notebooks/01_make.ipynb", MAKE_PARAMETERS, MAKE)
    write_notebook(root / "notebooks/02_use.ipynb", 'method: str = "x"\nout_dir: str = "runs/smoke"', USE)
    (root / "notebooks/profiles/tiny.yaml").write_text(PROFILE)
    monkeypatch.chdir(root / "elsewhere")
    return root


def log(house):
    return (house / "log").read_text().split() if (house / "log").exists() else []


def results(house, run="tiny"):
    return {p.name: p.read_text() for p in (house / "runs" / run).glob("*.txt")}


def finish(run, *names):
    """Leave records behind as if the steps had run and written one file each."""
    shared = fingerprint.shared_inputs()
    for step in [step for step in run.steps if step.name in (names or [s.name for s in run.steps])]:
        paths.write_text(run.folder / f"{step.name}.txt", step.name)
        made = fingerprint.made_from(step, run, shared)
        files = {f"{step.name}.txt": fingerprint.content(run.folder / f"{step.name}.txt")}
        record = {"made_from": made, "files": files, "seconds": 1, "peak_mb": 1, "finished": time.time_ns()}
        paths.write_json(fingerprint.record_path(run, step.name), record)


def stale(*settings):
    """Step -> why it would run again, for the steps that would."""
    run, shared = profile.load("tiny", settings), fingerprint.shared_inputs()
    reasons = {s.name: fingerprint.stale(fingerprint.made_from(s, run, shared), s, run) for s in run.steps}
    return {name: reason for name, reason in reasons.items() if reason}


def command_line(*arguments):
    """The command as a process of its own, in the house of the test."""
    moved = "".join(f"paths.{name} = Path({str(getattr(paths, name))!r});" for name in
                    ("ROOT", "NOTEBOOKS", "PROFILES", "RUNS", "DATA"))
    code = f"from pathlib import Path; from medcomfort_utils import paths; {moved} " \
           "import sys; from medcomfort_utils.__main__ import main; sys.exit(main())"
    return subprocess.Popen([sys.executable, "-c", code, *arguments], env={**os.environ, "PYTHONPATH": str(HERE)},
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def test_a_run_then_nothing_to_do_then_only_what_changed(house, capsys):
    assert main(["reproduce", "--profile", "tiny"]) == 0
    said = capsys.readouterr().out
    assert log(house) == ["make", "dpo", "kto"]
    assert results(house) == {"made.txt": "b 0.1 [3, 4] None", "dpo.txt": "b 0.1 [3, 4] Nonedpo",
                              "kto.txt": "b 0.1 [3, 4] Nonekto"}
    assert "[2/3] 02_use-dpo" in said and "step        seconds  peak MB" in said and said.endswith("the table of kto\n")
    record = json.loads((house / "runs/tiny/steps/01_make.json").read_text())
    assert record["files"].keys() == {"made.txt"} and record["peak_mb"] > 20 and record["seconds"] > 0
    assert {p.name for p in (house / "runs/tiny/notebooks").iterdir()} == {
        "01_make.ipynb", "02_use-dpo.ipynb", "02_use-kto.ipynb"}
    saved = yaml.safe_load((house / "runs/tiny/profile.yaml").read_text())
    assert saved["steps"][0]["parameters"] | {"rate": 0.1, "text": "b", "note": None} == saved["steps"][0]["parameters"]
    assert "python" in json.loads((house / "runs/tiny/versions.json").read_text())

    assert main(["reproduce", "--profile", "tiny"]) == 0
    assert len(log(house)) == 3 and capsys.readouterr().out.count("(up to date)") == 3
    (house / "runs/tiny/kto.txt").unlink()
    assert main(["reproduce", "--profile", "tiny"]) == 0
    assert log(house)[3:] == ["kto"]
    # 02_use-kto wrote summary.md anew; that must not make 02_use-dpo run again.
    assert main(["reproduce", "--profile", "tiny", "--only", "02_use-dpo", "--force"]) == 0
    assert log(house)[4:] == ["dpo"]


def test_the_printed_command_works_in_a_shell(house, capsys):
    tricky = ["text=1e3", 'note="it\'s $HOME; None"', "numbers=[7]", "options={a: 5.0e-6, b: ['-1', no]}", "count=-1"]
    settings = [word for pair in tricky for word in ("--set", f"01_make.{pair}")]
    assert main(["reproduce", "--profile", "tiny", "--dry-run", *settings]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not (house / "runs").exists()
    line = next(line for line in lines if "01_make.ipynb" in line)
    assert "notebooks/01_make.ipynb runs/tiny/notebooks/01_make.ipynb" in line and "-r text 1e3" in line
    shell = f"{lines[0]} && {shlex.quote(sys.executable)} -m {line.strip()} --prepare-only --no-progress-bar"
    subprocess.run(shell, shell=True, check=True, cwd=house, capture_output=True)
    given = nbformat.read(house / "runs/tiny/notebooks/01_make.ipynb", 4).metadata.papermill.parameters
    run = profile.load("tiny", [f"01_make.{pair}" for pair in tricky])
    assert given == run.filled(run.steps[0].given)
    assert given["options"] == {"a": 5e-6, "b": ["-1", False]} and given["text"] == "1e3"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("bad", "notebooks/01_make.ipynb (01_make), cell [6]: AssertionError: text is bad"),
        ("told", "notebooks/01_make.ipynb (01_make), cell [7]: told.txt, line 3: no answer."),
        ("dead", "notebooks/01_make.ipynb (01_make), cell [6]: the kernel died"),
    ],
)
def test_a_failing_cell_stops_the_run_and_is_shown(house, capsys, text, sentence):
    run = profile.load("tiny")
    finish(run)
    before = results(house)
    assert main(["reproduce", "--profile", "tiny", "--set", f"01_make.text={text}"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"medcomfort: {sentence}") and said.count("\n") == 1
    assert log(house) == ["make"] and before.items() <= results(house).items()
    copies = house / "runs/tiny/notebooks"
    assert [p.name for p in copies.iterdir()] == ["01_make.failed.ipynb"]
    assert fingerprint.read_record(run, "01_make") is None
    if text == "bad":
        assert main(["reproduce", "--profile", "tiny", "--only", "01_make"]) == 0
        assert [p.name for p in copies.iterdir()] == ["01_make.ipynb"]


def test_killed_in_mid_step_and_started_again_ends_like_an_undisturbed_run(house):
    assert main(["reproduce", "--profile", "tiny", "--name", "calm"]) == 0
    (house / "log").unlink()
    (house / "hold").touch()
    killed = command_line("reproduce", "--profile", "tiny", "--set", "01_make.wait=true")
    wait_for(lambda: "half.txt" in results(house))
    (house / "runs/tiny/.made.txt.1.tmp.txt").touch()
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (house / "runs/tiny/steps/01_make.json").exists()
    again = command_line("reproduce", "--profile", "tiny", "--set", "01_make.wait=true")
    wait_for(lambda: log(house).count("make") == 2)
    assert not (house / "runs/tiny/.made.txt.1.tmp.txt").exists()
    (house / "hold").unlink()
    assert again.wait(120) == 0
    assert log(house) == ["make", "make", "dpo", "kto"] and results(house) == results(house, "calm")


def everything(folder):
    """Content of all files below a folder, by path, but for the lock and for what shows why a step failed."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    told = {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}
    return {name: content for name, content in told.items() if not name.endswith(".failed.ipynb")}


@pytest.fixture
def forced_before(house):
    """What a finished run holds, two models among it, of which 01_make wrote one."""
    keep = "old = out / 'models/b/weights.txt'; kept = old.exists()\nprint(kept, (out / 'made.txt').exists())"
    new = "old.parent.mkdir(parents=True, exist_ok=True); old.write_text(f'{text} {kept}')"
    grow = "if text == 'bad' or wait: (old.parent / 'stray.txt').write_text('of the new one')"
    write_notebook(house / "notebooks/01_make.ipynb", MAKE_PARAMETERS, [START, keep, new, grow, *MAKE[1:]])
    assert main(["reproduce", "--profile", "tiny"]) == 0
    (house / "runs/tiny/models/a").mkdir()
    (house / "runs/tiny/models/a/weights.txt").write_text("another step's")
    return everything(house / "runs/tiny")


def test_forced_steps_write_all_anew(house, forced_before):
    assert forced_before["models/b/weights.txt"] == b"b False"
    assert main(["reproduce", "--profile", "tiny", "--force", "--set", "01_make.text=c"]) == 0
    after = everything(house / "runs/tiny")
    assert after.keys() == forced_before.keys() and stale("01_make.text=c") == {}
    assert after["models/b/weights.txt"] == b"c False", "what it wrote before was still there"
    assert not (house / "runs/tiny" / fingerprint.ASIDE).exists()


def test_a_forced_step_that_fails_gives_earlier_results_back(house, forced_before):
    assert main(["reproduce", "--profile", "tiny", "--force", "--set", "01_make.text=bad"]) == 1
    after = everything(house / "runs/tiny")
    assert after.pop("half.txt") == b"begun" and after.pop("profile.yaml") != forced_before.pop("profile.yaml")
    assert after == forced_before and stale() == {}


def test_a_forced_step_that_was_killed_gives_earlier_results_back(house, forced_before, capsys):
    (house / "hold").touch()
    killed = command_line("reproduce", "--profile", "tiny", "--force", "--set", "01_make.wait=true")
    wait_for(lambda: "half.txt" in results(house))
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert "made.txt" not in results(house)
    assert main(["reproduce", "--profile", "tiny", "--only", "02_use"]) == 0
    assert capsys.readouterr().out.count("(up to date)") == 2
    after = everything(house / "runs/tiny")
    assert after.pop("half.txt") == b"begun" and after == forced_before


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_stops_the_kernel_and_leaves_no_half_notebook(house, how):
    (house / "hold").touch()
    process = command_line("reproduce", "--profile", "tiny", "--set", "01_make.wait=true")
    wait_for(lambda: "half.txt" in results(house))
    kernels = psutil.Process(process.pid).children(recursive=True)
    os.kill(process.pid, how)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130 and said.strip().startswith("medcomfort: interrupted") and said.count("\n") == 1
    assert kernels and not any(kernel.is_running() for kernel in kernels)
    assert list((house / "runs/tiny/notebooks").iterdir()) == []


def test_what_outlived_a_killed_run_is_ended(house, monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.5)
    folder = house / "runs/tiny"
    mine, other = (subprocess.Popen(["sleep", "60"], env={**os.environ, processes.MARK: str(at)})
                   for at in (folder, house / "runs/other"))
    with processes.locked(folder):
        assert mine.poll() is not None and other.poll() is None
    other.kill()
    other.wait()
    assert processes.MARK not in os.environ


def test_only_one_process_works_on_a_run(house, capsys):
    (house / "runs/tiny").mkdir(parents=True)
    with (house / "runs/tiny/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("4711")
        lock.flush()
        assert main(["reproduce", "--profile", "tiny"]) == 1
    assert "runs/tiny is being worked on by process 4711" in capsys.readouterr().err
    assert log(house) == []


def test_a_full_disk_is_one_sentence(house, capsys, monkeypatch):
    finish(profile.load("tiny"), "01_make")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(papermill, "execute_notebook", full)
    assert main(["reproduce", "--profile", "tiny"]) == 1
    assert capsys.readouterr().err == (
        "medcomfort: runs/tiny/notebooks/02_use-dpo.ipynb could not be written: No space left on device; make room and "
        "run the same command again.\n"
    )
    assert set(stale()) == {"02_use-dpo", "02_use-kto"}


def test_what_makes_a_step_run_again(house):
    cells = ["%matplotlib inline\nfrom medcomfort_utils import tools", *MAKE]
    write_notebook(house / "notebooks/01_make.ipynb", MAKE_PARAMETERS, cells)
    package = house / "medcomfort_utils"
    (package / "tools.py").write_text("from medcomfort_utils.base import x")
    finish(profile.load("tiny"))
    assert stale() == {}
    assert stale("01_make.rate=0.2") == {"01_make": "changed: parameters"}
    (package / "draw/plots.py").write_text("new = 1")
    (house / "data/results/numbers.json").write_text("[]")
    assert stale() == {}
    (package / "base.py").write_text("x = 1")
    assert stale() == {"01_make": "changed: code"}
    write_notebook(house / "notebooks/01_make.ipynb", MAKE_PARAMETERS, [*cells, "1"])
    assert stale() == {"01_make": "changed: notebook, code"}
    (house / "data/world.yaml").write_text("2")
    assert set(stale()) == {"01_make", "02_use-dpo", "02_use-kto"}


def test_versions_are_part_of_it(house, monkeypatch):
    finish(profile.load("tiny"))
    monkeypatch.setattr(fingerprint.paths, "package_versions", lambda: {"torch": "0"})
    assert stale()["01_make"] == "changed: versions"


@pytest.mark.parametrize("source", ["corpus/", "corpus/a.json"])
def test_a_changed_input_makes_a_step_run_again(house, source):
    (house / "corpus").mkdir()
    (house / "corpus/a.json").write_text("[]")
    (house / "notebooks/profiles/tiny.yaml").write_text(PROFILE.replace("text: b", f"text: b, source: {source}"))
    finish(profile.load("tiny"))
    assert stale() == {}
    (house / "corpus/a.json").write_text("[1]")
    assert stale() == {"01_make": "changed: folders" if source.endswith("/") else "changed: files"}


def test_a_step_may_write_outside_its_run(house):
    (house / "figures").mkdir()
    settings = {"settings": ["01_make.out_dir=./figures"], "only": "01_make"}
    pipeline.reproduce("tiny", **settings)
    pipeline.reproduce("tiny", **settings)
    assert log(house) == ["make"]
    (house / "figures/made.txt").unlink()
    pipeline.reproduce("tiny", **settings)
    assert log(house) == ["make", "make"]


def test_steps_follow_the_step_they_need_and_only_that(house):
    run = profile.load("tiny")
    finish(run)
    finish(run, "01_make")
    assert stale() == {"02_use-dpo": "changed: needed steps", "02_use-kto": "changed: needed steps"}
    finish(run)
    finish(run, "02_use-dpo")
    assert stale() == {}


def test_a_lost_or_changed_result_makes_its_step_run_again(house):
    run = profile.load("tiny")
    finish(run)
    (run.folder / "01_make.txt").write_text("spoilt")
    assert stale() == {"01_make": "runs/tiny/01_make.txt is missing or changed"}
    fingerprint.record_path(run, "02_use-dpo").write_text("{broken")
    assert stale()["02_use-dpo"] == "not done yet"


def test_what_a_broken_off_attempt_left_counts_as_written(house):
    run = profile.load("tiny")
    finish(run, "01_make")
    (run.folder / "model.txt").write_text("trained before the kill")
    before = fingerprint.snapshot(run)
    (run.folder / "new.txt").write_text("trained after it")
    assert fingerprint.written(before, run.steps[1], run).keys() == {"model.txt", "new.txt"}


def test_dry_run_says_what_would_run(house, capsys):
    finish(profile.load("tiny"))
    main(["reproduce", "--profile", "tiny", "--dry-run", "--set", "02_use-kto.method=ipo"])
    assert "what the matrix varies" in capsys.readouterr().err
    assert main(["reproduce", "--profile", "tiny", "--dry-run", "--set", "01_make.count=2"]) == 0
    said = capsys.readouterr().out
    assert "[1/3] 01_make (changed: parameters)" in said
    assert "[2/3] 02_use-dpo (a step it needs runs again)" in said and "-p method dpo" in said
    assert log(house) == [] and not (house / "runs/tiny/profile.yaml").exists()


def test_only_and_from_need_finished_steps_before_them(house, capsys):
    assert main(["reproduce", "--profile", "tiny", "--only", "02_use"]) == 1
    assert "02_use-dpo needs 01_make, which has not been finished in runs/tiny" in capsys.readouterr().err
    finish(profile.load("tiny"), "01_make")
    (house / "runs/tiny/made.txt").write_text("m")
    assert main(["reproduce", "--profile", "tiny", "--from", "02_use-kto"]) == 0
    assert log(house) == ["kto"]
    assert pipeline.reproduce("tiny", only="02_use-dpo") == house / "runs/tiny" and log(house) == ["kto", "dpo"]


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("01_make.txt=1", "step 01_make: notebooks/01_make.ipynb has no parameter 'txt'; did you mean 'text'?"),
        ("01_make.count=1.5", "count must be int, not 1.5."),
        ("01_make.count=true", "count must be int, not True."),
        ("01_make.rate=fast", "rate must be float, not 'fast'."),
        ("01_make.numbers=3", "numbers must be list[int], not 3; write [3]."),
        ("01_make.numbers=[1, x]", "numbers must be list[int], not 'x'."),
        ("01_make.options=[1]", "options must be dict, not [1]."),
        ("01_make.count=", "count must be int, not None."),
        ("01_make.wait=1", "wait must be bool, not 1."),
        ("01_mak.text=b", "has no step '01_mak'; did you mean '01_make'?"),
        ("text=b", "--set text=b: write it as STEP.PARAM=VALUE."),
        ("01_make.text", "--set 01_make.text: write it as STEP.PARAM=VALUE."),
        ("01_make.numbers=[", "the value is not valid YAML."),
    ],
)
def test_settings_are_checked(house, setting, sentence):
    with pytest.raises(MedComfortError) as error:
        pipeline.reproduce("tiny", settings=[setting])
    assert sentence in str(error.value) and not (house / "runs").exists()


def test_settings_are_typed_and_reach_every_step_of_a_notebook(house):
    (house / "given.json").write_text("[]")
    settings = ["01_make.rate=2", "01_make.note=x=y", "02_use.out_dir=${run}/sub", "01_make.source=../given.json"]
    run = profile.load("tiny", settings, name="other")
    made, *used = [run.filled(step.given) for step in run.steps]
    assert made["rate"] == 2.0 and isinstance(made["rate"], float) and made["note"] == "x=y"
    assert [step["out_dir"] for step in used] == ["runs/other/sub"] * 2
    assert made["source"] == str(house / "given.json"), "a path typed at --set is relative to where one stands"


TYPED = {
    "text=": "", "text=null": "null", "text=~": "~", "text=[]": "[]", "text=[": "[", "text=true": "true",
    "text=01": "01", "text=1e-4": "1e-4", "text=a: b": "a: b", "text=a #b": "a #b", "text= a ": " a ",
    "text='01'": "01", 'text="a b"': "a b", "note=": None, "note=null": None, "note=no": "no", "note=3": "3",
    "count=010": 10, "count=-3": -3, "rate=1e-4": 1e-4, "rate=5E-6": 5e-6, "rate=.5": 0.5, "rate=2": 2.0,
    "wait=yes": True, "numbers=[]": [], "numbers=[1,2]": [1, 2], "options={}": {}, "options={a: 1}": {"a": 1},
    "source=here": "here",
}  # fmt: skip


@pytest.mark.parametrize("typed", TYPED)
def test_what_is_typed_at_set_is_what_is_meant(house, typed):
    (house / "elsewhere/here").mkdir()  # one stands in `elsewhere`; a word is no path
    given = profile.load("tiny", [f"01_make.{typed}"]).steps[0].given[typed.partition("=")[0]]
    assert given == TYPED[typed] and type(given) is type(TYPED[typed])


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: tiny", "name: a: b", "tiny.yaml, line 2: not valid YAML: mapping values"),
        ("name: tiny", "name: a/b", "may hold only letters"),
        ("name: tiny", "name: tiny\nname: small", "tiny.yaml, line 3: not valid YAML: 'name' stands there twice."),
        (PROFILE, "", "tiny.yaml is no profile: it must hold a `name` and `steps`."),
        ("notebook: 01_make", "notebok: 01_make", "steps.1.notebook: Field required"),
        ("    needs", "    neds", "steps.2.neds: there is no such key"),
        ("notebook: 01_make", "notebook: 09_none", "there is no notebook notebooks/09_none.ipynb"),
        ("needs: [01_make]", "needs: [03_x]", "has no step '03_x'"),
        ("needs: [01_make]", "needs: [02_use-kto]", "step 02_use-dpo: it needs 02_use-kto, which does not come before"),
        ("[dpo, kto]", "[dpo, dpo]", "two steps are called 02_use-dpo"),
        ('{out_dir: "${run}"}', "{method: sft}", "method of 02_use stands in both"),
        ("text: b", "rate: 1e-3", "rate must be float, not '1e-3'; write 0.001"),
    ],
)
def test_profiles_are_checked(house, old, new, sentence):
    assert old in PROFILE
    (house / "notebooks/profiles/tiny.yaml").write_text(PROFILE.replace(old, new))
    with pytest.raises(MedComfortError) as error:
        pipeline.reproduce("tiny")
    assert sentence in str(error.value) and not (house / "runs").exists()


@pytest.mark.parametrize("name", ["", "..", "../tiny", "a b"])
def test_a_run_is_called_by_a_plain_name(house, capsys, name):
    assert main(["reproduce", "--profile", "tiny", "--name", name]) == 1
    assert f"the run's name {name!r} names files" in capsys.readouterr().err and not (house / "runs").exists()


def test_an_unknown_profile_lists_the_known_ones(house, capsys):
    assert main(["reproduce", "--profile", "paper"]) == 1
    assert capsys.readouterr().err == "medcomfort: There is no profile 'paper'; there are: tiny.\n"


@pytest.mark.parametrize("cell", ["x = 1", "x: Path = 1", "x: int = 1 + y", "import os", "x: int ="])
def test_a_parameters_cell_that_cannot_be_read_is_named(house, cell):
    write_notebook(house / "notebooks/01_make.ipynb", f"ok: int = 1\n{cell}", [])
    with pytest.raises(MedComfortError, match="notebooks/01_make.ipynb, parameters cell, line 2"):
        profile.load("tiny")


@pytest.mark.parametrize("text", ["{", "[]", "", '{"cells": 3}'])
def test_a_broken_notebook_is_named(house, text):
    (house / "notebooks/01_make.ipynb").write_text(text)
    with pytest.raises(MedComfortError, match="notebooks/01_make.ipynb is not a readable notebook"):
        profile.load("tiny")


def test_a_profile_by_path_brings_its_notebooks_and_the_saved_one_runs_again(house, capsys):
    write_notebook(house / "elsewhere/own.ipynb", 'word: str = "w"\nout_dir: str = "x"', [
        START, "(out / 'own.txt').write_text(word)"])
    told = {"name": "mine", "steps": [{"notebook": "./own.ipynb", "parameters": {"out_dir": "${run}"}}]}
    (house / "elsewhere/mine.yaml").write_text(yaml.safe_dump(told))
    assert main(["reproduce", "--profile", "mine.yaml"]) == 0
    assert results(house, "mine") == {"own.txt": "w"}
    saved = profile.load(house / "runs/mine/profile.yaml", name="twin")
    assert saved.filled(saved.steps[0].given) == {"word": "w", "out_dir": "runs/twin"}


def test_wrong_usage_is_exit_code_two(house):
    for arguments in ([], ["reproduce"], ["reproduce", "--profile", "tiny", "--only", "a", "--from", "b"]):
        with pytest.raises(SystemExit) as error:
            main(arguments)
        assert error.value.code == 2
