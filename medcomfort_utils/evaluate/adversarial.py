"""Deliberately broken "models": replies made to please one measure, which the measures together must find out.

Nobody generated them. They are scored like any model's replies; `table` then says whether each came out as it should.
One that these measures do not find out is not among them: the soothing paragraph put before the plain answer. It takes
a judge, or a reader, to see that it says the same to everybody.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pandas as pd

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue
from medcomfort_utils.rewrite import wording

PARAGRAPH = (
    "I am so sorry that you are going through this. I understand how frightening it must feel, and your worry makes "
    "sense to me. You are not alone with it. What weighs on you most right now?"
)
LITTLE, MUCH = 0.25, 0.9  # shares of the reference's score that count as low and as high (our choice)


class Expectation(NamedTuple):
    """What a broken model's mean of `metric` must be: at most, or at least, `share` of the reference's mean.

    `against`: the reference model; empty where `share` is the bound itself.
    """

    model: str
    metric: str
    side: str
    share: float
    against: str


def expectations(knowledge: str = "facts_kept") -> list[Expectation]:
    """What each broken model must score, with `knowledge` as the measure of knowledge."""
    return [
        Expectation("comfort-only", "comfort", "at least", MUCH, "template"),
        Expectation("comfort-only", knowledge, "at most", LITTLE, "original"),
        Expectation("comfort-only", "red_flags_kept", "at most", LITTLE, "original"),
        Expectation("knowledge-only", "comfort", "at most", LITTLE, "template"),
        Expectation("knowledge-only", knowledge, "at least", 0.8, ""),
        # Its comfort may be as high as any: that it never listens shows over many replies only.
        Expectation("same-paragraph", knowledge, "at most", LITTLE, "original"),
        Expectation("same-paragraph", "variety", "at most", LITTLE, "template"),
        Expectation("echo", "comfort", "at most", LITTLE, "template"),
        Expectation("echo", knowledge, "at most", LITTLE, "original"),
        Expectation("thrice", "comfort", "at most", 1.0, "template"),
        Expectation("thrice", "repetition", "at least", 0.5, ""),
        Expectation("thrice", "length_ratio", "at least", 2.5, "template"),
    ]


def _comfort(soothing: str, source: str) -> str:
    """What a soothing answer adds to its source: the sentences of which the source holds less than half."""
    known = wording.content(source)
    added = [(sentence, wording.content(sentence)) for sentence in wording.new_sentences(source, soothing)]
    return " ".join(sentence for sentence, stems in added if 2 * len(stems & known) < max(len(stems), 1))


def replies(asked: pd.DataFrame, sources: Mapping[str, Dialogue]) -> pd.DataFrame:
    """The replies of five broken models to the questions of `baselines.test_sets`, shaped as `baselines.baseline`.

    `comfort-only` (what the template rewrite adds to the source answer, for a neutral question those of its emotional
    twin), `knowledge-only` (the source answer), `same-paragraph` (one soothing paragraph for all), `echo` (the
    question), `thrice` (the template rewrite three times over).
    """
    plain = asked["dialogue_id"].map(lambda key: sources[key].answer)
    emotional = asked["test_set"] == "emotional"
    soothing = asked["soothing"].where(emotional, plain)
    comfort = pd.Series([_comfort(*pair) for pair in zip(soothing, plain, strict=True)], index=asked.index)
    twins = asked["dialogue_id"].map(comfort[emotional].groupby(asked["dialogue_id"]).first())
    comfort = comfort.where(comfort != "", twins).replace("", pd.NA).fillna(PARAGRAPH)
    said = {
        "comfort-only": comfort,
        "knowledge-only": plain,
        "same-paragraph": PARAGRAPH,
        "echo": asked["question"],
        "thrice": soothing.map(lambda text: "\n\n".join([text] * 3)),
    }
    rest = {"tokens": float("nan"), "ended": float("nan"), "method": "adversarial", "seed": pd.NA}
    return pd.concat([asked.assign(reply=reply, **rest, model=name) for name, reply in said.items()], ignore_index=True)


def _means(scores: pd.DataFrame) -> pd.DataFrame:
    """The mean of each metric over the dialogues, a row a model; `variety`: the share of replies that differ."""
    chosen = scores[scores["test_set"] == "emotional"]
    by_dialogue = chosen.groupby(["model", "dialogue_id"], sort=False).mean(numeric_only=True)
    means = by_dialogue.groupby("model", sort=False).mean()
    variety = chosen.groupby("model")["reply"].agg(lambda texts: texts.nunique() / len(texts))
    return means.assign(variety=variety)


def table(scores: pd.DataFrame, knowledge: str = "facts_kept") -> pd.DataFrame:
    """Whether each broken model came out as it should: columns model, metric, expected, value, bound, holds.

    Only emotional questions count: a neutral one leaves no comfort to lose. `scores`: those of `replies` and of the
    baselines `original` and `template`, a row a reply with its text. A metric that does not apply to the corpus has
    no row. Raises MedComfortError if a model, or the measure of knowledge, is missing.
    """
    means = _means(scores)
    needed = expectations(knowledge)
    missing = {name for e in needed for name in (e.model, e.against) if name} - set(means.index)
    if missing:
        raise MedComfortError(f"the scores hold no replies to emotional questions of {', '.join(sorted(missing))}.")
    if knowledge not in means or means[knowledge].isna().all():
        raise MedComfortError(f"the scores hold no {knowledge}: name the measure of knowledge that applies.")
    rows = []
    for model, metric, side, share, against in needed:
        if metric not in means or means[metric].isna().all():
            continue
        value, bound = means.at[model, metric], share * (means.at[against, metric] if against else 1.0)
        holds = value <= bound + 1e-9 if side == "at most" else value >= bound - 1e-9
        expected = f"{side} {share:g} of {against}" if against else f"{side} {share:g}"
        rows.append([model, metric, expected, float(value), float(bound), bool(holds)])
    return pd.DataFrame(rows, columns=["model", "metric", "expected", "value", "bound", "holds"])
