"""Processes that answer and score at the same time.

A small model keeps one core busy and makes little of a second one: on two cores, two processes of one thread each do
nearly twice the work of one process of two threads. A large model, or one on a GPU, is better left to one process.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from medcomfort_utils.paths import MedComfortError


class Workers:
    """So many processes, which share the cores among them; with `count` 1 all is done in this process.

    Raises MedComfortError for a `count` below 1.
    """

    def __init__(self, count: int = 1):
        if count < 1:
            raise MedComfortError(f"workers must be at least 1, not {count}.")
        self.count, self._pool = count, None
        if count > 1:
            start = partial(_start, max(1, len(os.sched_getaffinity(0)) // count))
            # spawned, not forked: a fork of a process whose threads hold locks may wait for ever
            self._pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), start)

    def map(self, function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        """The results, in the order of the tasks; function, tasks and results must be picklable.

        Raises what the function raises, and MedComfortError if a process died.
        """
        try:
            yield from self._pool.map(function, tasks) if self._pool else map(function, tasks)
        except BrokenProcessPool:
            raise MedComfortError("A worker process died (often for want of memory): take fewer workers.") from None

    def close(self) -> None:
        """End the processes."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


def _start(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent cannot end its workers, which would wait for tasks for ever."""
    multiprocessing.parent_process().join()
    os._exit(1)
