"""Dialogues and rewrites as Markdown, for reading in a notebook."""

import difflib
import html
import re
from collections import Counter
from collections.abc import Iterable, Sequence

import pandas as pd

from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.rewrite.clean import sentences, words


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


def spread(items: Sequence, count: int) -> list:
    """`count` items from all over a sequence, the first among them."""
    step = max(1, len(items) // count)
    return list(items[::step])[:count]


def variety(texts: Iterable[str]) -> pd.DataFrame:
    """How little comforting texts repeat each other, one row of shares in [0, 1] and the counts they stand on.

    `distinct_2` (Li et al., 2016): different word pairs among all word pairs. `repeated_sentences`: sentences that
    stand there more than once. `shared_openings`: texts whose first three words open another one too.
    """
    said = [[words(sentence) for sentence in sentences(text)] for text in texts]
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


def reasons(rejected: pd.DataFrame) -> pd.DataFrame:
    """Why each version of `rejected.parquet` was rejected: a row for each gate that it failed."""
    shown = ["dialogue_id", "condition", "emotion", "gate", "reason"]
    rows = [
        (*row[:3], gate["name"], gate["reason"])
        for row in rejected[[*shown[:3], "gates"]].itertuples(index=False)
        for gate in row.gates
        if not gate["passed"]
    ]
    return pd.DataFrame(rows, columns=shown)


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
    """Patient text is data: nothing in it is taken for HTML or Markdown."""
    return re.sub(r"([*_`~\[\]#|\\])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ")
