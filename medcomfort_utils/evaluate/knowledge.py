"""How much of what an answer had to convey it conveys, whether it adds numbers of its own, and its form.

Facts in fixed wording are counted exactly; facts in free wording are looked for by `facts.py`. All else is counting on
text, so that every value can be checked by hand: a fixed sentence inside a denial still counts as stated.
"""

import math
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.scoring import fmeasure
from rouge_score.tokenizers import DefaultTokenizer
from sacrebleu.metrics import BLEU, CHRF

# The measures themselves, for those who look for them here.
from medcomfort_utils.evaluate.facts import comprehensiveness as comprehensiveness
from medcomfort_utils.evaluate.facts import contradictions as contradictions
from medcomfort_utils.evaluate.facts import contradicts, conveys, fact_features, unmatched
from medcomfort_utils.evaluate.facts import fact_support as fact_support
from medcomfort_utils.paths import MedComfortError
from medcomfort_utils.records import Dialogue
from medcomfort_utils.text import language

_CJK = "\u3400-\u4dbf\u4e00-\u9fff"
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}\b)")
# A decimal is one word, so that "5 mg" is not found in "0.5 mg"; "400mg" is two, like "400 mg".
_WORD = re.compile(rf"\d+(?:[./,]\d+)*|[{_CJK}]|[^\W\d_{_CJK}]+")


def _plain(text: str) -> str:
    """Lower case, one form of each character, no thousands separators."""
    return _THOUSANDS.sub("", unicodedata.normalize("NFKC", text).casefold())


@lru_cache(maxsize=4096)
def words(text: str) -> tuple[str, ...]:
    """The words of a text up to case, white space and punctuation; each Chinese character is a word."""
    return tuple(_WORD.findall(_plain(text)))


def _states(answer: str, sentence: str) -> bool:
    return f" {' '.join(words(sentence))} " in f" {' '.join(words(answer))} "


def facts_kept(answer: str, facts: Sequence[str]) -> float:
    """Share (0-1) of the `facts` that the answer states in their wording; nan if there are none.

    A fact is stated if its words stand in the answer side by side, whole and in order; case, white space and
    punctuation do not matter. One changed digit loses the fact.
    """
    return sum(_states(answer, fact) for fact in facts) / len(facts) if facts else math.nan


def red_flags_kept(answer: str, red_flags: Sequence[str]) -> float:
    """Share (0-1) of the `red_flags` (urgent-care advice) that the answer states, by the rule of `facts_kept`."""
    return facts_kept(answer, red_flags)


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


def repetition(answer: str) -> float:
    """Share (0-1) of the word 4-grams that repeat an earlier one; 0 below four words."""
    tokens = words(answer)
    grams = list(zip(*(tokens[i:] for i in range(4)), strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def distinct(answer: str, n: int) -> float:
    """Share (0-1) of the word n-grams that differ, distinct-1, -2 ... (Li et al. 2016); 0 without any."""
    tokens = words(answer)
    grams = list(zip(*(tokens[i:] for i in range(n)), strict=False))
    return len(set(grams)) / len(grams) if grams else 0.0


def in_language(answer: str, lang: str = "en") -> float:
    """1.0 if the answer reads as `lang` ("en", "zh"), 0.0 if not or without a letter; nan for another `lang`.

    English: nine letters in ten are plain ASCII, and no sentence is made of function words of other European
    languages. Chinese: half of the letters are Chinese characters.
    """
    letters = [letter for letter in answer if letter.isalpha()]
    if lang not in ("en", "zh"):
        return math.nan
    if lang == "zh":
        return float(bool(letters) and 2 * len(re.findall(f"[{_CJK}]", answer)) >= len(letters))
    latin = bool(letters) and 10 * sum(letter.isascii() for letter in letters) >= 9 * len(letters)
    return float(latin and language(answer) == lang)


def length_ratio(answer: str, reference: str) -> float:
    """Words of the answer for each word of the reference; nan if the reference has none."""
    return len(words(answer)) / len(words(reference)) if words(reference) else math.nan


def _in_fixed_wording(sentences: Sequence[str], reference: str) -> Sequence[str]:
    """The sentences if the reference states each of them, else none: exact counting would ask for what nobody wrote."""
    return sentences if facts_kept(reference, sentences) == 1 else ()


def _facts(answer: str, dialogue: Dialogue) -> dict[str, float]:
    """Facts supported and denied; nan where there are none, or none in English."""
    if dialogue.lang != "en" or not dialogue.facts:
        return {"facts_supported": math.nan, "contradictions": math.nan}
    features = fact_features([answer], [dialogue.facts])[0]
    return {"facts_supported": sum(map(conveys, features)) / len(features),
            "contradictions": sum(map(contradicts, features))}  # fmt: skip


def _row(answer: str, dialogue: Dialogue) -> dict[str, float]:
    reference = dialogue.answer
    allowed = [*(message.content for message in dialogue.messages), *dialogue.facts, *dialogue.red_flags]
    return {
        "facts_kept": facts_kept(answer, _in_fixed_wording(dialogue.facts, reference)),
        **_facts(answer, dialogue),
        "red_flags_kept": red_flags_kept(answer, _in_fixed_wording(dialogue.red_flags, reference)),
        "invented_numbers": len(unmatched(answer, allowed)),
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
    `facts_supported` (share) and `contradictions` (count) hold for facts in any English wording.
    Raises MedComfortError if the two lists differ in length.
    """
    if len(answers) != len(dialogues):
        raise MedComfortError(f"knowledge.score needs one dialogue an answer, not {len(answers)} and {len(dialogues)}.")
    pairs = list(zip(answers, dialogues, strict=True))
    # Models that learnt the same say the same: each distinct answer to a dialogue is scored once.
    distinct = {(answer, id(dialogue)): (answer, dialogue) for answer, dialogue in pairs}
    rows = {key: _row(*pair) for key, pair in distinct.items()}
    table = pd.DataFrame([rows[answer, id(dialogue)] for answer, dialogue in pairs])
    return table
