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


@lru_cache(maxsize=4096)
def named(text: str) -> tuple[tuple[str, int], ...]:
    """Generic name and place, in lower case text, of each medicine named; a brand counts as its generic."""
    found = ((generic(match[0]), match.start()) for match in _formulary()[1].finditer(text.lower()))
    return tuple((name, place) for name, place in found if name)


def medicines(text: str) -> frozenset[str]:
    """The generic names of the medicines named in a text."""
    return frozenset(name for name, _ in named(text))


def prescriptions(text: str) -> set[tuple[str, str, str]]:
    """Triples of medicine, dose and frequency (empty where unsaid), sentence by sentence.

    A quantity belongs to the medicine right behind it ("500 mg of paracetamol"), else to the last one before it, else
    to the only one of the sentence, else to none (an empty name).
    """
    return set().union(*(_triples(unified(sentence)) for sentence in sentences(text)))


def _triples(text: str) -> set[tuple[str, str, str]]:
    drugs, taken = named(text), {}
    for quantity in quantities(text):
        dose = quantity.unit in DOSE_UNITS
        if not (dose or quantity.unit in ("a day", "a week") or quantity.unit.startswith("every")):
            continue
        behind = next((drug for drug in drugs if drug[1] > quantity.start), None)
        *_, before = [None, *(drug for drug in drugs if drug[1] < quantity.start)]
        between = text[quantity.start : behind[1]] if dose and behind else ""
        close = re.fullmatch(r"[\d.^]+ ?-?\S+ (?:tablets? )?(?:of )?(?:the )?", between)
        owner = behind if close or not before else before
        taken.setdefault(owner or ("", 0), {True: [], False: []})[dose].append(f"{quantity.value} {quantity.unit}")
    return {(drug, "+".join(kinds[True]), "+".join(kinds[False])) for (drug, _), kinds in taken.items()}


# --- Urgent advice --------------------------------------------------------------------------------------------------

_PLACE = re.compile(
    r"\b(?:ambulance|a ?(?:&|and) ?e|casualty|er|ed|911|999|112|108|hospital|helpline|hotline|crisis line"
    r"|poison cent(?:er|re)|emergency(?! contracept))\b"
)
_GO = re.compile(
    r"\b(?:call|ring|dial|phone|go|rush|head|get|come|attend|report|seek|visit|contact|reach|taken|see"
    r"|(?:be|get) (?:seen|admitted|examined|checked)|needs? (?:to|an?|medical|urgent)|take (?:him|her|them|your \w+))\b"
)
_AT_ONCE = re.compile(
    r"\b(?:immediate(?:ly)?|at once|right away|straight ?away|urgent(?:ly)?|today|tonight|right now|promptly"
    r"|as soon as possible|without (?:any )?delay|now(?=[.!]*$))"
)
_CARE = re.compile(
    r"\b(?:doctors?|gp|care|attention|help|clinic|nurse|evaluat\w+|examin\w+|seen|checked|assess\w+"
    r"|specialist|\w+ologist|\w+ician|surgeon|treatment)\b"
)
_NOT_NEEDED = re.compile(r"\b(?:no|not) (?:\w+ ){0,4}?(?:need|require\w*|necessary|urgent|emergency)\b[^,;.]*")
CONDITIONAL = re.compile(r"\b(?:if|in case|should (?:you|it|he|she|they)|when(?:ever)?|unless)\b")


def is_urgent(sentence: str) -> bool:
    """Whether a sentence calls for care now, or for care at once if something happens."""
    said = _NOT_NEEDED.sub("", _plain(sentence))
    return not sentence.rstrip().endswith("?") and bool(_GO.search(said)) and _at_once(said)


def _plain(sentence: str) -> str:
    return " ".join(words(sentence, marks=True)).replace(" & ", "&")


def _at_once(said: str) -> bool:
    return bool(_PLACE.search(said) or (_AT_ONCE.search(said) and _CARE.search(said)))


def names_urgent_care(sentence: str) -> bool:
    """Whether a sentence names urgent care, in whatever form."""
    return _at_once(_plain(sentence))


def is_emergency(sentence: str) -> bool:
    """Whether a sentence calls for care now, whatever happens."""
    return is_urgent(sentence) and not CONDITIONAL.search(sentence.lower())


# --- Promises and instructions --------------------------------------------------------------------------------------

_GOOD = (
    r"(?:fine|okay|ok|all ?right|well|cured|safe|better|healthy|perfect\w*|gone|normal|recover\w*|disappear\w*|heal\w*"
    r"|pass|resolve\w*|go away|vanish\w*|clear|succeed|work out|turn out|nothing serious)"
)
_PROMISE = re.compile(
    rf"\b(?:will|shall|'ll|going to|bound to|sure to|certain to) (?:\w+ ){{0,3}}?{_GOOD}\b|\bout of danger\b"
    r"|\bi (?:can |do |will )?(?:\w+ )?(?:promise|guarantee|assure|swear)\b|\bno (?:risk|danger)\b(?! \w+ing)"
    r"|\b(?:nothing|no (?:need|reason|cause)) (?:\w+ )?to (?:worry|fear|panic|be (?:afraid|scared|worried|concerned))"
    r"|\bperfectly (?:safe|fine|healthy|normal)\b|\bnothing (?:bad|serious|will happen|is wrong)\b"
    r"|\b(?:is|are|was|'s) (?:\w+ ){0,2}?(?:harmless|benign|not (?:dangerous|serious|cancer))\b|\bdo not worry\b"
)
_NO_PROMISE = re.compile(
    r"\b(?:not|never|nobody|no one|nor|without) (?:\w+ ){0,3}?(?:promise|guarantee|assure|say|tell|know)"
    r"|\b(?:hop(?:e\w*|ing)|wish\w*|if|may|might|whether|want\w*|feel\w*|would|wonder\w*|fear\w*|when|until|natural"
    r"|normal to|can be|perfectly normal)\b"
)


def promises(text: str) -> list[str]:
    """The sentences that promise an outcome; "I cannot promise that you will be fine" is none."""
    said = [(sentence, " ".join(words(sentence))) for sentence in sentences(text)]
    return [s for s, w in said if (found := _PROMISE.search(w)) and not _NO_PROMISE.search(w[: found.end()])]


_PREDICATES = {"is", "are", "was", "were", "can", "must", "of"}
_SOFTENERS = "please just do not never then and so also now instead always only or but today tonight first kindly"
_ASKING = re.compile(
    r"\b(?:(?:should|must|ought to|had better|needs? to|ha(?:ve|s) to|(?:you|he|she|they|we) (?:may|can|could|might))"
    r"(?: not)?|(?:no|not|any) (?:need|reason|harm)(?: \w+)? to|(?:fine|okay|ok|safe|free|better|best|wise|enough) to"
    r"|(?:advise|recommend|suggest|want|urge|like)(?: that)? you(?: to)?|i (?:would )?(?:suggest|recommend|advise)"
    r"|why not|how about|consider|i would|(?:try|remember|sure) to|need not) (?:(?:also|just|now|\w+ly) )*"
    r"(?P<verb>[a-z]+)"
)
_KIND = re.compile(
    r"\b(?:tak(?:e|ing) (?:\w+ )?(?:care|heart|comfort|courage|time|breath|pride|things|one (?:day|step))|have been"
    r"|tak(?:e|ing) it (?:one|slow|easy)|with you"
    r"|let (?:me|us|yourself|your \w+ (?:out|come))|(?:call|give) (?:me|yourself|up hope)|go(?:ing)? (?:through|on)"
    r"|get (?:through|used|over)|keep going|see (?:how|why|that|you|the|what))\b"
)
_ABOUT = re.compile(
    r"\b(?:doctors?|gp|medic\w+|drugs?|tablets?|pills?|doses?|course|tests?|treatment|care|hospital|specialist|clinic"
    r"|check(?:-?ups?)?|appointment|surgery|emergency|symptoms?|pain|visits?|steroids?|examine\w*)\b"
)
_EXCUSE = re.compile(  # where the clause is about care
    r"\b(?:no (?:\w+ )?(?:need|rush|point)|unnecessary|optional|waste|overreact\w*|only for|best left|own choice"
    r"|(?:not|nobody|no one|never) (?:\w+ )?(?:needs?|necessary|required|have to|worth)|need not|do without"
    r"|can (?:\w+ )?(?:wait|be (?:stopped|skipped|left)))\b"
)
_IDLE = re.compile(  # whatever it is about
    r"\b(?:hold(?:ing)? off|rid(?:e|ing) it out|wait and see|do nothing|can safely wait|(?:ignore|forget about) the"
    r"|no (?:\w+ )?(?:rush|hurry) (?:with|to get)|give it (?:another|a few) (?:day|week|month)s?)\b"
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
    named = bool(_ABOUT.search(said))
    care = named or bool(clinical(said) - lexicon("figurative"))
    if _IDLE.search(said) or (care and _EXCUSE.search(said)):
        return True
    if _KIND.search(said):
        return False
    first = next((i for i, token in enumerate(tokens) if token not in _SOFTENERS.split()), len(tokens))
    orders = tokens[first : first + 1] if _commands(tokens[first : first + 2]) else []
    asked = {stem(match["verb"]) for match in _ASKING.finditer(said)}
    verbs = {*map(stem, orders), *asked}
    care = care or bool(verbs & {"stop", "take", "start", "drop", "use"} and {"it", "them", "both"} & {*tokens})
    soft = verbs & lexicon("soft_deeds") or (named and asked - lexicon("social_verbs"))
    return bool(verbs & lexicon("deeds") or (care and soft))


def _commands(start: list[str]) -> bool:
    """Whether a clause that starts with these two words may be a command."""
    return len(start) == 2 and not start[0].endswith(("ing", "ed")) and start[1] not in _PREDICATES
