"""Knowledge and form, on answers small enough to score by hand; facts in any wording, and what their report says."""

import json
import math
from itertools import product

import pytest
from rouge_score.rouge_scorer import RougeScorer

from medcomfort_utils.evaluate import knowledge
from medcomfort_utils.paths import DATA, MedComfortError
from medcomfort_utils.records import Dialogue

# What the measure is known not to hear: a test that begins to pass fails, so that the card is mended.
MISSED = pytest.mark.xfail(reason="a known miss", strict=True)
FACTS = ["Take 75 mg of aspirin once daily.", "Rest for 2 weeks."]
FLAG = "Call an ambulance if the pain lasts beyond 10 minutes."
PLAIN = " ".join([*FACTS, FLAG])


def dialogue(answer: str = PLAIN, **fields) -> Dialogue:
    turns = [{"role": "user", "content": "I am 50 and my chest hurts."}, {"role": "assistant", "content": answer}]
    return Dialogue(**{"id": "a", "source": "test", "messages": turns, "split": "test", **fields})


def test_facts_survive_comfort_case_space_and_punctuation():
    assert knowledge.facts_kept("Do not worry: take 75mg of ASPIRIN,\n once daily! Rest - for 2 weeks.", FACTS) == 1


@pytest.mark.parametrize(
    "answer",
    [
        PLAIN.replace("75", "76"),
        PLAIN.replace("75 mg", "0.75 mg"),
        PLAIN.replace("75", "175"),
        PLAIN.replace("aspirin", "aspirins"),
        PLAIN.replace("once ", ""),
        PLAIN.replace("75 mg of aspirin", "aspirin of 75 mg"),
        "Rest for 2 weeks.",
    ],
)
def test_a_changed_fact_is_lost(answer):
    assert knowledge.facts_kept(answer, FACTS) == 0.5


def test_decimals_are_whole_words():
    assert knowledge.facts_kept("Take 0.5 mg daily.", ["5 mg daily"]) == 0
    assert knowledge.facts_kept("Take 1,000 mg.", ["take 1000 mg"]) == 1


def test_a_softened_red_flag_is_lost():
    assert knowledge.facts_kept(PLAIN, [FLAG]) == 1
    assert knowledge.facts_kept(PLAIN.replace("Call", "Perhaps you could call later"), [FLAG]) == 0
    assert knowledge.facts_kept(PLAIN.replace("beyond 10", "beyond 60"), [FLAG]) == 0


def test_no_facts_is_no_score():
    assert math.isnan(knowledge.facts_kept(PLAIN, []))
    assert knowledge.score([PLAIN], [dialogue()])[["facts_supported", "contradictions"]].isna().all(axis=None)


def test_facts_in_english_alone_are_looked_for():
    foreign = knowledge.score([PLAIN], [dialogue(facts=["多喝水"], lang="zh")])
    assert foreign[["facts_supported", "contradictions"]].isna().all(axis=None)


def test_rouge_is_that_of_rouge_score():
    scorer, texts = RougeScorer(["rougeL"]), [PLAIN, f"I am sorry. {PLAIN}", PLAIN[::-1], "c a a b", "a b c d", ""]
    for answer, reference in product(texts, texts[:-1]):
        known = scorer.score(reference, answer)["rougeL"]
        found = knowledge.rouge(answer, reference)
        assert (found["rouge_l"], found["rouge_l_recall"]) == (known.fmeasure, known.recall)


def test_rouge_bleu_and_chrf():
    same = knowledge.rouge(PLAIN, PLAIN)
    longer = knowledge.rouge(f"I am sorry. {PLAIN}", PLAIN)
    assert set(same.values()) == {1.0} and knowledge.bleu(PLAIN, PLAIN) == pytest.approx(100)
    assert longer["rouge_l_recall"] == 1 > longer["rouge_l"] > 0.8
    assert knowledge.rouge("c a", "a b c d")["rouge_l_recall"] == 0.25
    assert knowledge.bleu("Nothing alike here", PLAIN) < 5
    assert knowledge.chrf(PLAIN, PLAIN) == pytest.approx(100) and knowledge.chrf("Why?", PLAIN) < 5
    assert knowledge.chrf("tablet", "tablets") > 50 > knowledge.bleu("tablet", "tablets")
    assert all(math.isnan(value) for value in knowledge.rouge("多休息", "多喝水").values())


def test_distinct_words_and_pairs():
    assert knowledge.distinct("a b a b", 1) == 2 / 4 and knowledge.distinct("a b a b", 2) == 2 / 3
    assert knowledge.distinct("no " * 50, 1) == 1 / 50 and knowledge.distinct("", 1) == 0


@pytest.mark.parametrize(
    ("answer", "lang", "expected"),
    [
        ("Rest, and drink plenty.", "en", 1.0),
        ("Prenez du repos et buvez beaucoup d'eau avec les repas.", "en", 0.0),
        ("Rest.\nNehmen Sie das mit dem Essen und nicht auf der Strasse.", "en", 0.0),
        ("多喝水，好好休息。", "en", 0.0),
        ("多喝水，好好休息。", "zh", 1.0),
        ("Rest.", "zh", 0.0),
        ("A caf\u00e9 in Z\u00fcrich is fine for your na\u00efve palate.", "en", 1.0),
    ],
)
def test_the_language_of_an_answer(answer, lang, expected):
    assert knowledge.in_language(answer, lang) == expected


def test_no_language_where_there_is_no_letter_or_no_rule():
    assert knowledge.in_language("... 42", "en") == 0 and math.isnan(knowledge.in_language("Rest.", "de"))


def test_repetition_and_length():
    assert knowledge.repetition("a b c d e") == 0 == knowledge.repetition("a b")
    assert knowledge.repetition("a b c d a b c d") == pytest.approx(1 / 5)
    assert knowledge.repetition("no " * 50) > 0.95
    assert knowledge.length_ratio("a b c", "a b") == 1.5


def test_score_gives_a_row_an_answer():
    known = dialogue(facts=FACTS, red_flags=[FLAG])
    scores = knowledge.score([PLAIN, "", "I feel with you, 24 hours a day."], [known] * 3)
    assert list(scores["facts_kept"]) == [1, 0, 0]
    assert list(scores["facts_supported"]) == [1, 0, 0]
    assert list(scores["contradictions"]) == [0, 0, 0]
    assert list(scores["red_flags_kept"]) == [1, 0, 0]
    assert list(scores["invented_numbers"]) == [0, 0, 1]
    assert not scores.isna().any().any()


def test_facts_in_no_fixed_wording_have_no_exact_score():
    free = dialogue(facts=["One aspirin of 75 mg a day.", "Do not smoke."])
    scores = knowledge.score([PLAIN, PLAIN.replace("75", "300")], [free] * 2)
    assert scores[["facts_kept", "red_flags_kept"]].isna().all(axis=None)
    assert (
        list(scores["facts_supported"]) == [0.5, 0] and scores["contradictions"][1] >= scores["contradictions"][0] == 0
    )


def test_unequal_lists_are_refused():
    with pytest.raises(MedComfortError, match="2 and 1"):
        knowledge.score(["a", "b"], [dialogue()])


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("You can stop prednisone suddenly without any problem.", "Do not stop prednisone suddenly."),
        ("Take at least 8 tablets in 24 hours.", "Take at most 8 tablets in 24 hours."),
        pytest.param("Take ibuprofen on an empty stomach.", "Take ibuprofen with food.", marks=MISSED),
        ("Take 150 mg of aspirin once daily.", "Take 75 mg of aspirin once daily."),
        ("You can drink alcohol while you take metronidazole.", "Do not drink alcohol while you take metronidazole."),
    ],
)
def test_a_fact_turned_round_is_contradicted_and_not_conveyed(answer, fact):
    assert knowledge.fact_support([fact], [[fact]])[0][0] > 0.8
    assert knowledge.fact_support([answer], [[fact]])[0][0] < 0.5
    assert knowledge.contradictions([answer], [[fact]]) == [1]


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("Take ibuprofen 400 mg with food.", "Do not take more than 1200 mg a day."),
        ("", FACTS[0]),
        ("I am so sorry that this frightens you.", FACTS[0]),
        ("Keep your leg raised, and come back next week.", "Do not stop prednisone suddenly."),
    ],
)
def test_a_fact_that_is_not_touched_is_missing(answer, fact):
    assert knowledge.fact_support([answer], [[fact]])[0][0] < 0.5
    assert knowledge.contradictions([answer], [[fact]]) == [0]


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        ("For your heart, one tablet of aspirin 75mg each day is right.", FACTS[0]),
        ("You should never combine warfarin with ibuprofen.", "Do not combine ibuprofen with warfarin."),
        ("Stay away from alcohol.", "Avoid alcohol."),
        pytest.param("Please keep taking it for the whole week.", "Finish the course of 7 days.", marks=MISSED),
    ],
)
def test_a_fact_in_other_words_is_conveyed(answer, fact):
    assert knowledge.fact_support([answer], [[fact]])[0][0] > 0.5


def test_a_facts_value_depends_on_no_neighbour():
    listed = [*FACTS, "Do not smoke.", FLAG]
    answer = f"I am sorry. {PLAIN} Smoking is fine."
    together = knowledge.fact_support([answer, "Rest."], [listed, listed])[0]
    alone = [knowledge.fact_support([answer], [[fact]])[0][0] for fact in listed]
    assert together == pytest.approx(alone, abs=1e-5)
    assert knowledge.fact_support([answer], [listed[::-1]])[0] == pytest.approx(together[::-1], abs=1e-5)
    assert knowledge.fact_support(["Rest."], [[]]) == [[]]


def test_the_report_on_files_that_were_not_trained_on():
    report = json.loads((DATA / "fact_labels" / "report.json").read_text(encoding="utf-8"))
    assert all(found["auc"] > 0.7 for found in report.values())
    assert all(report[file]["precision"] > 0.5 for file in ("labels", "f1", "f2"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [["b"]], "zh"), "lang.*'zh'"),
        ((["a", "b"], [["c"]]), "a list of facts"),
        (("a", [["b"]]), "a list of answers"),
        ((["a"], ["b"]), r"facts\[0\]"),
        (([None], [["b"]]), r"answers\[0\]"),
        ((None, [["b"]]), "a list of answers"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(MedComfortError, match=message):
        knowledge.fact_support(*arguments)
