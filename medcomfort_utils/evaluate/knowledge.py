"""How much of what an answer had to convey it conveys, whether it adds numbers of its own, and its form.

Facts in fixed wording are counted exactly: a fixed sentence inside a denial still counts as stated. For facts in any
wording a sentence encoder reads each beside the sentences of the answer that are nearest in meaning, and says whether
they entail it, miss it or contradict it; numbers and negations are compared beside that. It was learnt by
`scripts/train_facts.py` from data/fact_labels, where its agreement with the labels stands. All else is counting.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU, CHRF
from safetensors.torch import load_file

from medcomfort_utils import text
from medcomfort_utils.evaluate.encoder import Tensors, embeddings, log_odds
from medcomfort_utils.medical import stem
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.quantities import Quantity, quantities, unified
from medcomfort_utils.records import Dialogue

ADAPTER = Path(__file__).with_name("facts_en.safetensors")
LABELS = ("missing", "entailed", "contradicted")
MOST = (48, 112)  # tokens of the fact and of the sentences beside it that the encoder reads
CONVEYED = 0.5  # support from which a fact counts as conveyed

_CJK = "\u3400-\u4dbf\u4e00-\u9fff"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# A decimal is one word, so that "5 mg" is not found in "0.5 mg"; "400mg" is two, like "400 mg".
_WORD = re.compile(rf"\d+(?:[./,]\d+)*|[{_CJK}]|[^\W\d_{_CJK}]+")


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """The words of a text up to case, white space and punctuation; each Chinese character is a word."""
    return tuple(_WORD.findall(_THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())))


def _states(answer: str, sentence: str) -> bool:
    return f" {' '.join(words(sentence))} " in f" {' '.join(words(answer))} "


def facts_kept(answer: str, facts: Sequence[str]) -> float:
    """Share (0-1) of the `facts` that the answer states in their wording; nan if there are none.

    A fact is stated if its words stand in the answer side by side, whole and in order; case, white space and
    punctuation do not matter. One changed digit loses the fact.
    """
    return sum(_states(answer, fact) for fact in facts) / len(facts) if facts else math.nan


_tokenizer = DefaultTokenizer(use_stemmer=False)
_rouge = RougeScorer(["rouge1", "rouge2"])


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a bit for each word of `one` (Hyyro 2004): rouge_score's table of all
    pairs takes longer than every other measure together."""
    places: dict[str, int] = {}
    for at, word in enumerate(one):
        places[word] = places.get(word, 0) | 1 << at
    row = whole = (1 << len(one)) - 1
    for word in other:
        matched = row & places.get(word, 0)
        row = (row + matched | row - matched) & whole
    return len(one) - row.bit_count()


def rouge(answer: str, reference: str) -> dict[str, float]:
    """ROUGE-1, -2 and -L (F, 0-1) and the recall of ROUGE-L (Lin 2004), as rouge_score has them, unstemmed.

    Comfort added to a complete answer lowers F, not recall. All nan if the reference has no word in Latin letters.
    """
    scores = _rouge.score(reference, answer)
    wanted, said = _tokenizer.tokenize(reference), _tokenizer.tokenize(answer)
    known, common = 1.0 if wanted else math.nan, _common(wanted, said)
    precision, recall = common / max(len(said), 1), common / max(len(wanted), 1)
    return {
        "rouge_1": scores["rouge1"].fmeasure * known,
        "rouge_2": scores["rouge2"].fmeasure * known,
        "rouge_l": fmeasure(precision, recall) * known,
        "rouge_l_recall": recall * known,
    }


_bleu = BLEU(effective_order=True)
_chrf = CHRF()


def bleu(answer: str, reference: str) -> float:
    """Sentence BLEU (0-100) by sacrebleu (Post 2018), with its smoothing and effective order."""
    return _bleu.sentence_score(answer, [reference]).score


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF (0-100) by sacrebleu (Popovic 2015): character n-grams, so that inflection costs little."""
    return _chrf.sentence_score(answer, [reference]).score


def distinct(answer: str, n: int) -> float:
    """Share (0-1) of the word n-grams that differ, distinct-1, -2 ... (Li et al. 2016); 0 without any."""
    tokens = words(answer)
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition(answer: str) -> float:
    """Share (0-1) of the word 4-grams that repeat an earlier one; 0 below four words."""
    return 1 - distinct(answer, 4) if len(words(answer)) >= 4 else 0.0


def in_language(answer: str, lang: str = "en") -> float:
    """1.0 if the answer reads as `lang` ("en", "zh"), 0.0 if not or without a letter; nan for another `lang`."""
    if lang not in ("en", "zh"):
        return math.nan
    return float(any(map(str.isalpha, answer)) and text.language(answer) == lang)


def length_ratio(answer: str, reference: str) -> float:
    """Words of the answer for each word of the reference; nan if the reference has none."""
    return len(words(answer)) / len(words(reference)) if words(reference) else math.nan


# --- Facts in any wording --------------------------------------------------------------------------------------------


def fact_support(answers: Sequence[str], facts: Sequence[Sequence[str]], lang: str = "en") -> list[list[float]]:
    """The probability (0-1) that each answer conveys each of its own facts; a fact's value depends on no other fact.

    Raises MedComfortError for a language without a model, unequal lists, entries that are not text, and if the
    encoder's package is missing.
    """
    return [found[:, LABELS.index("entailed")].tolist() for found in fact_probabilities(answers, facts, lang)]


def contradictions(answers: Sequence[str], facts: Sequence[Sequence[str]], lang: str = "en") -> list[int]:
    """How many of its facts each answer contradicts (K-QA's Hall, Manes et al. 2024). Raises as `fact_support`."""
    return [int(sum(map(is_contradicted, found))) for found in fact_probabilities(answers, facts, lang)]


def is_contradicted(probabilities: np.ndarray) -> bool:
    """Whether a contradiction is the likeliest of the three."""
    return bool(np.argmax(probabilities) == LABELS.index("contradicted"))


def fact_probabilities(answers: Sequence[str], facts: Sequence[Sequence[str]], lang: str = "en") -> list[np.ndarray]:
    """For each answer an array (facts, 3): how likely it is that each fact is missing, entailed, contradicted.

    Raises as `fact_support`.
    """
    _check(answers, facts, lang)
    pairs = list(dict.fromkeys((answer, fact) for answer, listed in zip(answers, facts, strict=True) for fact in listed))
    found = dict(zip(pairs, probabilities(_adapter(), compared(_adapter(), pairs)), strict=True)) if pairs else {}
    return [
        np.array([found[answer, fact] for fact in listed]).reshape(-1, len(LABELS))
        for answer, listed in zip(answers, facts, strict=True)
    ]


def _check(answers: Sequence[str], facts: Sequence[Sequence[str]], lang: str) -> None:
    if lang != "en":
        raise MedComfortError(f"lang: facts can be looked for in English ('en') alone, not in {lang!r}.")
    if any(isinstance(x, str) or not hasattr(x, "__len__") for x in (answers, facts)) or len(answers) != len(facts):
        raise MedComfortError("fact_support needs a list of answers, and a list of facts for each.")
    for position, (answer, listed) in enumerate(zip(answers, facts, strict=True)):
        if not isinstance(answer, str):
            raise MedComfortError(f"answers[{position}] must be text, not {type(answer).__name__}.")
        if isinstance(listed, str) or not hasattr(listed, "__len__") or not all(isinstance(f, str) for f in listed):
            raise MedComfortError(f"facts[{position}] must be a list of texts.")


@cache
def _adapter() -> Tensors:
    return {name: tensor.float() for name, tensor in load_file(ADAPTER).items()}


def evidence(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """For each (answer, fact) the sentences of the answer nearest in meaning to the fact, as many as are read, in order."""
    said = {answer: text.sentences(text.normalise(answer)) for answer, _ in pairs}
    unlike = list(dict.fromkeys([fact for _, fact in pairs] + [each for listed in said.values() for each in listed]))
    vectors = dict(zip(unlike, embeddings(unlike), strict=True))
    found = []
    for answer, fact in pairs:
        alike = [float(vectors[each] @ vectors[fact]) for each in said[answer]]
        chosen, words = set(), 0
        for place in sorted(range(len(alike)), key=lambda i: -alike[i]):
            words += len(text.words(said[answer][place]))
            if not chosen or words <= MOST[1] // 2:
                chosen.add(place)
        found.append(" ".join(said[answer][place] for place in sorted(chosen)))
    return found


def compared(adapter: Tensors, pairs: Sequence[tuple[str, str]]) -> np.ndarray:
    """Array (pairs, 6): the encoder's log odds of "entailed" and of "contradicted" against "missing", and `relations`."""
    beside = evidence(pairs)
    read = [(unified(fact), unified(near)) for (_, fact), near in zip(pairs, beside, strict=True)]
    odds = log_odds(adapter, read, MOST, whole=True)[:, 0]
    exact = [relations(fact, near, answer) for (answer, fact), near in zip(pairs, beside, strict=True)]
    return np.hstack([odds[:, 1:] - odds[:, :1], np.array(exact).reshape(-1, 4)])


def relations(fact: str, near: str, answer: str) -> tuple[float, float, float, float]:
    """What is compared exactly, shares (0-1) of the fact's numbers or words.

    Its numbers that stand nowhere in the answer; those in whose place the sentences near give another number of the
    same kind; those that they give with the opposite bound; its words that they deny where the fact does not, or the
    other way round.
    """
    wanted, given, said = (quantities(each) for each in (fact, near, answer))
    anywhere = {(each.value, each.unit) for each in said}
    lost = [each for each in wanted if (each.value, each.unit) not in anywhere]
    other = [each for each in lost if each.unit and each.unit in {one.unit for one in given}]
    turned = [each for each in wanted if any(_opposite(each, one) for one in given)]
    words, beside = _denied(fact), _denied(near)
    shared = [word for word in words if word in beside]
    denied = [word for word in shared if not words[word] & beside[word]]
    return (len(lost) / max(len(wanted), 1), len(other) / max(len(wanted), 1), len(turned) / max(len(wanted), 1),
            len(denied) / max(len(words), 1))  # fmt: skip


def _opposite(one: Quantity, other: Quantity) -> bool:
    return (one.value, one.unit) == (other.value, other.unit) and {one.bound[:1], other.bound[:1]} == {"<", ">"}


@lru_cache(maxsize=4096)
def _denied(said: str) -> dict[str, set[bool]]:
    """The longer words of a text, and whether a negation governs them: False, True or both."""
    tokens = text.words(said, marks=True)
    governed, found = text.negated(tokens), {}
    for place, word in enumerate(tokens):
        if len(word) > 3:
            found.setdefault(stem(word), set()).add(place in governed)
    return found


def probabilities(adapter: Tensors, table: np.ndarray) -> np.ndarray:
    """Array (pairs, 3) of probabilities from what `compared` gives: a multinomial logistic regression."""
    odds = torch.from_numpy(table).float() @ adapter["mix.weights"].T + adapter["mix.bias"]
    return odds.softmax(-1).numpy()


# --- A row of scores -------------------------------------------------------------------------------------------------


def _in_fixed_wording(sentences: Sequence[str], reference: str) -> Sequence[str]:
    """The sentences if the reference states each of them, else none: exact counting would ask for what nobody wrote."""
    return sentences if facts_kept(reference, sentences) == 1 else ()


def _numbers(said: str) -> set[tuple[str, str]]:
    return {(each.value, each.unit) for each in quantities(said)}


def _row(answer: str, dialogue: Dialogue) -> dict[str, float]:
    reference = dialogue.answer
    allowed = [*(message.content for message in dialogue.messages), *dialogue.facts, *dialogue.red_flags]
    return {
        "facts_kept": facts_kept(answer, _in_fixed_wording(dialogue.facts, reference)),
        "facts_supported": math.nan,
        "contradictions": math.nan,
        "red_flags_kept": facts_kept(answer, _in_fixed_wording(dialogue.red_flags, reference)),
        "invented_numbers": len(_numbers(answer).difference(*map(_numbers, allowed))),
        **rouge(answer, reference),
        "bleu": bleu(answer, reference),
        "chrf": chrf(answer, reference),
        "length_ratio": length_ratio(answer, reference),
        "repetition": repetition(answer),
        "distinct_1": distinct(answer, 1),
        "distinct_2": distinct(answer, 2),
        "in_language": in_language(answer, dialogue.lang),
    }


def score(answers: Sequence[str], dialogues: Sequence[Dialogue]) -> pd.DataFrame:
    """One row of scores for each answer, against the answer, facts and red flags of its source dialogue.

    `facts_kept` and `red_flags_kept` are nan where the source answer itself is not in their wording (K-QA);
    `facts_supported` (share) and `contradictions` (count) hold for facts in any English wording, and are nan without
    any: a fact stated word for word is supported, the encoder is asked about the others.
    Raises MedComfortError if the two lists differ in length.
    """
    if len(answers) != len(dialogues):
        raise MedComfortError(f"knowledge.score needs one dialogue an answer, not {len(answers)} and {len(dialogues)}.")
    pairs = list(zip(answers, dialogues, strict=True))
    # Models that learnt the same say the same: each distinct answer to a dialogue is scored once.
    distinct = {(answer, id(dialogue)): (answer, dialogue) for answer, dialogue in pairs}
    rows = {key: _row(*pair) for key, pair in distinct.items()}
    judged = {key: (a, d.facts) for key, (a, d) in distinct.items() if d.lang == "en" and d.facts}
    asked = [[fact for fact in facts if not _states(answer, fact)] for answer, facts in judged.values()]
    found = fact_probabilities([answer for answer, _ in judged.values()], asked)
    for (key, (_, facts)), chances in zip(judged.items(), found, strict=True):
        unsupported = int((chances[:, LABELS.index("entailed")] < CONVEYED).sum())
        rows[key]["facts_supported"] = 1 - unsupported / len(facts)
        rows[key]["contradictions"] = sum(map(is_contradicted, chances))
    return pd.DataFrame([rows[answer, id(dialogue)] for answer, dialogue in pairs])
