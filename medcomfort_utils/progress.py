"""How far a long piece of work has come, told to whoever runs the step; where nobody listens, nothing happens."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

FILE = "MEDCOMFORT_PROGRESS"  # environment variable: the file that reports are added to
SHOWN = 20.0  # seconds between two lines about the same work
Item = TypeVar("Item")
_last: dict[str, float] = {}


def report(what: str, done: int, total: int) -> None:
    """Say that `done` of `total` are done of `what`, such as "dpo seed 0: steps"; call it as often as you like."""
    now = time.time()
    if FILE in os.environ and (done >= total or now - _last.get(what, 0) > 1):
        _last[what] = now
        with open(os.environ[FILE], "a", encoding="utf-8") as file:  # a short line is added in one piece
            file.write(json.dumps([what, done, total, now]) + "\n")


def track(items: Iterable[Item], what: str, total: int) -> Iterator[Item]:
    """The items, one by one, reported as they are done."""
    report(what, 0, total)
    for done, item in enumerate(items, start=1):
        yield item
        report(what, done, total)


class Listener:
    """Reads what steps report to a file, and says from time to time how far they are and what is left."""

    def __init__(self, file: Path):
        self.file, self.read = file, 0
        self.first: dict[str, tuple[int, float]] = {}  # the first report of each work: (done, time)
        self.shown: dict[str, float] = {}

    def lines(self) -> Iterator[str]:
        """What is new and worth a line: about one in SHOWN seconds for each piece of work."""
        with self.file.open(encoding="utf-8") as file:
            file.seek(self.read)
            reports, self.read = file.read().splitlines(), file.tell()
        for what, done, total, now in {(told := json.loads(line))[0]: told for line in reports}.values():
            start, began = self.first.setdefault(what, (done, now))
            if now - self.shown.setdefault(what, began) >= SHOWN:
                self.shown[what] = now
                left = (now - began) / max(done - start, 1) * (total - done)
                ahead = f", about {max(round(left / 60), 1)} min left" if left > 60 else f", about {left:.0f} s left"
                yield f"{what} {done:,} of {total:,}{ahead if done > start and done < total else ''}"
