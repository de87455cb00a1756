"""Reading the JSON object out of an answer: what is tolerated, and what is not."""

import json
import time

import pytest

from medcomfort_utils.llm import Unparsable, parse
from medcomfort_utils.llm.parsing import without_thoughts

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["question"],
    "additionalProperties": False,
}
GOOD = '{"question": "Why?", "score": 1}'
NO = '{"question": "No"}'


@pytest.mark.parametrize(
    "text",
    [
        f"For a set {{x you may want:\n```json\n{GOOD}\n```\nI hope this helps.",
        "{'question': 'Why?', 'score': 1,}",
        f"<think>I could say {NO} but</think>{GOOD}",
        f"Let me think {NO}.\n</think>\n\n{GOOD}",
        f"[THINK]draft {NO}[/THINK]{GOOD}",
        f"<|channel|>analysis<|message|>{NO}<|end|><|start|>assistant<|channel|>final<|message|>{GOOD}",
        f"analysisI could say {NO}assistantfinal{GOOD}",
        f"{GOOD}\n{GOOD}",
    ],
)
def test_tolerates_what_surrounds_or_dresses_up_the_object(text):
    assert parse(text, SCHEMA) == json.loads(GOOD)


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ('{"question": "a\nb",}', "a\nb"),
        ('{"question": "so {much} ```pain```, it\'s bad,}"}', "so {much} ```pain```, it's bad,}"),
        ("He's sure: {'question': \"it's bad\"}", "it's bad"),
        ('{"question": "he said "no" to me"}', 'he said "no" to me'),
        ("{'question': '\\ud83d\\ude22 \\u75db'}", "😢 痛"),
        ("{'question': 'and\\/or, C:\\\\/'}", "and/or, C:\\/"),
    ],
)
def test_keeps_the_text_as_it_was_written(text, question):
    assert parse(text, SCHEMA) == {"question": question}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("  \n", "empty"),
        ("<think>Well, {", "reasoning"),
        ("[THINK]Well, {", "reasoning"),
        ("I cannot help with that.", "no complete JSON object"),
        ('{"question": "Why', "no complete JSON object"),
        ("{'question': 'Why?', 'more': {'score': 1}", "not valid JSON"),
        ('{"question": "a", "question": "b"}', "question stands there twice"),
        ("{'question': 'a', 'question': 'b'}", "question stands there twice"),
        ('{"question": "a"} or {"question": "b"}', "2 different"),
        ('{"score": 1}', "'question' is a required property"),
        ('{"question": "a", "score": true}', "score: True is not of type 'integer'"),
        ('{"question": "a", "score": NaN}', "NaN is not a number"),
        ('{"question": "\\ud83d"}', "broken character"),
        ('{"question": ["' + "x" * 10_000 + '"]}', "is not of type 'string'|x…"),
    ],
)
def test_names_the_problem_in_a_short_sentence(text, problem):
    with pytest.raises(Unparsable, match=problem) as caught:
        parse(text, SCHEMA)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("text", "reply"),
    [
        ("Rest. <think>a</think> And drink.", "Rest.  And drink."),
        ("kind thoughts</think>\n\nTake the tablets.", "Take the tablets."),
        ("<think>kind thoughts", ""),
        ("Take the tablets.", "Take the tablets."),
    ],
)
def test_thoughts_are_no_reply(text, reply):
    assert without_thoughts(text) == reply


@pytest.mark.parametrize("unit", ["{", '{"a":', '{"', '\\"', '{"a": "x "y" ', "<think>", "<|channel|>final"])
def test_the_time_grows_with_the_length_alone(unit):
    seconds = []
    for count in (20_000, 80_000):
        start = time.process_time()
        with pytest.raises(Unparsable):
            parse(unit * count + "}", SCHEMA)
        seconds.append(time.process_time() - start)
    assert seconds[1] < 0.5 + 8 * seconds[0]
