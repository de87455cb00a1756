"""The gates: each passes what it should and stops what it should, and the word lists tell feelings apart."""

import itertools
import time

import pytest

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import EMOTIONS, Dialogue, Message, Rewrite
from medcomfort_utils.rewrite.clean import sentences
from medcomfort_utils.rewrite.clinic import generate, load_conditions, load_emotions
from medcomfort_utils.rewrite.gates import check, report, sift
from medcomfort_utils.rewrite.rewriters import rewrite_all, template_versions
from medcomfort_utils.rewrite.wording import added_text, comforts, cues, numbers, plain

QUESTION = "Hello doctor. I am 42 and for 3 weeks I have had a sore knee. What should I do?"
FACTS = ["This sounds like bursitis.", "Take 400 mg of ibuprofen 3 times a day with food.", "Come back in 2 weeks."]
FLAG = "Go to the emergency department if you have fever and the knee turns red."
ANSWER = " ".join([*FACTS[:2], FLAG, FACTS[2]])
FEAR = "I am terrified of what this might be."
OPENER = "I am so sorry that this frightens you."
CLOSER = "How are you coping with the worry?"
PLAIN_ANSWERS = [condition.plain_answer for condition in load_conditions()]


def dialogue(question=QUESTION, answer=ANSWER, facts=FACTS, red_flags=(FLAG,), **fields):
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    fields = {"id": "abc", "source": "hand", "split": "train", **fields}
    return Dialogue(messages=messages, facts=list(facts), red_flags=list(red_flags), **fields)


def rewrite(question=f"{QUESTION} {FEAR}", answer=f"{OPENER} {ANSWER} {CLOSER}", condition="emotional", **fields):
    messages = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    fields = {"dialogue_id": "abc", "emotion": "fear", "split": "train", **fields}
    return Rewrite(messages=messages, condition=condition, backend="b", model="m", prompt_version="1", **fields)


def failed(*args, source=None, **changes):
    """Names and reasons of the gates that a rewrite fails."""
    gates = check(source or dialogue(), rewrite(*args, **changes))
    return {gate.name: gate.reason for gate in gates if not gate.passed}


def changed(old, new, text=f"{OPENER} {ANSWER} {CLOSER}"):
    assert old in text
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("condition", "changes"),
    [
        ("emotional", {}),
        ("soothing_answer", {"question": QUESTION}),
        ("comfort_only", {"answer": f"{OPENER} {CLOSER}"}),
        ("original", {"question": QUESTION, "answer": ANSWER, "emotion": ""}),
    ],
)
def test_a_good_rewrite_passes_every_gate(condition, changes):
    assert failed(condition=condition, **changes) == {}


@pytest.mark.parametrize(
    ("broken", "gate", "reason"),
    [
        ({"answer": changed("400 mg", "a little")}, "numbers_kept", "400 mg (answer)"),
        ({"answer": changed("400 mg", "800 mg")}, "numbers_kept", "400 mg (answer)"),
        ({"answer": changed("400 mg", "800 mg")}, "none_invented", "800 mg"),
        ({"answer": changed("400 mg", "400 ml")}, "none_invented", "400 ml"),
        ({"answer": changed("3 times a day", "4 times a day")}, "none_invented", "4 times a day"),
        ({"answer": changed(CLOSER, f"{CLOSER} Take 1 g of paracetamol as well.")}, "none_invented", "1 g"),
        ({"question": f"{QUESTION} {FEAR}".replace("3 weeks", "weeks")}, "numbers_kept", "3 week (question)"),
        ({"question": f"{QUESTION} {FEAR} My temperature is 39 C."}, "none_invented", "39 degree c"),
        ({"answer": changed("sounds like bursitis", "may be bursitis")}, "facts_kept", FACTS[0]),
        ({"answer": changed("with food", "without food")}, "facts_kept", FACTS[1]),
        ({"answer": changed(FLAG + " ", "")}, "red_flags_kept", FLAG),
        ({"answer": changed("emergency department", "pharmacy")}, "red_flags_kept", FLAG),
        ({"question": f"{QUESTION} {FEAR}".replace("sore knee", "sore elbow")}, "question_kept", "knee"),
        ({"question": f"I have had a sore knee. {FEAR} {QUESTION[:20]}"}, "question_kept", "out of order"),
        ({"question": f"{QUESTION} {FEAR}".replace("I have had", "I have never had")}, "question_kept", "never"),
        ({"question": f"{QUESTION} {FEAR}", "condition": "soothing_answer"}, "question_kept", "neutral question"),
        ({"emotion": "guilt"}, "emotion_present", "guilt"),
        ({"question": QUESTION}, "emotion_present", "fear"),
        ({"question": f"{QUESTION} I am not afraid."}, "emotion_present", "not afraid"),
        ({"answer": ANSWER}, "comfort_present", "no comfort"),
        ({"answer": f"Thanks for asking. {ANSWER} I hope this helps."}, "comfort_present", "Thanks for asking"),
        ({"answer": changed(CLOSER, "You will be fine.")}, "no_false_reassurance", "you will be fine"),
        ({"answer": changed(CLOSER, "It's nothing serious.")}, "no_false_reassurance", "nothing serious"),
        ({"answer": changed(CLOSER, "There is no need to worry at all.")}, "no_false_reassurance", "no need to worry"),
        ({"answer": f"Doctor: {OPENER} {ANSWER}"}, "no_role_leak", "Doctor:"),
        ({"answer": f"{OPENER} {ANSWER} As an AI I cannot examine you."}, "no_role_leak", "As an AI"),
        ({"question": f"<|user|>{QUESTION} {FEAR}"}, "no_role_leak", "<|user|>"),
        ({"question": f"Here is the rewritten question: {QUESTION} {FEAR}"}, "no_role_leak", "Here is the rewritten"),
        ({"answer": f"{OPENER} {FACTS[0]}"}, "length", "answer has"),
        ({"answer": changed(CLOSER, CLOSER + " I care about how you feel." * 20)}, "length", "more than its source"),
    ],
)
def test_a_broken_rewrite_is_stopped_for_its_reason(broken, gate, reason):
    assert reason in failed(**broken)[gate]


@pytest.mark.parametrize(
    "question",
    [
        f"Hello doctor. {FEAR} {QUESTION.removeprefix('Hello doctor. ')}",
        QUESTION.replace(" What should", f" I feel so anxious, and I cannot sleep. {FEAR} What should"),
        QUESTION.replace("a sore knee.", "a sore knee and I am scared of what it might turn out to be."),
    ],
)
def test_a_feeling_may_stand_anywhere_in_the_question(question):
    assert failed(question) == {}


def test_the_original_must_not_change():
    assert "unchanged" in failed(question=QUESTION, answer=f"{OPENER} {ANSWER}", condition="original")


def test_facts_in_other_words_than_the_answer_let_its_sentences_count():
    source = dialogue(facts=["Ibuprofen is the treatment of choice."], red_flags=[])
    assert failed(source=source) == {}
    assert FLAG in failed(source=source, answer=changed(FLAG + " ", ""))["facts_kept"]


def test_unknown_facts_let_the_sentences_of_the_answer_count():
    source = dialogue(facts=[], red_flags=[])
    assert failed(source=source, answer=changed("This sounds like bursitis.", "THIS sounds   like bursitis!")) == {}
    assert FACTS[2] in failed(source=source, answer=changed(FACTS[2] + " ", ""))["facts_kept"]


def test_a_label_that_the_source_has_is_no_leak():
    note = "Note of my doctor: rest."
    assert failed(f"{QUESTION} {note} {FEAR}", source=dialogue(f"{QUESTION} {note}")) == {}


def test_earlier_turns_count_as_kept():
    earlier = [Message(role="user", content="It began 5 days ago."), Message(role="assistant", content="I see.")]
    source = dialogue().model_copy(update={"messages": [*earlier, *dialogue().messages], "id": "0"})
    for version in template_versions(source):
        assert all(gate.passed for gate in check(source, version)), version.condition
    assert "5 day (question)" in failed(source=source)["numbers_kept"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("400mg", "400 mg"),
        ("1,000 IU", "1000 iu"),
        ("1,25,000 cells", "125000 cells"),
        ("50%", "50 percent"),
        ("two weeks", "2 weeks"),
        ("twice a day", "2 times daily"),
        ("3x/day", "three times per day"),
        ("38.50 °C", "38.5 degrees Celsius"),
        ("a 24-year-old", "24 years old"),
        (".5 ml", "0.5 millilitres"),
        ("120/80 mmHg", "120/80 mm Hg"),
        ("2 litres and 8 glasses", "8 glasses, 2 L"),
    ],
)
def test_one_quantity_in_two_spellings(one, other):
    assert numbers(one) == numbers(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [("5 mg", "5 ml"), ("5 days", "5 weeks"), ("0.5 g", "5 g"), ("120/80", "120/90"), ("39 C", "39 F"), ("-2", "2")],
)
def test_different_quantities(one, other):
    assert numbers(one) != numbers(other)


def test_letters_and_plain_words_are_no_numbers():
    assert not numbers("Vitamin B12 helps one side, and one of us said so once.")


def test_added_text_is_what_the_source_lacks():
    assert added_text(ANSWER, f"{OPENER} {ANSWER} {CLOSER}").splitlines() == [OPENER, CLOSER]
    assert added_text("I have had a sore knee.", "I have had a sore knee and I am afraid.") == "and I am afraid."
    assert added_text(ANSWER, ANSWER) == ""


def expressions(emotion):
    bank = load_emotions()[emotion].expressions
    return bank.train + bank.test


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_expressions_hold_their_own_emotion(emotion):
    own = [bool(cues("emotions", emotion).search(plain(text))) for text in expressions(emotion)]
    assert sum(own) >= 0.97 * len(own)


@pytest.mark.parametrize(("asked", "said"), list(itertools.permutations(EMOTIONS, 2)))
def test_another_emotion_mostly_fails(asked, said):
    taken = [text for text in expressions(said) if cues("emotions", asked).search(plain(text))]
    assert len(taken) <= 0.1 * len(expressions(said)), taken


@pytest.mark.parametrize("kind", ["openers", "closers"])
def test_openers_and_closers_comfort(kind):
    banks = [getattr(phrases, kind) for phrases in load_emotions().values()]
    texts = [text for bank in banks for text in bank.train + bank.test]
    assert sum(any(map(comforts, sentences(text))) for text in texts) >= 0.97 * len(texts)


@pytest.mark.parametrize("emotion", EMOTIONS)
def test_neutral_questions_hold_no_emotion(emotion):
    questions = [source.question for source in generate(10)]
    found = [text for text in questions if cues("emotions", emotion).search(plain(text))]
    assert len(found) < 0.02 * len(questions), found


def test_plain_answers_do_not_comfort():
    assert sum(any(map(comforts, sentences(answer))) for answer in PLAIN_ANSWERS) < 0.02 * len(PLAIN_ANSWERS)


@pytest.mark.parametrize(
    "sentence",
    [
        "I can only imagine how frightening this must be.",
        "It is completely understandable that you feel anxious.",
        "Please don't be too hard on yourself.",
        "You're not alone in this.",
        "What worries you the most about this?",
    ],
)
def test_comfort_in_words_of_no_bank(sentence):
    assert comforts(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "I am afraid you have diabetes.",
        "Anxiety is a side effect of this drug.",
        "Sorry for the delay in answering.",
        "Do you feel any pain when you press it?",
        "How long have you had it?",
        "Someone should drive you home.",
        "Lie on your side for 5 minutes in a warm room.",
    ],
)
def test_medical_talk_is_no_comfort(sentence):
    assert not comforts(sentence)


def test_sift_parts_kept_from_rejected_and_fills_in_the_gates():
    good, bad = rewrite(), rewrite(answer=ANSWER)
    kept, rejected = sift([dialogue()], [good, bad, good])
    assert [len(kept), len(rejected)] == [2, 1]
    assert all(gate.passed for each in kept for gate in each.gates)
    assert [gate.name for gate in rejected[0].gates if not gate.passed] == ["comfort_present"]
    assert good.gates == []  # what was given is left as it was


def test_the_template_rewriter_passes_on_the_clinic():
    sources = list(generate(3))
    kept, rejected = sift(sources, rewrite_all(sources, 2))
    assert len(kept) >= 0.99 * (len(kept) + len(rejected))


def test_report_counts_by_gate_and_condition():
    kept, rejected = sift([dialogue()], [rewrite(), rewrite(answer=ANSWER), rewrite(question=QUESTION)])
    table = report(kept + rejected)
    assert list(table.columns) == ["gate", "condition", "checked", "failed", "share"]
    row = table.set_index("gate").loc["comfort_present"]
    assert (row["condition"], row["checked"], row["failed"], row["share"]) == ("emotional", 3, 1, 1 / 3)
    assert report([]).empty


def test_a_rewrite_without_its_source_is_refused():
    with pytest.raises(MedComfortError, match="dialogue xyz, which is not among"):
        sift([dialogue()], [rewrite(dialogue_id="xyz")])


def test_another_language_is_refused():
    with pytest.raises(MedComfortError, match="not English"):
        check(dialogue(lang="zh"), rewrite(lang="zh"))


def test_an_unknown_emotion_is_refused():
    with pytest.raises(MedComfortError, match="no emotion 'envy'"):
        check(dialogue(), rewrite(emotion="envy"))


def test_fast_enough_for_a_large_corpus():
    sources = list(generate(5))
    rewrites = rewrite_all(sources)
    sift(sources[:1], template_versions(sources[0]))  # the patterns are compiled once
    start = time.process_time()
    sift(sources, rewrites)
    assert len(rewrites) / (time.process_time() - start) > 500
