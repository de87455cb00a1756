"""The comfort score against labelled replies, authors it never saw, traps, and changes that must not matter.

All labels, in data/comfort_labels and in tests/data/comfort_dev.yaml (short medical replies), were written by a
language model: agreement says that the score does what was meant, not that people would agree. The weights were learned
without the latter, but narrow cues of the lexicon were once widened by its misses. Cues and training texts were also
written against traps below that had failed: the traps guard against regress, they estimate nothing.
"""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from sklearn.metrics import cohen_kappa_score

from medcomfort_utils.evaluate import comfort, comfort_features, comfort_model
from medcomfort_utils.evaluate.comfort import MECHANISMS, length_only, score
from medcomfort_utils.evaluate.comfort_model import LABELS, kappa, labels_of, read_labels
from medcomfort_utils.paths import MedComfortError

PARTS = yaml.safe_load((Path(__file__).parent / "data" / "comfort_dev.yaml").read_text(encoding="utf-8"))
ROWS = read_labels()
WARM = (
    "I'm truly sorry you have to carry this fear. It must be terrifying to lie awake with it. "
    "What frightens you most about the night?"
)
MEDICAL = (
    "Take 500 mg of paracetamol every six hours. Anxiety is a side effect. Call if you feel worried. "
    "Do you smoke? Pain can be terrible."
)
FACTS = [
    "Paracetamol may be taken four times a day.",
    "High blood pressure rarely causes symptoms.",
    "The wound must be kept dry for two days.",
    "Antibiotics do not act on viruses.",
    "Anxiety is a side effect of steroids.",
]
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
    "The patient is wearing a mask and the wound is draining.",
    "The pain is crushing and the medicine is bitter.",
    "You may have a hard time swallowing.",
    "A heavy period lasts more than seven days.",
    "You have been trying to conceive for a year.",
    "It is normal for babies to cry for two hours a day.",
    "Smoking takes a toll on the lungs.",
    "The stone will pass in the urine. It will pass within a week.",
    "This is why you feel dizzy.",
    "Such a blow to the head needs a scan.",
    "A temperature above 40 is worrying.",
    "It is difficult to treat and hard to say how long it takes.",
    "Avoid steroids, as the wound must be dry.",
    "I do not understand how you feel, and this is not frightening.",
    "Panic disorder causes fear. Grief comes in waves.",
    "Exercise in the heat is more stressful for the heart.",
    "Codeine is stronger than paracetamol. Give yourself the injection at night.",
    "The wound stings. Cut the food in pieces, and store the drops in a dark place.",
    "A lump in your throat and a knot in your stomach are symptoms of reflux.",
    "Hold your breath. Do not lie awake in bed for more than twenty minutes.",
    "I am concerned that this could be meningitis.",
    "Wear whatever you feel comfortable in.",
    "People living with anxiety often sleep badly. Exposure therapy means facing the fear.",
    "CPVT is a devastating condition. Fainting is a brief loss of consciousness.",
    "It is evident that you have high blood sugar and low iron.",
    "Do not worry about missing one dose.",
    "Call us if you are dizzy and you feel hopeless.",
    "A diary shows what worries you most at night.",
    "He may feel sad or angry, and the patient is tearful.",
    "Have you tried a supportive bandage? Which leg is heavier?",
]
# What the model still takes for comfort, mostly questions about symptoms: known, and to shrink.
MISSED = [
    "It may feel like a burning sensation.",
    "Does it feel like a burning? Do you feel like vomiting?",
    "I have been through this report and I also had a look at the scan.",
    "What hurts, and at what time of the day is it worst?",
    "How do you feel after meals?",
    "How is your heart? Does the cough keep you up at night?",
    "How do you manage the stairs? Does the tablet make you feel sick?",
    "Please tell me more about your symptoms.",
    "Would you like to share your reports?",
    "Are you feeling any numbness? Do you have a history of anxiety?",
    "You feel weak because of anaemia, and you are low in iron.",
    "Do you remember when you first felt the pain? What would you take if it came back?",
    "When did you last take the tablet? What happened when you stopped it?",
]


def levels(answer: str, question: str = "What helps?") -> list[int]:
    return score([question], [answer]).loc[0, list(MECHANISMS)].tolist()


# A little below the agreement measured.
FLOORS = {"after_1": (0.9, 0.75, 0.9), "after_2": (0.75, 0.75, 0.9), "after_3": (0.8, 0.8, 0.9)}


@pytest.mark.parametrize("part", FLOORS)
def test_agrees_with_the_labels_of_medical_replies(part):
    examples = PARTS[part]
    table = score([e["question"] for e in examples], [e["answer"] for e in examples])
    labels = np.array([e["labels"] for e in examples])
    for column, (name, floor) in enumerate(zip(MECHANISMS, FLOORS[part], strict=True)):
        assert kappa(labels[:, column], table[name]) >= floor, name


def test_agrees_with_an_author_it_never_saw():
    others = [row for row in ROWS if row["author"] != "p1"]
    rows = [row for row in ROWS if row["author"] == "p1"]
    model = comfort_model.train(others)
    values = np.array([comfort_model.strongest(model, row) for row in rows])
    given, truth = comfort.levels(values, comfort._model().thresholds), labels_of(rows)
    for column, floor in enumerate((0.78, 0.7, 0.8)):
        assert kappa(truth[:, column], given[:, column]) >= floor, MECHANISMS[column]


def test_agrees_with_replies_it_was_never_trained_on():
    rows = [json.loads(line) for line in (LABELS / "first_sight.jsonl").read_text(encoding="utf-8").splitlines()]
    assert not {row["answer"] for row in rows} & {row["answer"] for row in ROWS}
    table = score([row["question"] for row in rows], [row["answer"] for row in rows])
    for column, (name, floor) in enumerate(zip(MECHANISMS, (0.75, 0.65, 0.8), strict=True)):
        assert kappa(labels_of(rows)[:, column], table[name]) >= floor, name


def test_the_committed_weights_are_what_the_labels_make():
    trained = comfort_model.train(ROWS)._replace(thresholds=comfort._model().thresholds)
    values = np.array([comfort_model.strongest(trained, row) for row in ROWS])
    table = score([row["question"] for row in ROWS], [row["answer"] for row in ROWS])
    assert np.mean(comfort.levels(values, trained.thresholds) == table[list(MECHANISMS)].to_numpy()) >= 0.995


def test_comfort_is_more_than_length():
    report = json.loads((LABELS / "report.json").read_text(encoding="utf-8"))["all"]
    assert report["replies"] == len(ROWS)
    for name in MECHANISMS:
        assert np.sum(report[name]["confusion"]) == len(ROWS)
        assert report[name]["kappa"] >= report[name]["kappa of length alone"] + 0.25


def test_both_passes_of_labelling_agree_as_the_card_says():
    rows = [json.loads(line) for line in (LABELS / "second_pass.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({row["id"] for row in rows} & {row["id"] for row in ROWS}) == len(rows) >= 200
    card = (LABELS / "README.md").read_text(encoding="utf-8")
    for column, name in enumerate(MECHANISMS):
        passes = [row["first"][column] for row in rows], [row["second"][column] for row in rows]
        plain, quadratic = cohen_kappa_score(*passes), cohen_kappa_score(*passes, weights="quadratic")
        assert f"| {name} | {plain:.2f} | {quadratic:.2f} |" in card


def test_kappa_is_that_of_scikit_learn():
    truth, given = np.random.default_rng(0).integers(0, 3, (2, 200))
    assert kappa(truth, given) == pytest.approx(cohen_kappa_score(truth, given, weights="quadratic"))
    assert kappa([1, 1], [1, 1]) == 1.0


def test_labelled_replies_are_each_written_once():
    assert len(ROWS) >= 1200
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert len({(row["question"], row["answer"]) for row in ROWS}) == len(ROWS)


def test_a_line_of_labels_that_does_not_fit_is_named(tmp_path):
    row = dict.fromkeys(("id", "world", "question", "answer"), "x") | dict.fromkeys(MECHANISMS, 0)
    lines = [row, row | {"explorations": 3}]
    (tmp_path / "a1.jsonl").write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(MedComfortError, match="a1.jsonl, line 2"):
        read_labels(tmp_path)


def test_a_model_is_saved_and_loaded_as_it_was(tmp_path):
    path = comfort_model.save(comfort._model(), tmp_path / "copy.json")
    assert path.read_bytes() == comfort.WEIGHTS.read_bytes()
    assert comfort.WEIGHTS.stat().st_size < 2_000_000


@pytest.mark.parametrize("answer", TRAPS)
def test_medical_text_scores_nothing(answer):
    assert levels(answer) == [0, 0, 0]


@pytest.mark.xfail(strict=True, reason="read as comfort by today's weights")
@pytest.mark.parametrize("answer", MISSED)
def test_medical_text_that_is_still_missed(answer):
    assert levels(answer) == [0, 0, 0]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Sorry to hear that.", [1, 0, 0]),
        ("I feel sad for you.", [2, 0, 0]),
        ("I understand how you feel.", [0, 1, 0]),
        ("same lol", [0, 1, 0]),
        ("I'm sorry to hear that.", [1, 0, 0]),
        ("im sorry ur going through this", [2, 0, 0]),
        ("here if you wanna talk", [1, 0, 0]),
        ("\u2764\ufe0f", [1, 0, 0]),
        ("thats rough man", [0, 1, 0]),
        ("I've been there.", [0, 1, 0]),
        ("How are you?", [0, 0, 1]),
        ("whats going on", [0, 0, 1]),
        ("did he say that or do u just feel it", [0, 0, 2]),
        ("what you need is rest", [0, 0, 0]),
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


@pytest.mark.parametrize(
    "change",
    [lambda a: "\n".join([a, *FACTS]), lambda a: f"{a}\n{a}", lambda a: f"{a} {a}", str.upper],
    ids=["facts added", "doubled", "doubled in one line", "shouted"],
)
def test_facts_doubling_and_shouting_change_nothing(change):
    questions, answers = [row["question"] for row in ROWS], [row["answer"] for row in ROWS]
    assert score(questions, list(map(change, answers))).equals(score(questions, answers))


@pytest.mark.parametrize("once", ["I am sorry. ", "I am sorry ", "I am sorry, "])
def test_ten_sorrys_are_one(once):
    assert levels(once * 10) == levels("I am sorry.") == [1, 0, 0]


@pytest.mark.parametrize("answer", ["", "   ", "...", "\u4f60\u597d\u3002"])
def test_an_answer_without_english_scores_nothing(answer):
    assert levels(answer) == [0, 0, 0]


def test_the_question_never_raises_the_score():
    answers = [row["answer"] for row in ROWS]
    assert (score([WARM] * len(ROWS), answers)["comfort"] <= score([""] * len(ROWS), answers)["comfort"]).all()
    assert levels(WARM, question=f"A friend told me this. {WARM}") == [0, 0, 0]


def test_a_thousand_answers_a_second():
    answers = [row["answer"] for row in ROWS]
    comfort._sentence_levels.cache_clear()
    began = time.process_time()
    score(answers[1:] + answers[:1], answers)
    assert len(answers) / (time.process_time() - began) >= 1000  # 2,500 to 3,000 measured on one core


def test_length_only_counts_words():
    assert length_only(["", "one", "two  words"]).tolist() == [0, 1, 2]


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


def test_an_unknown_list_in_the_lexicon_is_named():
    with pytest.raises(MedComfortError, match="'feelin'"):
        comfort_features._compile(["i am {feelin}"], {"feeling": "sad"})
