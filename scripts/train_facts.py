"""Train the support of facts in free wording from `data/fact_labels`, and say how well it does on unseen files.

    python scripts/train_facts.py

fits a logistic regression over `facts.fact_features` on all files but those kept fresh, writes its weights beside
`evaluate/facts.py` and figures into `data/fact_labels/report.json`: ROC AUC of "entailed" against the rest, a fact at a
time, and of "contradicted" recall and precision, each file scored by weights that were learnt without it.
"""

import json

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from medcomfort_utils.evaluate import facts
from medcomfort_utils.paths import DATA, write_json

FOLDER = DATA / "fact_labels"
FRESH = ("first_sight", "second_sight")  # never trained on
NAMES = ("sentence", "answer", "denied", "reversed", "numbers", "opposed")


def read_labels() -> list[tuple[str, str, dict[str, float]]]:
    """(file, label, features) of each labelled pair of answer and fact."""
    rows = []
    for path in sorted(FOLDER.glob("*.jsonl")):
        for item in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            pairs = item.get("facts", ())  # second_pass.jsonl has labels alone
            features = facts.fact_features([item["answer"]], [[each["fact"] for each in pairs]])[0] if pairs else []
            rows += [(path.stem, each["label"], found) for each, found in zip(pairs, features, strict=True)]
    return rows


def fitted(rows: list) -> dict[str, float]:
    """Weights by feature, and the intercept; a contradicted pair counts a third: answers rarely are false."""
    matrix = np.array([[features[name] for name in NAMES] for _, _, features in rows])
    importance = [1 / 3 if label == "contradicted" else 1.0 for _, label, _ in rows]
    model = LogisticRegression(C=10, max_iter=1000).fit(
        matrix, [label == "entailed" for _, label, _ in rows], importance
    )
    weights = dict(zip(NAMES, model.coef_[0].round(3).tolist(), strict=True))
    return {"intercept": round(float(model.intercept_[0]), 3), **weights}


def figures(rows: list, weights: dict[str, float]) -> dict[str, float]:
    """How well these weights do on these rows."""
    support = np.array([facts.support(features, weights) for _, _, features in rows])
    labels = np.array([label for _, label, _ in rows])
    flagged = np.array([facts.contradicts(features, weights) for _, _, features in rows])
    found = int((flagged & (labels == "contradicted")).sum())
    return {
        "pairs": len(rows),
        "auc": round(float(roc_auc_score(labels == "entailed", support)), 3),
        "contradictions": int((labels == "contradicted").sum()),
        "recall": round(found / max(1, int((labels == "contradicted").sum())), 3),
        "precision": round(found / max(1, int(flagged.sum())), 3),
    }


def main() -> None:
    """Train, validate, write both files and print the figures."""
    rows, report = read_labels(), {}
    for name in sorted({file for file, _, _ in rows}):
        others = [row for row in rows if row[0] not in (name, *FRESH)]
        report[name] = figures([row for row in rows if row[0] == name], fitted(others))
        print(name, report[name])
    write_json(facts.WEIGHTS, {"support": fitted([row for row in rows if row[0] not in FRESH])})
    write_json(FOLDER / "report.json", report)


if __name__ == "__main__":
    main()
