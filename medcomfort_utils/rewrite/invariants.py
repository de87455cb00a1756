"""What a reworded text owes its source: who stands for whom is found by aligning sentences, then relations are compared.

A relation is a mark (quantity, pole of an opposite, negation, condition, medicine) with its neighbours. A mark that changed its
neighbours, its sign or its value is a change of the medicine; words around it are free.
"""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache, cached_property, lru_cache
from itertools import combinations

from medcomfort_utils import medical
from medcomfort_utils.medical import lexicon, stem
from medcomfort_utils.quantities import quantities, unified
from medcomfort_utils.text import DENYING, negated, sentences, tokens

LINK = 0.34  # share of a sentence's content that another must hold to stand for it
LOST_CLAUSE = 0.2  # share of a clause's content that must be found
NEAR = 8  # tokens to each side that are a mark's neighbours
_TIME = {"minute", "second", "day", "month", "year", "night"}
_BREAKS = frozenset(", ; : ( ) and but or which because as so while".split())


@cache
def _poles() -> dict[str, list[tuple[int, int]]]:
    """Stem of a word: the pairs of opposites in which it stands, and its sign there."""
    found = defaultdict(list)
    for pair, poles in enumerate(medical.word_lists()["opposites"]):
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
    def heads(self) -> dict[str, int]:
        """What a negation denies first, and where: "not stop", "no fever"."""
        found = {}
        for i, token in enumerate(self.tokens):
            if token in DENYING:
                inside = [j for j in range(i + 1, min(i + 6, len(self.tokens))) if j in self.denied and self.stems[j]]
                light = bool(inside) and self.stems[inside[0]] in lexicon("light")
                found |= {self.stems[j]: j for j in inside[: 2 if light else 1] if self.stems[j] not in lexicon("light")}
        return found

    def marks(self) -> Iterable[tuple[object, object, dict[str, float]]]:
        """Kind, key and neighbours of what must keep its neighbours."""
        for i, token in enumerate(self.tokens):
            for pair, sign in _poles().get(stem(token), ()):
                yield pair, -sign if i in self.denied else sign, self._near(i)
            if token[0].isdigit():
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
        return ""
    return medical.generic(token) or ("" if stem(token) in lexicon("function") else stem(token))


@lru_cache(maxsize=4096)
def read(text: str, lang: str = "en") -> tuple[Said, ...]:
    """The sentences of a text."""
    return tuple(Said(sentence) for sentence in sentences(text, lang))


# --- Which sentence stands for which ------------------------------------------------------------------------------


class Alignment:
    """A text beside its source: `kept` verbatim, `groups` of reworded sentences, `lost` ones, and `own` words."""

    def __init__(self, source: str, text: str):
        old, new = list(read(source)), list(read(text))
        self.source, self.text = old, new
        self.kept, old, new = _verbatim(old, new)
        self.groups, self.lost, self.own = _groups(old, new)


def _verbatim(old: list[Said], new: list[Said]) -> tuple[list[Said], list[Said], list[Said]]:
    """Kept sentences, and what is left on both sides; each sentence of the text keeps one of the source at most."""
    waiting = defaultdict(list)
    for said in old:
        waiting[said.words].append(said)
    kept, rest = [], []
    for said in new:
        same = waiting.get(said.words)
        kept.append(same.pop(0)) if same else rest.append(said)
    gone = {id(said) for said in kept}
    return kept, [said for said in old if id(said) not in gone], rest


def _groups(old: list[Said], new: list[Said]) -> tuple[list[tuple[list[Said], list[Said]]], list[Said], list[Said]]:
    index = defaultdict(list)
    for i, said in enumerate(old):
        for name in said.content:
            index[name].append(i)
    weight = {name: 1 / len(places) ** 0.5 for name, places in index.items()}
    links = defaultdict(set)  # new sentence: the old ones it may stand for
    best_of_old: dict[int, tuple[float, int]] = {}
    for j, said in enumerate(new):
        shared = defaultdict(float)
        for name in said.content:
            for i in index.get(name, ())[:20]:
                shared[i] += weight[name]
        size = sum(weight.get(name, 0.7) for name in said.content)
        scores = {i: max(both / size, both / sum(weight[n] for n in old[i].content)) for i, both in shared.items()}
        strong = {i: s for i, s in scores.items() if s >= LINK and (len(said.content & old[i].content) > 1 or s > 0.6)}
        if strong:
            links[j].add(max(strong, key=strong.get))
        for i, score in strong.items():
            if score > best_of_old.get(i, (0, 0))[0]:
                best_of_old[i] = (score, j)
    for i, (_, j) in best_of_old.items():
        links[j].add(i)
    groups: list[tuple[set[int], set[int]]] = []
    for j, places in links.items():
        joined = [g for g in groups if g[0] & places]
        groups = [g for g in groups if not g[0] & places]
        groups.append((places.union(*(g[0] for g in joined)), {j}.union(*(g[1] for g in joined))))
    used = set().union(*(g[0] for g in groups))
    found = [([old[i] for i in sorted(a)], [new[j] for j in sorted(b)]) for a, b in groups]
    return found, [s for i, s in enumerate(old) if i not in used], [s for j, s in enumerate(new) if j not in links]


# --- What has changed ---------------------------------------------------------------------------------------------


def changes(old: list[Said], new: list[Said], context: list[Said], text: list[Said]) -> Iterable[str]:
    """What the sentences `new` changed of `old`; `context` is the whole source answer, `text` the whole new one."""
    yield from _quantities(old, new, context, text)
    yield from _turned(old, new)
    yield from _denials(old, new)
    yield from _conditions(old, new)
    found = frozenset().union(*(said.content for said in text))
    for said in old:
        for clause in said.clauses:
            if len(clause) > 1 and len(clause & found) < LOST_CLAUSE * len(clause):
                yield f"lost: {' '.join(sorted(clause))}"


def _all(parts: Iterable[Said]) -> dict[tuple[str, str], set[str]]:
    found = defaultdict(set)
    for said in parts:
        for key, bounds in said.quantities.items():
            found[key] |= bounds
    return found


def _quantities(old, new, context, text) -> Iterable[str]:
    before, after, elsewhere, said = _all(old), _all(new), _all(context), _all(text)
    for value, unit in before:
        if (value, unit) not in said and not any(v == value and "" in (u, unit) for v, u in said):
            yield f"lost number: {value} {unit}".strip()
    for (value, unit), bounds in after.items():
        known = before.get((value, unit))
        if known is None and (value, unit) in elsewhere:
            yield f"number of another sentence: {value} {unit}".strip()
        elif known and not known & bounds and not (unit in _TIME and "" in known | bounds):
            yield f"changed bound: {value} {unit}".strip()


def _alike(one: dict[str, float], other: dict[str, float]) -> float:
    return sum(min(weight, other[name]) for name, weight in one.items() if name in other)


def _turned(old: list[Said], new: list[Said]) -> Iterable[str]:
    """Marks that have the neighbours of their opposite, or that exchanged their neighbours."""
    before, after = _by_kind(old), _by_kind(new)
    for kind in before.keys() & after.keys():
        for sign, near in after[kind] if kind != "number" else ():
            likeness = {1: 0.0, -1: 0.0}
            for other, around in before[kind]:
                likeness[other] = max(likeness[other], _alike(near, around))
            if likeness[-sign] >= 0.3 and likeness[-sign] > likeness[sign] + 0.1 and not _still(kind, -sign, near, after, likeness):
                yield "turned around: " + " ".join(near)
        first, second = dict(before[kind][:40]), dict(after[kind][:40])
        for one, other in combinations(first.keys() & second.keys(), 2):
            same = _alike(first[one], second[one]) + _alike(first[other], second[other])
            crossed = _alike(first[one], second[other]) + _alike(first[other], second[one])
            if crossed > same + 0.25:
                yield f"exchanged: {one} and {other}" if kind == "number" else "exchanged: " + " ".join(first[one])


def _still(kind, sign: int, near: dict[str, float], after, likeness: dict[int, float]) -> bool:
    """Whether the text says the right pole of the same thing too."""
    return any(other == sign and _alike(near, around) >= likeness[sign] for other, around in after[kind])


def _by_kind(parts: list[Said]) -> dict[object, list[tuple[object, dict[str, float]]]]:
    found = defaultdict(list)
    for said in parts:
        for kind, key, near in said.marks():
            found[kind].append((key, near))
    return found


def _affirmed(parts: list[Said]) -> set[str]:
    return {name for said in parts for i, name in enumerate(said.stems) if name and i not in said.denied}


def _denies_softly(parts: list[Said]) -> bool:
    return any(stem(token) in lexicon("implicit_denials") for said in parts for token in said.tokens)


def _denials(old: list[Said], new: list[Said]) -> Iterable[str]:
    before, after = ({name for said in side for name in said.heads} for side in (old, new))
    for heads, denied, other in ((before, after, new), (after, before, old)):
        if turned := sorted(heads & _affirmed(other) - denied if not _denies_softly(other) else ()):
            yield f"{'lost' if other is new else 'new'} negation: {', '.join(turned)}"
    explicit = [any(token in DENYING for said in side for token in said.tokens) for side in (old, new)]
    if before and not explicit[1] and not _denies_softly(new):
        yield f"lost negation: {', '.join(sorted(before))}"
    if after and not explicit[0] and not _denies_softly(old) and after & {n for said in old for n in said.content}:
        yield f"new negation: {', '.join(sorted(after))}"


def _conditions(old: list[Said], new: list[Said]) -> Iterable[str]:
    strict, loose = (frozenset(words.split()) for words in medical.word_lists()["conditions"])
    before, after = ({token for said in side for token in said.tokens} for side in (old, new))
    if "unless" in before ^ after and not (before if "unless" in after else after) & (DENYING | {"until", "except"}):
        yield "if and unless exchanged"
    if before & strict and not after & (strict | loose):
        yield "lost condition"
    if after & strict and not before & (strict | loose):
        yield "new condition"
