"""Gates: what a rewrite must satisfy before anything is trained on it. What fails is set aside, with its reason.

The gates (`checks.py`) compare a rewrite with its source dialogue and know nothing of the rewriter: one that rewords,
reorders and merges sentences passes as long as the medicine stays.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

import pandas as pd

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue, Gate, Rewrite
from medcomfort_utils.rewrite import checks
from medcomfort_utils.rewrite.support import Similarity

USABLE = "usable_response"  # failed where a rewriter's response could not become a rewrite at all

_KEEPING = (
    checks.numbers_kept,
    checks.no_invented_number,
    checks.drugs_kept,
    checks.no_invented_drug,
    checks.doses_kept,
    checks.negations_kept,
    checks.no_added_negation,
)
_ANSWERING = (*_KEEPING, checks.facts_kept, checks.red_flags_kept, checks.question_kept)
_FEELING = (checks.emotion_present, checks.comfort_present)
_SAYING = (
    checks.no_false_reassurance,
    checks.no_added_advice,
    checks.language,
    checks.no_refusal,
    checks.no_role_leak,
    checks.no_order_followed,
    checks.no_placeholder,
)
_GATES = {
    "original": (checks.unchanged,),
    "soothing_answer": (*_ANSWERING, checks.comfort_present, *_SAYING, checks.length),
    "emotional": (*_ANSWERING, *_FEELING, *_SAYING, checks.length),
    "comfort_only": (*_KEEPING, checks.question_kept, *_FEELING, *_SAYING),
    "multiturn": (*_ANSWERING, *_FEELING, *_SAYING, checks.length),
}


def check(dialogue: Dialogue, rewrite: Rewrite, similarity: Similarity | None = None) -> list[Gate]:
    """All gates that apply to the condition of `rewrite`, in fixed order; a failed one says what was lost or added.

    `similarity` is an optional second opinion on lost facts (`support.embedding_similarity`). Raises MedComfortError
    for a text that is not English and for an unknown emotion.
    """
    if rewrite.lang != "en" or dialogue.lang != "en":
        raise MedComfortError(f"Dialogue {dialogue.id} or its rewrite is not English, the one language the gates know.")
    case = checks.Case(dialogue, rewrite, similarity)
    reasons = ((gate.__name__, gate(case)) for gate in _GATES[rewrite.condition])
    return [Gate(name=name, passed=not reason, reason=reason) for name, reason in reasons]


def sifted(pairs: Iterable[tuple[Dialogue, Rewrite]], similarity: Similarity | None = None) -> Iterator[Rewrite]:
    """Each rewrite, in order, with its `gates` filled in; a corpus of any size passes through, a pair at a time.

    One that brings its verdict, because the rewriter's response was unusable, keeps that.
    """
    for dialogue, rewrite in pairs:
        yield rewrite.model_copy(update={"gates": rewrite.gates or check(dialogue, rewrite, similarity)})


def _with_sources(dialogues: Iterable[Dialogue], rewrites: Iterable[Rewrite]) -> Iterator[tuple[Dialogue, Rewrite]]:
    sources = {dialogue.id: dialogue for dialogue in dialogues}
    for rewrite in rewrites:
        if rewrite.dialogue_id not in sources:
            raise MedComfortError(f"A rewrite names dialogue {rewrite.dialogue_id}, which is not among the dialogues.")
        yield sources[rewrite.dialogue_id], rewrite


def sift(
    dialogues: Iterable[Dialogue], rewrites: Iterable[Rewrite], similarity: Similarity | None = None
) -> tuple[list[Rewrite], list[Rewrite]]:
    """Kept and rejected rewrites, each in order and with its `gates` filled in; one failed gate rejects.

    Raises MedComfortError for a rewrite whose source is not among `dialogues`.
    """
    kept, rejected = [], []
    for checked in sifted(_with_sources(dialogues, rewrites), similarity):
        (kept if all(gate.passed for gate in checked.gates) else rejected).append(checked)
    return kept, rejected


def report(rewrites: Iterable[Rewrite]) -> pd.DataFrame:
    """How often each gate failed: `gate`, `condition`, `checked`, `failed`, `share` in [0, 1].

    `rewrites`: kept and rejected together, as `sift` returns them.
    """
    found = Counter((gate.name, rewrite.condition, gate.passed) for rewrite in rewrites for gate in rewrite.gates)
    rows = [(*key, count) for key, count in found.items()]
    order = [USABLE, *(gate.__name__ for gate in (checks.unchanged, *_GATES["emotional"]))]
    frame = pd.DataFrame(rows, columns=["gate", "condition", "passed", "checked"])
    frame["gate"] = pd.Categorical(frame["gate"], order)
    frame["condition"] = pd.Categorical(frame["condition"], list(_GATES))
    frame["failed"] = frame["checked"].where(~frame["passed"].astype(bool), 0)
    counts = frame.groupby(["gate", "condition"], observed=True)[["checked", "failed"]].sum().reset_index()
    counts["share"] = counts["failed"] / counts["checked"]
    return counts.astype({"gate": str, "condition": str, "checked": int, "failed": int, "share": float})
