"""What real consultation text needs before it is used: forms made one, contacts masked, likely names removed."""

import re
from functools import cache

from medcomfort_utils.medical import medicines
from medcomfort_utils.rewrite.clinic import vocabulary
from medcomfort_utils.text import normalise, sentences

_BROKEN_DECIMAL = re.compile(r"(?<![\w.,])0\. (?=\d+\s?(?:m?c?g|µg|ng|i?u|m?l|kg|[cm]m|mmol|percent|%)(?![a-z]))", re.I)

_WEB = re.compile(r"://|\.(?:com|org|net|edu|gov)\b|www\.", re.I)  # the quick look before the slow one
_URL = re.compile(
    r"\b(?:https?://|www\.)[!-~]*[\w/]|(?<![\w.@-])[\w-]+\.(?:com|org|net|edu|gov)\b(?:/[!-~]*[\w/])?", re.I
)
_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)*\.[a-z]{2,}\b", re.I)
# A bare run of digits may be a cell count, a range or a date, so a number counts as a telephone's by its
# country code, its grouping (3-3-4), its word ("call me on") or as ten digits that are no quantity.
_DIGITS = re.compile(r"\d[\d ().-]{5,}\d")  # the least that a telephone number needs, again for a quick look
_PHONE = re.compile(
    r"(?<![\w+.,/])(?:\+\d{1,3}[ .-]?(?:\(\d{1,4}\)[ .-]?)?\d(?:[ .-]?\d){6,11}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|(?:1[ .-])?\d{3}([ .-])\d{3}\1\d{4}"
    r"|(?<!\d[ -])0?[6-9]\d{9}(?! ?(?:cells|copies|iu|units|per)\b)"
    r"|(?:(?<=\bphone )|(?<=\bphone: )|(?<=\bcall )|(?<=\bcall me on )|(?<=\bcall me at )|(?<=\bmobile )"
    r"|(?<=\bmobile: )|(?<=\bnumber is )|(?<=\bwhatsapp )|(?<=\btel )|(?<=\btel: )|(?<=\btel\. ))0?\d(?:[ -]?\d){6,11})"
    r"(?!\d|[.,/]\d|%)",
    re.I,
)

# A name is likely right behind a greeting ("Hi Anna,"), behind a title, or alone at the end behind a sign-off.
_HELLO = r"(?i:hi|hello|hey|dear|good (?:morning|afternoon|evening))"
_TITLE = r"(?i:dr|doctor|mr|mrs|ms|miss|prof|professor)"
_NAME = r"[A-Z][^\W\d_]*(?:['-][^\W\d_]+)*\.?"
_NAMES = rf"(?P<name>{_NAME}(?: {_NAME}){{0,2}})"
_NEXT = r"(?=\s+(?i:i|i'm|i've|my|we|our|please|thank|thanks|this|can|could|what|how|hope|your|you|the)\b)"
_GREETINGS = (
    re.compile(rf"{_HELLO},? (?:{_TITLE}\b\.? )+(?P<name>(?i:{_NAME})(?: (?i:{_NAME}))?)(?:\s*[,.!:;\n-]|$)\s*"),
    re.compile(rf"{_HELLO},? (?:{_TITLE}\b\.? )+(?P<name>(?i:{_NAME})){_NEXT}\s*"),
    re.compile(rf"{_HELLO} {_NAMES}\s*(?:[,!:;\n]|-\s|(?<!\.)\.\s)\s*"),
    re.compile(rf"(?i:dear) (?P<name>(?i:{_NAME})),\s*"),
)
_CAPITALS = r"(?P<name>(?:[A-Z][\w.'-]*)(?:[ ,\n]+(?:[A-Z][\w.'-]*|&|and|of)){0,8})[\s.,]*$"
_DOCTOR = r"(?i:dr)\b\.?\s+"
_SIGN_OFFS = (
    re.compile(
        r"(?:^|(?<=[.!?,;\n\]])|(?<=[.!?,;\n\]] ))(?i:(?:thanks|thank you)(?: and|,)? )?"
        r"(?i:(?:(?:with|best|kind|warm|kindest|warmest) )*"
        r"(?:regards|sincerely|yours (?:sincerely|truly|faithfully)|best wishes))"
        rf"(?:[\s.,!:-]*$|[\s.,!:-]+(?:{_DOCTOR}([a-z]+(?: [a-z]+){{0,2}})[\s.]*$|(?:{_DOCTOR})?{_CAPITALS}))"
    ),
    re.compile(rf"(?:(?<=[.!?\n])|(?<=[.!?\n] ))[- ]*{_DOCTOR}{_CAPITALS}"),
    re.compile(rf"(?:(?<=\b[Tt]hanks)|(?<=\b[Tt]ake care))[,\n]+\s*{_CAPITALS}"),
)
_TAIL = 240  # characters at the end of a text in which a sign-off is looked for
_ADDRESSED = {
    "i", "he", "she", "doc", "doctors", "dr", "sir", "madam", "ma'am", "user", "patient", "friend", "yes", "thank",
    "thanks", "please", "why", "recently", "lately", "yesterday",
}  # fmt: skip

_ARROW = re.compile(r"[\s.]*-{2,}>\s*(?:<link>)?", re.I)
_REFERRAL = re.compile(
    r"\b(?:and |kindly |please )?(?:for (?:further|more|any)(?: \w+){1,4}? )?"
    r"(?:to know more|revert|get back|follow up with|consult|contact|seek an opinion|you can (?:also )?book)\b",
    re.I,
)
_DANGLING = re.compile(r"\s*(?:regarding follow up:|(?:(?:if|in case|when|should|besides)\b[^.]*)|\w+ \w+)\s*", re.I)


def clean_text(text: str) -> str:
    """One turn of a real dialogue, ready for use: forms made one, boilerplate, contacts and likely names out."""
    return cleaned(text)[0]


def cleaned(text: str) -> tuple[str, int]:
    """The text of `clean_text`, and how many names were removed.

    "0. 5 mg", a decimal that a site's own clean-up took apart, is joined again; no other number is touched.
    """
    text = strip_boilerplate(re.sub(r"\n+", "\n", normalise(text)))
    text, removed = strip_names(mask_contacts(_BROKEN_DECIMAL.sub("0.", text)))
    return text.replace("<|", "< |"), removed  # no patient writes a chat template's control tokens


def mask_contacts(text: str) -> str:
    """E-mail addresses, URLs and telephone numbers as `[email]`, `[url]`, `[phone]`; doses, dates, values stay."""
    if "@" in text:
        text = _EMAIL.sub("[email]", text)
    if _WEB.search(text):
        text = _URL.sub("[url]", text)
    return _PHONE.sub("[phone]", text) if _DIGITS.search(text) else text


def strip_boilerplate(text: str) -> str:
    """Without the site's own endings ("For further information consult a cardiologist online --> <link>")."""
    if "-->" not in text and "online" not in text.lower():
        return text
    *referred, last = _ARROW.split(text)
    kept = [_without_referral(part, required=False) for part in referred]
    return " ".join([*kept, _without_referral(last, required=True)]).strip()


def _without_referral(text: str, required: bool) -> str:
    """Cut the last sentence where it sends the reader to a page; `required`: only where it is plainly a referral."""
    start = len(text.rstrip()) - len((sentences(text) or [""])[-1])
    sentence = text[start:]
    online = sentence.lower().rfind("online")
    *_, found = [None, *_REFERRAL.finditer(sentence, 0, online if online >= 0 else len(sentence))]
    if required and (online < 0 or found is None or sentence.endswith("?")) or (online < 0 and found is None):
        return text
    head = sentence[: found.start()] if found else ""
    own_clause = found and found[0].lower().startswith("and ")
    if not own_clause and len(head.split()) <= 15 and _DANGLING.fullmatch(head):
        head = ""
    return (text[:start] + head).rstrip()


def strip_names(text: str) -> tuple[str, int]:
    """The text without likely names in its greeting ("Hello," is left) and sign-off, and how many were removed.

    A known medicine, or a word that the clinic's conditions use in lower case, is no name.
    """
    removed = 0
    for greeting in _GREETINGS:
        found = greeting.match(text)
        if found and _is_name(found["name"]):
            text, removed = f"Hello, {text[found.end() :]}", 1
            break
    head, tail = text[:-_TAIL], text[-_TAIL:]
    for sign_off in _SIGN_OFFS:
        found = sign_off.search(tail)
        name = found and found["name"]
        if found and (not name or _is_name(name)):
            tail, removed = tail[: found.start()] + tail[found.end() :], removed + bool(found.lastindex)
    return (head + tail).strip(), removed


@cache
def _ordinary() -> frozenset[str]:
    return vocabulary() | _ADDRESSED


def _is_name(text: str) -> bool:
    first = re.match(r"\W*([^\W\d_]+(?:'[^\W\d_]+)?)", text)
    acronym = first and len(first[1]) > 1 and first[1].isupper()
    return bool(first) and not (acronym or first[1].lower() in _ordinary() or medicines(text))
