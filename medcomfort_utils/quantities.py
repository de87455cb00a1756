"""Quantities: numbers with their units and bounds, in one form whatever the spelling."""

import functools
import re
from typing import NamedTuple

from medcomfort_utils.text import opened

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_VALUES = {word: i for i, word in enumerate(f"{_ONES} seventeen eighteen nineteen".split())}
_SINGLE = "|".join(list(_VALUES)[1:10])
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_VALUES |= {word: 10 * i for i, word in enumerate(_TENS.split(), 2)}
_ANY = "|".join(sorted(_VALUES, key=len)[::-1])
_SMALL = rf"(?:(?:twen|thir|for|fif|six|seven|eigh|nine)ty[ -](?:{_SINGLE})|{_ANY})"
_SPELLED = re.compile(
    rf"\b(?:(?P<many>{_SMALL}|\d+|an?) (?P<of>hundred|thousand)(?:(?: and)? (?P<rest>{_SMALL}))?|(?P<few>{_SMALL}))\b"
)
_VULGAR = {"½": ".5", "¼": ".25", "¾": ".75", "⅓": ".33", "⅔": ".67", "⅛": ".125"}
_DIVIDED = {"1/2": "0.5", "1/4": "0.25", "3/4": "0.75", "1/3": "0.33", "2/3": "0.67"}
_COUNTS = re.compile(  # the quick look: whatever `unified` may have to change
    rf"[\d°½¼¾⅓⅔⅛]| {{2}}|\b(?:{_ANY}|hundred|thousand|half|quarter|[btoqp]\.|[bto]d|tid|tds|q[id][ds]|bid|eod|prn|s\.o"
    r"|once|twice|thrice|nocte|da(?:ily|ys?)|times|hourly|deg|(?:an?|single|the) (?:lit(?:er|re)|week|hour|month|year"
    r"|tablet|capsule|puff|drop|teaspoon|gram|minute))"
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")

_UNITS = {  # spellings: what is counted, and how many of these
    "mg|mgs|milligram(?:me)?s?": ("mg", 1), "mcg|ug|µg|microgram(?:me)?s?": ("mg", 0.001),
    "g|gms?|gram(?:me)?s?": ("mg", 1000), "kg|kgs|kilo(?:gram)?s?": ("kg", 1),
    "ml|mls|cc|millilit(?:er|re)s?": ("ml", 1), "l|lit(?:er|re)s?": ("ml", 1000), "iu|units?": ("unit", 1),
    "secs?|seconds?": ("second", 1), "mins?|minutes?": ("minute", 1), "h|hrs?|hours?": ("minute", 60),
    "d|days?": ("day", 1), "nights?": ("night", 1), "weeks?|wks?": ("day", 7), "months?": ("month", 1),
    "years?|yrs?": ("year", 1), "%|per ?cent": ("%", 1), "degrees?": ("degree", 1),
    "tab(?:let)?s?|pills?": ("tablet", 1), "cap(?:sule)?s?": ("capsule", 1), "drops?": ("drop", 1),
    "puffs?": ("puff", 1), "teaspoons?|tsps?": ("teaspoon", 1), "mm": ("mm", 1),
    "cms?|centimet(?:er|re)s?": ("mm", 10), "mmol": ("mmol", 1), "ng": ("ng", 1), "times a day": ("a day", 1),
    "times a week": ("a week", 1), "times": ("times", 1), "cups?": ("cup", 1),
}  # fmt: skip
_UNIT = "|".join(sorted(_UNITS, key=len, reverse=True))
_FORMS = [(re.compile(spelling), form) for spelling, form in _UNITS.items()]

_ADAY = r"(?: (?:a|per|each|every) day| daily)"
_DOSING = [(re.compile(pattern), full) for pattern, full in (
    (rf"\bb\.?i\.?d\b\.?|\bb\.?d\b\.?(?! ?[a-z]\.)|\btwice{_ADAY}", "2 times a day"),
    (rf"\bt\.?[di]\.?[sd]\b\.?|\bthrice{_ADAY}", "3 times a day"),
    (r"\bq\.?[id]\.?[ds]\b\.?", "4 times a day"),
    (rf"(?<=[\dgls] )o\.?d\b\.?|\bonce{_ADAY}", "1 times a day"),
    (r"\bq ?(\d+) ?h(?:rs?|ours?)?\b|\b(?:every )?(\d+)[ -]hourly\b", r"every \1\2 hours"),
    (r"\bevery (?:other|second) day\b|\b(?:on )?alternate days?\b|\beod\b", "every 2 days"),
    (rf"\btimes{_ADAY}", "times a day"), (r"\btimes (?:per|each|every) week\b|\btimes weekly\b", "times a week"),
    (rf"(\d ?(?!times)(?:{_UNIT}))(?: ?/ ?| a "
    rf"| per )day\b", r"\1 1 times a day"), (r"(?<=[^e]s) (?:a|per) day\b", " 1 times a day"),
    (r"(?<!times )\b(?:an?|single|the) (?=(?:lit(?:er|re)|week|hour|month|year|tablet|capsule|puff|drop|teaspoon"
    r"|gram|minute)\b)", "1 "),
    (r"(?<!times a)(?<!\d) ?\b(?:daily|(?:every|each) day)\b", " 1 times a day"),
    (r"\bonce\b(?= (?:a|per|every) (?:day|week|month|year)"
    r"| weekly)", "1 times"), (r"\btwice\b", "2 times"), (r"\bthrice\b", "3 times"),
    (r"\bnocte\b", "at night"), (r"\bp\.?r\.?n\b\.?|\bs\.o\.s\b\.?", "as needed"),
)]  # fmt: skip
_REPAIRS = [(re.compile(pattern), full) for pattern, full in (
    (r"(?<=\d),(?=\d{3}(?!\d))", ""), (r"(?<=\d),(?=\d{1,2}(?!\d))", "."),  # thousands; a decimal comma
    (r"(?<=\b\d)\. (?=\d ?(?:m?g|ml|l|mcg)\b)", "."),  # "2. 5 ml"
    (r"(\d+(?:\.\d+)?) and (?:a|1) half\b", r"\1½"), (rf"\b(?:(?:a|1) )?half (?:an? |of (?:an? |the )?"
    rf"|1 )?(?=(?:{_UNIT}|dose|glass|cup)\b)", "½ "),
    (r"\bquarter (?:of )?an? ", "¼ "), (r"(\d{2,3}) over (\d{2,3})", r"\1/\2"), (r"(\d) ?[x×*] ?(?=\d)", r"\1 x "),
    (r" ?°(?: ?[cf]\b)?| deg(?:rees?)?\b\.?(?: ?(?:c|f|celsius|fahrenheit)\b)?", " degrees"),
)]  # fmt: skip

_AT_MOST = (
    r"at most|(?<!go )(?<!put )(?<!went )(?<!increase )(?<!increased )(?<!raised )(?<!build )up to"
    r"|maximum(?: of)?|max(?: of)?|no more than|not more than|not exceed(?:ing)?|within|≤|<="
)
_AT_LEAST = r"at least|minimum(?: of)?|no less than|not less than|no fewer than|≥|>="
_LESS = r"less than|fewer than|lower than|under|below|<"
_MORE = r"(?:more|greater|higher|longer) than|over|above|exceed(?:s|ing)?|>"
_BEFORE = re.compile(
    rf"(?:(?P<most>{_AT_MOST})|(?P<least>{_AT_LEAST})|(?P<less>{_LESS})|(?P<more>{_MORE})"
    rf"|(?P<late>after))(?: about| an?| the| of)* ?$"
)
_BEHIND = re.compile(
    r" ?(?:(?:or|and) (?:(?P<most>less|fewer|below|under)|(?P<least>more|above|older|over|higher"
    r"|longer))\b|(?P<cap>at most|maximum|max)\b)"
)
_AMOUNT = re.compile(
    rf"(?<![\w.])(?P<series>\d(?:-\d){{2,3}}(?![\d-]))|(?P<every>every )?(?P<value>(?<![\d.])\d+(?:\.\d+)?"
    rf"|\.\d+)(?P<power>\^\d+)?(?:[ -]?(?P<unit>{_UNIT})(?![a-z])(?P<per>(?: ?/ ?| per )(?:kg|dl|ml|l|min|hour)\b)?)?"
)
_JOINED = re.compile(r" ?(?:-|to|or|and) ?$")


class Quantity(NamedTuple):
    """A number as text, what it counts (empty: nothing named), its bound (`<=`, `>=`, `<`, `>` or empty), its place."""

    value: str
    unit: str = ""
    bound: str = ""
    start: int = 0

    @property
    def key(self) -> tuple[str, str, str]:
        """What two equal quantities share."""
        return self.value, self.unit, self.bound


def _number(match: re.Match) -> str:
    few = sum(_VALUES[word] for word in re.split("[ -]", match["few"] or match["rest"] or "zero"))
    if not match["of"]:
        return str(few)
    many = 1 if match["many"] in ("a", "an") else int(_SPELLED.sub(_number, match["many"]))
    return str(many * (100 if match["of"] == "hundred" else 1000) + few)


@functools.lru_cache(maxsize=8192)
def unified(text: str) -> str:
    """The text in lower case, numbers, fractions, exponents and Latin dosing in one form: `tds` is `3 times a day`."""
    text = opened(text)
    if not _COUNTS.search(text):  # most sentences
        return text
    text = re.sub(r"(?<=\d)[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(_RAISED), text)
    text = _SPELLED.sub(_number, text)
    text = re.sub(r"(?<![\d/])(?:1/2|1/4|3/4|1/3|2/3)(?![\d/])", lambda m: _DIVIDED[m[0]], text)
    for pattern, full in (*_REPAIRS, *_DOSING):
        text = pattern.sub(full, text)
    text = re.sub(r"(\d*) ?([½¼¾⅓⅔⅛])", lambda m: (m[1] or "0") + _VULGAR[m[2]], text)
    return re.sub(r" {2,}", " ", text)


def _bound(text: str, match: re.Match) -> str:
    """The bound that stands before or behind the number; a denied "more than" is "at most"."""
    before = re.split(r"[,;:!?]|\. ", text[max(0, match.start() - 60) : match.start()])[-1]
    if found := _BEFORE.search(before):
        denied = re.search(r"\b(?:not|never|no|avoid\w*)(?: \w+){0,3} ?$", before[: found.start()])
        signs = {
            "most": "<=",
            "least": ">=",
            "less": ">=" if denied else "<",
            "more": "<=" if denied else ">",
            "late": ">",
        }
        return signs[found.lastgroup]
    behind = _BEHIND.match(text, match.end())
    return {"most": "<=", "least": ">=", "cap": "<="}[behind.lastgroup] if behind else ""


@functools.lru_cache(maxsize=1024)
def _form(spelling: str) -> tuple[str, float]:
    return next((form for pattern, form in _FORMS if pattern.fullmatch(spelling)), ("", 1))


@functools.lru_cache(maxsize=8192)
def quantities(text: str) -> tuple[Quantity, ...]:
    """All quantities of a text, in order. Both ends of a range have its unit; `1-0-0` is one; a bare "one" is none."""
    text = unified(text)
    found, open_end = [], 0
    for match in _AMOUNT.finditer(text):
        if match["series"]:
            found.append(Quantity(match["series"], "series", "", match.start()))
            continue
        name, factor = _form(match["unit"] or "")
        value = f"{float(match['value']) * factor:g}" + (match["power"] or "")
        name += match["per"].replace("per", "/").replace(" ", "") if match["per"] and name else ""
        unit = ("every " if match["every"] else "") + name
        if (
            found
            and not found[-1].unit.removeprefix("every ")
            and name
            and match["value"] != "1"  # "3.4 and an hour later"
            and _JOINED.fullmatch(text[open_end : match.start()])
        ):
            first = found[-1]
            every = first.unit + name
            found[-1] = first._replace(value=f"{float(first.value.partition('^')[0]) * factor:g}", unit=every)
            unit = every
        found.append(Quantity(value, unit, _bound(text, match), match.start()))
        open_end = match.end()
    return tuple(q for q in found if q.unit or q.value not in ("1", "0"))
