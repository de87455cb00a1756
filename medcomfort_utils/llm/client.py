"""Asks a language model about many rows at once, keeps every answer, and stops and starts again without loss."""

import asyncio
import random
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from typing import TypeVar

from tqdm import tqdm

from medcomfort_utils.llm.cache import Cache
from medcomfort_utils.llm.estimate import SHARE, Estimate, estimate, tokens
from medcomfort_utils.llm.limits import Budget, backoff
from medcomfort_utils.llm.live import Live, running
from medcomfort_utils.llm.requests import FAILED, Failure, Request, Response, Stopped
from medcomfort_utils.llm.server import Again, Server
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.schema import Settings

REPLAYED = 16  # rows a task
Row, Result = TypeVar("Row"), TypeVar("Result")


class Client:
    """Answers from the cache or a server, for one run at a time.

    `window`: how many rows `run` reads ahead of the last one it yielded. `budget`: what was spent. `saved`: what the
    answers out of the cache took when they were made.
    """

    def __init__(self, settings: Settings, cache: Cache):
        self.settings, self.cache = settings, cache
        self.window = 16 * settings.concurrency
        prices = {"price_in": settings.price_in, "price_out": settings.price_out}
        self.budget = Budget(settings.max_cost, settings.max_tokens_total, **prices)
        self.saved = Budget(**prices)
        self._rng = random.Random(0)
        self._live: Live | None = None

    def estimate(self, requests: Iterable[Request], share: float = SHARE) -> Estimate:
        """What these requests would still cost: see `estimate.estimate`."""
        return estimate(requests, self.cache, self.settings, share)

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
        with self._running() as live, self._bar(total) as bar:
            rows = iter(rows)
            while not live.stopped and (some := list(islice(rows, together))):
                window.append(asyncio.run_coroutine_threadsafe(self._work(work, some), live.loop))
                for _ in range(2):  # two out for one in: after a stall results come out and new rows go in
                    if window and (window[0].done() or len(window) * together >= self.window):
                        yield from self._shown(window.popleft(), bar)
            while window:
                yield from self._shown(window.popleft(), bar)
        live.report()

    def _bar(self, total: int | None) -> tqdm:
        """Progress; a replay is soon over, and shows it at a terminal alone."""
        at_terminal = sys.stderr.isatty()
        off = self.settings.mode == "replay" and not at_terminal
        return tqdm(total=total, unit="row", disable=off, mininterval=0.1 if at_terminal else 10)

    def _shown(self, future: Future, bar: tqdm) -> Iterator[Result]:
        while not future.done():
            wait([future], timeout=1.0)  # not for ever: a Ctrl-C that came just before it would not be seen
        if not bar.disable:
            bar.set_postfix_str(str(self.budget), refresh=False)
        for result in future.result():
            bar.update()
            yield result

    async def _work(self, work: Callable[[Row], Awaitable[Result]], rows: list[Row]) -> list[Result]:
        """The results of rows, one after the other; nothing for a row that was stopped."""
        results = []
        async with self._live.rows:
            for row in rows:
                with suppress(Stopped):
                    results.append(await work(row))
        return results

    @contextmanager
    def _running(self) -> Iterator[Live]:
        if self._live is not None:
            raise MedComfortError("This client is in the middle of a run: finish or close that one first.")
        try:
            with running(self.settings, self.cache, self.budget) as self._live:
                yield self._live
        finally:
            self._live = None

    async def ask(self, request: Request) -> Response | Failure:
        """One answer, from the cache or from the server; committed to the cache before it is returned.

        To be awaited in the `work` of a `run`. Equal requests under way at the same time are paid once. Raises
        Stopped (a MedComfortError, which `work` lets through) where no answer can be had.
        """
        live, key, waited = self._live, request.key, False
        if live is None:
            raise MedComfortError("ask is awaited in the work of a run: list(client.run(requests, client.ask)).")
        while True:
            fresh = self.settings.mode == "record" and not waited
            if not fresh and (found := self._known(request)):
                return found
            if self.settings.mode == "replay":
                raise live.missing(request.row)
            if live.stopped:
                raise Stopped(live.stopped)
            if key not in live.asking:
                break
            await live.asking[key].wait()
            waited = True
        live.asking[key] = asyncio.Event()
        try:
            return await self._call(request)
        except MedComfortError as error:
            raise live.stop(str(error)) from None
        finally:
            live.asking.pop(key).set()

    def _known(self, request: Request) -> Response | Failure | None:
        """What the record holds; a failure only in a replay, as it may have healed since."""
        found = self.cache.get(request.key)
        if found is None or found.finish_reason == FAILED:
            return Failure(found.text) if found and self.settings.mode == "replay" else None
        self.saved.book(*tokens(request, found))
        return found

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
                await self._live.pause((outcome.wait or 0) + backoff(0 if outcome.wait else attempt, self._rng))
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
                if live.stopped:
                    raise Stopped(live.stopped)
                live.server = live.server or Server(
                    self.settings.base_url, self.settings.timeout, self.settings.concurrency
                )
                yield live.server
            finally:
                self.budget.release(prompt, completion)

    async def _recorded(self, request: Request, outcome: Response | Failure) -> Response | Failure:
        """What the cache holds once the outcome is committed."""
        response = outcome.recorded(request.model) if isinstance(outcome, Failure) else outcome
        kept = await self._live.writer.put(request.key, response)
        return outcome if kept.finish_reason == FAILED else replace(kept, cached=False)
