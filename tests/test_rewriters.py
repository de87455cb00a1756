"""The template rewriter: it inserts phrases and touches nothing else, the same way each time."""

import re

import pytest

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import EMOTIONS, Dialogue, Message, content_id
from medcomfort_utils.rewrite.clinic import generate, load_emotions
from medcomfort_utils.rewrite.rewriters import rewrite_all, template_versions

QUESTION = "I have had a cough for 3 weeks and my blood pressure is 135/85. What should I do?"
ANSWER = "This sounds like bronchitis. Take 10 ml of syrup 3 times a day. Call an ambulance if you cough up blood."


def dialogue(question=QUESTION, answer=ANSWER, split="train", lang="en", earlier=()):
    turns = [*earlier, Message(role="user", content=question), Message(role="assistant", content=answer)]
    number = content_id([turn.model_dump() for turn in turns])
    return Dialogue(id=number, source="hand", messages=turns, split=split, lang=lang)


def by_condition(source, emotions=1):
    return {version.condition: version for version in template_versions(source, emotions)}


def bank_of(text, kind, emotion, bank):
    """The phrases of one bank that occur in a text."""
    return [phrase for phrase in getattr(getattr(load_emotions()[emotion], kind), bank) if phrase in text]


def test_same_dialogue_same_rewrites():
    sources = list(generate(2))
    assert rewrite_all(sources, 2) == rewrite_all(sources, 2)


@pytest.mark.parametrize("emotions", [1, 3, 5])
def test_each_emotion_gets_its_versions_and_the_neutral_question_one_soothing_answer(emotions):
    versions = list(template_versions(dialogue(), emotions))
    more = ["emotional", "comfort_only"] * (emotions - 1)
    assert [v.condition for v in versions] == ["original", "emotional", "soothing_answer", "comfort_only", *more]
    assert len({v.emotion for v in versions[1:]}) == emotions
    assert {v.emotion for v in versions[1:]} <= set(EMOTIONS)


@pytest.mark.parametrize("emotions", [0, 6])
def test_a_number_of_emotions_out_of_range_is_refused(emotions):
    with pytest.raises(MedComfortError, match=rf"emotions must lie between 1 and 5, not {emotions}"):
        list(template_versions(dialogue(), emotions))


def test_the_original_is_the_source():
    source = dialogue()
    assert by_condition(source)["original"].messages == source.messages


@pytest.mark.parametrize("emotions", [5])
def test_medical_text_is_untouched(emotions):
    for version in list(template_versions(dialogue(), emotions))[1:]:
        assert QUESTION in version.question
        if version.condition != "comfort_only":
            assert ANSWER in version.answer
        else:
            assert not re.search(r"\d|bronchitis|ambulance", version.answer)


def test_a_neutral_question_stays_neutral():
    assert by_condition(dialogue())["soothing_answer"].question == QUESTION


def test_emotional_and_soothing_answers_are_the_same():
    versions = by_condition(dialogue())
    assert versions["emotional"].answer == versions["soothing_answer"].answer
    assert versions["emotional"].question == versions["comfort_only"].question


@pytest.mark.parametrize("greeting", ["Hello doctor.", "Hi,", "Good morning!", "Dear doctor,"])
def test_a_greeting_stays_at_the_head(greeting):
    versions = list(template_versions(dialogue(f"{greeting} {QUESTION}", f"{greeting} {ANSWER}"), 5))[1:]
    assert all(version.question.startswith(greeting) for version in versions)
    assert all(version.answer.startswith(greeting) for version in versions if version.condition != "comfort_only")
    assert all(QUESTION in version.question and version.question.count(greeting) == 1 for version in versions)


def test_a_word_that_only_begins_like_a_greeting_is_none():
    question = "High fever since 2 days. What helps?"
    assert all(question in version.question for version in template_versions(dialogue(question), 5))


@pytest.mark.parametrize(("split", "bank", "other"), [("train", "train", "test"), ("test", "test", "train")])
def test_test_dialogues_take_test_phrases(split, bank, other):
    for version in list(template_versions(dialogue(split=split), 5))[1:]:
        assert version.split == split
        texts = {"openers": version.answer, "closers": version.answer}
        if version.condition != "soothing_answer":
            texts["expressions"] = version.question
        for kind, text in texts.items():
            assert bank_of(text, kind, version.emotion, bank), (kind, text)
            assert not bank_of(text, kind, version.emotion, other), (kind, text)


def test_earlier_turns_are_kept():
    earlier = [Message(role="user", content="May I ask?"), Message(role="assistant", content="Yes, please.")]
    source = dialogue(earlier=earlier)
    for version in template_versions(source, 5):
        assert version.messages[:2] == earlier
        assert [m.role for m in version.messages] == [m.role for m in source.messages]


def test_other_languages_are_refused_one_by_one_and_left_out_together():
    foreign = dialogue(lang="zh")
    with pytest.raises(MedComfortError, match=rf"dialogue {foreign.id} is in 'zh'"):
        list(template_versions(foreign))
    assert {version.dialogue_id for version in rewrite_all([foreign, dialogue()])} == {dialogue().id}
