"""Train the comfort score from `data/comfort_labels`, and tell how well it does on an author it has not seen.

    python -m medcomfort_utils.evaluate.comfort_model

writes the weights (`comfort_en.json`) and the figures (`data/comfort_labels/report.json`), the same each time. A reply
is labelled as a whole and scored by its strongest sentence, so which sentence earned the label is learned too: fit,
keep each positive reply's strongest sentence and all sentences of the others, fit again (multiple-instance learning,
after Andrews et al., "Support Vector Machines for Multiple-Instance Learning", NIPS 2002).
"""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from medcomfort_utils.evaluate.comfort import WEIGHTS, Model, expected_levels, length_only, levels, own_sentences
from medcomfort_utils.evaluate.comfort_features import MECHANISMS, features
from medcomfort_utils.paths import DATA, MedComfortError, existing, tidy, write_json, write_text

LABELS = DATA / "comfort_labels"
FIELDS = ("id", "world", "question", "answer", *MECHANISMS)
MINIMUM = 3  # sentences that must hold a feature for it to be learned
CUE_SCALE = 3.0  # cues and forms are trusted more than words: their weights are penalised a ninth as much
PENALTY = 10.0  # of the squared weights, against the sum of log losses
LIGHTEST = 10  # thousandths of log odds; a feature whose weights all lie below is not stored
PLATEAU = 0.01  # of kappa
ROUNDS = 3  # choices of the strongest sentence


def read_labels(folder: Path = LABELS) -> list[dict]:
    """All labelled replies, with `author` (the file's stem); a MedComfortError names the line that does not fit."""
    rows = []
    for path in sorted(existing(folder, "labels").glob("[a-z][0-9]*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                row = json.loads(line)
                fits = all(name in row for name in FIELDS) and all(row[name] in (0, 1, 2) for name in MECHANISMS)
            except json.JSONDecodeError:
                fits = False
            if not fits:
                raise MedComfortError(f"{tidy(path)}, line {number}: needs {', '.join(FIELDS)}; levels are 0, 1 or 2.")
            rows.append(row | {"author": path.stem})
    return rows


def kappa(truth: Sequence[int], given: Sequence[int]) -> float:
    """Cohen's kappa with quadratic weights over the levels 0-2; 1.0 if both are constant and equal."""
    seen = np.zeros((3, 3))
    np.add.at(seen, (np.asarray(truth), np.asarray(given)), 1)
    cost = np.subtract.outer(np.arange(3), np.arange(3)) ** 2
    chance = np.outer(seen.sum(axis=1), seen.sum(axis=0)) / seen.sum()
    return 1.0 - float((cost * seen).sum() / (cost * chance).sum()) if (cost * chance).any() else 1.0


def labels_of(rows: Sequence[dict]) -> np.ndarray:
    """Int array (rows, 3) of the labels."""
    return np.array([[row[name] for name in MECHANISMS] for row in rows])


def train(rows: Sequence[dict]) -> Model:
    """A model without thresholds (they are infinite: `choose_thresholds` finds them on replies not trained on)."""
    found, owner = _sentence_features(rows)
    counts = Counter(name for names in found for name in names)
    names = sorted(name for name, count in counts.items() if count >= MINIMUM)
    scale = np.array([CUE_SCALE if ": " in name else 1.0 for name in names])
    matrix = _matrix(found, names, scale)
    columns = [_fit_reply(matrix, owner, truth >= level) for truth in labels_of(rows).T for level in (1, 2)]
    fitted = np.stack(columns, axis=1)
    weights = (fitted[:-1] * scale[:, None]).reshape(-1, 3, 2)
    places = {name: row for row, name in enumerate(names)}
    return Model(places, weights, fitted[-1].reshape(3, 2), np.full((3, 2), np.inf))


def strongest(model: Model, row: dict) -> np.ndarray:
    """Array (3,): the expected level of each mechanism in a reply's strongest sentence; 0 without a sentence."""
    own = own_sentences(row["question"], row["answer"])
    return np.max([np.zeros(3), *(expected_levels(model, sentence) for sentence in own)], axis=0)


def calibrated(rows: Sequence[dict], values: np.ndarray) -> np.ndarray:
    """`choose_thresholds` on the peers' replies (world P): their levels are spread as in everyday talk."""
    peers = np.array([row["world"] == "P" for row in rows])
    return choose_thresholds(values[peers], labels_of(rows)[peers])


def choose_thresholds(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Array (3, 2): from which value on to give 1 and 2, for the best kappa in each column; `schema` (rows, 3).

    The kappa is nearly flat around its best, so the middle of all pairs within PLATEAU of it is taken.
    """
    chosen = []
    for column, true in zip(values.T, truth.T, strict=True):
        steps = np.unique(np.quantile(column, np.linspace(0.2, 0.99, 80)).round(3))
        pairs = np.array(list(combinations_with_replacement(steps, 2)))
        kappas = np.array([kappa(true, levels(column, pair)) for pair in pairs])
        chosen.append(pairs[kappas >= kappas.max() - PLATEAU].mean(axis=0).round(3))
    return np.array(chosen)


def unseen(rows: Sequence[dict]) -> np.ndarray:
    """Array (rows, 3): `strongest` of each reply by a model trained on the other authors alone."""
    authors = {row["author"] for row in rows}
    models = {author: train([row for row in rows if row["author"] != author]) for author in sorted(authors)}
    return np.array([strongest(models[row["author"]], row) for row in rows])


def validate(rows: Sequence[dict], values: np.ndarray) -> dict:
    """Figures by held-out author and world: kappa, confusion (truth by given), and the kappa of length alone.

    `schema` are those of `unseen`. A held-out author's thresholds come from the other authors' own hold-outs.
    """
    truth, words = labels_of(rows), length_only([row["answer"] for row in rows])[:, None].repeat(3, axis=1)
    given, by_length = np.zeros_like(truth), np.zeros_like(truth)
    for author in sorted({row["author"] for row in rows}):
        held = np.array([row["author"] == author for row in rows])
        others = [row for row in rows if row["author"] != author]
        given[held] = levels(values[held], calibrated(others, unseen(others)))
        by_length[held] = levels(words[held], calibrated(others, words[~held]))
    groups = np.array([f"author {row['author']}, world {row['world']}" for row in rows])
    parts = {group: groups == group for group in sorted(set(groups))} | {"all": np.ones(len(rows), dtype=bool)}
    return {name: _figures(truth[part], given[part], by_length[part]) for name, part in parts.items()}


def _figures(truth: np.ndarray, given: np.ndarray, by_length: np.ndarray) -> dict:
    figures = {"replies": len(truth)}
    for column, name in enumerate(MECHANISMS):
        true, guess = truth[:, column], given[:, column]
        figures[name] = {
            "kappa": round(kappa(true, guess), 3),
            "kappa of length alone": round(kappa(true, by_length[:, column]), 3),
            "confusion": [[int(((true == i) & (guess == j)).sum()) for j in range(3)] for i in range(3)],
        }
    return figures


def _sentence_features(rows: Sequence[dict]) -> tuple[list[set[str]], np.ndarray]:
    """The features of every sentence, and the number of the reply it belongs to."""
    pairs = [(number, s) for number, row in enumerate(rows) for s in own_sentences(row["question"], row["answer"])]
    return [features(sentence) for _, sentence in pairs], np.array([number for number, _ in pairs])


def _matrix(found: list[set[str]], names: list[str], scale: np.ndarray) -> torch.Tensor:
    """Sparse (sentences, features + 1); the last column is the constant."""
    place = {name: column for column, name in enumerate(names)}
    cells = [(i, place[name]) for i, present in enumerate(found) for name in sorted(present) if name in place]
    cells += [(i, len(names)) for i in range(len(found))]
    rows, columns = zip(*cells, strict=True)
    values = torch.tensor(np.append(scale, 1.0)[list(columns)])
    size = (len(found), len(names) + 1)
    return torch.sparse_coo_tensor([rows, columns], values, size, check_invariants=True).coalesce()


def _fit_reply(matrix: torch.Tensor, owner: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Weights (features + 1,): a positive reply's strongest sentence is positive, no sentence of another is."""
    target = positive[owner]
    importance = np.where(target, 1 / np.bincount(owner)[owner], 1.0)
    fitted = _fit(matrix, target, importance)
    for _ in range(ROUNDS):
        order = np.argsort(-(matrix @ torch.tensor(fitted)).numpy(), kind="stable")
        strongest = order[np.unique(owner[order], return_index=True)[1]]
        importance = (~target).astype(float)
        importance[strongest] = 1.0
        fitted = _fit(matrix, target, importance)
    return fitted


def _fit(matrix: torch.Tensor, target: np.ndarray, importance: np.ndarray) -> np.ndarray:
    """Logistic regression with a ridge; the constant is not penalised."""
    weights = torch.zeros(matrix.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([weights], max_iter=200, line_search_fn="strong_wolfe")
    truth, importance = torch.tensor(target, dtype=torch.float64), torch.tensor(importance)

    def loss() -> torch.Tensor:
        search.zero_grad()
        fit = binary_cross_entropy_with_logits(matrix @ weights, truth, weight=importance, reduction="sum")
        total = fit + PENALTY / 2 * weights[:-1].square().sum()
        total.backward()
        return total

    search.step(loss)
    return weights.detach().numpy()


def save(model: Model, path: Path = WEIGHTS) -> Path:
    """Write the model as JSON, a feature a line, weights in whole thousandths; the lightest left out."""
    thousandths = (model.weights.reshape(-1, 6) * 1000).round().astype(int).tolist()
    pairs = [(name, thousandths[row]) for name, row in model.names.items()]
    lines = [f"{json.dumps(name)}: {json.dumps(w)}" for name, w in pairs if max(map(abs, w)) >= LIGHTEST]
    head = {"intercepts": (model.intercepts * 1000).round().tolist(), "thresholds": model.thresholds.tolist()}
    weights = ",\n".join(lines)
    return write_text(path, json.dumps(head)[:-1] + ',\n"weights": {\n' + weights + "\n}}\n")


def main() -> None:
    """Train, choose thresholds, validate, write both files and print the kappas."""
    torch.set_num_threads(1)  # sums in one order, so that the same weights come out each time
    rows = read_labels()
    values = unseen(rows)
    thresholds = calibrated(rows, values)
    save(train(rows)._replace(thresholds=thresholds))
    report = validate(rows, values)
    write_json(LABELS / "report.json", report)
    for group, figures in report.items():
        print(group, figures["replies"], *(f"{name} {figures[name]['kappa']:.2f}" for name in MECHANISMS), sep="  ")


if __name__ == "__main__":
    main()
