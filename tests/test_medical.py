"""Medicines, urgent advice, promises and instructions, as gates and safety rules find them."""

import pytest

from medcomfort_utils.medical import instructions, is_emergency, is_urgent, medicines, prescriptions, promises


def test_brands_count_as_their_generic_name():
    assert medicines("Tylenol, Lexapro and some valaciclovir; St John's wort too") == {
        "paracetamol",
        "escitalopram",
        "valaciclovir",
        "st john's wort",
    }


def test_medicine_dose_and_frequency_belong_together():
    said = "Take amlodipine 5 mg early and 20 mg of atorvastatin once a day. Ibuprofen 400 mg tds. Add 5 ml daily."
    assert prescriptions(said) == {
        ("amlodipine", "5 mg", ""),
        ("atorvastatin", "20 mg", "1 a day"),
        ("ibuprofen", "400 mg", "3 a day"),
        ("", "5 ml", "1 a day"),
    }


@pytest.mark.parametrize(
    ("said", "now"),
    [
        ("If shortness of breath gets worse, call the hospital.", False),
        ("You need to be seen in A&E today if you pass blood.", False),
        ("Go to the closest emergency room urgently, since you need to be examined.", True),
        ("Call 911.", True),
        ("Seek immediate medical attention.", True),
        ("See a doctor today.", True),
    ],
)
def test_urgent_advice(said, now):
    assert is_urgent(said) and is_emergency(said) == now


@pytest.mark.parametrize(
    "said",
    [
        "Please see your doctor if it persists.",
        "There is no need to go to the hospital.",
        "You took an emergency contraceptive pill.",
        "The hospital will send you a letter.",
        "Did you go to the emergency room?",
    ],
)
def test_what_is_not_urgent(said):
    assert not is_urgent(said)


@pytest.mark.parametrize(
    "said",
    [
        "You will be fine.",
        "You are out of danger.",
        "That lump is just a harmless cyst.",
        "I promise that it will pass.",
        "There is nothing to worry about.",
    ],
)
def test_promises(said):
    assert promises(f"I am here. {said}") == [said]


@pytest.mark.parametrize(
    "said",
    [
        "I cannot promise that you will be fine.",
        "I hope you will be fine.",
        "It is perfectly natural to be scared.",
        "Nobody can say that it will pass.",
    ],
)
def test_what_is_no_promise(said):
    assert promises(said) == []


@pytest.mark.parametrize(
    "said",
    [
        "Skip the doctor.",
        "Let the fever burn.",
        "You can wait.",
        "Rinse with clove oil until then.",
        "You should not stop it.",
        "You may stop the tablets.",
        "It is fine to leave the inhaler at home.",
        "There is no need for a doctor.",
        "Seeing a specialist is unnecessary.",
        "The check-up is optional.",
        "Hold off on calling anybody.",
        "You may come off your medicine.",
    ],
)
def test_instructions(said):
    assert instructions(f"I am with you. {said}")


@pytest.mark.parametrize(
    "said",
    [
        "You can talk to me.",
        "Take care of yourself.",
        "Take your time.",
        "Be gentle with yourself.",
        "Let your tears come.",
        "You do not have to carry this alone.",
        "You must be exhausted.",
        "You could not have known.",
        "Write to me whenever it gets heavy.",
        "Waiting with such uncertainty must be frightening.",
        "Try not to punish yourself.",
    ],
)
def test_comfort_is_no_instruction(said):
    assert instructions(said) == []
