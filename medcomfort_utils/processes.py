"""The processes of a run: one at a time, none left over, and the memory they take."""

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from medcomfort_utils import paths
from medcomfort_utils.paths import MedComfortError, tidy

MARK = "MEDCOMFORT_RUN"  # environment variable by which the processes of a run are known
PATIENCE = 5.0  # seconds; a kernel whose parent was killed ends by itself within two
SAMPLING = 0.25  # seconds


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Have a run's folder to oneself; what a killed process left behind in it is cleared away first.

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
        _clear_away(folder)
        os.environ[MARK] = str(folder)
        try:
            yield
        finally:
            del os.environ[MARK]


def _clear_away(folder: Path) -> None:
    """End the processes that outlived a killed run, lest they write on; drop files that were half-written."""
    orphans = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get(MARK) == str(folder)]
    _, alive = psutil.wait_procs(orphans, timeout=PATIENCE)
    for process in alive:
        process.kill()
    psutil.wait_procs(alive, timeout=PATIENCE)
    for half in [*folder.rglob(".*.tmp*"), *folder.rglob(".*.running.ipynb")]:
        paths.remove(half)


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Yield a list of one number that grows: the peak resident memory, in MB, of this process and all it started.

    Sampled, so a shorter peak can be missed; pages that processes share count once for each of them.
    """
    peak, done = [0.0], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLING):
            peak[0] = max(peak[0], _resident_mb())

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    try:
        yield peak
    finally:
        done.set()
        sampler.join()


def _resident_mb() -> float:
    total, me = 0, psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.Error:  # it ended between the two calls
            continue
    return total / 2**20
