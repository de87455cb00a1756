"""Compositions: what is kept stands there word for word, and what is left out, doubled or late is always found."""

import random

import pytest

from medcomfort_utils.llm import Unparsable, parse
from medcomfort_utils.records import Dialogue, Message, Segment, content_id
from medcomfort_utils.rewrite import compose, prompts
from medcomfort_utils.rewrite.compose import MOST_SAID, SHORT, problems

ANSWER = "This is angina. Take 1.5 ml twice a day, e.g. at night. Call an ambulance now. Ring again if you faint. Rest."


def dialogue(answer=ANSWER, flags=("Call an ambulance now.", "Ring again if you faint."), urgency="emergency"):
    turns = [{"role": "user", "content": "My chest hurts."}, {"role": "assistant", "content": answer}]
    messages = [Message(**turn) for turn in turns]
    return Dialogue(
        id=content_id(turns), source="test", messages=messages, red_flags=list(flags), urgency=urgency, split="train"
    )


def segments(*given):
    """`say` for a text, `keep` for a list of numbers."""
    return [
        Segment(role="assistant", say=each) if isinstance(each, str) else Segment(role="assistant", keep=each)
        for each in given
    ]


def test_text_is_put_together_in_the_order_of_the_segments():
    said = [{"keep": [3]}, {"say": " I am with you "}, {"keep": [1, 2]}, {"say": "Breathe."}, {"say": " "}]
    said += [{"keep": [5, 4]}]
    composed = compose.segments_of({"segments": said})
    text = compose.compose(composed, compose.numbered(dialogue()))
    assert text == (
        "Call an ambulance now. I am with you. This is angina. Take 1.5 ml twice a day, e.g. at night. Breathe. Rest. "
        "Ring again if you faint."
    )
    assert len(composed) == 5
    assert compose.compose(segments([1], "So."), ["No mark at its end"]) == "No mark at its end\nSo."


def test_lists_are_kept():
    numbered = ["Do this:", "1. Rest.", "2. Ice", "Come back soon."]
    text = compose.compose(segments("I hear you.", [1, 2, 3], "Slowly.", [4]), numbered)
    assert text == "I hear you. Do this:\n1. Rest.\n2. Ice\nSlowly. Come back soon."


@pytest.mark.parametrize("seed", range(30))
def test_an_omitted_or_doubled_sentence_is_always_found(seed):
    rng = random.Random(seed)
    count = rng.randint(2, 12)
    order = rng.sample(range(1, count + 1), count)
    cut = rng.randint(0, count)
    whole = [each for each in ("Words of comfort.", order[:cut], "More.", order[cut:]) if each]
    assert problems(segments(*whole), count) == []
    lost, twice = rng.sample(order, 2)
    without = [[n for n in each if n != lost] if isinstance(each, list) else each for each in whole]
    assert problems(segments(*without), count) == [f"Left out of the old answer: {lost}."]
    assert problems(segments(*whole, [twice]), count) == [f"Kept more than once: {twice}."]
    assert problems(segments(*whole, [count + 1]), count)[0].startswith(f"Not a sentence: {count + 1};")


def test_own_words_must_be_there_and_be_few():
    assert problems(segments([1, 2]), 2) == ["There is no say segment."]
    assert problems(segments("one " * MOST_SAID, [1, 2]), 2) == []
    (told,) = problems(segments("one " * MOST_SAID, [1, 2], "more"), 2)
    assert f"have {MOST_SAID + 1} words" in told


@pytest.mark.parametrize(
    ("composed", "fine"),
    [
        (([3], "I hear you.", [1, 2]), True),
        (("I hear you.", [3, 1, 2]), True),
        (("word " * SHORT, [3, 1, 2]), True),
        (("word " * (SHORT + 1), [3, 1, 2]), False),
        (("I hear you.", "And more.", [3, 1, 2]), False),
        (("I hear you.", [1, 3, 2]), False),
        (([1, 2], "I hear you.", [3]), False),
    ],
)
def test_what_is_urgent_now_comes_first(composed, fine):
    assert (problems(segments(*composed), 3, first=3) == []) == fine


def test_which_sentence_is_urgent_now():
    assert compose.red_flagged(dialogue()) == [3, 4] and compose.urgent_now(dialogue()) == 3
    assert compose.urgent_now(dialogue(urgency="routine")) == 0
    assert compose.urgent_now(dialogue(urgency="")) == 3
    assert compose.urgent_now(dialogue(flags=["Ring again if you faint."], urgency="")) == 0


def test_the_schema_fits_strict_structured_output():
    def objects(schema):
        if isinstance(schema, dict):
            yield from [schema] * (schema.get("type") == "object")
            for each in schema.values():
                yield from objects(each)
        elif isinstance(schema, list):
            for each in schema:
                yield from objects(each)

    for schema in prompts.SCHEMAS.values():
        assert schema["type"] == "object" and "anyOf" not in schema
        for each in objects(schema):
            assert each["additionalProperties"] is False and each["required"] == list(each["properties"])
    with pytest.raises(Unparsable):
        parse('{"segments": [{"say": "a", "keep": [1]}]}', prompts.SCHEMAS["answer"])


def test_the_prompt_shows_numbered_sentences_and_marks_urgent_ones():
    system, user = prompts.answer_messages(dialogue(), "I am scared, my chest hurts.", "fear")
    assert "\n3. (urgent now) Call an ambulance now.\n4. (urgent) Ring again if you faint.\n" in user["content"]
    assert "Sentence 3 is urgent now." in system["content"]
    assert "urgent now" not in prompts.answer_messages(dialogue(urgency="routine"), "Q", "")[0]["content"]
