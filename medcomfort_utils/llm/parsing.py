"""Reads the JSON object out of what a language model wrote, and says what is wrong where there is none."""

import ast
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache

from jsonschema import Draft202012Validator

_FENCE = re.compile(r"```[\w-]*\n(.*?)```", re.S)
_TRAILING_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.S)
# Strings, so that a brace in one does not count; a single quote opens a string only where a value or name can stand.
_TOKEN = re.compile(r""""(?:\\.|[^"\\])*"|(?<=[{\[,:\s])'(?:\\.|[^'\\])*'(?=\s*[,:}\]])|[{}]""", re.S)
_SLASH = re.compile(r"(\\\\)|\\/")  # an escaped slash, which JSON knows and Python does not
_LITERALS = {"true": True, "false": False, "null": None}
LONGEST_PROBLEM = 300  # characters


class Unparsable(ValueError):  # noqa: N818 - the field's word
    """An answer without a fitting JSON object; the text is one sentence that a repair prompt can quote."""


def parse(text: str, schema: dict) -> dict:
    """The one JSON object in `text` that fits the JSON `schema`.

    Tolerated: a `<think>` block, code fences, prose around, single quotes, Python's True, False and None, trailing
    commas, line breaks in strings. Not tolerated, raising Unparsable: an answer that was cut off, a key that stands
    twice, no or several different objects that fit, a broken character.
    """
    answer = _without_thoughts(text)
    fitting, problems = [], []
    for candidate in _candidates(answer):
        try:
            value = _decoded(candidate)
            _check(value, schema)
        except Unparsable as error:
            problems.append(str(error))
            continue
        if value not in fitting:
            fitting.append(value)
        if candidate == answer:
            break
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise Unparsable(f"It holds {len(fitting)} different JSON objects; there must be one.")
    raise Unparsable(problems[0] if problems else "It holds no complete JSON object.")


def _without_thoughts(text: str) -> str:
    """What stands after the reasoning; some chat templates open `<think>` in the prompt, so only its end is sure."""
    answer = text.rpartition("</think>")[2].strip()
    if answer.startswith("<think>"):
        raise Unparsable("It ends before the reasoning does.")
    if not answer:
        raise Unparsable("It is empty.")
    return answer


def _candidates(answer: str) -> Iterator[str]:
    """Texts that may be the object, the likeliest first: the whole answer, fenced blocks, outermost braces."""
    if answer.startswith("{") and answer.endswith("}"):
        yield answer
    yield from (block.strip() for block in _FENCE.findall(answer) if block.lstrip().startswith("{"))
    starts, spans = [], []
    for token in _TOKEN.finditer(answer, max(0, answer.find("{"))):
        if token[0] == "{":
            starts.append(token.start())
        elif token[0] == "}" and starts:
            start = starts.pop()
            while spans and spans[-1][0] > start:
                spans.pop()
            spans.append((start, token.end()))
    yield from (answer[start:end] for start, end in spans)


def _decoded(text: str) -> dict:
    """Strict JSON where it is, else JSON with trailing commas, else a Python literal."""
    for candidate in (text, _TRAILING_COMMA.sub(lambda match: match[1] or "", text)):
        try:
            value = json.loads(candidate, strict=False, object_pairs_hook=_without_twins, parse_constant=_no_constant)
            return _whole(value)
        except Unparsable:
            raise
        except (ValueError, RecursionError) as error:
            problem = f"It is not valid JSON: {_short(str(error))}."
    value = _python_literal(text)
    if value is None:
        raise Unparsable(problem)
    return _whole(value)


def _python_literal(text: str) -> object:
    """The value of a Python literal, in which JSON's true, false and null may stand; None where it is not one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd escapes: DeprecationWarning, from Python 3.12 on SyntaxWarning
            tree = ast.parse(_SLASH.sub(lambda match: match[1] or "/", text), mode="eval")
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                _without_twins([(key.value, None) for key in node.keys if isinstance(key, ast.Constant)])
        value = ast.literal_eval(_Literals().visit(tree))
        return json.loads(json.dumps(value, allow_nan=False))  # lists for tuples, one character for two surrogates
    except Unparsable:
        raise
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return None


class _Literals(ast.NodeTransformer):
    def visit_Name(self, node: ast.Name) -> ast.expr:  # noqa: N802 - the name that ast asks for
        return ast.Constant(_LITERALS[node.id]) if node.id in _LITERALS else node


def _without_twins(pairs: list[tuple]) -> dict:
    names = Counter(name for name, _ in pairs)
    if twins := sorted(str(name) for name, count in names.items() if count > 1):
        raise Unparsable(f"The key {_short(', '.join(twins))} stands there twice.")
    return dict(pairs)


def _no_constant(name: str) -> None:
    raise Unparsable(f"{name} is not a number in JSON.")


def _whole(value: object) -> object:
    """The value, unless half a character (a lone surrogate) stands in it, which no file can hold."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeEncodeError, RecursionError):
        raise Unparsable("It holds a broken character, or is nested too deeply.") from None
    return value


def _check(value: object, schema: dict) -> None:
    errors = _validator(json.dumps(schema, sort_keys=True)).iter_errors(value)
    error = min(errors, key=lambda error: list(map(str, error.absolute_path)), default=None)
    if error is not None:
        place = ".".join(map(str, error.absolute_path))
        raise Unparsable(f"It does not fit the schema: {f'{place}: ' if place else ''}{_short(error.message)}.")


@lru_cache(maxsize=64)
def _validator(schema: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_PROBLEM else f"{text[:LONGEST_PROBLEM]}…"
