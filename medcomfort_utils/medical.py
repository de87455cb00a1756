"""What medical text says: medicines and how they are taken, urgent advice, promises, instructions. English rules."""

import re
from functools import cache, lru_cache
from pathlib import Path

import snowballstemmer
import yaml

from medcomfort_utils.quantities import quantities, unified
from medcomfort_utils.text import sentences, words

DOSE_UNITS = {"mg", "ml", "unit", "tablet", "capsule", "drop", "puff", "teaspoon", "mg/kg", "%"}
_STEMMER = snowballstemmer.stemmer("english")


@lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """The stem under which forms of a word are compared."""
    return _STEMMER.stemWord(word)


@cache
def lexicon(name: str) -> frozenset[str]:
    """The stems of a list of `words_en.yaml`."""
    return frozenset(map(stem, word_lists()[name].split()))


@cache
def word_lists() -> dict:
    """The lists of `words_en.yaml`."""
    return yaml.safe_load(Path(__file__).with_name("words_en.yaml").read_text(encoding="utf-8"))


# --- Medicines ------------------------------------------------------------------------------------------------------


@cache
def _formulary() -> tuple[dict[str, str], re.Pattern, re.Pattern]:
    """Each name's generic name, a pattern of the names that are no single word, a pattern of telling endings."""
    lists = yaml.safe_load(Path(__file__).with_name("drugs_en.yaml").read_text(encoding="utf-8"))
    known = {name.replace("_", " "): name.replace("_", " ") for name in lists["names"].split()}
    known |= {name: generic for generic, names in lists["aliases"].items() for name in (generic, *names)}
    compounds = "|".join(re.escape(name) for name in known if not name.isalpha())
    ending = rf"(?!(?:{'|'.join(lists['no_medicines'])})$)\w{{3,}}(?:{'|'.join(lists['suffixes'])})"
    return known, re.compile(rf"\b(?:{compounds})\b|[a-z]+"), re.compile(ending)


@lru_cache(maxsize=1 << 14)
def generic(word: str) -> str:
    """The generic name if a lower case word is a medicine, else an empty text."""
    known, _, ending = _formulary()
    single = word.removesuffix("s")
    found = known.get(word) or known.get(single, "")
    return found or (single if len(single) >= 7 and ending.fullmatch(single) else "")


def named(text: str) -> list[tuple[str, int]]:
    """Generic name and place, in lower case text, of each medicine named; a brand counts as its generic."""
    found = ((generic(match[0]), match.start()) for match in _formulary()[1].finditer(text.lower()))
    return [(name, place) for name, place in found if name]


def medicines(text: str) -> frozenset[str]:
    """The generic names of the medicines named in a text."""
    return frozenset(name for name, _ in named(text))


def prescriptions(text: str) -> set[tuple[str, str, str]]:
    """Triples of medicine, dose and frequency (empty where unsaid), sentence by sentence.

    A quantity belongs to the medicine right behind it ("500 mg of paracetamol"), else to the last one before it, else to
    the only one of the sentence, else to none (an empty name).
    """
    return set().union(*(_triples(unified(sentence)) for sentence in sentences(text)), set())


def _triples(text: str) -> set[tuple[str, str, str]]:
    drugs, taken = named(text), {}
    for quantity in quantities(text):
        dose = quantity.unit in DOSE_UNITS
        if not (dose or quantity.unit in ("a day", "a week") or quantity.unit.startswith("every")):
            continue
        behind = [d for d in drugs if d[1] > quantity.start]
        close = behind and re.fullmatch(r"[\d.^]+ ?-?\S+ (?:tablets? )?(?:of )?(?:the )?", text[quantity.start : behind[0][1]])
        before = [d for d in drugs if d[1] < quantity.start]
        owner = ("", 0) if not drugs else behind[0] if (close and dose) or not before else before[-1]
        taken.setdefault(owner, {True: [], False: []})[dose].append(f"{quantity.value} {quantity.unit}")
    return {(drug, "+".join(kinds[True]), "+".join(kinds[False])) for (drug, _), kinds in taken.items()}


# --- Urgent advice --------------------------------------------------------------------------------------------------

_PLACE = re.compile(
    r"\b(?:ambulance|a ?(?:&|and) ?e|casualty|er|ed|911|999|112|108|hospital|helpline|hotline|crisis line|poison cent(?:er|re)"
    r"|emergency(?! contracept\w+)(?: (?:room|department|services?|care|unit|line|number))?)\b"
)
_GO = re.compile(
    r"\b(?:call|ring|dial|phone|go|rush|head|get|come|attend|report|seek|visit|contact|reach|take (?:him|her|them|your \w+)"
    r"|taken|(?:be|get) (?:seen|admitted|examined|checked)|needs? (?:to|an?|medical|urgent)|see)\b"
)
_AT_ONCE = re.compile(
    r"\b(?:immediate(?:ly)?|at once|right away|straight ?away|urgent(?:ly)?|today|tonight|right now|as soon as possible|asap"
    r"|without (?:any )?delay|emergency|promptly|now(?=[.!]*$))"
)
_CARE = re.compile(
    r"\b(?:doctors?|gp|care|attention|help|clinic|nurse|physician|evaluation|evaluated|examin\w+|seen|checked|specialist|\w+ologist"
    r"|\w+ician|surgeon|surgery|treatment|hospital|assessed|assessment)\b"
)
CONDITIONAL = re.compile(r"\b(?:if|in case|should (?:you|it|he|she|they)|when(?:ever)?|unless)\b")


def is_urgent(sentence: str) -> bool:
    """Whether a sentence calls for care now, or for care at once if something happens."""
    said = " ".join(words(sentence, marks=True)).replace(" & ", "&")
    said = re.sub(r"\b(?:no|not) (?:\w+ ){0,4}?(?:need|require\w*|necessary|urgent|emergency)\b[^,;.]*", "", said)
    return not sentence.rstrip().endswith("?") and bool(_GO.search(said)) and _at_once(said)


def _at_once(said: str) -> bool:
    return bool(_PLACE.search(said) or (_AT_ONCE.search(said) and _CARE.search(said)))


def names_urgent_care(sentence: str) -> bool:
    """Whether a sentence names urgent care, in whatever form."""
    return _at_once(" ".join(words(sentence, marks=True)).replace(" & ", "&"))


def is_emergency(sentence: str) -> bool:
    """Whether a sentence calls for care now, whatever happens."""
    return is_urgent(sentence) and not CONDITIONAL.search(sentence.lower())


# --- Promises and instructions --------------------------------------------------------------------------------------

_GOOD = (
    r"(?:fine|okay|ok|all ?right|well|cured|safe|better|healthy|perfect\w*|gone|normal|recover\w*|disappear\w*|heal\w*|pass|resolve\w*"
    r"|go away|good as new|vanish\w*|clear|succeed|work out|turn out|out of danger|in no danger|harmless|nothing serious|benign)"
)
_PROMISE = re.compile(
    rf"\b(?:will|shall|'ll|going to|bound to|sure to|certain to) (?:\w+ ){{0,3}}?{_GOOD}\b"
    r"|\bi (?:can |do |will )?(?:\w+ )?(?:promise|guarantee|assure|swear)\b|\bguaranteed\b|\bno (?:risk|danger)\b(?! \w+ing)"
    r"|\b(?:nothing|no (?:need|reason|cause)) (?:\w+ )?to (?:worry|fear|panic|be (?:afraid|scared|worried|concerned))"
    r"|\bout of danger\b|\bperfectly (?:safe|fine|healthy|normal)\b|\bnothing (?:bad|serious|will happen|is wrong)\b"
    r"|\b(?:is|are|was|'s) (?:\w+ ){0,2}?(?:harmless|benign|not (?:dangerous|serious|cancer))\b|\bdo not worry\b"
)
_NO_PROMISE = re.compile(
    r"\b(?:not|never|nobody|no one|nor|without) (?:\w+ ){0,3}?(?:promise|guarantee|assure|say|tell|know)|\b(?:hope\w*|hoping|wish\w*|if|may|might"
    r"|whether|want\w*|feel\w*|would|wonder\w*|fear\w*|when|until|natural|normal to|can be|perfectly normal)\b"
)


def promises(text: str) -> list[str]:
    """The sentences that promise an outcome; "I cannot promise that you will be fine" is none."""
    said = [(sentence, " ".join(words(sentence))) for sentence in sentences(text)]
    return [s for s, w in said if (found := _PROMISE.search(w)) and not _NO_PROMISE.search(w[: found.end()])]


_PREDICATES = {"is", "are", "was", "were", "can", "must", "of"}
_SOFTENERS = set("please just do not never then and so also now instead always only simply or but today tonight first kindly".split())
_ASKING = re.compile(
    r"\b(?:(?:should|must|ought to|had better|need to|needs to|have to|has to|(?:you|he|she|they|we) (?:may|can|could|might))(?: not)?"
    r"|(?:no|not|any) (?:need|rush|hurry|reason|harm)(?: \w+)? to|(?:fine|okay|ok|all ?right|safe|free|better|best|wise|harmless|enough) to"
    r"|(?:advise|recommend|suggest|want|urge|like)(?: that)? you(?: to)?|i (?:would )?(?:suggest|recommend|advise)|why not|how about|consider"
    r"|i would|try to|remember to|make sure to|be sure to|not have to|need not|let us)"
    r" (?:(?:also|just|now|then|always|simply|safely|still|even|at least|\w+ly) )*(?P<verb>[a-z]+)"
)
_KIND = re.compile(
    r"\b(?:tak(?:e|ing) (?:good |great )?(?:care|heart|comfort|courage|your time|all the time|time|a moment|an? \w*? ?breath|it (?:one|slow|easy)"
    r"|things|one|each|in|pride)|let'?s\b|let (?:me|us|yourself|your \w+ (?:out|come))|giv(?:e|ing) yourself|go (?:easy|gently|slowly|through)"
    r"|have (?:patience|faith|hope|courage|to (?:be|go|face|carry|live))|rest assured|keep (?:in mind|going|talking|asking|hoping)|stop \w+ing yourself|drop me"
    r"|(?:call|give) (?:me|yourself|up hope)|see (?:how|why|that|you|yourself|the|what)|get through|go(?:ing)? (?:through|on)|have been|with you|get (?:used|over))\b"
)
_ABOUT = re.compile(
    r"\b(?:doctors?|gp|medic\w+|drugs?|tablets?|pills?|dose|doses|course|tests?|treatment|care|hospital|specialist|clinic|nurse|check(?:-?ups?)?|follow-?ups?"
    r"|appointment|referral|surgery|ambulance|a ?& ?e|emergency|symptoms?|pain|visits?|steroids?|examine\w*|attend)\b"
)
_EXCUSE = re.compile(
    r"\b(?:no (?:\w+ )?(?:need|hurry|rush|point|use|reason|attention)|unnecessary|(?:not|no longer|nobody|no one|hardly|never) (?:\w+ )?(?:needs?|necessary|required|mention|have to"
    r"|has to|worth)|need not|needs? no|optional|pointless|waste|overreact\w*|only for|left out|best left|(?:do|doing|be fine) without|early enough|own choice|pushed? through"
    r"|can (?:\w+ )?(?:wait|be (?:stopped|skipped|left))|perfectly (?:okay|ok|fine|safe))\b"
)
_IDLE = re.compile(
    r"\b(?:hold(?:ing)? off|rid(?:e|ing) it out|run (?:its|their) course|wait and see|do nothing|carry on as if|(?:no|not any) (?:\w+ )?(?:rush|hurry) (?:with|to get)"
    r"|give it (?:another|a few|some more) (?:day|week|month)s?|sit it out|forget about the|can safely wait|ignore the)\b"
)


def clinical(text: str) -> frozenset[str]:
    """The stems of a text's words on bodies, symptoms, tests, treatments, substances and care."""
    return frozenset(s for word in words(text) if (s := _clinical(word)))


@lru_cache(maxsize=1 << 16)
def _clinical(word: str) -> str:
    endings = tuple(word_lists()["clinical_endings"].split())
    known = stem(word) in lexicon("clinical") or (len(word) >= 7 and word.removesuffix("s").endswith(endings))
    return generic(word) or (stem(word) if known else "")


def instructions(text: str) -> list[str]:
    """The clauses that command, permit or excuse something about medicine, care, tests or waiting."""
    clauses = (c for s in sentences(text) for c in re.split(r"[,;:()]| - |\b(?:and|but|because|so) ", s))
    return [clause.strip() for clause in clauses if _instructs(words(clause))]


def _instructs(tokens: list[str]) -> bool:
    said = " ".join(tokens)
    care = bool(_ABOUT.search(said) or clinical(said) - lexicon("figurative"))
    if _IDLE.search(said) or (care and _EXCUSE.search(said)):
        return True
    if _KIND.search(said):
        return False
    while tokens and tokens[0] in _SOFTENERS:
        tokens = tokens[1:]
    led = len(tokens) > 1 and not tokens[0].endswith("ing") and tokens[1] not in _PREDICATES
    orders = {stem(tokens[0])} if led else set()
    asked = {stem(match["verb"]) for match in _ASKING.finditer(said)}
    care |= bool(re.search(r"\b(?:it|them)\b", said))
    return bool(
        (orders | asked) & lexicon("deeds")
        or (care and ((orders | asked) & lexicon("soft_deeds") or (_ABOUT.search(said) and asked - lexicon("social_verbs"))))
    )
