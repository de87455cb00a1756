"""What must not change in medical text: medicines and their doses, and that no outcome is promised.

Rules over wording, for English; the lists are in `drugs_en.yaml` and `gates_en.yaml`.
"""

import re
from functools import cache, lru_cache
from pathlib import Path

import yaml

from medcomfort_utils.rewrite.quantities import numbers
from medcomfort_utils.rewrite.wording import cues, new_cue, parts, tokens

DOSE_UNITS = ("mg", "mcg", "g", "ml", "iu", "unit", "puff", "tablet", "capsule", "drop", "mg/kg")


@cache
def _medicines() -> tuple[dict[str, str], list[str], re.Pattern]:
    """Each name's generic name; the names that are no single word; a pattern of suffixes."""
    lists = yaml.safe_load(Path(__file__).with_name("drugs_en.yaml").read_text(encoding="utf-8"))
    known = {name.replace("_", " "): name.replace("_", " ") for name in lists["names"].split()}
    known |= {name: generic for generic, names in lists["aliases"].items() for name in (generic, *names)}
    no_medicine = "|".join(lists["no_medicines"])
    suffixed = rf"(?!(?:{no_medicine})$)\w{{3,}}(?:{'|'.join(lists['suffixes'])})s?"
    return known, [name for name in known if not name.isalpha()], re.compile(suffixed)


@lru_cache(maxsize=1 << 16)
def _medicine(word: str) -> str:
    """The generic name if a word is a medicine, else an empty text."""
    known, _, suffixed = _medicines()
    found = known.get(word) or known.get(word.removesuffix("s"), "")
    return found or (word if len(word) >= 7 and suffixed.fullmatch(word) else "")


@lru_cache(maxsize=4096)
def drugs(text: str) -> frozenset[str]:
    """The generic names of the medicines in a text; a brand counts as its generic."""
    known, compounds, _ = _medicines()
    lower = text.lower().replace("’", "'")
    return frozenset({known[name] for name in compounds if name in lower} | set(map(_medicine, tokens(text)))) - {""}


@lru_cache(maxsize=4096)
def doses(text: str) -> frozenset[tuple[str, str]]:
    """Pairs of a medicine and a dose from each sentence; a medicine is empty where the sentence names none."""
    return frozenset(
        (drug, number)
        for sentence in parts(text)
        for number in numbers(sentence)
        if number.partition(" ")[2] in DOSE_UNITS
        for drug in drugs(sentence) or ("",)
    )


def new_doses(source: str, rewritten: str) -> list[str]:
    """Doses that `rewritten` gives, in a sentence of its own, to a medicine that has other doses in `source`."""
    if len(drugs(source)) < 2:
        return []
    known, found = doses(source), []
    for sentence in parts(rewritten):
        pairs = sorted(doses(sentence) - known)
        if pairs and len(drugs(sentence)) == 1:
            found += [f"{drug} {dose}" for drug, dose in pairs if ("", dose) not in known]
    return found


def false_reassurance(source: str, rewritten: str) -> str:
    """The words of `rewritten` that promise an outcome and do not stand in `source`; empty if there are none."""
    return new_cue(cues("false_reassurance"), source, rewritten)
