"""What real consultation text needs before it is used: cleaning, masking, sentences, language, urgent advice."""

import html
import re
from typing import Literal

_WORD = re.compile(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+(?:['’][^\W_\u3400-\u9fff]+)*")
_HAN = re.compile(r"[\u3400-\u9fff]")
_KANA_HANGUL = re.compile(r"[\u3040-\u30ff\uac00-\ud7af]")
# Function words that the neighbouring languages in Latin script do not share.
_ENGLISH = frozenset(
    _WORD.findall(
        "the of and to is are with for have has had been you your it its that this these not be can my i'm i am from "
        "if they she he her his would should what when how there which will does did by at after any please"
    )
)

_ENTITY = re.compile(r"&(?:#\d{1,7}|#x[0-9a-fA-F]{1,6}|[a-zA-Z]\w{1,30});")
_TAG = re.compile(
    r"</?(?:link|br|p|div|span|a|b|i|u|em|strong|ul|ol|li|h[1-6]|font|img)(?:\s+[\w-]+\s*=[^<>]*)?\s*/?>", re.I
)
# Among them marks that turn the direction of writing, and tags (U+E0000), in which text can hide.
_INVISIBLE = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u00ad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\U000e0000-\U000e007f]"
)
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

_HELLO = r"(?:hi|hello|hey|dear|good (?:morning|afternoon|evening))"
_TITLE = r"(?:dr|doctor|mr|mrs|ms|miss|prof|professor)"
_NO_NAME = (
    r"(?!(?:doctors?|doc|dr|sir|madam|ma'?am|there|all|everyone|team|user|patient|friend|yes|no|so|well|thanks?|the|an?"
    r"|my|our|this|that|it|is|am|are|we|you|he|she|they|what|how|why|when|can|could|do|does|please|recently|lately"
    r"|today|yesterday|since|after|last|for|from|in|on|at|as|if|i)\b)"
)
_NAME = r"[^\W\d_][\w'’-]*\.?"
_NEXT_SENTENCE = r"(?=\s+(?:i|i'm|i've|my|we|our|please|thank|thanks|this|can|could|what|how|hope|your|you|the)\b)"
_GREETINGS = (
    re.compile(rf"^{_HELLO},?\s+(?:{_TITLE}\b\.?,?\s+)+{_NO_NAME}{_NAME}(?:\s+{_NAME})?(?:\s*[,.!:;\n-]|$)\s*", re.I),
    re.compile(rf"^{_HELLO},?\s+(?:{_TITLE}\b\.?\s+)+{_NO_NAME}{_NAME}{_NEXT_SENTENCE}\s*", re.I),
    re.compile(rf"^(?i:{_HELLO}),?\s+(?i:{_NO_NAME})[A-Z][\w'’-]+(?: [A-Z][\w'’-]+)?\s*(?:[,!:;\n]|-\s|\.\s)\s*"),
    re.compile(rf"^dear\s+{_NO_NAME}{_NAME}\s*,\s*", re.I),
)
_CAPITALS = r"(?:[A-Z][\w.'’-]*)(?:[ ,\n]+(?:[A-Z][\w.'’-]*|&|and|of)){0,8}[\s.,]*$"
_DOCTOR = r"(?i:dr)\b\.?\s+"
_SIGN_OFFS = (
    re.compile(
        r"(?:^|(?<=[.!?,;\n\]])|(?<=[.!?,;\n\]] ))(?i:(?:thanks|thank you)(?: and|,)? )?"
        r"(?i:(?:(?:with|best|kind|warm|kindest|warmest) )*"
        r"(?:regards|sincerely|yours (?:sincerely|truly|faithfully)|best wishes))"
        rf"(?:[\s.,!:-]*$|[\s.,!:-]+(?:{_CAPITALS}|{_DOCTOR}(?:{_CAPITALS}|[a-z]+(?: [a-z]+){{0,2}}[\s.]*$)))"
    ),
    re.compile(rf"(?:(?<=[.!?\n])|(?<=[.!?\n] ))[-– ]*{_DOCTOR}{_CAPITALS}"),
    re.compile(rf"(?<=\b[Tt]hanks)[,\n]+\s*{_CAPITALS}|(?<=\b[Tt]ake care)[,\n]+\s*{_CAPITALS}"),
)
_TAIL = 240  # characters at the end of a text in which a sign-off is looked for

_ARROW = re.compile(r"[\s.]*-{2,}>\s*(?:<link>)?", re.I)
_REFERRAL = re.compile(
    r"\b(?:and |kindly |please )?(?:for (?:further|more|any)(?: \w+){1,4}? )?"
    r"(?:to know more|revert|get back|follow up with|consult|contact|seek an opinion|you can (?:also )?book)\b",
    re.I,
)
_DANGLING = re.compile(r"\s*(?:regarding follow up:|(?:(?:if|in case|when|should|besides)\b[^.]*)|\w+ \w+)\s*", re.I)

_BREAK = re.compile(r"(?<=[.!?])[\"'”’)\]]*[ \t]+|(?<=[。！？])(?![。！？])[”’」』]?\s*|\n+")
_ABBREVIATED = re.compile(r"(?:^|[\s(])(?:e\.?g|i\.?e|dr|mr|mrs|ms|prof|vs|approx|fig|inj|tab|cap|syp|viz)\.$", re.I)
_LIST_NUMBER = re.compile(r"(?:^|[.:;!?]\s?)\(?\d{1,2}\.$")
_UNIT = re.compile(r"(?:\d ?(?:m?c?g|ml|kg|iu|cm|mm|hrs?|mins?)|\b[ap]\.m)\.$", re.I)
_CONTINUES = re.compile(
    r"(?:once|twice|thrice|\w+ times|daily|every|each|at|of|per|in|for|after|before|and|or|with|a|an|orally|bid|tid)\b"
)

_NOW = r"(?:immediately|urgently|at once|right away|straight away|without (?:any )?delay|as soon as possible|asap)"
_CARE = (
    r"(?:doctor|physician|gp|paediatrician|pediatrician|neurologist|cardiologist|gynaecologist|hospital|clinic"
    r"|provider|surgeon|specialist|medical (?:help|care|attention))"
)
# Both are matched against lower-case text.
_URGENT = re.compile(
    r"\b(?=[acdeginpruswtvh])(?:"
    r"emergency (?:room|department|ward|hospital|unit|services?|medical|care|help|number|evaluation)"
    r"|casualty (?:ward|department)|(?:to|the|nearest|closest|an) (?:er|a&e|a ?and ?e|casualty)\b|ambulance"
    r"|(?:call|dial|phone|ring) (?:[a-z]+ )?(?:911|112|999|108|102|000|988)\b"
    r"|(?:urgent|immediate|emergent|prompt) (?:\w+ )?(?:medical|care|attention|help|evaluation|hospital\w*)"
    r"|(?:suicide|crisis) (?:prevention )?(?:hot|help|life)?line|poison (?:control|cent)"
    rf"|{_CARE}\b(?:\W+(?!(?:and|not|never)\b)\w+){{0,3}}\W+{_NOW}\b"
    rf"|{_NOW}\W+(?:go|rush|call|see|visit|consult|contact|seek|report)\b(?:\W+\w+){{0,4}}?\W+{_CARE}\b"
    rf"|(?:seek|get) (?:help|care) {_NOW})"
    r"|急诊|急救|(?:拨打|打)\s*(?:120|110)|(?:立即|立刻|马上|尽快|赶紧)(?:去医院|就医|就诊|送医)"
)
_NOT_URGENT = re.compile(
    r"\b(?:no need|not need|n't need|need not|not necessary|not required|not require|without (?:the )?need)\b"
    r"(?! to (?:wait|hesitate))"
)


def words(text: str) -> list[str]:
    """Lower-case words of a text; each Chinese character counts as one word."""
    return _WORD.findall(text.lower())


def language(text: str) -> Literal["en", "zh", ""]:
    """`en` or `zh` by script and function words; empty for anything else (also Japanese, Korean)."""
    tokens = words(text)
    letters = sum(map(len, tokens))
    han, other = len(_HAN.findall(text)), len(_KANA_HANGUL.findall(text))
    if not letters or other > 0.05 * letters:
        return ""
    if han >= 0.3 * letters:
        return "zh"
    english = sum(map(_ENGLISH.__contains__, tokens)) / len(tokens)
    latin = sum(map(len, filter(str.isascii, tokens))) / letters
    return "en" if english >= 0.12 and latin >= 0.8 else ""


def squeeze(text: str) -> str:
    r"""White space in order: one space between words, one `\n` between paragraphs; what cannot be shown is dropped."""
    text = text.encode("utf-8", "ignore").decode("utf-8")  # a lone surrogate from JSON could not be written again
    lines = (" ".join(line.split()) for line in _INVISIBLE.sub("", text).splitlines())
    return "\n".join(line for line in lines if line)


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
    start = max((m.end() for m in _BREAK.finditer(text.rstrip())), default=0)
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


def strip_names(text: str) -> str:
    """Greetings with a name become "Hello,"; sign-offs with a name go."""
    for greeting in _GREETINGS:
        text, found = greeting.subn("Hello, ", text, count=1)
        if found:
            break
    head, tail = text[:-_TAIL], text[-_TAIL:]
    for sign_off in _SIGN_OFFS:
        tail = sign_off.sub("", tail)
    return (head + tail).strip()


def clean_text(text: str) -> str:
    """One turn of a real dialogue, ready for use: entities, tags, white space, boilerplate, contacts, names.

    "0. 5 mg", a decimal that a site's own clean-up took apart, is joined again; no other number is touched.
    """
    text = _ENTITY.sub(lambda found: html.unescape(found[0]), text)
    text = strip_boilerplate(squeeze(text))
    text = mask_contacts(_BROKEN_DECIMAL.sub("0.", squeeze(_TAG.sub(" ", text))))
    return strip_names(text).replace("<|", "< |")  # no patient writes a chat template's control tokens


def sentences(text: str) -> list[str]:
    """Sentences of English (also lower-case) or Chinese text; "e.g.", "Dr.", "5 ml. twice" and "1." do not end one."""
    parts, start = [], 0
    for found in _BREAK.finditer(text):
        before, after = text[start : found.start()], text[found.end() :][:20]
        if "\n" in found[0] or not _goes_on(before.rstrip("\"'”’)]"), after):
            parts.append(text[start : found.end()].strip())
            start = found.end()
    return [part for part in [*parts, text[start:].strip()] if part]


def _goes_on(before: str, after: str) -> bool:
    if not before.endswith("."):
        return False
    tail = before[-24:]
    return bool(
        _ABBREVIATED.search(tail)
        or _LIST_NUMBER.search(tail)
        or (before[-2:-1].isdigit() and after[:1].isdigit())
        or (re.search(r"(?:^|[\s(])[A-Za-z]\.$", tail) and after[:1].islower())
        or (_UNIT.search(tail) and _CONTINUES.match(after))
    )


def urgent_sentences(text: str) -> list[str]:
    """The sentences that give urgent-care advice (emergency room, ambulance, a doctor at once): `red_flags`."""
    if not _URGENT.search(text.lower()):
        return []
    return [s for s in sentences(text) if _URGENT.search(s.lower()) and not _NOT_URGENT.search(s.lower())]
