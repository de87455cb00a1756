"""The steps of a run by papermill, side by side where they can; what is up to date is left alone."""

import contextlib
import fcntl
import logging
import os
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import yaml

from medcomfort_utils import fingerprint, paths, profile
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.profile import Run, Step
from medcomfort_utils.progress import FILE, Listener

MARK = "MEDCOMFORT_RUN"  # environment variable by which the processes of a run are known
PATIENCE = 5.0  # seconds; a kernel whose parent was killed ends by itself within two
SAMPLING = 0.25  # seconds between two looks at memory and progress
START_TIMEOUT = 120  # seconds for a kernel to start, on a busy machine
GPU = shutil.which("nvidia-smi") is not None


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
    there. `jobs`: steps at the same time, of which results do not hang; 0: two where there are cores and no GPU.
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
    with _alone(run), contextlib.chdir(paths.ROOT):
        _put_back(run)
        _check_needs(run, chosen)
        told = yaml.safe_dump(run.effective(), sort_keys=False, allow_unicode=True)
        paths.write_text(run.folder / "profile.yaml", told)
        paths.write_json(run.folder / "versions.json", paths.package_versions())
        Flow(run, chosen, force, jobs or (1 if GPU else min(2, max(1, (os.cpu_count() or 1) // run.threads)))).go()
    records = {step.name: fingerprint.read_record(run, step.name) for step in chosen}
    width = max(map(len, records))
    print(f"{'step':<{width}}  seconds  peak MB")
    for step_name, record in records.items():  # of a step that was up to date: from the time it ran
        print(f"{step_name:<{width}}  {record['seconds']:>7}  {record['peak_mb']:>7}")
    for step_name, record in records.items():
        if record["incomplete"]:
            raise MedComfortError(f"{step_name} is incomplete: {record['incomplete']}; the same command goes on there.")
    return run.folder


def command(step: Step, run: Run) -> str:
    """The plain papermill command that the step stands for, ready for a shell in the repository's root."""
    given = yaml.safe_dump(step.given, default_flow_style=True, allow_unicode=True, width=10**6, sort_keys=False)
    return shlex.join(["papermill", tidy(step.notebook), tidy(_copy(step, run)), "-y", given.strip()])


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
        print(f"{_title(run, step)} ({reason or 'up to date'})\n    {command(step, run)}")


class Flow:
    """Steps at work: each is started when what it needs is done and one of `jobs` places is free."""

    def __init__(self, run: Run, chosen: list[Step], force: bool, jobs: int):
        self.run, self.force, self.jobs = run, force, jobs
        self.waiting, self.common = list(chosen), fingerprint.shared()
        self.working: dict[Future, tuple[Step, "_Kernel"]] = {}
        self.error: MedComfortError | None = None

    def go(self) -> None:
        """Run all; raises the first MedComfortError, after the steps at work have ended; Ctrl-C ends them at once."""
        listener = Listener(Path(os.environ[FILE]))
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                while self.working or (self.waiting and not self.error):
                    self._start(pool)
                    for future in wait(self.working, SAMPLING, FIRST_COMPLETED).done:
                        self._end(future)
                    for _, kernel in self.working.values():
                        kernel.sample()
                    for line in listener.lines():
                        print(f"    {line}", flush=True)
            except BaseException:
                while self.working and wait(self.working, SAMPLING).not_done:
                    _kill(self.run.folder)
                raise
        if self.error:
            raise self.error

    def _start(self, pool: ThreadPoolExecutor) -> None:
        ahead = {step.name for step, _ in self.working.values()}
        for step in list(self.waiting):
            if self.error or len(self.working) == self.jobs:
                return
            if not ahead & set(step.needs):
                self.waiting.remove(step)
                made = fingerprint.made_from(step, self.run, self.common)
                reason = "forced" if self.force else fingerprint.stale(made, step, self.run)
                print(f"{_title(self.run, step)} ({reason or 'up to date'})", flush=True)
                if not reason:
                    continue
                if self.force:  # else a notebook may find its old work still good, and keep it
                    _set_aside(step, self.run)
                kernel = _Kernel()
                self.working[pool.submit(_perform, step, self.run, made, kernel)] = step, kernel
            ahead.add(step.name)

    def _end(self, future: Future) -> None:
        step, kernel = self.working.pop(future)
        try:
            record = future.result() | {"peak_mb": round(kernel.peak)}
            paths.write_json(fingerprint.record_path(self.run, step.name), record)
            _forget(self.run.folder / f".{step.name}.before")
            done = f"done in {record['seconds']} s, peak memory {record['peak_mb']} MB"
            print(f"{_title(self.run, step)} {done}", flush=True)
        except MedComfortError as error:
            _put_back(self.run, step)
            self.error = self.error or error
            others = ", ".join(other.name for other, _ in self.working.values())
            print(f"{_title(self.run, step)} failed" + (f"; waiting for {others}" if others else ""), flush=True)


class _Kernel:
    """Process id of a step's kernel, once it has started, and the most memory that it and its children had, in MB.

    Sampled, so a shorter peak can be missed; pages that processes share count once for each of them.
    """

    def __init__(self):
        self.pid, self.peak = 0, 0.0

    def manager(self) -> type:
        from jupyter_client.manager import AsyncKernelManager

        class Manager(AsyncKernelManager):
            async def start_kernel(manager, **given):  # noqa: N805 - `self` is the kernel around it
                await super().start_kernel(**given)
                self.pid = manager.provisioner.pid

        return Manager

    def sample(self) -> None:
        with contextlib.suppress(psutil.Error):  # it ended between two calls
            kernel = psutil.Process(self.pid) if self.pid else None
            members = [kernel, *kernel.children(recursive=True)] if kernel else []
            self.peak = max(self.peak, sum(process.memory_info().rss for process in members) / 2**20)


def _perform(step: Step, run: Run, made: dict[str, str], kernel: _Kernel) -> dict[str, Any]:
    """Run one step and return its record; an earlier one goes before it starts."""
    paths.remove(fingerprint.record_path(run, step.name))
    before, began = fingerprint.snapshot(run), time.perf_counter()
    _execute(step, run, kernel)
    mark, incomplete = paths.resolve(step.parameters.get("out_dir", run.folder)) / "incomplete", ""
    if mark.is_file():
        incomplete = mark.read_text(encoding="utf-8").strip() or "it left a file `incomplete`"
        mark.unlink()
    seconds = round(time.perf_counter() - began, 1)
    return {"step": step.name, "finished": datetime.now().astimezone().isoformat(), "seconds": seconds,
            "incomplete": incomplete, "made_from": made, "files": fingerprint.written(before, step, run)}  # fmt: skip


def _execute(step: Step, run: Run, kernel: _Kernel) -> None:
    """Execute the notebook under a temporary name; a copy that failed is kept as STEP.failed.ipynb."""
    import papermill  # takes a second to import
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    copy = _copy(step, run)
    copy.parent.mkdir(parents=True, exist_ok=True)
    running, failed = copy.with_name(f".{step.name}.running.ipynb"), copy.with_name(f"{step.name}.failed.ipynb")
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it warns of types that it cannot parse
    try:
        papermill.execute_notebook(
            step.notebook,
            running,
            step.given,
            progress_bar=False,
            start_timeout=START_TIMEOUT,
            extra_arguments=["--log-level=CRITICAL"],  # its errors reach us as cell outputs
            kernel_manager_class=kernel.manager(),
        )
        os.replace(running, copy)
        paths.remove(failed)
    except (papermill.PapermillExecutionError, DeadKernelError) as error:
        os.replace(running, failed)
        what = _cell_error(error) if isinstance(error, papermill.PapermillExecutionError) else _death(failed)
        raise MedComfortError(f"{tidy(step.notebook)} ({step.name}), {what} [{tidy(failed)}]") from None
    except (NoSuchKernel, RuntimeError, ValueError) as error:  # ValueError: no kernel is named in the notebook
        raise MedComfortError(f"{tidy(step.notebook)}: its Jupyter kernel did not start: {error}.") from error
    except OSError as error:
        raise paths.not_written(error.filename or copy, error) from error
    finally:
        paths.remove(running)


def _cell_error(error: Any) -> str:
    said = " ".join(error.evalue.split())
    said = said if error.ename == "MedComfortError" else f"{error.ename}: {said}".removesuffix(": ")
    return f"cell [{error.exec_count}]: {said}"


def _death(failed: Path) -> str:
    """Says at which cell the kernel died: the last one that was started."""
    cells = profile.read_notebook(failed).cells
    started = [c for c in cells if c.cell_type == "code" and c.metadata.papermill.start_time and c.source.strip()]
    return f"cell [{len(started)}]: the kernel died (often for want of memory)."


def _title(run: Run, step: Step) -> str:
    return f"[{run.steps.index(step) + 1}/{len(run.steps)}] {step.name}"


def _copy(step: Step, run: Run) -> Path:
    return run.folder / "notebooks" / f"{step.name}.ipynb"


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
    record, theirs = fingerprint.read_record(run, step.name), fingerprint.claimed(run, [s for s in run.steps if s is not step])
    own = [run.folder / name for name in (record["files"] if record else ()) if name not in theirs]
    for path in [fingerprint.record_path(run, step.name), *own]:
        if path.is_file():
            place = run.folder / f".{step.name}.before" / path.relative_to(run.folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)


def _put_back(run: Run, step: Step | None = None) -> None:
    """Give the earlier results of a step (of all) that was run anew, and did not finish, their places again."""
    for aside in run.folder.glob(f".{step.name if step else '*'}.before"):
        for path in [path for path in aside.rglob("*") if path.is_file()]:
            place = run.folder / path.relative_to(aside)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, place)
        _forget(aside)


def _forget(aside: Path) -> None:
    """Remove it all at once: half of it must not come back."""
    if aside.exists():
        paths.remove(os.replace(aside, aside.with_suffix(".tmp")) or aside.with_suffix(".tmp"))


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Have a run's folder to oneself; what a killed process left behind in it is cleared away first.

    Raises MedComfortError if another process is at work on it. The lock ends with the process, however that ends.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = {MARK: str(run.folder), FILE: str(run.folder / ".progress.tmp"), "OMP_NUM_THREADS": str(run.threads),
                   "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # fmt: skip
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
        before = dict(os.environ)
        os.environ.update(environment)
        Path(environment[FILE]).touch()
        try:
            yield
        finally:
            paths.remove(environment[FILE])
            os.environ.clear()
            os.environ.update(before)


def _kill(folder: Path, patience: float = 0) -> None:
    """End the processes of a run, lest they write on; those that end by themselves within `patience` seconds may."""
    mine = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(MARK) == str(folder)]
    _, alive = psutil.wait_procs([p for p in mine if p.pid != os.getpid()], timeout=patience)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)


if __name__ == "__main__":
    sys.exit("run `medcomfort reproduce`")
