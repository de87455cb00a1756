"""What a reworded text owes its source: sentences are aligned, then relations are compared.

A relation is a mark (quantity, pole of an opposite, negation, condition) with its neighbours. A mark that changed its
neighbours, its sign or its value is a change of the medicine; words around it are free.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import cache, cached_property, lru_cache
from itertools import combinations

from medcomfort_utils import medical
from medcomfort_utils.medical import lexicon, stem
from medcomfort_utils.quantities import quantities, unified
from medcomfort_utils.text import DENYING, negated, sentences, tokens

LINK = 0.34  # share of a sentence's content that another must hold to stand for it
FOUND = 0.3  # share of a sentence's content that must stand somewhere, weighted by rarity
LOST_CLAUSE = 0.2  # the same for a clause
NEAR = 8  # tokens to each side that are a mark's neighbours
MOST = 300  # marks of a kind that are compared: gates stay linear in the length of a text
_TIME = ("minute", "second", "day", "month", "year", "night")
ONE = {("1", unit) for unit in (*_TIME, "a day", "tablet", "capsule", "drop", "puff")} | {
    ("60", "minute"),
    ("7", "day"),
    ("2", "times"),
}  # "a day", "an hour": often no number at all
_LINKING = "and but or which because as so while when if unless since"
_BREAKS = frozenset([*",;:()", *_LINKING.split()])
_FLIPPING = {"amount", "start", "safe", "often"}  # "not more" is "less"; "not before" is not "after"
_ENDS = frozenset([*",;:().?!", "then", "but", "because"])


@cache
def _poles() -> dict[str, dict[tuple[str, int], None]]:
    """Stem of a word: the pairs of opposites in which it stands, and its sign there."""
    found = defaultdict(dict)
    for pair, poles in medical.word_lists()["opposites"].items():
        for sign, words in zip((1, -1), poles, strict=True):
            for word in words.split():
                found[stem(word)][pair, sign] = None
    return found


@lru_cache(maxsize=1 << 16)
def _content(token: str) -> str:
    if not token.isalpha() or len(token) < 2:
        return token if token[0].isdigit() and token not in "01" else ""
    return medical.generic(token) or ("" if stem(token) in lexicon("function") else stem(token))


class Said:
    """A sentence, read once."""

    def __init__(self, text: str):
        self.text = text
        self.tokens = tokens(unified(text), marks=True)
        self.stems = [_content(token) for token in self.tokens]  # empty for words without content
        self.content = frozenset(self.stems) - {""}
        self.denied = negated(self.tokens)
        self.words = " ".join(token for token in self.tokens if token[0].isalnum())

    @cached_property
    def english(self) -> bool:
        """Whether so many of its words are English function words that no language needs to be identified."""
        letters = [bool(name) for token, name in zip(self.tokens, self.stems, strict=True) if token[0].isalpha()]
        return letters.count(False) >= 0.25 * len(letters)

    @cached_property
    def quantities(self) -> dict[tuple[str, str], set[str]]:
        """Value and unit: the bounds with which they stand."""
        found = defaultdict(set)
        for quantity in quantities(self.text):
            found[quantity.value, quantity.unit].add(quantity.bound[:1])
        return found

    @cached_property
    def medicines(self) -> frozenset[str]:
        return medical.medicines(self.text)

    @cached_property
    def clinical(self) -> frozenset[str]:
        return medical.clinical(self.text)

    @cached_property
    def promises(self) -> bool:
        return bool(medical.promises(self.text))

    @cached_property
    def urgent(self) -> bool:
        return medical.is_urgent(self.text)

    def clauses(self, breaks: frozenset[str] = _BREAKS) -> list[range]:
        """The places of the tokens of each clause."""
        ends = [*(i for i, token in enumerate(self.tokens) if token in breaks), len(self.tokens)]
        return [range(start, end) for start, end in zip([0, *(i + 1 for i in ends)], ends, strict=False)]

    def content_of(self, clause: range) -> frozenset[str]:
        return frozenset(self.stems[clause.start : clause.stop]) - {""}

    @cached_property
    def denying(self) -> list[tuple[bool, frozenset[str]]]:
        """Of each clause whether it denies something, and its content."""
        found = []
        for clause in self.clauses(_BREAKS - {"and", "or"}):
            said = self.tokens[clause.start : clause.stop]
            denies = not self.denied.isdisjoint(clause) or any(
                token in DENYING or stem(token) in lexicon("implicit_denials") for token in said
            )
            found.append((denies, self.content_of(clause)))
        return found

    @cached_property
    def conditions(self) -> list[tuple[str, frozenset[str]]]:
        """If, unless or even if, with the content of what depends on it; "know if" is "know whether"."""
        found = []
        for i, token in enumerate(self.tokens):
            last = self.tokens[max(0, i - 1)]
            if token in ("if", "unless", "provided") and last != "as":
                end = next((j for j in range(i + 1, len(self.tokens)) if self.tokens[j] in _ENDS), len(self.tokens))
                sign = "unless" if token == "unless" else "even" if last == "even" else "if"
                found.append((sign, frozenset(self.stems[i + 1 : end]) - {""} or self.content))
        return found

    @cached_property
    def heads(self) -> frozenset[str]:
        """What a negation denies first: "not stop", "no fever"; a question ("is it not enough?") denies nothing."""
        found, end = set(), len(self.tokens)
        if self.text.endswith("?"):
            end = max((i for i, token in enumerate(self.tokens) if token in _BREAKS), default=0)
        for i, token in enumerate(self.tokens[:end]):
            if token in DENYING and self.tokens[i + 1 : i + 2] not in (["it"], ["that"], ["this"], ["them"]):
                inside = [j for j in range(i + 1, min(i + 9, len(self.tokens))) if j in self.denied and self.stems[j]]
                if inside and inside[0] - i <= 4:
                    found.add(self.stems[inside[0]])
        return frozenset(found - lexicon("social_verbs"))

    @cached_property
    def marks(self) -> list[tuple[str, object, dict[str, float]]]:
        """Kind, key and neighbours of what must keep its neighbours: numbers, and poles of opposites."""
        found = []
        for i, token in enumerate(self.tokens):
            for pair, sign in _poles().get(stem(token), ()):
                if pair == "side" and not self.stems[min(i + 1, len(self.stems) - 1)]:
                    continue  # "right away", "left me"
                denied = i in self.denied and not DENYING.isdisjoint(self.tokens[max(0, i - 3) : i])
                denied |= self.tokens[i + 1 : i + 2] in (["no"], ["neither"], ["without"])  # "causes no harm"
                found.append((pair, -sign if denied and pair in _FLIPPING else sign, self._near(i)))
            if token[0].isdigit() and token not in ("0", "1"):
                found.append(("number", token, self._near(i)))
        return found

    def _near(self, place: int) -> dict[str, float]:
        near = {}
        for step in (1, -1):
            steps, last = 0, place + step * (NEAR + 1)
            for j in range(place + step, min(last, len(self.tokens)) if step > 0 else max(last, -1), step):
                steps += 3 if self.tokens[j] in _BREAKS else 1
                if name := self.stems[j] or (self.tokens[j] if stem(self.tokens[j]) in _poles() else ""):
                    near[name] = max(near.get(name, 0), 1 / steps)
        return near


said = lru_cache(maxsize=1 << 14)(Said)  # a source is read once for all its versions


@lru_cache(maxsize=4096)
def read(text: str) -> tuple[Said, ...]:
    """The sentences of a text."""
    return tuple(map(said, sentences(text)))


class Alignment:
    """A text beside its source: what is not verbatim (`old`, `new`), and which of `new` is `own` or `reworded`."""

    def __init__(self, source: str, text: str):
        self.source, self.text = read(source), read(text)
        waiting = Counter(each.words for each in self.source)
        self.new = []
        for each in self.text:
            if waiting[each.words] > 0:
                waiting[each.words] -= 1
            else:
                self.new.append(each)
        self.old = [each for each in self.source if waiting[each.words] > 0]
        self.places = defaultdict(list)  # a word of the source: the sentences in which it stands
        for i, each in enumerate(self.source):
            for name in each.content:
                self.places[name].append(i)
        self.own = [each for each in self.new if not self._stands_for_one(each)]
        self.reworded = [each for each in self.new if each not in self.own]
        self.letters = "".join(token for each in self.text for token in each.tokens)

    def _weight(self, name: str) -> float:
        return 1 / len(self.places.get(name, ".")) ** 0.5

    def _stands_for_one(self, new: Said) -> bool:
        """Whether a sentence of the source shares so much content that this one is its rewording."""
        shared, count = defaultdict(float), Counter()
        for name in new.content:
            for i in self.places.get(name, ())[:20]:
                shared[i] += self._weight(name)
                count[i] += 1
        size = sum(map(self._weight, new.content))
        sizes = ((i, both, sum(map(self._weight, self.source[i].content))) for i, both in shared.items())
        return any(max(both / size, both / whole) >= (LINK if count[i] > 1 else 0.6) for i, both, whole in sizes)

    @cached_property
    def lost(self) -> list[Said]:
        """Sentences of the source whose content is found nowhere in the text."""
        return [each for each in self.old if each.content and self._found(each.content) < FOUND]

    def _found(self, names: Iterable[str]) -> float:
        weights = {name: self._weight(name) for name in names}
        return sum(weight for name, weight in weights.items() if name[:6] in self.letters) / sum(weights.values())

    # --- What has changed ---

    def changes(self) -> Iterable[str]:
        """What the reworded sentences changed."""
        if self.new:
            yield from self._quantities()
            yield from self._turned()
            yield from self.denials()
            yield from self._conditions()
            kept = [each for each in self.old if each not in self.lost]
            for clause in (each.content_of(clause) for each in kept for clause in each.clauses()):
                if len(clause) > 1 and self._found(clause) < LOST_CLAUSE:
                    yield f"lost: {' '.join(sorted(clause))}"

    def _quantities(self) -> Iterable[str]:
        before, after, everywhere = map(_bounds, (self.old, self.new, self.text))
        for value, unit in sorted(before.keys() - everywhere.keys() - ONE):
            if not any(v == value and "" in (u, unit) for v, u in everywhere):
                yield f"lost number: {value} {unit}".strip()
        for (value, unit), bounds in after.items():
            known = before.get((value, unit))
            if known and not known & bounds and not (unit in _TIME and "" in known | bounds):
                yield f"changed bound: {value} {unit}".strip()

    def _turned(self) -> Iterable[str]:
        """Marks that have the neighbours of their opposite, or that exchanged their neighbours."""
        before, after = _by_kind(self.source), _by_kind(self.reworded)
        for kind in sorted(before.keys() & after.keys() - {"number"}):
            for sign, near in after[kind]:
                same, other = (
                    max((_alike(near, around) for known, around in before[kind] if known == wanted), default=0.0)
                    for wanted in (sign, -sign)
                )
                stays = any(known == -sign and _alike(near, around) >= other for known, around in after[kind])
                if other >= 0.3 and other > same + 0.1 and not stays:
                    yield "turned around: " + " ".join(near)
        first, second = dict(before["number"][:40]), dict(after["number"][:40])
        for one, other in combinations(sorted(first.keys() & second.keys()), 2):
            same = _alike(first[one], second[one]) + _alike(first[other], second[other])
            crossed = _alike(first[one], second[other]) + _alike(first[other], second[one])
            if crossed > same + 0.25:
                yield f"exchanged: {one} and {other}"

    def denials(self, among: frozenset[str] | None = None) -> Iterable[str]:
        """What is denied on one side and only affirmed on the other; `among`: of these words alone."""
        before, after = (frozenset().union(*(each.heads for each in side)) for side in (self.old, self.reworded))
        for heads, denied, other, fault in ((before, after, self.text, "lost"), (after, before, self.source, "new")):
            affirmed, doubted = (
                {name for each in other for denies, clause in each.denying if denies == way for name in clause}
                for way in (False, True)
            )
            turned = (heads & affirmed) - denied - doubted
            if turned := turned if among is None else turned & among:
                yield f"{fault} negation: {', '.join(sorted(turned))}"

    def _conditions(self) -> Iterable[str]:
        before, after = ([c for each in side for c in each.conditions] for side in (self.old, self.reworded))
        for sign, clause in before:
            like = [s for s, other in after if len(clause & other) > 0.5 * min(len(clause), len(other))]
            if like and sign not in like and "if" in (sign, *like):
                yield f"{sign} became {like[0]}: {' '.join(sorted(clause))}"
        for sign, clause in after:
            if len(clause & self.places.keys()) < 0.4 * len(clause) and sign != "even":
                yield f"new condition: {' '.join(sorted(clause))}"


def _bounds(parts: Iterable[Said]) -> dict[tuple[str, str], set[str]]:
    found = defaultdict(set)
    for each in parts:
        for key, bounds in each.quantities.items():
            found[key] |= bounds
    return found


def _alike(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(min(weight, other[name]) for name, weight in one.items() if name in other)


def _by_kind(parts: Iterable[Said]) -> dict[str, list[tuple[object, dict[str, float]]]]:
    found = defaultdict(list)
    for each in parts:
        for kind, key, near in each.marks:
            if len(found[kind]) < MOST:
                found[kind].append((key, near))
    return found
