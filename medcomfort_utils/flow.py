"""The steps of a run by papermill, side by side where they can; what is up to date is left alone."""

import contextlib
import ctypes
import fcntl
import os
import shlex
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import psutil
import yaml

from medcomfort_utils import fingerprint, paths, profile
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.profile import Run, Step
from medcomfort_utils.progress import FILE, Listener

MARK = "MEDCOMFORT_RUN"  # environment variable by which the processes of a run are known
PATIENCE = 5.0  # seconds; a kernel whose parent was killed ends by itself within two
LOOK = 0.1  # seconds between two looks at the steps at work


def reproduce(
    profile_name: str | Path,
    *,
    only: str | None = None,
    start: str | None = None,
    settings: Sequence[str] = (),
    name: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    jobs: int = 0,
) -> Path:
    """Run the steps of a profile (name or path) that are not up to date; returns the run's folder.

    `only`, `start`: a step's, model's, notebook's or section's name; other steps are taken as done. `settings`:
    `STEP.PARAM=VALUE`. `force`: run them though they are up to date; what they wrote before goes only when the new is
    there. `jobs`: steps at the same time, on which no result hangs; 0: two where there are cores and no GPU.
    Everything is checked before the first step. Raises MedComfortError when a step fails; what was finished stays,
    and the next call goes on from there. Killing it at any moment does no harm.
    """
    run = profile.load(profile_name, settings, name)
    chosen = run.select(only) if only else run.steps
    chosen = run.steps[run.steps.index(run.select(start)[0]) :] if start else chosen
    profile.check_inputs(run, chosen)
    if dry_run:
        _show(run, chosen, force)
        return run.folder
    with _alone(run):
        _put_back(run.folder)
        _check_needs(run, chosen)
        effective = yaml.safe_dump(run.effective(), sort_keys=False, allow_unicode=True)
        paths.write_text(run.folder / "profile.yaml", effective)
        paths.write_json(run.folder / "versions.json", paths.package_versions())
        cores = 1 if shutil.which("nvidia-smi") else (os.cpu_count() or 1) // run.threads
        Flow(run, chosen, force, jobs or max(1, min(2, cores))).go()
    records = {step.name: fingerprint.read_record(run, step.name) for step in chosen}
    width = max(map(len, records))
    print(f"{'step':<{width}}  seconds  peak MB")
    for each, record in records.items():  # of a step that was up to date: from the time it ran
        print(f"{each:<{width}}  {record['seconds']:>7}  {record['peak_mb']:>7}")
    for each, record in records.items():
        if record["incomplete"]:
            raise MedComfortError(f"{each} is incomplete: {record['incomplete']}; the same command goes on there.")
    return run.folder


def command(step: Step, copy: Path) -> list[str]:
    """The words of the plain papermill command that the step stands for, to be run in the repository's root."""
    given = yaml.safe_dump(step.given, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return ["papermill", tidy(step.notebook), tidy(copy), "-y", given.strip()]


def _show(run: Run, chosen: list[Step], force: bool) -> None:
    """Print why each step would run, and its command."""
    common, again = fingerprint.shared(), set()
    if not run.folder.exists():
        print(f"mkdir -p {shlex.quote(tidy(run.folder / 'notebooks'))}")
    for step in chosen:
        reason = "forced" if force else fingerprint.stale(fingerprint.made_from(step, run, common), step, run)
        if again & set(step.needs):
            reason = reason or "a step it needs runs again"
        again |= {step.name} if reason else set()
        print(f"{_title(run, step)} ({reason or 'up to date'})")
        print(f"    {shlex.join(command(step, run.folder / f'notebooks/{step.name}.ipynb'))}")


class Flow:
    """Steps at work: each starts when what it needs is done and one of `jobs` places is free."""

    def __init__(self, run: Run, chosen: list[Step], force: bool, jobs: int):
        self.run, self.force, self.jobs = run, force, jobs
        self.waiting, self.common = list(chosen), fingerprint.shared()
        self.working: list[_Work] = []
        self.error: MedComfortError | None = None

    def go(self) -> None:
        """Run all; raises the first error when the steps beside it have ended. Ctrl-C ends all at once."""
        listener = Listener(Path(os.environ[FILE]))
        try:
            while self.working or (self.waiting and not self.error):
                self._start()
                for work in [work for work in self.working if work.ended()]:
                    self._end(work)
                for line in listener.lines():
                    print(f"    {line}", flush=True)
                time.sleep(LOOK)
        except BaseException:
            for work in self.working:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                    os.kill(work.process, signal.SIGKILL)
                    os.waitpid(work.process, 0)
            _kill(self.run.folder)
            for work in self.working:
                paths.remove(work.running)
                paths.remove(work.said)
            _put_back(self.run.folder)
            raise
        if self.error:
            raise self.error

    def _start(self) -> None:
        """Start, or pass over, every step that can be."""
        for step in list(self.waiting):
            undone = {other.name for other in [*self.waiting, *(work.step for work in self.working)]}
            if self.error or len(self.working) >= self.jobs or undone & set(step.needs):
                continue
            self.waiting.remove(step)
            made = fingerprint.made_from(step, self.run, self.common)
            reason = "forced" if self.force else fingerprint.stale(made, step, self.run)
            print(f"{_title(self.run, step)} ({reason or 'up to date'})", flush=True)
            if reason:
                if self.force:  # else a notebook may find its old work still good, and keep it
                    _set_aside(step, self.run)
                self.working.append(_Work(step, self.run, made))

    def _end(self, work: "_Work") -> None:
        self.working.remove(work)
        try:
            record = work.record()
            paths.write_json(fingerprint.record_path(self.run, work.step.name), record)
            _forget(self.run.folder / f".{work.step.name}.before")
            said = f"done in {record['seconds']} s, peak memory {record['peak_mb']} MB"
        except MedComfortError as error:
            _put_back(self.run.folder, work.step.name)
            self.error = self.error or error
            others = ", ".join(other.step.name for other in self.working)
            said = f"failed; waiting for {others}" if others else "failed"
        print(f"{_title(self.run, work.step)} {said}", flush=True)


class _Work:
    """One step at work: papermill as a process of its own, which writes to a hidden copy until it is done."""

    def __init__(self, step: Step, run: Run, made: dict[str, str]):
        self.step, self.run, self.made = step, run, made
        self.copy = run.folder / f"notebooks/{step.name}.ipynb"
        self.running = self.copy.with_name(f".{step.name}.running.ipynb")
        self.said = run.folder / f".{step.name}.tmp.txt"  # by papermill
        paths.remove(fingerprint.record_path(run, step.name))
        self.before, self.began = fingerprint.snapshot(run), time.perf_counter()
        self.copy.parent.mkdir(parents=True, exist_ok=True)
        options = ["--cwd", str(paths.ROOT), "--no-progress-bar", "--start-timeout", "120", "--log-level", "ERROR"]
        import_module("papermill.cli")  # once for all steps: it takes seconds
        self.process = os.fork()
        if not self.process:
            _papermill([*command(step, self.running), *options], self.said)

    def ended(self) -> bool:
        """Whether it has; then `code` and `peak_mb`, the most memory of its largest process, are known."""
        pid, status, usage = os.wait4(self.process, os.WNOHANG)
        if pid:
            self.code = os.waitstatus_to_exitcode(status)
            self.peak_mb = round(usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
        return bool(pid)

    def record(self) -> dict:
        """What is kept of a step that is done; a MedComfortError, and a copy STEP.failed.ipynb, if it failed."""
        failed, said = self.copy.with_name(f"{self.step.name}.failed.ipynb"), self.said.read_text(errors="replace")
        paths.remove(self.said)
        if self.code:
            if not self.running.exists():
                raise MedComfortError(f"{tidy(self.copy)} could not be written: {' '.join(said.split())[-300:]}")
            os.replace(self.running, failed)
            where = f"{tidy(self.step.notebook)} ({self.step.name})"
            raise MedComfortError(f"{where}, {_error(failed, said)} [{tidy(failed)}]")
        os.replace(self.running, self.copy)
        paths.remove(failed)
        mark = paths.resolve(self.step.parameters.get("out_dir", self.run.folder)) / "incomplete"
        incomplete = (mark.read_text(encoding="utf-8").strip() or "no reason is given") if mark.is_file() else ""
        paths.remove(mark)
        return {"step": self.step.name, "finished": datetime.now().astimezone().isoformat(),
                "seconds": round(time.perf_counter() - self.began, 1), "peak_mb": self.peak_mb,
                "incomplete": incomplete, "made_from": self.made,
                "files": fingerprint.written(self.before, self.step, self.run)}  # fmt: skip


def _error(failed: Path, said: str) -> str:
    """The first error of a notebook, or the cell at which its kernel died, or what papermill said last."""
    cells = [cell for cell in profile.read_notebook(failed).cells if cell.cell_type == "code" and cell.source.strip()]
    for cell in cells:
        for output in cell.outputs:
            if output.output_type == "error":
                words = " ".join(output.evalue.split())
                words = words if output.ename == "MedComfortError" else f"{output.ename}: {words}".removesuffix(": ")
                return f"cell [{cell.execution_count}]: {words}"
    if "DeadKernelError" in said:
        started = [cell for cell in cells if cell.metadata.papermill.start_time]
        return f"cell [{len(started)}]: the kernel died (often for want of memory)."
    return f"its kernel did not start: {' '.join(said.split())[-300:]}"


def _papermill(words: list[str], said: Path) -> NoReturn:
    """Be the process of a step from here on. Linux ends it when its parent is killed; elsewhere the next run does."""
    try:
        os.setsid()
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        for stream in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.closerange(3, 1024)  # the lock above all: it must end with the parent
        os.chdir(paths.ROOT)
        import_module("papermill.cli").papermill(words[1:], standalone_mode=False)
        os._exit(0)
    except BaseException:
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(1)


def _title(run: Run, step: Step) -> str:
    return f"[{run.steps.index(step) + 1}/{len(run.steps)}] {step.name}"


def _check_needs(run: Run, chosen: list[Step]) -> None:
    """What the chosen steps need from outside must have been finished."""
    for step in chosen:
        for need in set(step.needs) - {other.name for other in chosen}:
            if fingerprint.read_record(run, need) is None:
                raise MedComfortError(
                    f"{step.name} needs {need}, which has not been finished in {tidy(run.folder)}: run it first."
                )


def _set_aside(step: Step, run: Run) -> None:
    """Have what the step wrote the last time out of the way, in a hidden folder, until it has written all anew."""
    theirs = fingerprint.claimed(run, [other for other in run.steps if other is not step])
    own = [run.folder / name for name in fingerprint.claimed(run, [step]) - theirs]
    _move([fingerprint.record_path(run, step.name), *own], run.folder, run.folder / f".{step.name}.before")


def _put_back(folder: Path, step: str = "*") -> None:
    """Give the earlier results of a step that was run anew, and did not finish, their places again."""
    for aside in folder.glob(f".{step}.before"):
        _move(list(aside.rglob("*")), aside, folder)
        _forget(aside)


def _move(files: list[Path], old: Path, new: Path) -> None:
    for file in files:
        if file.is_file():
            place = new / file.relative_to(old)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)


def _forget(aside: Path) -> None:
    """Remove a folder all at once: half of it must not come back."""
    if aside.exists():
        gone = aside.with_suffix(".tmp")
        os.replace(aside, gone)
        paths.remove(gone)


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Have a run's folder to oneself; what a killed process left behind in it is cleared away first.

    Raises MedComfortError if another process is at work on it. The lock ends with the process, however that ends.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with (run.folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise MedComfortError(
                f"{tidy(run.folder)} is being worked on by process {lock.read()}: wait for its end, or choose a --name."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _kill(run.folder, PATIENCE)
        for half in [*run.folder.rglob(".*.tmp*"), *run.folder.rglob(".*.running.ipynb")]:
            paths.remove(half)
        progress, before = run.folder / ".progress.tmp", dict(os.environ)
        progress.touch()
        os.environ |= {MARK: str(run.folder), FILE: str(progress), "OMP_NUM_THREADS": str(run.threads)}
        try:
            yield
        finally:
            paths.remove(progress)
            os.environ.clear()
            os.environ |= before


def _kill(folder: Path, patience: float = 0) -> None:
    """End the processes of a run, lest they write on; those that end by themselves within `patience` seconds may."""
    marked = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(MARK) == str(folder)]
    _, alive = psutil.wait_procs([p for p in marked if p.pid != os.getpid()], timeout=patience)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)
