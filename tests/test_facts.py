"""Whether an answer conveys a fact: known cases, and agreement with the labels, which falls when a part is broken."""

import json
import math
import time

import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medcomfort_utils.evaluate import facts, facts_model
from medcomfort_utils.evaluate.concepts import polarity
from medcomfort_utils.paths import MedComfortError

ASPIRIN = "Take 75 mg of aspirin once daily."
ALONE = "Do not take ibuprofen together with warfarin."


def support(answer: str, *listed: str, **options) -> float:
    """The support of the first fact; the others are of the same item."""
    return facts.fact_support([answer], [list(listed)], **options)[0][0]


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        (ASPIRIN, ASPIRIN),
        ("For your heart, one tablet of aspirin 75mg each day is right.", ASPIRIN),
        ("A heart attack is likely, so dial 911 right away.", "Myocardial infarction is suspected; call an ambulance."),
        ("It is one of the SSRIs. Sertraline, that is.", "Sertraline is a selective serotonin reuptake inhibitor."),
        ("Diarrhoea lowers haemoglobin.", "Diarrhea can lower the hemoglobin."),
        ("Acetominophen is fine for the fever.", "Acetaminophen can be given for fever."),
        ("You should never combine warfarin with ibuprofen.", "Do not combine ibuprofen with warfarin."),
        ("Stay away from alcohol.", "Avoid alcohol."),
        ("Rest for a fortnight, that is 14 days.", "Rest for 2 weeks."),
    ],
)
def test_a_fact_in_other_words_is_conveyed(answer, fact):
    assert support(answer, fact) > 0.6
    assert facts.contradictions([answer], [[fact]]) == [0]


@pytest.mark.parametrize(
    ("answer", "fact"),
    [
        (ASPIRIN.replace("75", "150"), ASPIRIN),
        ("Rest for 3 weeks.", "Rest for 2 weeks."),
        ("Take ibuprofen together with warfarin.", ALONE),
        ("It is not caused by a virus.", "It is caused by a virus."),
        ("Stop the tablets as soon as you feel better.", "Do not stop the tablets when you feel better."),
        ("You can drink alcohol while you take metronidazole.", "Do not drink alcohol while you take metronidazole."),
        ("Take ibuprofen even if you have kidney disease.", "Do not take ibuprofen if you have kidney disease."),
        ("Grapefruit juice increases the level of the drug.", "Grapefruit juice lowers the level of the drug."),
    ],
)
def test_a_fact_turned_round_is_denied_and_not_conveyed(answer, fact):
    assert support(fact, fact) > 0.9
    assert support(answer, fact) < 0.5
    assert facts.contradictions([answer], [[fact]]) == [1]


@pytest.mark.parametrize("answer", ["", "I am so sorry that this frightens you.", "...", "多喝水"])
def test_an_answer_on_nothing_of_it_conveys_nothing(answer):
    assert support(answer, ASPIRIN) < 0.1
    assert facts.contradictions([answer], [[ASPIRIN]]) == [0]


def test_words_that_all_facts_share_tell_little():
    others = ["Sertraline may cause nausea.", "Sertraline needs 4 weeks."]
    answer = "Sertraline is well known."
    assert support(answer, "Sertraline can cause drowsiness.", *others) < support(
        answer, "Sertraline can cause drowsiness."
    )


def test_words_of_the_question_tell_less():
    fact, answer = "Sertraline can cause nausea.", "Sertraline is well known."
    assert support(answer, fact, questions=["May I take sertraline?"]) < support(answer, fact)


def test_scattered_words_are_worth_less_than_a_sentence():
    together = "Iron turns the stool black. Drink water. Sleep well."
    scattered = "Iron helps. A black cat sleeps. Your stool is fine."
    assert support(scattered, "Iron turns the stool black.") < support(together, "Iron turns the stool black.") - 0.1


def test_similarity_raises_the_support():
    near, far = (support("Rest.", ASPIRIN, similarity=lambda said, runs, v=v: [v] * len(said)) for v in (0.9, 0.1))
    assert near > far


def test_shares_and_counts():
    listed = [ASPIRIN, "Rest for 2 weeks."]
    answers = [" ".join(listed), ASPIRIN, "Rest for 5 weeks."]
    assert facts.comprehensiveness(answers, [listed] * 3) == [1.0, 0.5, 0.0]
    assert facts.contradictions(answers, [listed] * 3) == [0, 0, 1]
    assert math.isnan(facts.comprehensiveness(["Rest."], [[]])[0])
    assert facts.fact_support(["Rest."], [[]]) == [[]]


def test_clauses_keep_a_denial_to_themselves():
    assert polarity("Do not smoke, but walk.") == {"smoke": True, "walk": False}
    assert polarity("No more than one walk.") == {"walk": False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["a"], [["b"]], "zh"), "lang.*'zh'"),
        ((["a", "b"], [["c"]]), "a list of facts"),
        (("a", [["b"]]), "a list of answers"),
        ((["a"], ["b"]), r"facts\[0\]"),
        (([None], [["b"]]), r"answers\[0\]"),
        ((None, [["b"]]), "a list of answers"),
        ((["a"], [["b"]], "en", [None]), r"questions\[0\]"),
        ((["a"], [["b"]], "en", []), "a question"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(MedComfortError, match=message):
        facts.fact_support(*arguments)


@pytest.fixture(scope="module")
def pairs() -> pd.DataFrame:
    return facts_model.labelled()


@pytest.fixture(scope="module")
def table(pairs) -> pd.DataFrame:
    return facts_model.features(pairs)[facts_model.FEATURES]


def held_out_auc(pairs: pd.DataFrame, table: pd.DataFrame) -> float:
    """ROC AUC of conveyed against the rest, each pair scored by weights that never saw its question."""
    conveyed = pairs["label"] == "conveyed"
    scores = facts_model.held_out(table, conveyed, facts_model.importance(pairs["label"]), pairs["item"])
    return roc_auc_score(conveyed, scores)


def test_the_measure_agrees_with_the_labels_far_better_than_words_alone(pairs, table):
    baseline = roc_auc_score(pairs["label"] == "conveyed", facts_model.idf_recall(pairs))
    whole = held_out_auc(pairs, table)
    assert whole > 0.86 and whole > baseline + 0.15


def test_the_report_and_the_card_hold_what_the_labels_give(pairs, table):
    report = json.loads(facts_model.REPORT.read_text(encoding="utf-8"))
    told = report["labels.jsonl, ten held-out folds"]["roc_auc"]
    assert told["all features"]["all"] == pytest.approx(held_out_auc(pairs, table), abs=0.001)
    for path in facts_model.FRESH:
        fresh = facts_model.labelled(path)
        auc = roc_auc_score(fresh["label"] == "conveyed", facts_model.support(fresh))
        assert report[path.name]["roc_auc"]["all features"]["all"] == pytest.approx(auc, abs=0.001)
    card = facts_model.REPORT.with_name("README.md").read_text(encoding="utf-8")
    for name in ("sentence", "answer", "reversed", "numbers"):
        row = next(line for line in card.splitlines() if line.startswith(f"| `{name}`"))
        assert row.endswith("| " + " | ".join(f"{value:.3f}" for value in told[name].values()) + " |")


@pytest.mark.parametrize("feature", ["sentence", "answer", "reversed", "numbers"])
def test_each_feature_is_needed(pairs, table, feature):
    """Without it the held-out agreement falls, be it by little."""
    assert held_out_auc(pairs, table.drop(columns=feature)) < held_out_auc(pairs, table)


def test_the_weights_have_signs_that_make_sense():
    weights = facts._model("support")
    assert weights["sentence"] > 0 < weights["answer"] and weights["reversed"] < 0 > weights["numbers"]
    assert facts._model("support_with_similarity")["similarity"] > 0


def test_the_shipped_weights_and_frequencies_are_what_the_labels_give(pairs, table):
    conveyed, weight = pairs["label"] == "conveyed", facts_model.importance(pairs["label"])
    learnt = facts_model.fit(table, conveyed, weight)
    assert facts._model("support") == pytest.approx(learnt, abs=0.01)
    assert facts._frequencies() == facts_model.frequencies(pairs)


def test_the_regression_and_the_auc_are_those_of_scikit_learn(pairs, table):
    conveyed, weight = pairs["label"] == "conveyed", facts_model.importance(pairs["label"])
    theirs = LogisticRegression().fit(table / table.std(), conveyed, sample_weight=weight)
    ours = facts_model.fit(table, conveyed, weight)
    assert list(ours.values())[1:] == pytest.approx(list(theirs.coef_[0] / table.std()), abs=0.01)
    scores = table["sentence"]
    assert facts_model.roc_auc(conveyed, scores) == pytest.approx(roc_auc_score(conveyed, scores))


@pytest.mark.parametrize(("path", "floor"), [(facts_model.FRESH[0], 0.82), (facts_model.FRESH[1], 0.8)])
def test_labels_never_trained_on(path, floor):
    fresh = facts_model.labelled(path)
    assert not set(fresh["item"]) & set(facts_model.labelled()["item"])
    conveyed = fresh["label"] == "conveyed"
    assert roc_auc_score(conveyed, facts_model.support(fresh)) > floor
    assert roc_auc_score(conveyed, facts_model.support(fresh)) > roc_auc_score(conveyed, facts_model.idf_recall(fresh))


def test_five_hundred_answers_a_second_and_twice_the_same():
    sentence = "On day {0} take {0} mg of drug{0} with water, since the stomach of patient {0} is not empty then."
    answers = [" ".join(sentence.format(i * 9 + j) for j in range(9)) for i in range(150)]
    listed = [["Take it on an empty stomach.", ASPIRIN, "Drink water.", ALONE, "Rest for 2 weeks."]] * len(answers)
    started = time.process_time()
    first = facts.fact_support(answers, listed)
    seconds = time.process_time() - started
    assert first == facts.fact_support(answers, listed)
    assert seconds < 3 * len(answers) / 500  # three times the promise, for a busy machine
