"""Reading the JSON object out of an answer: what is tolerated, and what is not."""

import json
import time

import pytest

from medcomfort_utils.llm import Unparsable, parse

SCHEMA = {
    "type": "object",
    "properties": {"question": {"type": "string"}, "score": {"type": "integer"}},
    "required": ["question"],
    "additionalProperties": False,
}
GOOD = {"question": "Why?", "score": 1}


@pytest.mark.parametrize(
    "text",
    [
        '{"question": "Why?", "score": 1}',
        ' \n{"question": "Why?", "score": 1}\n',
        '```json\n{"question": "Why?", "score": 1}\n```',
        '```\n{"question": "Why?", "score": 1}\n```\nI hope this helps.',
        'Sure! Here it is: {"question": "Why?", "score": 1} Let me know.',
        'For a set {x you may want:\n{"question": "Why?", "score": 1}',
        '{"question": "Why?", "score": 1,}',
        "{'question': 'Why?', 'score': 1}",
        "{'question': 'Why?', 'score': 1,}",
        '<think>I could say {"question": "No"} but</think>{"question": "Why?", "score": 1}',
        'Let me think {"question": "No"}.\n</think>\n\n{"question": "Why?", "score": 1}',
        '{"question": "Why?", "score": 1}\n{"question": "Why?", "score": 1}',
    ],
)
def test_tolerates_what_surrounds_or_dresses_up_the_object(text):
    assert parse(text, SCHEMA) == GOOD


@pytest.mark.parametrize(
    ("text", "question"),
    [
        ('{"question": "a\nb"}', "a\nb"),
        ('{"question": "a\nb",}', "a\nb"),
        ('{"question": "so {much} ```pain```, it\'s bad,}"}', "so {much} ```pain```, it's bad,}"),
        ("He's sure: {'question': \"it's bad\"}", "it's bad"),
        ('{"question": "\\ud83d\\ude22 \\u75db"}', "😢 痛"),
        ("{'question': '\\ud83d\\ude22 \\u75db'}", "😢 痛"),
        ("{'question': 'and\\/or, C:\\\\/'}", "and/or, C:\\/"),
    ],
)
def test_keeps_the_text_as_it_was_written(text, question):
    assert parse(text, SCHEMA) == {"question": question}


def test_knows_the_literals_of_json_and_of_python():
    schema = {"type": "object", "required": ["a", "b", "c"]}
    expected = {"a": True, "b": None, "c": False}
    assert parse('{"a": true, "b": null, "c": false}', schema) == expected
    assert parse("{'a': True, 'b': None, 'c': False}", schema) == expected
    assert parse("{'a': true, 'b': null, 'c': false}", schema) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("<think>Well, {", "reasoning"),
        ("<think>Well</think>", "empty"),
        ("I cannot help with that.", "no complete JSON object"),
        ('{"question": "Why', "no complete JSON object"),
        ('{"question": "Why?", "sco', "no complete JSON object"),
        ('["Why?"]', "no complete JSON object"),
        ('{"question": "a", "question": "b"}', "question stands there twice"),
        ("{'question': 'a', 'question': 'b'}", "question stands there twice"),
        ('{"question": "a"} or {"question": "b"}', "2 different"),
        ('{"score": 1}', "'question' is a required property"),
        ('{"question": 3}', "question: 3 is not of type 'string'"),
        ('{"question": "a", "score": true}', "score: True is not of type 'integer'"),
        ('{"question": "a", "more": 1}', "'more' was unexpected"),
        ('{"question": "a", "score": NaN}', "NaN is not a number"),
        ('{"question": "\\ud83d"}', "broken character"),
        ("{'question': __import__('os').getcwd()}", "not valid JSON"),
        ("{'question': open}", "not valid JSON"),
        ("{'question': {1, 2}}", "not valid JSON"),
        ('{"question": "a", "score": ' + "9" * 5000 + "}", "not valid JSON"),
    ],
)
def test_names_the_problem_in_a_sentence(text, problem):
    with pytest.raises(Unparsable, match=problem) as caught:
        parse(text, SCHEMA)
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_a_long_problem_is_cut():
    with pytest.raises(Unparsable) as caught:
        parse('{"question": ["' + "x" * 10_000 + '"]}', SCHEMA)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text",
    [
        "{" * 20_000,
        "{}" * 5_000,
        '{"a":' * 5_000 + "1" + "}" * 5_000,
        "'" * 20_000,
        '{"' * 9999,
        json.dumps(dict.fromkeys(map(str, range(30_000)))),
    ],
)
def test_garbage_is_refused_quickly(text):
    start = time.process_time()
    with pytest.raises(Unparsable):
        parse(text, SCHEMA)
    assert time.process_time() - start < 3
