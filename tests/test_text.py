"""How text is read: forms, sentences, words, language, quantities and negation."""

import random
import re

import pytest

from medcomfort_utils import text
from medcomfort_utils.quantities import quantities
from medcomfort_utils.text import language, negated, normalise, sentences, words

FORMS = [
    *((form, "Don't take it") for form in ("Don´t take it", "Don`t take it", "Don\u0092t take it", "Donʼt take it")),
    *((form, "don't take it") for form in ("donâ€™t take it", "don\ufffdt take it", "don’t take it")),
    ("10<sup>9</sup>/L", "10^9/L"),
    ("<table><td>rest</td></table>", "rest"),
    ("<!-- note -->Rest", "Rest"),
    ("&amp;lt;5 mg", "<5 mg"),
    ("x <y and z> 5", "x <y and z> 5"),
    ("\ufb01ne \uff15\uff4d\uff47", "fine 5mg"),
    ("2\u20133\u00a0days \u2014 \u201crest\u201d\u200b", '2-3 days - "rest"'),
    ("caf\u00c3\u00a9", "café"),
    ("\u6211\u5f88\u597d\uff0c\u8c22\u8c22\uff01", "\u6211\u5f88\u597d\uff0c\u8c22\u8c22\uff01"),
]


@pytest.mark.parametrize(("form", "one"), FORMS)
def test_forms_are_made_one(form, one):
    assert normalise(form) == one == normalise(one)


SPLIT = [
    ["Give 2.5 ml twice a day.", "Then stop."],
    ["Take e.g. ibuprofen with food.", "Rest."],
    ["See Dr. Smith at 9 a.m. on Monday.", "Bring your list."],
    ["Take one tablet b.i.d. with food.", "Drink water."],
    ["Take it b.i.d.", "Then come back."],
    ["It is approx. 5 cm long.", "It is harmless."],
    ["Read https://a.org/x.y or www.nhs.uk/knee.html for more.", "Call me."],
    ["Really?!", "Yes."],
    ["Levels were 1.2 vs. 3.4 mmol/L last week.", "No worry."],
    ["St. John's wort i.e. hypericum interacts with it.", "Avoid it."],
    ["i had pain.", "it went.", "what should i do?"],
    ["You need vitamin B12, vitamin D, etc.", "Also rest."],
    ["Take no. 5 of the list.", "Not no. 6."],
    ["No.", "It is safe."],
    ["J. Smith wrote this.", "It is good."],
    ["Take vitamin C.", "Then rest."],
    ["It usually fades by age 30.", "Possible treatments are creams."],
    ["It was torn apart, 2. 5 ml in all.", "Rest."],
    ["Do this:", "1. rest the knee", "2. put ice on it", "3. come back"],
]


@pytest.mark.parametrize("parts", SPLIT)
def test_sentences_of_medical_text(parts):
    assert sentences(" ".join(parts)) == parts
    assert sentences("\n".join(parts)) == parts


def test_sentences_without_a_blank_in_lists_in_wrapped_lines_and_in_chinese():
    assert sentences("You have pain.Take this.") == ["You have pain.", "Take this."]
    assert sentences("Steps:\n- rest\n- ice") == ["Steps:", "- rest", "- ice"]
    wrapped = "This line was wrapped by a mail program after some sixty letters\nand goes on here."
    assert sentences(wrapped) == [wrapped]
    assert sentences("\u4f60\u597d\u3002\u600e\u4e48\u529e\uff1f\u522b\u6025\uff1b\u4f11\u606f", "zh") == [
        "\u4f60\u597d\u3002",
        "\u600e\u4e48\u529e\uff1f",
        "\u522b\u6025\uff1b",
        "\u4f11\u606f",
    ]


@pytest.mark.parametrize("lang", ["en", "zh"])
def test_sentences_lose_nothing_but_blanks(lang):
    rng = random.Random(5)
    pieces = [
        "a",
        "Dr",
        "2",
        ".",
        "!",
        "?",
        " ",
        "\n",
        "1.",
        "e.g.",
        "\u3002",
        "(",
        ")",
        '"',
        "\u2026",
        "\u2022",
        "5 mg",
        "I",
        "\uff1b",
    ]
    for _ in range(500):
        made = "".join(rng.choices(pieces, k=rng.randint(0, 30)))
        assert "".join("".join(sentences(made, lang)).split()) == "".join(made.split()), made


class _Counted(str):
    """A text that counts how much of it is copied: what is quadratic copies its length again and again."""

    copied = 0

    def __getitem__(self, key):
        part = str(self)[key]
        _Counted.copied += len(part)
        return part


@pytest.mark.parametrize("piece", ["A word. ", "1. ", "\n", "No stop here ", "e.g. ", "\u2022 "])
def test_splitting_copies_each_letter_a_few_times(piece):
    _Counted.copied = 0
    size = 100_000
    sentences(_Counted(piece * (size // len(piece))))
    assert _Counted.copied < 30 * size


@pytest.mark.parametrize("piece", ["<!--", "&amp;", "<a b=", "don't ", "not ", "<b", ". ", "1 ", "half a ", "every "])
def test_reading_does_not_grow_with_the_square(piece):
    short, long = (min(_seconds(piece * (n // len(piece))) for _ in range(2)) for n in (1_000, 8_000))
    assert long < 8 * 6 * short + 0.2  # 8 times the text; the square would take 64 times


def _seconds(made):
    import time

    started = time.process_time()
    sentences(made), quantities(made), negated(words(made, marks=True))
    text.opened.cache_clear()
    return time.process_time() - started


@pytest.mark.parametrize("form", ["don't", "dont", "Don´t", "do not"])
def test_not_is_opened(form):
    assert words(f"{form} take it, cant you?") == ["do", "not", "take", "it", "can", "not", "you"]


def test_negation_reaches_to_the_end_of_its_clause():
    said = words("No fever, cough or pain, but she never smoked because it is bad.", marks=True)
    assert {said[i] for i in negated(said)} >= {"fever", "cough", "pain", "smoked"}
    assert not {said[i] for i in negated(said)} & {"bad", "she"}


@pytest.mark.parametrize(
    ("said", "lang"),
    [
        ("25 yr old male, knee pain 3 wks, swelling, no trauma. MRI needed?", "en"),
        ("Rest, ice, ibuprofen 400 mg tds x 5 days. Physio. MRI only with locking or instability.", "en"),
        ("TSH 5.2, T3 normal. Thyronorm 25 mcg od.", "en"),
        ("", "en"),
        ("Ich habe seit drei Tagen starke Schmerzen im Knie und weiß nicht, was ich tun soll.", "de"),
        ("J'ai mal au genou depuis trois jours, que dois-je faire ?", "fr"),
        ("\u6211\u819d\u76d6\u75bc\u4e86\u4e09\u5929\uff0c\u600e\u4e48\u529e\uff1f", "zh"),
    ],
)
def test_language(said, lang):
    assert language(said) == lang


SAME = [
    ("½ tablet", "half a tablet"),
    ("1½ tablets", "one and a half tablets"),
    ("2,5 mg", "2.5 mg"),
    ("1,000 mg", "1 g"),
    ("24h", "24 hours"),
    ("tds", "three times a day"),
    ("b.i.d.", "twice daily"),
    ("150/95", "150 over 95"),
    ("5 \u03bcg", "5 mcg"),
    ("2. 5 ml", "2.5 ml"),
    ("twenty five mg", "25 mg"),
    ("four hundred mg", "400 mg"),
    ("150 x 10⁹/L", "150 x 10^9/L"),
    ("every other day", "every 2 days"),
    ("q6h", "every six hours"),
    ("two weeks", "14 days"),
    ("38.5°C", "38.5 degrees"),
    ("at most 8 tablets", "no more than 8 tablets"),
    ("Do not take more than 1200 mg a day", "at most 1200 mg daily"),
    ("od 5 mg od", "od 5 mg once a day"),
    ("3 days or more", "at least 3 days"),
    ("7-10 days", "between seven and ten days"),
    ("1-0-0", "1-0-0"),
]
OTHER = [
    ("½ tablet", "¾ tablet"),
    ("1½ tablets", "1 tablet"),
    ("10⁹", "10⁶"),
    ("2x500 mg", "2x800 mg"),
    ("2.5 mg", "25 mg"),
    ("at most 8", "at least 8"),
    ("less than 0.3", "more than 0.3"),
    ("within 3 days", "after 3 days"),
    ("every 6 hours", "6 hours"),
    ("twice a week", "twice a day"),
    ("1-0-1", "1-1-0"),
]


def _read(said):
    return [quantity.key for quantity in quantities(said)]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_quantities_are_one_in_all_spellings(one, other):
    assert _read(one) == _read(other) != []


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_quantities_that_differ(one, other):
    assert _read(one) != _read(other)


def test_a_pronoun_is_no_number():
    assert quantities("No one of them knows; it is one of those days.") == ()
    assert re.fullmatch(r"\d+", quantities("twenty")[0].value)
