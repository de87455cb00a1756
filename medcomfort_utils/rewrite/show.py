"""Dialogues and rewrites as Markdown, for reading in a notebook."""

import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.rewrite import compose, prompts
from medcomfort_utils.text import sentences, words

COUNTED = ("condition", "emotion", "intensity", "split")


def dialogue(source: Dialogue) -> str:
    """The turns of a dialogue, its facts and red flags."""
    turns = [f"**{m.role}**: {_safe(m.content)}" for m in source.messages]
    facts = [f"- {_safe(fact)}" for fact in source.facts] or ["- (none given)"]
    flags = [f"- {_safe(flag)}" for flag in source.red_flags] or ["- (none found)"]
    return "\n\n".join([*turns, "*Facts*\n\n" + "\n".join(facts), "*Red flags*\n\n" + "\n".join(flags)])


def composition(source: Dialogue, rewrite: Rewrite) -> str:
    """A rewrite piece by piece: the patient's message before and after, then own words and kept sentences in order."""
    numbered = compose.numbered(source)
    pieces = [
        f"- *says*: **{_safe(segment.say)}**"
        if segment.say
        else "\n".join(f"- *keeps {number}*: {_safe(numbered[number - 1])}" for number in segment.keep)
        for segment in rewrite.segments
    ]
    asked = [f"*before*: {_safe(source.question)}", f"*after*: {_safe(rewrite.question)}"]
    strength = f", {rewrite.intensity} of 3" if rewrite.intensity else ""
    title = f"### {rewrite.emotion or rewrite.condition}{strength}"
    return "\n\n".join([title, *asked, "\n".join(pieces) or _safe(rewrite.answer)])


def examples(rewrites: Sequence[Rewrite], count: int) -> list[Rewrite]:
    """`count` rewrites from all over a sequence, the first among them; of different emotions where it has so many."""
    chosen = []
    for start in range(0, len(rewrites), max(1, len(rewrites) // count))[:count]:
        shown = {text for rewrite in chosen for text in (rewrite.emotion, rewrite.dialogue_id)}
        ahead = [*rewrites[start:], *rewrites[:start]]
        chosen.append(min(ahead, key=lambda r: (r.emotion in shown, r.dialogue_id in shown)))
    return chosen


def counted(path: Path) -> pd.DataFrame:
    """How many `versions` of each `condition`, `emotion`, `intensity` and `split` a file of rewrites holds."""
    counts: Counter[tuple] = Counter()
    with pq.ParquetFile(path) as file:
        named = [name for name in COUNTED if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=named):
            counts.update(tuple(row.get(name) or "" for name in COUNTED) for row in batch.to_pylist())
    return pd.DataFrame([(*key, counts[key]) for key in sorted(counts, key=str)], columns=[*COUNTED, "versions"])


def variety(texts: Iterable[str], limit: int = 1000) -> pd.DataFrame:
    """How little comforting texts repeat each other, one row of shares in [0, 1] and the counts they stand on.

    `distinct_2` (Li et al., 2016): different word pairs among all word pairs. `repeated_sentences`: sentences that
    stand there more than once. `shared_openings`: texts whose first three words open another one too. Only the first
    `limit` texts are read: the more text, the more repeats, so shares of different corpora compare at equal numbers.
    """
    said = [[words(sentence) for sentence in sentences(text)] for text in islice(texts, limit)]
    pairs = [pair for text in said for sentence in text for pair in zip(sentence, sentence[1:], strict=False)]
    whole = Counter(tuple(sentence) for text in said for sentence in text)
    first = Counter(tuple(word for sentence in text for word in sentence)[:3] for text in said)
    row = {
        "texts": len(said),
        "sentences": whole.total(),
        "distinct_2": _share(len(set(pairs)), len(pairs)),
        "repeated_sentences": _share(sum(count for count in whole.values() if count > 1), whole.total()),
        "shared_openings": _share(sum(count for count in first.values() if count > 1), len(said)),
    }
    return pd.DataFrame([row])


def wording(pairs: Iterable[tuple[Dialogue, Rewrite]]) -> pd.DataFrame:
    """How emotional versions are worded, a row an emotion.

    `versions`: how many. `kept_runs`: the median share of the source question's runs of four words that stand in the
    rewritten one. `own_words`: the median number of words of the answer that are not the source's. `before_urgent`:
    where something is urgent now (`compose.urgent_now`), the largest number of words that stand before it.
    """
    rows = []
    for source, rewrite in pairs:
        old, new = (_runs(text) for text in (source.question, rewrite.question))
        first = compose.urgent_now(source)
        said = [len(segment.say.split()) for segment in rewrite.segments]
        ahead = next((i for i, each in enumerate(rewrite.segments) if first in each.keep), 0)
        row = {"emotion": rewrite.emotion, "kept_runs": len(old & new) / max(1, len(old)), "own_words": sum(said)}
        rows.append(row | {"before_urgent": sum(said[:ahead]) if first else None})
    frame = pd.DataFrame(rows, columns=["emotion", "kept_runs", "own_words", "before_urgent"])
    by = frame.groupby("emotion")
    found = {"versions": by.size(), **{name: by[name].median().round(2) for name in ("kept_runs", "own_words")}}
    return pd.DataFrame(found | {"before_urgent": by["before_urgent"].max()}).reset_index()


def _runs(text: str, size: int = 4) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def feelings(pairs: Iterable[tuple[Dialogue, Rewrite]], lang: str = "en") -> pd.Series:
    """How many rewritten questions have a feeling word of the prompt more often than their sources, by word."""
    listed = dict.fromkeys(word for told in prompts.feeling_words(lang).values() for word in told.split(", "))
    patterns = {word: re.compile(rf"\b{re.escape(word)}\b", re.I) for word in listed}
    counts = Counter(
        word
        for source, rewrite in pairs
        for word, pattern in patterns.items()
        if len(pattern.findall(rewrite.question)) > len(pattern.findall(source.question))
    )
    return pd.Series(dict(counts.most_common()), name="questions", dtype=int)


def reasons(rejected: Iterable[Rewrite], limit: int = 8) -> pd.DataFrame:
    """Why versions of `rejected.parquet` were rejected: a row for each gate that one failed, the first `limit`."""
    rows = (
        (rewrite.dialogue_id, rewrite.condition, rewrite.emotion, gate.name, gate.reason)
        for rewrite in rejected
        for gate in rewrite.gates
        if not gate.passed
    )
    return pd.DataFrame(islice(rows, limit), columns=["dialogue_id", "condition", "emotion", "gate", "reason"])


def fenced(text: str) -> str:
    """The text word for word, in a fence that it cannot end."""
    fence = "`" * max(4, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}text\n{text}\n{fence}"


def _share(part: int, whole: int) -> float:
    return round(part / whole, 3) if whole else float("nan")


def _safe(text: str) -> str:
    """Patient text is data: nothing in it is taken for HTML, Markdown or a formula."""
    return re.sub(r"([*_`~\[\]#|$\\])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ")
