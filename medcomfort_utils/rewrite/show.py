"""Dialogues and rewrites as Markdown, for reading in a notebook."""

import difflib
import html
import re

from medcomfort_utils.records import Dialogue, Rewrite


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
