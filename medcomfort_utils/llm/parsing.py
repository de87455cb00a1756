"""Reads the JSON object out of what a language model wrote, or says what is wrong there."""

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from json_repair import repair_json
from jsonschema import Draft202012Validator

LONGEST_REPAIRED = 32_000  # characters of a broken object; more is no answer to anything that is asked here
MOST_OBJECTS = 16  # places at which an object is looked for, so that the time grows with the length alone
_THOUGHT = re.compile(
    r"<think(?:ing)?>.*?(?:</think(?:ing)?>|\Z)|\[THINK\].*?(?:\[/THINK\]|\Z)"
    r"|<\|channel\|>analysis.*?(?=<\|channel\|>final|\Z)"
    r"|\A\s*analysis(?=[A-Z])(?:.*final(?=\s*\{)|.*assistantfinal|.*)",  # where the server left its brackets out
    re.DOTALL,
)
# Some chat templates open the reasoning in the prompt, so that only its end is written.
_END = re.compile(r"\A.*(?:</think(?:ing)?>|\[/THINK\]|<\|channel\|>final.{0,99}?<\|message\|>)", re.DOTALL)
_START = re.compile(r"""\{(?=\s*["'}])""")
_SLASH = re.compile(r"(\\\\)|\\/")  # an escaped slash, which json_repair does not know


class Unparsable(ValueError):  # noqa: N818 - the field's word
    """An answer without a fitting JSON object; the text is one sentence that a repair prompt can quote."""


def without_thoughts(text: str) -> str:
    """The text without its reasoning, as chat templates mark it; empty where the reasoning does not end."""
    return _END.sub("", _THOUGHT.sub("", text)).strip()


def parse(text: str, schema: dict) -> dict:
    """The one JSON object in `text` that fits the JSON `schema`, in time linear in the length.

    Tolerated: reasoning before it, code fences, prose around, and what json_repair mends (single quotes, trailing
    commas, quotes within strings, Python's True, False and None). Not tolerated, raising Unparsable: an answer that
    was cut off, a key that stands twice, no or several different objects that fit, a broken character.
    """
    fitting, problems = [], []
    answer = without_thoughts(text)
    for value in _objects(answer):
        problem = value if isinstance(value, str) else _misfit(value, schema)
        if problem:
            problems.append(problem)
        elif value not in fitting:
            fitting.append(value)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Unparsable(f"It holds {len(fitting)} different JSON objects; there must be one.")
    if not answer:
        raise Unparsable("It is empty, or ends before the reasoning does.")
    raise Unparsable(problems[0] if problems else "It holds no complete JSON object.")


def _objects(answer: str) -> Iterator[dict | str]:
    """The outermost objects, in order; for one that cannot be read, what is wrong with it. One is repaired at most."""
    position, repaired, end = 0, False, answer.rfind("}") + 1
    for match in islice(_START.finditer(answer), MOST_OBJECTS):
        if (start := match.start()) < position:
            continue
        try:
            value, position = _DECODER.raw_decode(answer, start)
        except Unparsable as error:
            yield str(error)
            continue
        except (ValueError, RecursionError) as error:
            if repaired or start >= end:
                continue
            repaired, value = True, _repaired(answer[start:end]) or f"It is not valid JSON: {_short(str(error))}."
            position = end if isinstance(value, dict) else position
        yield value


def _repaired(text: str) -> dict | str:
    """The object in broken JSON, or what is wrong with it; empty if there is none, or if it was cut off."""
    if len(text) > LONGEST_REPAIRED:
        return ""
    text = _SLASH.sub(lambda match: match[1] or "/", text)
    try:
        value, log = repair_json(text, skip_json_loads=True, strict=True, logging=True)
        mended = json.dumps(value)
    except (ValueError, RecursionError):
        return ""
    # It closes what the answer left open, the last brace without a word in its log: no end is made up here.
    closed = any(word in entry["text"] for entry in log for word in ("missed", "missing"))
    closed |= text.count("{") - mended.count("{") != text.count("}") - mended.count("}")
    if closed or not isinstance(value, dict):
        return ""
    twins = [key for key in value if len(re.findall(rf"""["']{re.escape(key)}["']\s*:""", text)) > 1]
    return f"The key {_short(twins[0])} stands there twice." if twins else json.loads(mended)  # surrogates joined


def _no_twins(pairs: list[tuple]) -> dict:
    value = dict(pairs)
    if len(value) < len(pairs):
        twin = max(value, key=[name for name, _ in pairs].count)
        raise Unparsable(f"The key {_short(twin)} stands there twice.")
    return value


def _no_constant(name: str) -> None:
    raise Unparsable(f"{name} is not a number in JSON.")


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_no_twins, parse_constant=_no_constant)


def _misfit(value: dict, schema: dict) -> str:
    try:
        json.dumps(value, ensure_ascii=False).encode()  # half a character (a lone surrogate) no file can hold
    except (UnicodeEncodeError, RecursionError):
        return "It holds a broken character, or is nested too deeply."
    errors = _validator(json.dumps(schema, sort_keys=True)).iter_errors(value)
    error = min(errors, key=lambda error: list(map(str, error.absolute_path)), default=None)
    if error is None:
        return ""
    place = ".".join(map(str, error.absolute_path))
    return f"It does not fit the schema: {f'{place}: ' if place else ''}{_short(error.message)}."


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 300 else f"{text[:300]}…"
