"""Processes that answer and score at the same time, each a part of the rows.

A small model keeps one core busy and makes little of a second one: on two cores, two processes of one thread each do
nearly twice the work of one process of two threads. A large model, or one on a GPU, is better left to one process.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
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

    def deal(self, function: Callable[[list], list], rows: Sequence[Any]) -> list:
        """Deal the rows out, and put what `function` makes of each part, a result a row, into the order of the rows.

        Function, rows and results must be picklable. Raises what the function raises, and MedComfortError if a process
        died.
        """
        parts = [list(rows[number :: self.count]) for number in range(self.count)]
        results = [None] * len(rows)
        try:
            for number, part in enumerate((self._pool.map if self._pool else map)(function, parts)):
                results[number :: self.count] = part
        except BrokenProcessPool:
            raise MedComfortError("A worker process died (often for want of memory): take fewer workers.") from None
        return results

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
