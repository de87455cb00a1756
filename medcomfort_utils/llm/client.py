"""Asks a language model about many rows at once, keeps every answer, and stops and starts again without loss."""

import asyncio
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from medcomfort_utils.llm.cache import CHUNK, Cache, Writer
from medcomfort_utils.llm.limits import Budget, Pace, backoff
from medcomfort_utils.llm.requests import FAILED, Failure, Request, Response, Stopped
from medcomfort_utils.llm.server import Again, Server
from medcomfort_utils.llm.settings import Estimate, Settings
from medcomfort_utils.paths import MedComfortError, tidy

SHOWN = 5  # missing rows that an error names
REPLAYED = 16  # rows a task
Row, Result = TypeVar("Row"), TypeVar("Result")


class _Live:
    """What belongs to one run and its event loop."""

    def __init__(self, settings: Settings, cache: Cache, pause: Callable[[float], Awaitable]):
        self.loop = asyncio.get_running_loop()
        self.closing, self.stopping = asyncio.Event(), asyncio.Event()
        self.calls = asyncio.Semaphore(settings.concurrency)
        # Twice as many rows as calls: one that waits (for a retry, for its commit) leaves no gap, and yet rows are
        # finished one after the other rather than all begun.
        self.rows = asyncio.Semaphore(2 * settings.concurrency)
        self.requests = Pace(settings.requests_per_minute, sleep=pause)
        self.tokens = Pace(settings.tokens_per_minute, sleep=pause)
        self.asking: dict[str, asyncio.Event] = {}
        self.writer = Writer(cache, overwrite=settings.mode == "record")
        self.server: Server | None = None  # connected at the first call: a run from the cache needs none


class Client:
    """Answers from the cache or a server, for one run at a time.

    `window`: how many rows `run` reads ahead of the last one it yielded. `budget`: what was spent.
    """

    def __init__(self, settings: Settings, cache: Cache):
        self.settings, self.cache = settings, cache
        self.window = 16 * settings.concurrency
        self.budget = Budget(settings.max_cost, settings.max_tokens_total, settings.price_in, settings.price_out)
        self._rng = random.Random(0)
        self._live: _Live | None = None
        self._stop, self._missing, self._missing_count = "", [], 0

    def estimate(self, requests: Iterable[Request], completion_share: float | None = None) -> Estimate:
        """What these requests would still cost, read lazily; a request that stands there twice counts twice.

        `completion_share`: expected answer length as a share of the prompt's, in place of `max_tokens`.
        """
        calls = cached = prompt = completion = 0
        requests = iter(requests)
        while chunk := list(islice(requests, CHUNK)):
            found = {} if self.settings.mode == "record" else self.cache.get_many(request.key for request in chunk)
            known = {key for key, response in found.items() if response.finish_reason != FAILED}
            missing = [request for request in chunk if request.key not in known]
            calls, cached = calls + len(missing), cached + len(chunk) - len(missing)
            prompt += (tokens := sum(r.prompt_tokens for r in missing))
            longest = sum(r.completion_tokens for r in missing)
            completion += longest if completion_share is None else round(tokens * completion_share)
        return Estimate(calls, cached, prompt, completion, self.budget.cost_of(prompt, completion))

    def run(
        self, rows: Iterable[Row], work: Callable[[Row], Awaitable[Result]], total: int | None = None
    ) -> Iterator[Result]:
        """Apply `work`, which awaits `ask`, to many rows at once; yields the results in the order of the rows.

        Rows are read lazily, in the caller's thread, at most `window` ahead of the last result; `work` runs in a
        thread of its own, so this works where an event loop already runs. Closing the iterator or Ctrl-C ends the
        calls under way. Where no more calls can be made (budget, wrong key), and for rows without a recorded
        response in mode replay, MedComfortError is raised after all rows that could be finished were yielded.
        """
        total = len(rows) if total is None and hasattr(rows, "__len__") else total
        # Where nothing waits, many rows share one task: that is the faster half of a replay.
        together = REPLAYED if self.settings.mode == "replay" else 1
        window: deque[Future] = deque()
        with self._running() as loop, tqdm(total=total, unit="row", disable=None) as bar:
            rows = iter(rows)
            while not self._stop and (some := list(islice(rows, together))):
                window.append(asyncio.run_coroutine_threadsafe(self._work(work, some), loop))
                for _ in range(2):  # two out for one in: after a stall results come out and new rows go in
                    if window and (window[0].done() or len(window) * together >= self.window):
                        yield from self._shown(window.popleft(), bar)
            while window:
                yield from self._shown(window.popleft(), bar)
        self._report()

    def _shown(self, future: Future, bar: tqdm) -> Iterator[Result]:
        while not future.done():
            wait([future], timeout=1.0)  # not for ever: a Ctrl-C that came just before it would not be seen
        for result in future.result():
            bar.update()
            yield result
        if not bar.disable:
            bar.set_postfix_str(str(self.budget), refresh=False)

    async def _work(self, work: Callable[[Row], Awaitable[Result]], rows: list[Row]) -> list[Result]:
        """The results of rows, one after the other; nothing for a row that was stopped."""
        results = []
        async with self._live.rows:
            for row in rows:
                with suppress(Stopped):
                    results.append(await work(row))
        return results

    def _report(self) -> None:
        """Say why rows are missing, if any are."""
        if self._missing_count:
            shown = ", ".join(self._missing) + (", ..." if self._missing_count > SHOWN else "")
            self._stop = (
                f"{self._missing_count:,} rows have no recorded response in {tidy(self.cache.path)} ({shown}): import "
                "the record they stand in, or run in mode auto to ask for them."
            )
        if self._stop:
            raise MedComfortError(self._stop)

    @contextmanager
    def _running(self) -> Iterator[asyncio.AbstractEventLoop]:
        """An event loop in a thread of its own, closed at the end with all that runs on it."""
        if self._live is not None:
            raise MedComfortError("This client is in the middle of a run: finish or close that one first.")
        self._stop, self._missing, self._missing_count = "", [], 0
        started: Future[_Live] = Future()
        thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)), name="llm", daemon=True)
        thread.start()
        self._live = live = started.result()
        try:
            yield live.loop
        finally:
            live.loop.call_soon_threadsafe(live.closing.set)
            thread.join()
            self._live = None

    async def _serve(self, started: "Future[_Live]") -> None:
        live = _Live(self.settings, self.cache, self._pause)
        self.budget.changed = asyncio.Event()
        started.set_result(live)
        await live.closing.wait()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        live.writer.commit()
        if live.server:
            await live.server.close()

    async def ask(self, request: Request) -> Response | Failure:
        """One answer, from the cache or from the server; committed to the cache before it is returned.

        To be awaited in the `work` of a `run`. Equal requests under way at the same time are paid once. Raises
        Stopped (a MedComfortError, which `work` lets through) where no answer can be had.
        """
        live, key, waited = self._live, request.key, False
        while True:
            fresh = self.settings.mode == "record" and not waited
            if not fresh and (found := self._known(key)):
                return found
            if self.settings.mode == "replay":
                raise self._miss(request)
            if live is None:
                raise MedComfortError("ask is awaited in the work of a run: list(client.run(requests, client.ask)).")
            if self._stop:
                raise Stopped(self._stop)
            if key not in live.asking:
                break
            await live.asking[key].wait()
            waited = True
        live.asking[key] = asyncio.Event()
        try:
            return await self._call(request)
        except MedComfortError as error:
            self._stop = self._stop or str(error)
            live.stopping.set()
            raise Stopped(self._stop) from None
        finally:
            live.asking.pop(key).set()

    def _known(self, key: str) -> Response | Failure | None:
        """What the record holds; a failure only in a replay, as it may have healed since."""
        found = self.cache.get(key)
        if found is None or found.finish_reason != FAILED:
            return found
        return Failure(found.text) if self.settings.mode == "replay" else None

    def _miss(self, request: Request) -> Stopped:
        self._missing_count += 1
        if self._missing_count <= SHOWN:
            self._missing.append(request.row)
        return Stopped(f"{request.row} has no recorded response in {tidy(self.cache.path)}.")

    async def _call(self, request: Request) -> Response | Failure:
        """Ask the server, with retries, and record the outcome."""
        for attempt in range(self.settings.retries + 1):
            async with self._turn(request) as server:
                outcome = await server.answer(request)
                if isinstance(outcome, Response):
                    self._book(request, outcome)
            if not isinstance(outcome, Again):
                return await self._recorded(request, outcome)
            if outcome.wait:
                self._live.requests.hold(outcome.wait)
            if attempt < self.settings.retries:
                await self._pause((outcome.wait or 0) + backoff(0 if outcome.wait else attempt, self._rng))
        if outcome.unreachable:
            raise Stopped(f"No server can be reached at {server.base_url}: see that it runs, and start again.")
        failure = Failure(f"no answer in {self.settings.retries + 1} tries; at the last, {outcome.reason}")
        return await self._recorded(request, failure)

    def _book(self, request: Request, response: Response) -> None:
        used = response.prompt_tokens + response.completion_tokens
        self.budget.book(response.prompt_tokens, response.completion_tokens)
        self._live.tokens.give_back(request.prompt_tokens + request.completion_tokens - used)

    @asynccontextmanager
    async def _turn(self, request: Request) -> AsyncIterator[Server]:
        """Room for one call: in the pool, in the budget, and in the limits a minute."""
        live, prompt, completion = self._live, request.prompt_tokens, request.completion_tokens
        async with live.calls:
            await self.budget.reserve(prompt, completion)
            try:
                await live.requests.turn()
                await live.tokens.turn(prompt + completion)
                if self._stop:
                    raise Stopped(self._stop)
                live.server = live.server or Server(
                    self.settings.base_url, self.settings.timeout, self.settings.concurrency
                )
                yield live.server
            finally:
                self.budget.release(prompt, completion)

    async def _pause(self, seconds: float) -> None:
        """Sleep; if meanwhile all is to stop, raise Stopped at once."""
        try:
            async with asyncio.timeout(seconds):
                await self._live.stopping.wait()
        except TimeoutError:
            return
        raise Stopped(self._stop)

    async def _recorded(self, request: Request, outcome: Response | Failure) -> Response | Failure:
        """What the cache holds once the outcome is committed."""
        response = outcome.recorded(request.model) if isinstance(outcome, Failure) else outcome
        kept = await self._live.writer.put(request.key, response)
        return outcome if kept.finish_reason == FAILED else replace(kept, cached=False)
