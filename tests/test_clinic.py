"""The synthetic clinic: its data keep the rules that its truth rests on, and it is generated the same way each time."""

import itertools
import re
from collections import Counter

import pytest
import yaml

from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import EMOTIONS
from medcomfort_utils.rewrite import clinic

CONDITIONS = clinic.load_conditions()
BANKS = [
    (emotion, kind, getattr(phrases, kind))
    for emotion, phrases in clinic.load_emotions().items()
    for kind in ("expressions", "openers", "closers")
]
PHRASES = [phrase for _, _, bank in BANKS for phrase in bank.train + bank.test]


def repeated(items):
    return [item for item, count in Counter(items).items() if count > 1]


def frame(report):
    """A report frame as a pattern that its filled-in question matches."""
    return re.sub(r"\\\{\w+\\\}", ".+", re.escape(report))


@pytest.fixture(scope="module")
def dialogues():
    return list(clinic.generate(12))


def test_the_clinic_is_large_enough():
    assert len(CONDITIONS) >= 100
    assert len({condition.specialty for condition in CONDITIONS}) >= 15
    assert not repeated(condition.name for condition in CONDITIONS)


def test_every_symptom_has_its_paraphrases():
    for condition in CONDITIONS:
        assert len(condition.symptoms) >= 3, condition.name
        assert all(len(set(paraphrases)) >= 3 for paraphrases in condition.symptoms), condition.name


def test_no_statement_belongs_to_two_conditions():
    assert not repeated(fact for condition in CONDITIONS for fact in condition.facts + condition.red_flags)


def test_symptoms_tell_conditions_apart():
    symptoms = [{frozenset(paraphrases) for paraphrases in condition.symptoms} for condition in CONDITIONS]
    for one, other in itertools.combinations(symptoms, 2):
        shared = sum(bool(a & b) for a in one for b in other)
        assert shared < min(len(one), len(other)) - 1  # a question may name two symptoms only


def test_the_words_of_the_clinic_are_plain():
    texts = [text for condition in CONDITIONS for text in [condition.plain_answer, *sum(condition.symptoms, [])]]
    assert all(text.isascii() for text in texts + PHRASES + list(clinic.load_passages()))
    assert not any(re.search(r"\d", paraphrase) for c in CONDITIONS for group in c.symptoms for paraphrase in group)


def test_every_red_flag_orders_urgent_care():
    urgent = re.compile(r"\b(?:ambulance|emergency|urgent|at once|immediately|same day|straight away)\b")
    assert all(urgent.search(flag) for condition in CONDITIONS for flag in condition.red_flags)


@pytest.mark.parametrize(("emotion", "kind", "bank"), BANKS)
def test_phrase_banks(emotion, kind, bank):
    assert emotion in EMOTIONS
    assert len(bank.train) >= 40 and len(bank.test) >= 15
    assert not repeated(phrase.lower() for phrase in bank.train + bank.test)
    assert all(re.fullmatch(r"[^\d!;]+[.?]", phrase) for phrase in bank.train + bank.test)


def test_phrases_differ_across_banks():
    assert not repeated(PHRASES)


def test_passages_are_no_phrases_of_the_banks():
    text = " ".join(clinic.load_passages())
    assert not [phrase for phrase in PHRASES if phrase in text]


def test_generation_is_deterministic(dialogues):
    assert list(clinic.generate(12)) == dialogues
    assert [d.id for d in clinic.generate(12, seed=1)] != [d.id for d in dialogues]


def test_ids_are_unique_and_every_split_is_there(dialogues):
    assert not repeated(dialogue.id for dialogue in dialogues)
    assert {dialogue.split for dialogue in dialogues} == {"train", "validation", "test"}


def test_the_answer_states_every_fact_and_red_flag(dialogues):
    for dialogue in dialogues:
        assert all(statement in dialogue.answer for statement in dialogue.facts + dialogue.red_flags)


def test_questions_use_the_frames_of_their_split_only(dialogues):
    frames = yaml.safe_load((clinic.CLINIC / "questions.yaml").read_text(encoding="utf-8"))
    asked = {bank: re.compile("|".join(map(frame, frames[bank]["reports"]))) for bank in ("train", "test")}
    assert not set(frames["train"]["asks"]) & set(frames["test"]["asks"])
    for dialogue in dialogues:
        bank = "test" if dialogue.split == "test" else "train"
        assert asked[bank].search(dialogue.question), dialogue.question
        assert dialogue.question.endswith(tuple(frames[bank]["asks"]))


def test_the_test_split_alone_asks_in_unseen_paraphrases(dialogues):
    unseen = [paraphrases[-1] for condition in CONDITIONS for paraphrases in condition.symptoms]
    for dialogue in dialogues:
        assert any(text in dialogue.question for text in unseen) == (dialogue.split == "test"), dialogue.question


def test_only_taught_conditions_are_trained_on_and_all_are_tested(dialogues):
    taught = {condition.facts[0] for condition in CONDITIONS if clinic.is_seen(condition)}
    assert 0.6 * len(CONDITIONS) < len(taught) < 0.97 * len(CONDITIONS)
    assert {dialogue.facts[0] for dialogue in dialogues if dialogue.split != "test"} <= taught
    assert {dialogue.facts[0] for dialogue in dialogues if dialogue.split == "test"} - taught


def test_a_broken_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "conditions").mkdir()
    (tmp_path / "conditions" / "made_up.yaml").write_text("specialty: x\nconditions: [{name: y}]\n", encoding="utf-8")
    monkeypatch.setattr(clinic, "CLINIC", tmp_path)
    with pytest.raises(MedComfortError, match=r"made_up\.yaml: symptoms: Field required"):
        clinic.load_conditions.__wrapped__()
