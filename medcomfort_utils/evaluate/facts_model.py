"""Learn the weights and word frequencies of facts.py: `python -m medcomfort_utils.evaluate.facts_model [MODEL_FOLDER]`.

Writes facts_frequencies.json and facts_weights.json beside this file, and prints how well each feature and the whole
agree with the labels, in ten folds grouped by question; data/fact_labels/report.json keeps that. With the folder of a
sentence encoder (all-MiniLM-L6-v2) it also learns the weights with similarity; without, it keeps those that are there.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.stats import rankdata

from medcomfort_utils.evaluate import facts
from medcomfort_utils.evaluate.concepts import polarity
from medcomfort_utils.paths import DATA, read_json, write_json
from medcomfort_utils.rewrite.clinic import load_conditions
from medcomfort_utils.rewrite.wording import parts

LABELS = DATA / "fact_labels" / "labels.jsonl"
REPORT = LABELS.with_name("report.json")
FRESH = (LABELS.with_name("first_sight.jsonl"), LABELS.with_name("second_sight.jsonl"))  # never trained on
RAREST = 3  # sentences that must hold a concept for it to be listed
FEATURES = ["sentence", "answer", "reversed", "numbers"]
# Contradictions are far more frequent among the labels than in answers of real models.
CONTRADICTED_WEIGHT = 1 / 3


def labelled(path: Path = LABELS) -> pd.DataFrame:
    """The labelled pairs, a row each: item, question, answer, number of the fact, label; the item's facts as a list."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        item = json.loads(line)
        for answer in item["answers"]:
            rows += [
                {"item": item["id"], "question": item["question"], "facts": item["facts"], "fact": number}
                | {"answer": answer["text"], "label": label}
                for number, label in enumerate(answer["labels"])
            ]
    return pd.DataFrame(rows)


def features(pairs: pd.DataFrame, similarity: facts.Similarity | None = None) -> pd.DataFrame:
    """The features of `facts.fact_features` for each labelled pair, in order."""
    answers = pairs[pairs["fact"] == 0]
    rows = facts.fact_features(list(answers["answer"]), list(answers["facts"]), similarity=similarity)
    return pd.DataFrame([found for row in rows for found in row], index=pairs.index)


def _texts(pairs: pd.DataFrame) -> Iterator[str]:
    """What frequencies are counted in: the synthetic clinic and the questions and answers of the labelled pairs."""
    for condition in load_conditions():
        yield from (condition.cause, *condition.advice, *condition.red_flags, condition.follow_up)
    yield from pairs["question"].unique()
    yield from pairs["answer"].unique()


def frequencies(pairs: pd.DataFrame) -> dict:
    """In how many sentences each concept stands, and how many sentences there are."""
    sentences = [sentence for text in _texts(pairs) for sentence in parts(text)]
    counts = Counter(concept for sentence in sentences for concept in polarity(sentence))
    return {"sentences": len(sentences), "counts": {c: n for c, n in sorted(counts.items()) if n >= RAREST}}


def fit(table: pd.DataFrame, target: pd.Series, importance: pd.Series) -> dict[str, float]:
    """Weights for the raw features of a logistic regression, with a ridge of 1 on features of unit variance."""
    spread, sign = table.std().to_numpy(), np.where(target, 1.0, -1.0)
    matrix = np.column_stack([np.ones(len(table)), table.to_numpy() / spread])

    def loss(weights: np.ndarray) -> float:
        misfit = np.logaddexp(0, -sign * (matrix @ weights))
        return (importance.to_numpy() * misfit).sum() + weights[1:] @ weights[1:] / 2

    found = minimize(loss, np.zeros(matrix.shape[1])).x
    weights = dict(zip(["intercept", *table.columns], found / np.append(1.0, spread), strict=True))
    return {name: round(float(value), 4) for name, value in weights.items()}


def held_out(table: pd.DataFrame, target: pd.Series, importance: pd.Series, items: pd.Series) -> np.ndarray:
    """The score of each pair under weights learnt without its question: ten folds, every tenth question in one."""
    fold, scores = pd.factorize(items)[0] % 10, np.zeros(len(table))
    for number in range(10):
        train = fold != number
        weights = fit(table[train], target[train], importance[train])
        scores[~train] = weights["intercept"] + sum(weights[name] * table[name][~train] for name in table)
    return scores


def roc_auc(positive: pd.Series, scores: Sequence[float]) -> float:
    """Probability that a positive pair scores above another; ties count half (Mann-Whitney)."""
    ranks, count = rankdata(scores), positive.sum()
    return float((ranks[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def importance(labels: pd.Series) -> pd.Series:
    """The weight of each pair in training."""
    return labels.map({"contradicted": CONTRADICTED_WEIGHT}).fillna(1.0)


def main(folder: str = "") -> None:
    """Learn, write and report."""
    pairs = labelled()
    write_json(facts.FREQUENCIES, frequencies(pairs))
    facts.forget()
    conveyed, weight = pairs["label"] == "conveyed", importance(pairs["label"])
    table, models = features(pairs), read_json(facts.WEIGHTS, "facts_weights.json")
    models["support"] = fit(table[FEATURES], conveyed, weight)
    scores = {**table, "all features": held_out(table[FEATURES], conveyed, weight, pairs["item"])}
    if folder:
        from medcomfort_utils.rewrite.support import embedding_similarity

        wider = features(pairs, embedding_similarity(folder))[[*FEATURES, "similarity"]]
        models["support_with_similarity"] = fit(wider, conveyed, weight)
        scores |= {"similarity": wider["similarity"]}
        scores |= {"all, similarity": held_out(wider, conveyed, weight, pairs["item"])}
    write_json(facts.WEIGHTS, models)
    facts.forget()
    told = {"labels.jsonl, ten held-out folds": report({"idf recall": idf_recall(pairs), **scores}, pairs)}
    for path in FRESH:
        fresh = labelled(path)
        told[path.name] = report({"idf recall": idf_recall(fresh), "all features": support(fresh)}, fresh)
    write_json(REPORT, told)
    print(json.dumps(told, indent=1))


def support(pairs: pd.DataFrame) -> np.ndarray:
    """`facts.fact_support` of each pair, by the weights in use."""
    answers = pairs[pairs["fact"] == 0]
    rows = facts.fact_support(list(answers["answer"]), list(answers["facts"]))
    return np.array([value for row in rows for value in row])


def idf_recall(pairs: pd.DataFrame) -> np.ndarray:
    """The baseline: the share of the fact's stems that stand anywhere in the answer, weighted by their idf."""
    from medcomfort_utils.rewrite.wording import content

    held = Counter(stem for text in _texts(pairs) for sentence in parts(text) for stem in content(sentence))
    rows = []
    for pair in pairs.itertuples():
        wanted = {stem: -np.log((held[stem] + 1) / (sum(held.values()) + 1)) for stem in content(pair.facts[pair.fact])}
        rows.append(sum(wanted[s] for s in wanted if s in content(pair.answer)) / (sum(wanted.values()) or 1))
    return np.array(rows)


def report(scores: dict, pairs: pd.DataFrame) -> dict:
    """How many pairs have each label, ROC AUC of each score, and the contradictions found.

    The AUC of all pairs, of those not contradicted, and of answers of 100 words or more.
    """
    labels, conveyed = pairs["label"], pairs["label"] == "conveyed"
    subsets = {"all": labels != "", "without contradicted": labels != "contradicted",
               "long answers": pairs["answer"].str.split().str.len() >= 100}  # fmt: skip
    table = {}
    for name, score in scores.items():
        sign = -1 if name in ("denied", "reversed", "numbers", "opposed") else 1
        table[name] = {
            part: round(roc_auc(conveyed[rows], sign * score[rows]), 3)
            for part, rows in subsets.items()
            if conveyed[rows].nunique() > 1
        }
    answers = pairs[pairs["fact"] == 0]
    rows = facts.fact_features(list(answers["answer"]), list(answers["facts"]))
    denied = np.array([facts.contradicts(found) for row in rows for found in row])
    truth = labels == "contradicted"
    found = {"labelled": int(truth.sum()), "found": int(denied.sum()), "rightly": int((truth & denied).sum())}
    return {"pairs": labels.value_counts().to_dict(), "roc_auc": table, "contradictions": found}


if __name__ == "__main__":
    main(*sys.argv[1:])
