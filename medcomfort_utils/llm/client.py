"""Asks a language model about many rows at once, keeps every answer, and stops and starts again without loss."""

import asyncio
import random
import sys
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from medcomfort_utils.llm.cache import FAILED, Cache, Failure, Request, Response
from medcomfort_utils.llm.limits import Budget, Estimate, Stopped
from medcomfort_utils.llm.server import Again, Server
from medcomfort_utils.paths import MedComfortError, tidy
from medcomfort_utils.schema import Settings

FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0  # seconds before the first retry, and at most; doubles with each
TRIES_PAID = 2  # of a request whose answers cannot be read although their tokens were used
FIRST_FAILURES, FAILURES = 8, 50  # in a row, after which a run stops: before any answer, and later
REPLAYED = 16  # rows a task: where nothing waits, that is the faster half of a replay
SHARE, ENOUGH = 0.13, 20  # tokens of an answer for each of its prompt, in MedComfort-mini; records that say it better
Row, Result = TypeVar("Row"), TypeVar("Result")


class Run:
    """What belongs to one run and its event loop. `stopped`: why no more calls are made; empty while they are."""

    def __init__(self, concurrency: int):
        self.loop, self.stopped, self.stopping = asyncio.new_event_loop(), "", asyncio.Event()
        self.calls = asyncio.Semaphore(concurrency)
        self.rows = asyncio.Semaphore(2 * concurrency)  # one that waits for a retry leaves no gap
        self.asking: dict[str, asyncio.Event] = {}
        self.server: Server | None = None  # connected at the first call: a run from the cache needs none
        self.missing: list[str] = []  # rows without a recorded response, in a replay
        self.answered = self.recalled = self.refused = self.unanswered = self.in_a_row = 0
        self.last = ""  # reason of a failure

    async def pause(self, seconds: float) -> None:
        """Sleep; if meanwhile all is to stop, raise Stopped at once."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self.stopping.wait(), seconds)
            raise Stopped(self.stopped)

    async def close(self) -> None:
        """End all that is under way."""
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        if self.server:
            await self.server.session.close()
        await self.loop.shutdown_default_executor()

    def count(self, outcome: Response | Failure, unanswered: bool) -> None:
        """Keep count of calls; raises Stopped where failures say that the others will fail too."""
        if isinstance(outcome, Response):
            self.answered, self.in_a_row = self.answered + 1, 0
            return
        self.refused, self.unanswered = self.refused + (not unanswered), self.unanswered + unanswered
        self.in_a_row, self.last = self.in_a_row + 1, outcome.reason
        if self.in_a_row >= (FAILURES if self.answered + self.recalled else FIRST_FAILURES):
            raise Stopped(f"{self.in_a_row} calls failed, one after the other: {self.last}.")

    def shortfall(self, cache: Cache) -> str:
        """Why results are missing, if any are. A row that is refused for its own sake may be so in each run."""
        if self.missing:
            where = f"{tidy(cache.path)}, which holds {len(cache):,} (the first: {self.missing[0]})"
            how = "replay with the model, prompts and sampling of the record, or run in mode auto"
            return f"{len(self.missing):,} rows have no recorded response in {where}: {how}."
        failed = self.refused + self.unanswered
        if not self.stopped and (self.refused > self.answered + self.recalled or self.unanswered > self.answered):
            return f"{failed:,} of {failed + self.answered:,} calls failed; the last: {self.last}."
        return self.stopped


class Client:
    """Answers from the cache or a server, for one run at a time.

    `window`: how many rows `run` reads ahead. `budget`: what was spent. `saved`: what the answers out of the cache took
    when they were made. `unanswered`: calls of the last run that got no answer; another run asks again.
    """

    def __init__(self, settings: Settings, cache: Cache):
        self.settings, self.cache, self.window = settings, cache, 16 * settings.concurrency
        self.budget, self.saved, self.unanswered = Budget(settings), Budget(settings), 0
        self._rng, self._run = random.Random(0), None

    def estimate(self, requests: Iterable[Request]) -> Estimate:
        """What these requests would still cost, were answers as long against their prompts as those on record.

        A request that stands there twice counts twice; retries and repairs come on top.
        """
        known, missing, longest = Budget(self.settings), Budget(self.settings), 0
        for request in requests:
            response = None if self.settings.mode == "record" else self.cache.get(request.key)
            if response and response.finish_reason != FAILED:
                known.book(request.prompt_tokens, request.spent(response)[1])
            else:
                missing.book(request.prompt_tokens, 0)
                longest += request.completion_tokens
        share = known.completion_tokens / known.prompt_tokens if known.calls >= ENOUGH else SHARE
        expected = min(longest, round(missing.prompt_tokens * share))
        costs = [missing.cost_of(missing.prompt_tokens, n) if missing.priced else None for n in (expected, longest)]
        return Estimate(missing.calls, known.calls, missing.prompt_tokens, expected, longest, *costs)

    def run(
        self, rows: Iterable[Row], work: Callable[[Row], Awaitable[Result]], total: int | None = None
    ) -> Iterator[Result]:
        """Apply `work`, which awaits `ask`, to many rows at once; yields the results in the order of the rows.

        Rows are read lazily, in the caller's thread; `work` runs in another, so that a loop may run here already.
        Closing the iterator or Ctrl-C ends the calls under way. Raises Stopped after all rows that could be finished
        were yielded: where no more calls can be made, most failed, or a replay lacks a response.
        """
        total = len(rows) if total is None and hasattr(rows, "__len__") else total
        replaying = self.settings.mode == "replay"
        together, window, rows = REPLAYED if replaying else 1, deque[Future](), iter(rows)
        interval = 0.1 if sys.stderr.isatty() else 10
        with self._running() as run, tqdm(total=total, unit="row", disable=replaying, mininterval=interval) as bar:
            while not run.stopped and (some := list(islice(rows, together))):
                window.append(asyncio.run_coroutine_threadsafe(self._work(work, some), run.loop))
                for _ in range(2):  # two out for one in: after a stall results come out and new rows go in
                    if window and (window[0].done() or len(window) * together >= self.window):
                        yield from self._results(window.popleft(), bar)
            while window:
                yield from self._results(window.popleft(), bar)
        self.unanswered = run.unanswered
        if reason := run.shortfall(self.cache):
            raise Stopped(reason)

    def _results(self, future: Future, bar: tqdm) -> list[Result]:
        while not future.done():
            wait([future], timeout=1.0)  # not for ever: a Ctrl-C that came just before it would not be seen
        if not bar.disable:
            bar.set_postfix_str(str(self.budget), refresh=False)
        bar.update(len(future.result()))
        return future.result()

    async def _work(self, work: Callable[[Row], Awaitable[Result]], rows: list[Row]) -> list[Result]:
        """The results of rows, one after the other; nothing for a row that was stopped."""
        results = []
        async with self._run.rows:
            for row in rows:
                with suppress(Stopped):
                    results.append(await work(row))
        return results

    @contextmanager
    def _running(self) -> Iterator[Run]:
        """A run, on an event loop in a thread of its own; at the end it is closed with all that is under way."""
        if self._run is not None:
            raise MedComfortError("This client is in the middle of a run: finish or close that one first.")
        self._run = run = Run(self.settings.concurrency)
        thread = threading.Thread(target=run.loop.run_forever, name="llm", daemon=True)
        thread.start()
        try:
            yield run
        finally:
            asyncio.run_coroutine_threadsafe(run.close(), run.loop).result()
            run.loop.call_soon_threadsafe(run.loop.stop)
            thread.join()
            run.loop.close()
            self._run = None

    async def ask(self, request: Request) -> Response | Failure:
        """One answer, from the cache or from the server; committed to the cache before it is returned.

        To be awaited in the `work` of a `run`, which lets through Stopped, raised where no answer can be had. Equal
        requests under way at the same time are paid once.
        """
        run, key, mode = self._run, request.key, self.settings.mode
        while True:
            if mode != "record" and (outcome := self._recalled(request)):
                return outcome
            if mode == "replay":
                run.missing.append(request.row)
                raise Stopped(f"{request.row} has no recorded response.")
            if run.stopped:
                raise Stopped(run.stopped)
            if key not in run.asking:
                break
            await run.asking[key].wait()
            mode = "auto"  # what was recorded a moment ago is new enough
        run.asking[key] = asyncio.Event()
        try:
            return await self._call(request)
        except MedComfortError as error:  # no more calls from here on, for the first reason; who waits goes on at once
            run.stopped = run.stopped or str(error)
            run.stopping.set()
            raise Stopped(run.stopped) from None
        finally:
            run.asking.pop(key).set()

    def _recalled(self, request: Request) -> Response | Failure | None:
        """What the record holds; a failure only in a replay, as it may have healed since."""
        response = self.cache.get(request.key)
        if response is None or response.finish_reason == FAILED:
            return Failure(response.text) if response and self.settings.mode == "replay" else None
        self._run.recalled += 1
        self.saved.book(*request.spent(response))
        return response

    async def _call(self, request: Request) -> Response | Failure:
        """Ask the server, with retries, and record the outcome."""
        run, outcome, tries, paid = self._run, None, 0, 0
        while tries <= self.settings.retries and paid < TRIES_PAID:
            if tries and not outcome.slow_down:
                await run.pause(min(LONGEST_WAIT, FIRST_WAIT * 2 ** (tries - 1)) * self._rng.uniform(0.5, 1.5))
            async with run.calls, self.budget.room(request.prompt_tokens, request.completion_tokens):
                if run.stopped:
                    raise Stopped(run.stopped)
                run.server = run.server or Server(self.settings, run.pause, self.budget.book)
                outcome = await run.server.answer(request, last=tries == self.settings.retries)
            if not isinstance(outcome, Again):
                return self._recorded(request, outcome)
            tries, paid = tries + (not outcome.slow_down), paid + outcome.paid
        failure = Failure(f"no answer in {tries} tries; at the last, {outcome.reason}")
        return self._recorded(request, failure, unanswered=True)

    def _recorded(self, request: Request, outcome: Response | Failure, unanswered: bool = False) -> Response | Failure:
        """What the cache holds once the outcome is committed; measured, that takes 0.02 ms, so no thread is needed."""
        failed = isinstance(outcome, Failure)
        response = Response(outcome.reason, request.model, FAILED, 0, 0, cached=False) if failed else outcome
        kept = self.cache.put_many({request.key: response}, self.settings.mode == "record")[request.key]
        self._run.count(outcome, unanswered)
        return outcome if kept.finish_reason == FAILED else replace(kept, cached=False)
