"""Dialogues and rewrites as Markdown, for reading in a notebook."""

import difflib
import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.text import sentences, words

COUNTED = ("condition", "emotion", "intensity", "split")


def dialogue(source: Dialogue) -> str:
    """The turns of a dialogue, its facts and red flags."""
    turns = [f"**{m.role}**: {_safe(m.content)}" for m in source.messages]
    facts = [f"- {_safe(fact)}" for fact in source.facts] or ["- (none given)"]
    flags = [f"- {_safe(flag)}" for flag in source.red_flags] or ["- (none found)"]
    return "\n\n".join([*turns, "*Facts*\n\n" + "\n".join(facts), "*Red flags*\n\n" + "\n".join(flags)])


def before_and_after(source: Dialogue, rewrite: Rewrite) -> str:
    """A rewritten question and answer; words that the source lacks are bold, those it lost are struck out."""
    question, answer = _marked(source.question, rewrite.question), _marked(source.answer, rewrite.answer)
    return "\n\n".join(
        [f"### {rewrite.emotion or rewrite.condition}", f"**patient**: {question}", f"**doctor**: {answer}"]
    )


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


def _marked(before: str, after: str) -> str:
    old, new = before.split(), after.split()
    shown = []
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        lost, added = _safe(" ".join(old[i:j])), _safe(" ".join(new[k:m]))
        shown += [f"~~{lost}~~"] * (kind in ("delete", "replace"))
        shown += [added if kind == "equal" else f"**{added}**"] * (kind != "delete")
    return " ".join(shown)


def _safe(text: str) -> str:
    """Patient text is data: nothing in it is taken for HTML, Markdown or a formula."""
    return re.sub(r"([*_`~\[\]#|$\\])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ")
