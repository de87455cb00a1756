"""What a reworded text owes its source: who stands for whom is found by aligning sentences, then relations are compared.

A relation is a mark (quantity, pole of an opposite, negation, condition, medicine) with its neighbours. A mark that changed its
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
_TIME = {"minute", "second", "day", "month", "year", "night"}
ONE = {("1", unit) for unit in (*_TIME, "a day", "tablet", "capsule", "drop", "puff")} | {("60", "minute"), ("7", "day"), ("2", "times")}  # "a day", "an hour": often no number at all
_BREAKS = frozenset(", ; : ( ) and but or which because as so while when if unless since though although".split())
_ENDS = frozenset(", ; : ( ) . ? ! then but because".split())
_LOOSE = frozenset("when whenever once until while case whether otherwise where depending for with in during without even though only unless if as".split())
_PERSONS = frozenset("you he she they it the your there".split())
_FLIPPING = frozenset(("amount", "start", "safe", "often", "effective", "prevent"))  # "not more" is "less"; "not before" is not "after"


@cache
def _poles() -> dict[str, list[tuple[str, int]]]:
    """Stem of a word: the pairs of opposites in which it stands, and its sign there."""
    found = defaultdict(list)
    for pair, poles in medical.word_lists()["opposites"].items():
        for sign, words in zip((1, -1), poles, strict=True):
            for word in words.split():
                if (pair, sign) not in found[stem(word)]:
                    found[stem(word)].append((pair, sign))
    return found


class Said:
    """A sentence, read once."""

    def __init__(self, text: str):
        self.text, self.plain = text, unified(text)
        self.tokens = tokens(self.plain, marks=True)
        self.words = " ".join(t for t in self.tokens if t[0].isalnum())
        self.stems = [_content(token) for token in self.tokens]
        self.content = frozenset(self.stems) - {""}
        self.denied = negated(self.tokens)

    @cached_property
    def quantities(self) -> dict[tuple[str, str], set[str]]:
        """Value and unit: the bounds with which they stand."""
        found = defaultdict(set)
        for quantity in quantities(self.text):
            found[quantity.value, quantity.unit].add(quantity.bound[:1])
        return found

    @cached_property
    def clauses(self) -> list[frozenset[str]]:
        """The content of each clause."""
        found, clause = [], set()
        for token, name in zip(self.tokens, self.stems, strict=True):
            if token in _BREAKS:
                found.append(frozenset(clause))
                clause = set()
            elif name:
                clause.add(name)
        return [c for c in (*found, frozenset(clause)) if c]

    @cached_property
    def conditions(self) -> list[tuple[str, frozenset[str]]]:
        """If, unless or even if, with the content of what depends on it; "know if" is "know whether"."""
        found = []
        for i, token in enumerate(self.tokens):
            last, following = self.tokens[max(0, i - 1)], " ".join(self.tokens[i + 1 : i + 3])
            strict = token in ("if", "unless") and last != "as" and stem(last) not in lexicon("knowing")
            strict |= token == "provided" or (token == "as" and following == "long as")
            strict |= token == "should" and (i == 0 or last in _BREAKS) and following.split(" ")[0] in _PERSONS and self.text[-1] != "?"
            if strict:
                end = next((j for j in range(i + 1, len(self.tokens)) if self.tokens[j] in _ENDS), len(self.tokens))
                sign = "unless" if token == "unless" else "even" if last == "even" else "if"
                found.append((sign, frozenset(self.stems[i + 1 : end]) - {""}))
        return found

    @cached_property
    def _clean(self) -> list[bool]:
        """Of each token whether its clause denies nothing."""
        found, start = [], 0
        for i, token in enumerate((*self.tokens, ".")):
            if (token in _BREAKS and token not in ("and", "or")) or i == len(self.tokens):
                clause = self.tokens[start : i + 1]
                clean = not any(t in DENYING or stem(t) in lexicon("implicit_denials") for t in clause)
                found += [clean and j not in self.denied for j in range(start, start + len(clause))]
                start = i + 1
        return found

    @cached_property
    def affirmed(self) -> frozenset[str]:
        """The content of clauses that deny nothing."""
        return frozenset(name for name, clean in zip(self.stems, self._clean, strict=False) if clean) - {""}

    @cached_property
    def doubted(self) -> frozenset[str]:
        """The content of clauses that deny something."""
        return frozenset(name for name, clean in zip(self.stems, self._clean, strict=False) if not clean) - {""}

    @cached_property
    def heads(self) -> frozenset[str]:
        """What a negation denies first: "not stop", "no fever"; a question ("is it not enough?") denies nothing."""
        found = set()
        last = max((i for i, t in enumerate(self.tokens) if t in _BREAKS), default=0) if self.text.endswith("?") else len(self.tokens)
        for i, token in enumerate(self.tokens[:last]):
            if token in DENYING and self.tokens[i + 1 : i + 2] not in (["it"], ["that"], ["this"], ["them"]):
                inside = [j for j in range(i + 1, min(i + 9, len(self.tokens))) if j in self.denied and self.stems[j]]
                head = next((j for j in inside if self.stems[j] not in lexicon("light")), None)
                if head and head - max([i, *(j for j in inside if j < head)]) <= 4:
                    found.add(self.stems[head])
        return frozenset(found - lexicon("social_verbs"))

    def marks(self) -> Iterable[tuple[object, object, dict[str, float]]]:
        """Kind, key and neighbours of what must keep its neighbours."""
        for i, token in enumerate(self.tokens):
            for pair, sign in _poles().get(stem(token), ()):
                if pair == "side" and not self.stems[min(i + 1, len(self.stems) - 1)]:
                    continue  # "right away", "left me"
                close = DENYING & {*self.tokens[max(0, i - 3) : i]} if i in self.denied else ()
                denied = close or self.tokens[i + 1 : i + 2] in (["no"], ["neither"], ["without"])  # "causes no harm"
                yield pair, -sign if denied and pair in _FLIPPING else sign, self._near(i)
            if token[0].isdigit() and token not in ("0", "1"):
                yield "number", token, self._near(i)

    def _near(self, place: int) -> dict[str, float]:
        near, steps = {}, 0
        for step in (1, -1):
            steps = 0
            for j in range(place + step, place + step * (NEAR + 1), step):
                if not 0 <= j < len(self.tokens):
                    break
                steps += 3 if self.tokens[j] in _BREAKS else 1
                if name := self.stems[j] or (self.tokens[j] if stem(self.tokens[j]) in _poles() else ""):
                    near[name] = max(near.get(name, 0), 1 / steps)
        return near


@lru_cache(maxsize=1 << 16)
def _content(token: str) -> str:
    if not token.isalpha() or len(token) < 2:
        return token if token[0].isdigit() and token not in "01" else ""
    return medical.generic(token) or ("" if stem(token) in lexicon("function") else stem(token))


@lru_cache(maxsize=4096)
def read(text: str, lang: str = "en") -> tuple[Said, ...]:
    """The sentences of a text."""
    return tuple(Said(sentence) for sentence in sentences(text, lang))


# --- Which sentences are left ---------------------------------------------------------------------------------------


class Alignment:
    """A text beside its source: what is neither verbatim on one side (`old`) nor on the other (`new`), and `own` words."""

    def __init__(self, source: str, text: str):
        self.source, self.text = read(source), read(text)
        waiting = defaultdict(list)
        for said in self.source:
            waiting[said.words].append(said)
        self.new = [said for said in self.text if not (waiting[said.words] and waiting[said.words].pop())]
        self.old = [said for several in waiting.values() for said in several]
        self.places = defaultdict(list)  # a word of the source: the sentences in which it stands
        for i, said in enumerate(self.source):
            for name in said.content:
                self.places[name].append(i)
        self.own = [said for said in self.new if not self._stands_for_one(said)]
        own = set(map(id, self.own))
        self.reworded = [said for said in self.new if id(said) not in own]

    def _weight(self, name: str) -> float:
        return 1 / len(self.places.get(name, ".")) ** 0.5

    def _stands_for_one(self, said: Said) -> bool:
        """Whether a sentence of the source shares so much content that this one is its rewording."""
        shared, count = defaultdict(float), Counter()
        for name in said.content:
            for i in self.places.get(name, ())[:20]:
                shared[i] += self._weight(name)
                count[i] += 1
        size = sum(map(self._weight, said.content))
        sizes = ((i, both, sum(map(self._weight, self.source[i].content))) for i, both in shared.items())
        return any(max(both / size, both / whole) >= (LINK if count[i] > 1 else 0.6) for i, both, whole in sizes)

    @cached_property
    def lost(self) -> list[Said]:
        """Sentences of the source whose content is found nowhere in the text."""
        letters = "".join(token for said in self.text for token in said.tokens)
        return [said for said in self.old if said.content and self._found(said.content, letters) < FOUND]

    def _found(self, names: Iterable[str], letters: str) -> float:
        weights = {name: self._weight(name) for name in names}
        return sum(weight for name, weight in weights.items() if name[:6] in letters) / sum(weights.values())

    # --- What has changed ---

    def changes(self, question: bool = False) -> Iterable[str]:
        """What the reworded sentences changed; of a `question`, a new condition ("if only I had ...") is none."""
        if not self.new:
            return
        yield from self._quantities()
        yield from self._turned()
        yield from self._denials()
        yield from self._conditions(question)
        letters = "".join(token for said in self.text for token in said.tokens)
        for clause in (clause for said in self.old for clause in said.clauses if said not in self.lost):
            if len(clause) > 1 and self._found(clause, letters) < LOST_CLAUSE:
                yield f"lost: {' '.join(sorted(clause))}"

    def _quantities(self) -> Iterable[str]:
        before, after, said = _all(self.old), _all(self.new), _all(self.text)
        for value, unit in before:
            if (value, unit) not in said and not any(v == value and "" in (u, unit) for v, u in said) and (value, unit) not in ONE:
                yield f"lost number: {value} {unit}".strip()
        for (value, unit), bounds in after.items():
            known = before.get((value, unit))
            if known and not known & bounds and not (unit in _TIME and "" in known | bounds):
                yield f"changed bound: {value} {unit}".strip()

    def _turned(self) -> Iterable[str]:
        """Marks that have the neighbours of their opposite, or that exchanged their neighbours."""
        before, after = _by_kind(self.source), _by_kind(self.reworded)
        for kind in before.keys() & after.keys():
            for sign, near in after[kind] if kind != "number" else ():
                likeness = {1: 0.0, -1: 0.0}
                for other, around in before[kind]:
                    likeness[other] = max(likeness[other], _alike(near, around))
                if likeness[-sign] >= 0.3 and likeness[-sign] > likeness[sign] + 0.1 and not any(
                    other == -sign and _alike(near, around) >= likeness[-sign] for other, around in after[kind]
                ):
                    yield "turned around: " + " ".join(near)
            first, second = dict(before[kind][:40]), dict(after[kind][:40])
            for one, other in combinations(first.keys() & second.keys(), 2):
                same = _alike(first[one], second[one]) + _alike(first[other], second[other])
                crossed = _alike(first[one], second[other]) + _alike(first[other], second[one])
                if crossed > same + 0.25:
                    yield f"exchanged: {one} and {other}" if kind == "number" else "exchanged: " + " ".join(first[one])

    def _denials(self) -> Iterable[str]:
        before, after = (frozenset(n for said in side for n in said.heads) for side in (self.old, self.reworded))
        for heads, denied, other, fault in (
            (before, after, self.text, "lost"),
            (after, before, self.source, "new"),
        ):
            affirmed = frozenset(name for said in other for name in said.affirmed)
            if turned := sorted(heads & affirmed - denied - frozenset(n for s in other for n in s.doubted)):
                yield f"{fault} negation: {', '.join(turned)}"

    def _conditions(self, question: bool) -> Iterable[str]:
        before, after = ([c for said in side for c in said.conditions] for side in (self.old, self.reworded))
        for sign, clause in before:
            if like := [s for s, other in after if len(clause & other) > 0.5 * min(len(clause), len(other))]:
                if sign not in like and "if" in (sign, *like):
                    yield f"{sign} became {like[0]}: {' '.join(sorted(clause))}"
            elif bare := [said for said in self.new if clause and len(clause & said.content) > 0.6 * len(clause)]:
                if all(not _LOOSE & set(said.tokens) for said in bare):
                    yield f"lost condition: {' '.join(sorted(clause))}"
        known = set(self.places)
        for sign, clause in after if not question else ():
            if len(clause & known) < 0.4 * len(clause) and sign != "even":
                yield f"new condition: {' '.join(sorted(clause))}"


def _all(parts: Iterable[Said]) -> dict[tuple[str, str], set[str]]:
    found = defaultdict(set)
    for said in parts:
        for key, bounds in said.quantities.items():
            found[key] |= bounds
    return found


def _alike(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(min(weight, other[name]) for name, weight in one.items() if name in other)


def _by_kind(parts: Iterable[Said]) -> dict[object, list[tuple[object, dict[str, float]]]]:
    found = defaultdict(list)
    for said in parts:
        for kind, key, near in said.marks():
            if len(found[kind]) < MOST:
                found[kind].append((key, near))
    return found
