"""Dialogues and rewrites as Markdown, and tables of their wording, for reading in a notebook."""

import html
import re
from collections import Counter
from collections.abc import Iterable
from itertools import islice

import pandas as pd

from medcomfort_utils.records import Dialogue, Rewrite
from medcomfort_utils.rewrite import compose, prompts
from medcomfort_utils.text import sentences, words


def dialogue(source: Dialogue) -> str:
    """The turns of a dialogue, its facts and red flags."""
    turns = [f"**{m.role}**: {_safe(m.content)}" for m in source.messages]
    facts = [f"- {_safe(fact)}" for fact in source.facts] or ["- (none given)"]
    flags = [f"- {_safe(flag)}" for flag in source.red_flags] or ["- (none found)"]
    return "\n\n".join([*turns, "*Facts*\n\n" + "\n".join(facts), "*Red flags*\n\n" + "\n".join(flags)])


def composition(source: Dialogue, rewrite: Rewrite) -> str:
    """A rewrite piece by piece: the patient's message before and after, then own words and kept sentences in order."""
    numbered, pieces = compose.numbered(source), []
    for segment in rewrite.segments:
        pieces += [f"- *says*: **{_safe(segment.say)}**"] if segment.say else []
        pieces += [f"- *keeps {number}*: {_safe(numbered[number - 1])}" for number in segment.keep]
    strength = f", intensity {rewrite.intensity} of 3" if rewrite.intensity else ""
    asked = [f"*before*: {_safe(source.question)}", f"*after*: {_safe(rewrite.question)}"]
    title = f"**{rewrite.emotion or rewrite.condition}{strength}**"
    return "\n\n".join([title, *asked, "\n".join(pieces) or _safe(rewrite.answer)])


def variety(texts: Iterable[str], limit: int = 1000) -> pd.DataFrame:
    """How little comforting texts repeat each other, one row of shares in [0, 1] and the counts they stand on.

    `distinct_2` (Li et al., 2016): different word pairs among all word pairs. `repeated_sentences`: sentences that
    stand there more than once. `shared_openings`: texts whose first three words open another one too. Only the first
    `limit` texts are read: the more text, the more repeats, so shares of different corpora compare at equal numbers.
    """
    said = [[words(sentence) for sentence in sentences(text)] for text in islice(texts, limit)]
    pairs = Counter(pair for text in said for sentence in text for pair in zip(sentence, sentence[1:], strict=False))
    whole = Counter(tuple(sentence) for text in said for sentence in text)
    first = Counter(tuple(sum(text, [])[:3]) for text in said)
    row = {
        "texts": len(said),
        "sentences": whole.total(),
        "distinct_2": len(pairs) / max(1, pairs.total()),
        **{
            name: sum(count for count in counts.values() if count > 1) / max(1, counts.total())
            for name, counts in (("repeated_sentences", whole), ("shared_openings", first))
        },
    }
    return pd.DataFrame([row]).round(3)


def wording(pairs: Iterable[tuple[Dialogue, Rewrite]]) -> pd.DataFrame:
    """How emotional versions are worded, a row an emotion.

    `versions`: how many. `kept_runs`: the median share of the source question's runs of four words that stand in the
    rewritten one. `own_words`: the median number of words of the answer that are not the source's. `before_urgent`:
    where something is urgent now (`compose.urgent_now`), the largest number of words that stand before it.
    """
    rows = []
    for source, rewrite in pairs:
        old, new = (_runs(text) for text in (source.question, rewrite.question))
        said = [len(segment.say.split()) for segment in rewrite.segments]
        first = compose.urgent_now(source)
        ahead = next((i for i, each in enumerate(rewrite.segments) if first in each.keep), 0)
        row = {"emotion": rewrite.emotion, "kept_runs": len(old & new) / max(1, len(old)), "own_words": sum(said)}
        rows.append(row | {"before_urgent": sum(said[:ahead]) if first else None})
    by = pd.DataFrame(rows, columns=["emotion", "kept_runs", "own_words", "before_urgent"]).groupby("emotion")
    found = {"versions": by.size(), **{name: by[name].median().round(2) for name in ("kept_runs", "own_words")}}
    return pd.DataFrame(found | {"before_urgent": by["before_urgent"].max()}).reset_index()


def _runs(text: str, size: int = 4) -> set[tuple[str, ...]]:
    tokens = words(text)
    return {tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)}


def feelings(pairs: Iterable[tuple[Dialogue, Rewrite]], lang: str = "en") -> pd.Series:
    """How many rewritten questions have a feeling word of the prompt more often than their sources, by word."""
    listed = {word for told in prompts.feeling_words(lang).values() for word in told.split(", ")}
    counts = Counter()
    for source, rewrite in pairs:
        old, new = (f" {' '.join(words(text))} " for text in (source.question, rewrite.question))
        counts.update(sorted(word for word in listed if new.count(f" {word} ") > old.count(f" {word} ")))
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


def _safe(text: str) -> str:
    """Patient text is data: nothing in it is taken for HTML, Markdown or a formula."""
    return re.sub(r"([*_`~\[\]#|$\\])", r"\\\1", html.escape(text, quote=False)).replace("\n", " ")
