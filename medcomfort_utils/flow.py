"""The steps of a run by papermill, side by side where they can; what is up to date is left alone."""

import contextlib
import ctypes
import fcntl
import multiprocessing
import os
import re
import resource
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib import import_module
from pathlib import Path

import psutil
import yaml

from medcomfort_utils import fingerprint, paths, profile, progress, schema
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.profile import Run, Step

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
    run.check_inputs(chosen)
    if dry_run:
        _show(run, chosen, force)
        return run.folder
    with _alone(run.folder):
        for step in chosen:
            for need in set(step.needs) - {other.name for other in chosen}:
                if fingerprint.read_record(run, need) is None:
                    where = tidy(run.folder)
                    raise MedComfortError(f"{step.name} needs {need}, not finished in {where} yet: run it first.")
        effective = yaml.safe_dump(run.effective(), sort_keys=False, allow_unicode=True)
        paths.write_text(run.folder / "profile.yaml", effective)
        paths.write_json(run.folder / "versions.json", paths.package_versions())
        cores = 1 if shutil.which("nvidia-smi") else (os.cpu_count() or 1) // run.threads
        _Flow(run, chosen, force, jobs or max(1, min(2, cores))).go()
    width = max(len(step.name) for step in chosen)
    print(f"{'step':<{width}}  seconds  peak MB")
    records = [fingerprint.read_record(run, step.name) for step in chosen]
    for record in records:  # of a step that was up to date: from the time it ran
        print(f"{record['step']:<{width}}  {record['seconds']:>7}  {record['peak_mb']:>7}")
    for record in records:
        if reason := record["incomplete"]:
            raise MedComfortError(f"{record['step']} is incomplete: {reason}; the same command goes on there.")
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


def _title(run: Run, step: Step) -> str:
    return f"[{run.steps.index(step) + 1}/{len(run.steps)}] {step.name}"


class _Flow:
    """Steps at work: each starts when what it needs is done and one of `jobs` places is free."""

    def __init__(self, run: Run, chosen: list[Step], force: bool, jobs: int):
        self.run, self.force, self.jobs = run, force, jobs
        self.waiting, self.common = list(chosen), fingerprint.shared()
        self.working: list[_Work] = []
        self.error: MedComfortError | None = None

    def go(self) -> None:
        """Run all; raises the first error when the steps beside it have ended. Ctrl-C ends all at once."""
        listener = progress.Listener(self.run.folder / ".progress.tmp")
        try:
            while self.working or (self.waiting and not self.error):
                self._start()
                for work in [work for work in self.working if not work.process.is_alive()]:
                    self._end(work)
                for line in listener.lines():
                    print(f"    {line}", flush=True)
                time.sleep(LOOK)
        finally:
            for work in self.working:
                work.process.kill()
                work.process.join()
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
            aside = self.run.folder / f".{work.step.name}.before"
            if aside.exists():  # all at once: half of it must not come back
                os.replace(aside, aside.with_suffix(".tmp"))
            said = f"done in {record['seconds']} s, peak memory {record['peak_mb']} MB"
        except MedComfortError as error:
            _put_back(self.run.folder, work.step.name)
            self.error = self.error or error
            others = ", ".join(other.step.name for other in self.working)
            said = f"failed; waiting for {others}" if others else "failed"
        print(f"{_title(self.run, work.step)} {said}", flush=True)


class _Work:
    """One step at work: papermill in a process of its own, which writes to a hidden copy until it is done."""

    def __init__(self, step: Step, run: Run, made: dict[str, str]):
        self.step, self.run, self.made = step, run, made
        self.copy = run.folder / f"notebooks/{step.name}.ipynb"
        self.running = self.copy.with_name(f".{step.name}.running.ipynb")
        self.outcome = run.folder / f".{step.name}.tmp.json"
        paths.remove(fingerprint.record_path(run, step.name))
        self.copy.parent.mkdir(parents=True, exist_ok=True)
        self.before, self.began = fingerprint.snapshot(run), time.perf_counter()
        import_module("papermill")  # once for all steps: it takes seconds
        self.process = multiprocessing.get_context("fork").Process(target=self._execute, daemon=True)
        self.process.start()

    def record(self) -> dict:
        """What is kept of a step that is done; a MedComfortError, and a copy STEP.failed.ipynb, if it failed."""
        failed = self.copy.with_name(f"{self.step.name}.failed.ipynb")
        outcome = {"error": f" ended with code {self.process.exitcode}: see whether disk or memory is full."}
        if self.outcome.exists():
            outcome = paths.read_json(self.outcome, "outcome")
        if outcome["error"]:
            if self.running.exists():
                os.replace(self.running, failed)
            raise MedComfortError(f"{tidy(self.step.notebook)} ({self.step.name}){outcome['error']} [{tidy(failed)}]")
        os.replace(self.running, self.copy)
        paths.remove(failed)
        mark = paths.resolve(self.step.parameters.get("out_dir", self.run.folder)) / "incomplete"
        incomplete = (mark.read_text(encoding="utf-8").strip() or "no reason is given") if mark.is_file() else ""
        paths.remove(mark)
        return {"step": self.step.name, "finished": datetime.now().astimezone().isoformat(),
                "seconds": round(time.perf_counter() - self.began, 1), "peak_mb": outcome["peak_mb"],
                "incomplete": incomplete, "made_from": self.made,
                "files": fingerprint.written(self.before, self.step, self.run)}  # fmt: skip

    def _execute(self) -> None:
        """What the step's process does; it leaves `outcome` behind.

        Linux ends it when its parent is killed, and its kernel ends with it; elsewhere the next run ends both.
        """
        os.setsid()  # Ctrl-C is for the parent
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        os.closerange(3, 1024)  # the lock above all: it must end with the parent
        os.chdir(paths.ROOT)
        os.environ |= {MARK: str(self.run.folder), progress.FILE: str(self.run.folder / ".progress.tmp"),
                       "OMP_NUM_THREADS": str(self.run.threads)}  # fmt: skip
        error = _run_notebook(self.step, self.running)
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        peak_mb = round(peak / (2**20 if sys.platform == "darwin" else 2**10))
        paths.write_json(self.outcome, {"error": re.sub(r"\s+", " ", error), "peak_mb": peak_mb})


def _run_notebook(step: Step, copy: Path) -> str:
    """Execute a notebook; returns the end of a sentence about its first error, empty if there is none."""
    import papermill
    from nbclient.exceptions import DeadKernelError

    try:
        papermill.execute_notebook(tidy(step.notebook), tidy(copy), step.given, cwd=str(paths.ROOT),
                                   progress_bar=False, start_timeout=120)  # fmt: skip
        return ""
    except papermill.PapermillExecutionError as error:
        kind = "" if error.ename == "MedComfortError" else f"{error.ename}: "
        return f", cell [{error.exec_count}]: {kind}{error.evalue}".removesuffix(": ")
    except DeadKernelError:
        cells = [cell for cell in schema.code_cells(copy) if cell["source"].strip()]
        number = len([cell for cell in cells if cell["metadata"]["papermill"]["start_time"]])
        return f", cell [{number}]: the kernel died (often for want of memory)."
    except Exception as error:
        return f" could not be run: {error}"[-300:]


def _set_aside(step: Step, run: Run) -> None:
    """Have what the step wrote the last time out of the way, in a hidden folder, until it has written all anew."""
    theirs = fingerprint.claimed(run, [other for other in run.steps if other is not step])
    record = fingerprint.record_path(run, step.name)
    for file in [record, *(run.folder / name for name in fingerprint.claimed(run, [step]) - theirs)]:
        if file.is_file():
            place = run.folder / f".{step.name}.before" / file.relative_to(run.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)


def _put_back(folder: Path, step: str = "*") -> None:
    """Give the earlier results of a step that was run anew, and did not finish, their places again."""
    for aside in folder.glob(f".{step}.before"):
        shutil.copytree(aside, folder, copy_function=os.replace, dirs_exist_ok=True)
        paths.remove(aside)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Have a run's folder to oneself, and leave it clear of half-written files and processes, as one finds it.

    Raises MedComfortError if another process is at work on it. The lock ends with the process, however that ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise MedComfortError(
                f"{tidy(folder)} is being worked on by process {lock.read()}: wait for its end, or choose a --name."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        _clear(folder, PATIENCE)
        (folder / ".progress.tmp").touch()
        try:
            yield
        finally:
            _clear(folder)


def _clear(folder: Path, patience: float = 0) -> None:
    """End what is left of a run's processes, lest they write on, after `patience` seconds to do so by themselves;
    remove what they left half-written, and put back what they were to write anew.
    """
    marked = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(MARK) == str(folder)]
    _, alive = psutil.wait_procs([p for p in marked if p.pid != os.getpid()], timeout=patience)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)
    for half in [*folder.rglob(".*.tmp*"), *folder.rglob(".*.running.ipynb")]:
        paths.remove(half)
    _put_back(folder)
