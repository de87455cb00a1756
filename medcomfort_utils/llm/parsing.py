"""Reads what a language model wrote: the text of its message, and the JSON object in it, or what is wrong there."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice

from json_repair import repair_json
from jsonschema import Draft202012Validator

LONGEST_PROBLEM = 300  # characters
LONGEST_REPAIRED = 32_000  # characters of a broken object; more is no answer to anything that is asked here
MOST_OBJECTS = 16  # places at which an object is looked for, so that the time grows with the length alone
# The end of the reasoning, as chat templates mark it: the last one counts.
_THOUGHT = re.compile(r"</think(?:ing)?>|\[/THINK\]|<\|channel\|>final[^{]*?<\|message\|>")
_HARMONY = re.compile(r"(?:assistant)?final(?=\s*\{)")  # its channels, where the server left their brackets out
_THINKING = re.compile(r"<think(?:ing)?>|\[THINK\]|<\|channel\|>analysis|analysis(?=[A-Z])")
_START = re.compile(r"""\{(?=\s*["'}])""")
_SLASH = re.compile(r"(\\\\)|\\/")  # an escaped slash, which json_repair does not know
_CUT_OFF = ("missed", "missing")  # in json_repair's log: it closed what the answer left open


class Unparsable(ValueError):  # noqa: N818 - the field's word
    """An answer without a fitting JSON object; the text is one sentence that a repair prompt can quote."""


def parse(text: str, schema: dict) -> dict:
    """The one JSON object in `text` that fits the JSON `schema`, in time linear in the length.

    Tolerated: reasoning before it, code fences, prose around, and what json_repair mends (single quotes, trailing
    commas, quotes within strings, Python's True, False and None). Not tolerated, raising Unparsable: an answer that
    was cut off, a key that stands twice, no or several different objects that fit, a broken character.
    """
    fitting, problems = [], []
    for value in _objects(_without_thoughts(text)):
        problem = value if isinstance(value, str) else _misfit(value, schema)
        if problem:
            problems.append(problem)
        elif value not in fitting:
            fitting.append(value)
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Unparsable(f"It holds {len(fitting)} different JSON objects; there must be one.")
    raise Unparsable(problems[0] if problems else "It holds no complete JSON object.")


def _without_thoughts(text: str) -> str:
    """What stands after the reasoning; some chat templates open it in the prompt, so only its end is sure."""
    mark = _HARMONY if text.lstrip().startswith("analysis") else _THOUGHT
    end = max((match.end() for match in mark.finditer(text)), default=0)
    answer = text[end:].strip()
    if not end and _THINKING.match(answer):
        raise Unparsable("It ends before the reasoning does.")
    if not answer:
        raise Unparsable("It is empty.")
    return answer


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
            repaired, value = True, _repaired(answer[start:end])
            if isinstance(value, str):
                yield value or f"It is not valid JSON: {_short(str(error))}."
                continue
            position = end
        yield _broken(value) or value


def _repaired(text: str) -> dict | str:
    """The object in broken JSON; text if there is none, or if it was cut off: no end is made up for it."""
    if len(text) > LONGEST_REPAIRED:
        return ""
    text = _SLASH.sub(lambda match: match[1] or "/", text)
    try:
        value, log = repair_json(text, skip_json_loads=True, strict=True, logging=True)
    except (ValueError, RecursionError):
        return ""
    log = " ".join(entry["text"] for entry in log)
    if not isinstance(value, dict) or any(word in log for word in _CUT_OFF) or _open(text) != _open(json.dumps(value)):
        return ""
    twins = [key for key in value if len(re.findall(rf"""["']{re.escape(key)}["']\s*:""", text)) > 1]
    return _twice(twins) if twins else json.loads(json.dumps(value))  # one character for two surrogates


def _open(text: str) -> int:
    """How many braces more are opened than closed; json_repair closes the last without a word in its log."""
    return text.count("{") - text.count("}")


def _twice(keys: list[str]) -> str:
    return f"The key {_short(', '.join(keys))} stands there twice."


def _no_twins(pairs: list[tuple]) -> dict:
    names = Counter(name for name, _ in pairs)
    if twins := sorted(name for name, count in names.items() if count > 1):
        raise Unparsable(_twice(twins))
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise Unparsable(f"{name} is not a number in JSON.")


_DECODER = json.JSONDecoder(strict=False, object_pairs_hook=_no_twins, parse_constant=_no_constant)


def _broken(value: dict) -> str:
    """What is wrong with half a character (a lone surrogate), which no file can hold, and with deep nesting."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        return "It holds a broken character, or is nested too deeply."
    return ""


def _misfit(value: dict, schema: dict) -> str:
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
    return text if len(text) <= LONGEST_PROBLEM else f"{text[:LONGEST_PROBLEM]}…"


def written(message: dict, schema: dict | None) -> str:
    """The answer in a message: its content, or the parts of it that are text; or the object that stands elsewhere."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") in ("text", "output_text")]
        content = "".join(str(part.get("text") or "") for part in parts)
    if isinstance(content, str) and content.strip():
        return content
    for other in _elsewhere(message) if schema else ():
        try:
            parse(other, schema)
            return other
        except Unparsable:
            continue
    return ""


def _elsewhere(message: dict) -> list[str]:
    """Where servers put an answer by mistake: the arguments of a tool call, the reasoning."""
    calls = message["tool_calls"] if isinstance(message.get("tool_calls"), list) else []
    functions = [call.get("function") for call in calls if isinstance(call, dict)] + [message.get("function_call")]
    others = [function.get("arguments") for function in functions if isinstance(function, dict)]
    others += [message.get("reasoning_content"), message.get("reasoning")]
    return [other if isinstance(other, str) else json.dumps(other) for other in others if other]
