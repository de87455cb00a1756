"""One run of a client: its event loop in a thread of its own, its limits, and why it ends early."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from medcomfort_utils.llm.cache import Cache, Writer
from medcomfort_utils.llm.limits import Budget, Pace
from medcomfort_utils.llm.requests import Stopped
from medcomfort_utils.llm.server import Server
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.schema import Settings

SHOWN = 5  # missing rows that an error names


class Live:
    """What belongs to one run and its event loop. `stopped`: why no more calls are made; empty as long as they are."""

    def __init__(self, settings: Settings, cache: Cache):
        self.loop = asyncio.get_running_loop()
        self.closing, self._stopping, self.stopped = asyncio.Event(), asyncio.Event(), ""
        self.calls = asyncio.Semaphore(settings.concurrency)
        # Twice as many rows as calls: one that waits (for a retry, for its commit) leaves no gap, and yet rows are
        # finished one after the other rather than all begun.
        self.rows = asyncio.Semaphore(2 * settings.concurrency)
        self.requests = Pace(settings.requests_per_minute, sleep=self.pause)
        self.tokens = Pace(settings.tokens_per_minute, sleep=self.pause)
        self.asking: dict[str, asyncio.Event] = {}
        self.writer = Writer(cache, overwrite=settings.mode == "record")
        self.server: Server | None = None  # connected at the first call: a run from the cache needs none
        self._cache, self._record, self._missing, self._count = cache, tidy(cache.path), [], 0

    def stop(self, reason: str) -> Stopped:
        """No more calls from here on, for the first reason given; who waits goes on at once."""
        self.stopped = self.stopped or reason
        self._stopping.set()
        return Stopped(self.stopped)

    def missing(self, row: str) -> Stopped:
        """The row has no recorded response; the others go on."""
        self._count += 1
        self._missing += [row] * (self._count <= SHOWN)
        return Stopped(f"{row} has no recorded response in {self._record}.")

    async def pause(self, seconds: float) -> None:
        """Sleep; if meanwhile all is to stop, raise Stopped at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return
        raise Stopped(self.stopped)

    def report(self) -> None:
        """Raise MedComfortError that says why rows are missing, if any are."""
        if self._count:
            shown = ", ".join(self._missing) + (", ..." if self._count > SHOWN else "")
            self.stopped = (
                f"{self._count:,} rows have no recorded response in {self._record} ({shown}), which holds "
                f"{self._cache.told()}: replay with the model, prompts and sampling of the record, import the record "
                "they stand in, or run in mode auto to ask for them."
            )
        if self.stopped:
            raise MedComfortError(self.stopped)

    async def close(self) -> None:
        """End what is under way, and keep what came."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.writer.commit()
        if self.server:
            await self.server.close()


@contextmanager
def running(settings: Settings, cache: Cache, budget: Budget) -> Iterator[Live]:
    """A run, on an event loop in a thread of its own; at the end it is closed with all that is under way."""
    started: Future[Live] = Future()

    async def serve() -> None:
        live = Live(settings, cache)
        budget.changed = asyncio.Event()
        started.set_result(live)
        await live.closing.wait()
        await live.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="llm", daemon=True)
    thread.start()
    live = started.result()
    try:
        yield live
    finally:
        live.loop.call_soon_threadsafe(live.closing.set)
        thread.join()
