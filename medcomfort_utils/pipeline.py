"""The steps of a profile, run in order by papermill; what is up to date is left alone."""

import logging
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import papermill
import yaml
from jupyter_client.kernelspec import NoSuchKernel
from nbclient.exceptions import DeadKernelError

from medcomfort_utils import fingerprint, inputs, paths, profile
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.processes import locked, peak_memory
from medcomfort_utils.profile import Run, Step

START_TIMEOUT = 120  # seconds for a kernel to start, on a busy machine


def reproduce(
    profile_name: str | Path,
    *,
    only: str | None = None,
    start: str | None = None,
    settings: Sequence[str] = (),
    name: str | None = None,
    dry_run: bool = False,
    force: bool = False,
) -> Path:
    """Run the steps of a profile (name or path) that are not up to date, in order; returns the run's folder.

    `only`, `start`: a step's or a notebook's name; other steps are taken as done. `settings`: `STEP.PARAM=VALUE`.
    `force`: run them though they are up to date; what they wrote before goes only when the new is there.
    Everything is checked before the first step. Raises MedComfortError at the first step that fails; what was
    finished stays, and the next call goes on from there. Killing it at any moment does no harm.
    """
    run = profile.load(profile_name, settings, name)
    if (run.folder / fingerprint.ASIDE).exists() and not dry_run:  # a forced step was killed
        with locked(run.folder):
            fingerprint.put_back(run)
    chosen = _chosen(run, only, start)
    inputs.check(run, chosen)
    if dry_run:
        _go_through(run, chosen, force, dry_run=True)
        return run.folder
    with locked(run.folder):
        _save_profile(run)
        _go_through(run, chosen, force)
    print(_table(run, chosen))
    return run.folder


def command(step: Step, run: Run) -> str:
    """The plain papermill command that the step stands for, ready for a shell in the repository's root."""
    words = ["papermill", tidy(step.notebook), tidy(_copy(step, run))]
    nested = {}
    for name, value in run.filled(step.given).items():
        if isinstance(value, list | dict):
            nested[name] = value
        else:
            words += ["-r" if isinstance(value, str) and _reads_otherwise(value) else "-p", name, str(value)]
    if nested:
        words += ["-y", yaml.safe_dump(nested, default_flow_style=True, allow_unicode=True, width=10**6).strip()]
    return shlex.join(words)


def _reads_otherwise(text: str) -> bool:
    """Whether papermill's -p takes the text for a number, a truth value or None."""
    try:
        return text in ("True", "False", "None") or float(text) is not None
    except ValueError:
        return False


def _chosen(run: Run, only: str | None, start: str | None) -> list[Step]:
    """The steps to look at; what they need from outside must have been finished."""
    chosen = run.select(only) if only else run.steps
    if start:
        chosen = run.steps[run.steps.index(run.select(start)[0]) :]
    names = {step.name for step in chosen}
    for step in chosen:
        for need in step.needs:
            if need not in names and fingerprint.read_record(run, need) is None:
                raise MedComfortError(
                    f"{step.name} needs {need}, which has not been finished in {tidy(run.folder)}: run it first."
                )
    return chosen


def _go_through(run: Run, chosen: list[Step], force: bool, dry_run: bool = False) -> None:
    shared, again = fingerprint.shared_inputs(), set()
    if dry_run and not run.folder.exists():
        print(f"mkdir -p {shlex.quote(tidy(run.folder / 'notebooks'))}")
    for number, step in enumerate(run.steps, start=1):
        if step not in chosen:
            continue
        made = fingerprint.made_from(step, run, shared)
        reason = "forced" if force else fingerprint.stale(made, step, run)
        if dry_run and again & set(step.needs):
            reason = reason or "a step it needs runs again"
        print(f"[{number}/{len(run.steps)}] {step.name} ({reason or 'up to date'})", flush=True)
        if reason:
            again.add(step.name)
        if reason or dry_run:
            print(f"    {command(step, run)}", flush=True)
        if reason and not dry_run:
            # Else a notebook that is forced may find its old work still good, and keep it.
            with fingerprint.set_aside(step, run) if force else nullcontext():
                _perform(step, run, made)


def _perform(step: Step, run: Run, made: dict[str, Any]) -> None:
    """Run one step; its record goes before it starts and comes back when all is written."""
    record = fingerprint.record_path(run, step.name)
    paths.remove(record)
    before, began = fingerprint.snapshot(run), time.perf_counter()
    with peak_memory() as peak:
        _execute(step, run)
    seconds = round(time.perf_counter() - began, 1)
    told = {
        "step": step.name,
        "finished": datetime.now().astimezone().isoformat(),
        "seconds": seconds,
        "peak_mb": round(peak[0]),
        "made_from": made | {"folders": fingerprint.folders(step, run)},
        "files": fingerprint.written(before, step, run),
    }
    paths.write_json(record, told)
    print(f"    done in {seconds} s, peak memory {told['peak_mb']} MB", flush=True)


def _execute(step: Step, run: Run) -> None:
    """Execute the notebook under a temporary name; a copy that failed is kept as STEP.failed.ipynb."""
    copy = _copy(step, run)
    copy.parent.mkdir(parents=True, exist_ok=True)
    running = copy.with_name(f".{step.name}.running.ipynb")
    failed = copy.with_name(f"{step.name}.failed.ipynb")
    # papermill warns of parameters that it cannot parse, `str | None` among them; all were checked already.
    logging.getLogger("papermill").setLevel(logging.ERROR)
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # as papermill's own command does: no word on frozen modules
    try:
        papermill.execute_notebook(
            step.notebook,
            running,
            run.filled(step.given),
            progress_bar=sys.stderr.isatty(),
            start_timeout=START_TIMEOUT,
            cwd=paths.ROOT,
            extra_arguments=["--log-level=CRITICAL"],  # its errors reach us as cell outputs
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


def _cell_error(error: papermill.PapermillExecutionError) -> str:
    said = " ".join(error.evalue.split())
    said = said if error.ename == "MedComfortError" else f"{error.ename}: {said}".removesuffix(": ")
    return f"cell [{error.exec_count}]: {said}"


def _death(failed: Path) -> str:
    """Says at which cell the kernel died: the last one that was started."""
    cells = profile.read_notebook(failed).cells
    started = [c for c in cells if c.cell_type == "code" and c.metadata.papermill.start_time and c.source.strip()]
    return f"cell [{len(started)}]: the kernel died (often for want of memory)."


def _copy(step: Step, run: Run) -> Path:
    return run.folder / "notebooks" / f"{step.name}.ipynb"


def _save_profile(run: Run) -> None:
    """The effective profile (it can be run again as one) and the versions, beside the results."""
    steps = []
    for step in run.steps:
        at_home = step.notebook.parent == paths.NOTEBOOKS
        notebook = step.notebook.stem if at_home else str(step.notebook)
        steps.append({"notebook": notebook, "name": step.name, "needs": step.needs, "parameters": step.parameters})
    told = {"name": run.name, "description": run.description, "steps": steps}
    paths.write_text(run.folder / "profile.yaml", yaml.safe_dump(told, sort_keys=False, allow_unicode=True))
    paths.write_json(run.folder / "versions.json", paths.package_versions())


def _table(run: Run, chosen: list[Step]) -> str:
    """Step, seconds, peak memory in MB; for a step that was up to date, those of the time it ran."""
    records = {step.name: fingerprint.read_record(run, step.name) for step in chosen}
    width = max(map(len, records))
    lines = [f"{'step':<{width}}  seconds  peak MB"]
    lines += [f"{name:<{width}}  {record['seconds']:>7}  {record['peak_mb']:>7}" for name, record in records.items()]
    return "\n".join(lines)
