"""Train the judgement of facts from `data/fact_labels`, and say how well it does on files that it has not seen.

    python scripts/train_facts.py [FOLDER]

writes what is learnt (`facts_en.safetensors`) and the figures (`data/fact_labels/report.json`). About 25 minutes on one
core; FOLDER keeps what each step gave, so that a second start goes on where the first one ended.

The encoder reads a fact beside the sentences of the answer nearest in meaning, and says missing, entailed or
contradicted. Its log odds and exact relations (numbers, negations) then enter a logistic regression, which is fitted on
pairs that the encoder was not trained on.
"""

import json
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from adapter import Texts, fit, small
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from scipy.stats import rankdata
from torch.nn.functional import cross_entropy

from medcomfort_utils.evaluate import knowledge
from medcomfort_utils.evaluate.encoder import Tensors, reading
from medcomfort_utils.evaluate.knowledge import LABELS, MOST, compared, evidence, probabilities
from medcomfort_utils.paths import DATA, existing, write_json
from medcomfort_utils.quantities import unified

FOLDER = DATA / "fact_labels"
FOLDS = (("f2",), ("f1",), ("labels",))  # files held out together
FRESH = ("first_sight", "second_sight")  # never trained on
EPOCHS = 5
SMOOTHED = 0.05  # of each label is shared among all
RIDGE = 1.0
LONG = 100  # words
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?![\w.]*\d)")


def read_labels(folder: Path = FOLDER) -> list[dict]:
    """A row for each answer and fact: file, answer, fact, label (its place in LABELS)."""
    rows = []
    for path in sorted(existing(folder, "labels").glob("*.jsonl")):
        for item in map(json.loads, path.read_text(encoding="utf-8").splitlines()):
            rows += [
                {"file": path.stem, "answer": item["answer"], "fact": each["fact"], "label": LABELS.index(each["label"])}
                for each in item.get("facts", ())  # second_pass.jsonl has none
            ]
    return rows


def turned(rows: Sequence[dict], seed: int = 0) -> list[dict]:
    """Entailed facts turned round, which are then contradicted: another number, or "do not" set before or taken away."""
    chance, found = random.Random(seed), []
    for row in rows:
        fact = row["fact"]
        if row["label"] != LABELS.index("entailed"):
            continue
        if number := NUMBER.search(fact):
            other = f"{float(number[0]) * chance.choice((0.5, 2, 3, 4)):g}"
            fact = fact[: number.start()] + other + fact[number.end() :]
        elif re.match(r"(?:Do not|Don't|Never) ", fact):
            fact = re.sub(r"^(?:Do not|Don't|Never) (\w)", lambda match: match[1].upper(), fact)
        elif re.match(r"(?:Take|Use|Give|Keep|Call|Go|Drink|Eat|Apply|Wait|Stop|Start|See|Rest|Wear) ", fact):
            fact = f"Do not {fact[0].lower()}{fact[1:]}"
        else:
            continue
        found.append(row | {"fact": fact, "label": LABELS.index("contradicted")})
    return chance.sample(found, len(found) // 2)


def train(rows: Sequence[dict]) -> Tensors:
    """The encoder's adapter, without the weights of the mix."""
    rows = [*rows, *turned(rows)]
    beside = evidence([(row["answer"], row["fact"]) for row in rows])
    texts = Texts([reading(unified(row["fact"]), unified(near), MOST) for row, near in zip(rows, beside, strict=True)], True)
    truth = torch.tensor([row["label"] for row in rows])

    def loss(odds: torch.Tensor, batch: list[int]) -> torch.Tensor:
        return cross_entropy(odds[:, 0], truth[batch], label_smoothing=SMOOTHED)

    return fit(texts, [[place] for place in range(len(rows))], (1, len(LABELS)), loss, EPOCHS)


def mixed(adapter: Tensors, table: np.ndarray, truth: np.ndarray) -> Tensors:
    """The adapter with the weights of a multinomial logistic regression over what `compared` gives."""
    size = (len(LABELS), table.shape[1] + 1)
    inputs, target = np.hstack([table, np.ones((len(table), 1))]), np.eye(len(LABELS))[truth]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights = flat.reshape(size)
        odds = inputs @ weights.T
        slope = (softmax(odds, axis=1) - target).T @ inputs + RIDGE * weights
        return -(target * log_softmax(odds, axis=1)).sum() + RIDGE / 2 * (weights**2).sum(), slope.ravel()

    found = minimize(loss, np.zeros(size).ravel(), jac=True, method="L-BFGS-B").x.reshape(size)
    weights = {"mix.weights": torch.from_numpy(found[:, :-1]), "mix.bias": torch.from_numpy(found[:, -1])}
    return adapter | {name: tensor.float().contiguous() for name, tensor in weights.items()}


def roc_auc(positive: np.ndarray, scores: np.ndarray) -> float:
    """Probability that a positive pair scores above another; ties count half (Mann-Whitney)."""
    count = positive.sum()
    return float((rankdata(scores)[positive].sum() - count * (count + 1) / 2) / (count * (len(positive) - count)))


def figures(rows: Sequence[dict], found: np.ndarray) -> dict:
    """By file: ROC AUC of entailed against the rest, share on the right side of 0.5, contradictions found and rightly."""
    truth, files = np.array([row["label"] for row in rows]), np.array([row["file"] for row in rows])
    words, support = np.array([len(row["answer"].split()) for row in rows]), found[:, 1]
    table = {}
    for file in sorted(set(files)):
        held = files == file
        parts = {"all": held, "without contradicted": held & (truth != 2), "long answers": held & (words >= LONG)}
        said, true = found[held].argmax(axis=1) == 2, truth[held] == 2
        table[file] = {
            "roc_auc": {name: round(roc_auc(truth[part] == 1, support[part]), 3) for name, part in parts.items()},
            "right side of 0.5": round(float(((support[held] >= 0.5) == (truth[held] == 1)).mean()), 3),
            "contradictions": {"labelled": int(true.sum()), "found": int(said.sum()), "rightly": int((said & true).sum())},
        }
    return table


def model(rows: Sequence[dict], folder: Path | None, name: str) -> Tensors:
    """The adapter learnt from the rows, or read from the folder if it lies there."""
    path = folder / f"facts-{name}.safetensors" if folder else None
    if path and path.exists():
        return load_file(path)
    print(f"training without {name}: {len(rows)} pairs", flush=True)
    adapter = train(rows)
    if path:
        save_file(adapter, path)
    return adapter


def main(folder: str = "") -> None:
    """Train on all but each fold, score it, train on all, mix, write everything and print the figures."""
    torch.set_num_threads(1)
    rows, kept = read_labels(), Path(folder) if folder else None
    files, truth = np.array([row["file"] for row in rows]), np.array([row["label"] for row in rows])
    table = np.zeros((len(rows), 6))
    for fold in (*FOLDS, FRESH):
        adapter = model([row for row in rows if row["file"] not in (*fold, *FRESH)], kept, "+".join(fold))
        held = np.isin(files, fold)
        table[held] = compared(adapter, [(row["answer"], row["fact"]) for row, h in zip(rows, held, strict=True) if h])
    found, alone = np.zeros((len(rows), len(LABELS))), np.zeros((len(rows), len(LABELS)))
    for fold in (*FOLDS, FRESH):
        others, held = ~np.isin(files, (*fold, *FRESH)), np.isin(files, fold)
        for result, columns in ((found, [0, 1, 2, 3, 4, 5]), (alone, [0, 1])):
            mix = mixed({}, table[others][:, columns], truth[others])
            result[held] = probabilities(mix, table[held][:, columns])
    usual = ~np.isin(files, FRESH)
    save_file(small(mixed(adapter, table[usual], truth[usual])), knowledge.ADAPTER)
    report = {"encoder alone": figures(rows, alone), "with relations": figures(rows, found)}
    write_json(FOLDER / "report.json", report)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
