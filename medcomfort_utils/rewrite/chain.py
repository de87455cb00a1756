"""Dialogues through a rewriter and the gates into three files, one dialogue at a time."""

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from medcomfort_utils.parquet import writing
from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.rewrite import gates


def write(rewritten: Iterable[tuple[Dialogue, list[Rewrite]]], out: Path) -> pd.DataFrame:
    """Write `dialogues.parquet`, `rewrites.parquet` (all gates passed) and `rejected.parquet`; returns `gates.report`.

    Every version of every dialogue lands in exactly one of the last two. The files take their places together at the
    end: an interrupted run leaves those of the run before, and a language model's responses are in its cache.
    The column `intensity` is there if the rewriter asks for one, as the first dialogue tells.
    """
    rewritten = iter(rewritten)
    first = next(rewritten, None)
    rewritten = chain([first] if first else [], rewritten)
    without = [] if first and any(version.intensity for version in first[1]) else ["intensity"]
    with (
        writing(out / "dialogues.parquet", Dialogue) as source,
        writing(out / "rewrites.parquet", Rewrite, without=without) as keep,
        writing(out / "rejected.parquet", Rewrite, without=without) as reject,
    ):

        def pairs() -> Iterator[tuple[Dialogue, Rewrite]]:
            for dialogue, versions in rewritten:
                source(dialogue)
                yield from ((dialogue, version) for version in versions)

        def checked() -> Iterator[Rewrite]:
            for rewrite in gates.sifted(pairs()):
                (keep if all(gate.passed for gate in rewrite.gates) else reject)(rewrite)
                yield rewrite

        return gates.report(checked())
