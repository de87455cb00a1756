"""Comfort cues against labelled examples, traps, and changes that must not matter.

The labels in data/comfort_dev.yaml were written by a language model, the same that wrote the rules: agreement says
that the rules do what was meant, not that people would agree. Quadratic weighted kappa as measured (emotional
reactions, interpretations, explorations):

    part          n    at first sight       now
    development   80   -                    1.00 0.99 1.00
    held out      40   1.00 0.94 1.00       1.00 0.94 1.00
    after_1       30   0.48 0.40 0.51       0.97 1.00 0.97
    after_2       30   0.57 0.22 0.20       0.95 0.98 0.98
    after_3       40   0.76 0.56 0.57       0.94 0.90 1.00

`held out` was labelled with `development`, before the rules, but their author knew its wording, so it flatters them.
The first sight of `after_3` (new everyday wording) is the honest estimate for unseen text, and that of `after_1` and
`after_2` (figures of speech) for unusual text. Nearly all misses are comfort not seen: the score understates.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import cohen_kappa_score

from medcomfort_utils.evaluate import comfort
from medcomfort_utils.evaluate.comfort import MECHANISMS, length_only, score
from medcomfort_utils.paths import MedComfortError

EXAMPLES = yaml.safe_load((Path(__file__).parent / "data" / "comfort_dev.yaml").read_text(encoding="utf-8"))
PARTS = {
    "development": [e for i, e in enumerate(EXAMPLES["before"]) if i % 3 != 2],
    "held out": EXAMPLES["before"][2::3],
    "after_1": EXAMPLES["after_1"],
    "after_2": EXAMPLES["after_2"],
    "after_3": EXAMPLES["after_3"],
}
ALL = [example for part in EXAMPLES.values() for example in part]
WARM = (
    "I'm truly sorry you have to carry this fear. It must be terrifying to lie awake with it. "
    "What frightens you most about the night?"
)
MEDICAL = (
    "Take 500 mg of paracetamol every six hours. Anxiety is a side effect. Call if you feel worried. "
    "Do you smoke? Pain can be terrible."
)
TRAPS = [
    "Depression is treated with SSRIs.",
    "Sorry for the delay.",
    "I'm afraid you have diabetes.",
    "I hope this helps.",
    "I hope that I have answered your question.",
    "If you feel alone or sad, tell the nurse.",
    "You can do this exercise twice a day.",
    "You have got this infection from your child.",
    "Take this together with food.",
    "Sleep on your side.",
    "Take your time when standing up.",
    "It can hurt for a few days, and the injection can sting.",
    "It may feel like a burning sensation.",
    "Does it feel like a burning? Do you feel like vomiting?",
    "The patient is wearing a mask and the wound is draining.",
    "The pain is crushing and the medicine is bitter.",
    "You may have a hard time swallowing.",
    "A heavy period lasts more than seven days.",
    "You have been trying to conceive for a year.",
    "It is normal for babies to cry for two hours a day.",
    "I have been through this report and I also had a look at the scan.",
    "Smoking takes a toll on the lungs.",
    "What hurts, and at what time of the day is it worst?",
    "How do you feel after meals?",
    "How is your heart? Does the cough keep you up at night?",
    "How do you manage the stairs? Does the tablet make you feel sick?",
    "Please tell me more about your symptoms.",
    "Would you like to share your reports?",
    "The stone will pass in the urine. It will pass within a week.",
    "Are you feeling any numbness? Do you have a history of anxiety?",
    "You feel weak because of anaemia, and you are low in iron.",
    "This is why you feel dizzy.",
    "Such a blow to the head needs a scan.",
    "A temperature above 40 is worrying.",
    "It is difficult to treat and hard to say how long it takes.",
    "Avoid steroids, as the wound must be dry.",
    "I do not understand how you feel, and this is not frightening.",
    "Panic disorder causes fear. Grief comes in waves.",
    "I am concerned that this could be meningitis.",
    "Exercise in the heat is more stressful for the heart.",
    "Codeine is stronger than paracetamol. Give yourself the injection at night.",
    "The wound stings. Cut the food in pieces, and store the drops in a dark place.",
    "A lump in your throat and a knot in your stomach are symptoms of reflux.",
    "Hold your breath. Do not lie awake in bed for more than twenty minutes.",
    "Have you tried a supportive bandage? Which leg is heavier?",
    "Do you remember when you first felt the pain? What would you take if it came back?",
    "When did you last take the tablet? What happened when you stopped it?",
    "Wear whatever you feel comfortable in.",
    "People living with anxiety often sleep badly. Exposure therapy means facing the fear.",
    "CPVT is a devastating condition. Fainting is a brief loss of consciousness.",
    "It is evident that you have high blood sugar and low iron.",
    "Do not worry about missing one dose.",
    "Call us if you are dizzy and you feel hopeless.",
    "A diary shows what worries you most at night.",
    "He may feel sad or angry, and the patient is tearful.",
]


def levels(answer: str, question: str = "What helps?") -> list[int]:
    return score([question], [answer]).loc[0, list(MECHANISMS)].tolist()


# A little below the agreement measured now.
FLOORS = {
    "development": (0.95, 0.95, 0.95),
    "held out": (0.95, 0.9, 0.95),
    "after_1": (0.9, 0.9, 0.9),
    "after_2": (0.85, 0.9, 0.9),
    "after_3": (0.85, 0.85, 0.85),
}


@pytest.mark.parametrize("part", PARTS)
def test_agrees_with_the_labels(part):
    examples = PARTS[part]
    table = score([e["question"] for e in examples], [e["answer"] for e in examples])
    labels = np.array([e["labels"] for e in examples])
    for column, (name, floor) in enumerate(zip(MECHANISMS, FLOORS[part], strict=True)):
        kappa = cohen_kappa_score(labels[:, column], table[name], weights="quadratic", labels=[0, 1, 2])
        assert kappa >= floor, name


@pytest.mark.parametrize("answer", TRAPS)
def test_medical_text_scores_nothing(answer):
    assert levels(answer) == [0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Sorry to hear that.", [1, 0, 0]),
        ("I feel sad for you.", [2, 0, 0]),
        ("I understand how you feel.", [0, 1, 0]),
        ("This must be terrifying.", [0, 2, 0]),
        ("What happened?", [0, 0, 1]),
        ("Are you feeling alone right now?", [0, 0, 2]),
        (WARM, [2, 2, 2]),
    ],
)
def test_levels_of_the_three_mechanisms(answer, expected):
    assert levels(answer) == expected


def test_a_table_row_a_pair_with_the_sum():
    table = score(["Why?", "Why?"], [WARM, MEDICAL])
    assert list(table.columns) == [*MECHANISMS, "comfort"]
    assert table["comfort"].tolist() == [6, 0]
    assert all(dtype.kind == "i" for dtype in table.dtypes)
    assert score([], []).shape == (0, 4)


@pytest.mark.parametrize(
    "variant", [WARM.upper(), WARM.replace("'", "\u2019"), WARM.replace(". ", ".\n\n"), f"{WARM} {WARM}"]
)
def test_case_apostrophes_breaks_and_repetition_change_nothing(variant):
    assert levels(variant) == levels(WARM)


def test_added_medical_sentences_change_nothing():
    for example in ALL:
        assert levels(f"{example['answer']} {MEDICAL}") == levels(example["answer"])


@pytest.mark.parametrize("answer", ["", "   ", "...", "\u4f60\u597d\u3002"])
def test_an_answer_without_english_scores_nothing(answer):
    assert levels(answer) == [0, 0, 0]


def test_the_question_never_raises_the_score():
    for example in ALL:
        assert score([WARM], [example["answer"]])["comfort"][0] <= score([""], [example["answer"]])["comfort"][0]
    assert levels(WARM, question=f"A friend told me this. {WARM}") == [0, 0, 0]


def test_length_only_counts_words():
    assert length_only(["", "one", "two  words"]).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("questions", "answers", "lang", "named"),
    [
        (["a"], ["b"], "zh", "lang"),
        (["a"], ["b", "c"], "en", "1 for 2"),
        (["a"], [None], "en", r"answers\[0\]"),
        ([3], ["b"], "en", r"questions\[0\]"),
        ("a", ["b"], "en", "questions"),
    ],
)
def test_bad_input_is_named(questions, answers, lang, named):
    with pytest.raises(MedComfortError, match=named):
        score(questions, answers, lang)


def test_an_unknown_list_in_the_lexicon_is_named():
    with pytest.raises(MedComfortError, match="'feelin'"):
        comfort._compile(["i am {feelin}"], {"feeling": "sad"})
