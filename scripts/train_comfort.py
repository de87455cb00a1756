"""Train the comfort score from `data/comfort_labels`, and say how well it does on files that it has not seen.

    python scripts/train_comfort.py [FOLDER]

writes what is learnt (`comfort_en.json`, `comfort_en.safetensors`) and the figures (`data/comfort_labels/report.json`).
About 25 minutes on one core; FOLDER keeps what each step gave, so that a second start goes on from there.

Two models, whose expected levels are averaged. The linear one sees one sentence: which sentence of a reply earned the
label is learnt too, by fitting, keeping each positive reply's strongest sentence and all sentences of the others, and
fitting again (multiple-instance learning, after Andrews et al., NIPS 2002). The encoder reads question and reply
in training, and the reply alone when it scores.
"""

import json
import random
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from adapter import Texts, fit, small
from safetensors.torch import load_file, save_file
from scipy.optimize import minimize
from scipy.sparse import csr_matrix
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from medcomfort_utils.evaluate import comfort
from medcomfort_utils.evaluate.comfort import MECHANISMS, MOST, Linear, expected, length_only, levels, own_sentences
from medcomfort_utils.evaluate.comfort_features import features
from medcomfort_utils.evaluate.encoder import Tensors, reading
from medcomfort_utils.paths import DATA, existing, write_json, write_text

LABELS = DATA / "comfort_labels"
FOLDS = (("c1", "p1"), ("c2", "m1"), ("l1", "p2"), ("d1", "p3"))  # files held out together
EPOCHS = 2
JOINED = 200  # long replies made of short ones, so that length means nothing
BARE = 10  # one reply in so many is also shown without its question
MARGIN = 0.5  # weight of the order within a pair
MINIMUM = 3  # sentences that must hold a feature for it to be learnt
CUE_SCALE = 3.0  # cues and forms are trusted more than words: their weights are penalised a ninth as much
PENALTY = 10.0  # of the squared weights, against the sum of log losses
LIGHTEST = 20  # thousandths of log odds; a feature whose weights all lie below is not stored
ROUNDS = 3  # choices of the strongest sentence
PLATEAU = 0.01  # of kappa
LENGTHS = ((0, 14), (15, 39), (40, 79), (80, 10_000))  # words


def read_labels(folder: Path = LABELS) -> list[dict]:
    """The labelled replies of all files and of `first_sight`, each with its `file`."""
    rows = []
    for path in sorted(existing(folder, "labels").glob("*.jsonl")):
        found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        rows += [row | {"file": path.stem} for row in found if "answer" in row]
    return rows


def labels_of(rows: Sequence[dict]) -> np.ndarray:
    """Int array (rows, 3) of the labels."""
    return np.array([[row[name] for name in MECHANISMS] for row in rows])


# --- The linear model ----------------------------------------------------------------------------------------------


def train_linear(rows: Sequence[dict]) -> Linear:
    """Weights for the features of one sentence."""
    pairs = [
        (i, features(said)) for i, row in enumerate(rows) for said in own_sentences(row["question"], row["answer"])
    ]
    owner = np.array([i for i, _ in pairs])
    counts = Counter(name for _, present in pairs for name in present)
    names = {name: column for column, name in enumerate(sorted(n for n, count in counts.items() if count >= MINIMUM))}
    scale = np.array([CUE_SCALE if ": " in name else 1.0 for name in names] + [1.0])
    cells = [(i, names[name]) for i, (_, present) in enumerate(pairs) for name in sorted(present) if name in names]
    cells += [(i, len(names)) for i in range(len(pairs))]
    at, column = np.array(cells).T
    matrix = csr_matrix((scale[column], (at, column)), shape=(len(pairs), len(scale)))
    fitted = [_fit_reply(matrix, owner, truth >= level) * scale for truth in labels_of(rows).T for level in (1, 2)]
    weights = np.stack(fitted, axis=1)
    return Linear(names, weights[:-1].reshape(-1, 3, 2), weights[-1].reshape(3, 2))


def _fit_reply(matrix: csr_matrix, owner: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Weights (features + 1,): a positive reply's strongest sentence is positive, no sentence of another is."""
    target = positive[owner]
    importance = np.where(target, 1 / np.bincount(owner)[owner], 1.0)
    fitted = _fit(matrix, target, importance, np.zeros(matrix.shape[1]))
    for _ in range(ROUNDS):
        order = np.argsort(-(matrix @ fitted), kind="stable")
        strongest = order[np.unique(owner[order], return_index=True)[1]]
        importance = (~target).astype(float)
        importance[strongest] = 1.0
        fitted = _fit(matrix, target, importance, fitted)
    return fitted


def _fit(matrix: csr_matrix, target: np.ndarray, importance: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Logistic regression with a ridge; the constant, in the last column, is not penalised."""
    sign, ridge = np.where(target, 1.0, -1.0), np.append(np.full(matrix.shape[1] - 1, PENALTY), 0.0)

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        odds = sign * (matrix @ weights)
        slope = -importance * sign * np.exp(-np.logaddexp(0, odds))
        total = (importance * np.logaddexp(0, -odds)).sum() + (ridge * weights**2).sum() / 2
        return total, matrix.T @ slope + ridge * weights

    return minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x


# --- The encoder ---------------------------------------------------------------------------------------------------


def augmented(rows: Sequence[dict], seed: int = 0) -> list[dict]:
    """Further replies: short ones joined to long ones, half of them with comfort in one; and without question."""
    chance = random.Random(seed)
    short = [row for row in rows if len(row["answer"].split()) < 60]
    plain = [row for row in short if not any(row[name] for name in MECHANISMS)]
    warm = [row for row in short if any(row[name] for name in MECHANISMS)]
    found = []
    for number in range(JOINED):
        parts = chance.sample(plain, chance.randint(2, 5))
        subject = parts[0]
        if number % 2:
            subject = chance.choice(warm)
            parts.insert(chance.randint(0, len(parts)), subject)
        found.append(subject | {"answer": " ".join(part["answer"] for part in parts), "pair": None})
    return found + [row | {"question": "", "pair": None} for row in chance.sample(list(rows), len(rows) // BARE)]


def train_encoder(rows: Sequence[dict]) -> Tensors:
    """The encoder's adapter: ordinal log odds of reaching 1 and 2, and the order within contrast pairs."""
    rows = [*rows, *augmented(rows)]
    pairs: dict = {}
    for place, row in enumerate(rows):
        pairs.setdefault((row["file"], row["pair"]) if row.get("pair") else place, []).append(place)
    together = {place: unit for unit in pairs.values() for place in unit}
    truth = torch.tensor(labels_of(rows))

    def loss(odds: torch.Tensor, batch: list[int]) -> torch.Tensor:
        true = truth[batch]
        reached = torch.stack([true >= 1, true >= 2], dim=-1).float()
        total = binary_cross_entropy_with_logits(odds, reached, reduction="sum")
        position = {place: i for i, place in enumerate(batch)}
        both = [[position[p] for p in together[place]] for place in batch if together[place][1:2] == [place]]
        if both:
            one, other = torch.tensor(both).T
            apart, value = (true[one] - true[other]).float(), odds.sum(-1)
            missed = softplus(1 - (value[one] - value[other]) * apart.sign())
            total = total + MARGIN * missed[apart != 0].sum()
        return total / len(batch)

    said = [" ".join(own_sentences(row["question"], row["answer"])) for row in rows]
    texts = Texts([reading(row["question"], own, MOST) for row, own in zip(rows, said, strict=True)], whole=False)
    return fit(texts, list(pairs.values()), (3, 2), loss, EPOCHS)


# --- Figures -------------------------------------------------------------------------------------------------------


def kappa(seen: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights of confusion matrices (..., 3, 3); 1 where both sides are constant."""
    cost = np.subtract.outer(np.arange(3), np.arange(3)) ** 2
    chance = seen.sum(-1)[..., :, None] * seen.sum(-2)[..., None, :] / seen.sum((-1, -2))[..., None, None]
    lost, expected_loss = (cost * seen).sum((-1, -2)), (cost * chance).sum((-1, -2))
    return 1 - lost / np.where(expected_loss > 0, expected_loss, 1)


def confusion(truth: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Array (3, 3): how often each level (row) was given each level (column)."""
    return np.array([[((truth == i) & (given == j)).sum() for j in range(3)] for i in range(3)], dtype=float)


def choose_thresholds(values: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Array (3, 2): from which value on to give 1 and 2, for the best kappa in each column of (rows, 3).

    The kappa is nearly flat around its best, so the middle of all pairs within PLATEAU of it is taken.
    """
    chosen = []
    for column, true in zip(values.T, truth.T, strict=True):
        steps = np.unique(np.quantile(column, np.linspace(0.2, 0.99, 80)).round(3))
        reached = np.array([[((true == level) & (column >= step)).sum() for step in steps] for level in range(3)])
        first, second = np.triu_indices(len(steps))
        whole = np.bincount(true, minlength=3)[:, None] + np.zeros(len(first))
        parts = [whole - reached[:, first], reached[:, first] - reached[:, second], reached[:, second]]
        kappas = kappa(np.moveaxis(np.array(parts, dtype=float), -1, 0).swapaxes(-1, -2))
        best = kappas >= kappas.max() - PLATEAU
        chosen.append([steps[first][best].mean().round(3), steps[second][best].mean().round(3)])
    return np.array(chosen)


def peers(rows: Sequence[dict]) -> np.ndarray:
    """Which replies thresholds are chosen on: those of peers, whose levels are spread as in everyday talk."""
    return np.array([row["world"] == "P" and row["file"] != "first_sight" for row in rows])


def held_out_levels(rows: Sequence[dict], values: np.ndarray) -> np.ndarray:
    """Levels by thresholds from the other folds alone; of `first_sight` by those of all."""
    given, truth, usual = np.zeros_like(values, dtype=int), labels_of(rows), peers(rows)
    for fold in (*FOLDS, ("first_sight",)):
        held = np.array([row["file"] in fold for row in rows])
        others = usual & ~held
        given[held] = levels(values[held], choose_thresholds(values[others], truth[others]))
    return given


def figures(rows: Sequence[dict], values: np.ndarray) -> dict:
    """Kappa by file, contrast pairs in the right order, shares wrongly heard and wrongly missed by length of reply."""
    given, truth = held_out_levels(rows, values), labels_of(rows)
    files, words = np.array([row["file"] for row in rows]), length_only([row["answer"] for row in rows])
    parts = {file: files == file for file in sorted(set(files))} | {"all but first_sight": files != "first_sight"}
    table: dict = {"kappa": {part: {} for part in parts}, "pairs": {}, "heard in replies of 0": {}, "missed": {}}
    for column, name in enumerate(MECHANISMS):
        true, guess = truth[:, column], given[:, column]
        for part, held in parts.items():
            table["kappa"][part][name] = round(float(kappa(confusion(true[held], guess[held]))), 3)
        for title, wrong in (("heard in replies of 0", (true == 0, guess > 0)), ("missed", (true > 0, guess == 0))):
            table[title][name] = {
                f"{low}-{high} words" if high < 10_000 else f"{low} words and more": round(
                    float(wrong[1][chosen].mean()), 3
                )
                for low, high in LENGTHS
                if (chosen := wrong[0] & (words >= low) & (words <= high)).any()
            }
    for file in ("c1", "c2"):
        table["pairs"][file] = _pairs(rows, given, truth, file)
    return table


def _pairs(rows: Sequence[dict], given: np.ndarray, truth: np.ndarray, file: str) -> dict:
    """Share of the labels in which a pair differs that the levels put in the same order, and of wholly right pairs."""
    places: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        if row["file"] == file:
            places.setdefault(row["pair"], []).append(place)
    right = [
        [(given[i, k] - given[j, k]) * (truth[i, k] - truth[j, k]) > 0 for k in range(3) if truth[i, k] != truth[j, k]]
        for i, j in places.values()
    ]
    single = [each for pair in right for each in pair]
    return {
        "levels": round(float(np.mean(single)), 3),
        "whole pairs": round(float(np.mean([all(p) for p in right])), 3),
    }


# --- Main ----------------------------------------------------------------------------------------------------------


def models(rows: Sequence[dict], folder: Path | None, name: str) -> tuple[Linear, Tensors]:
    """Both models learnt from the rows; the encoder's is read from the folder if it lies there."""
    path = folder / f"comfort-{name}.safetensors" if folder else None
    print(f"training without {name}: {len(rows)} replies", flush=True)
    linear = train_linear(rows)
    if path and path.exists():
        return linear, load_file(path)
    adapter = train_encoder(rows)
    if path:
        save_file(adapter, path)
    return linear, adapter


def save(linear: Linear, thresholds: dict[str, np.ndarray]) -> None:
    """Write the linear model as JSON, a feature a line, weights in whole thousandths; the lightest left out."""
    thousandths = (linear.weights.reshape(-1, 6) * 1000).round().astype(int).tolist()
    pairs = [(name, thousandths[row]) for name, row in linear.names.items()]
    lines = [f"{json.dumps(name)}: {json.dumps(w)}" for name, w in pairs if max(map(abs, w)) >= LIGHTEST]
    head = {name: chosen.tolist() for name, chosen in thresholds.items()}
    head["intercepts"] = (linear.intercepts * 1000).round().tolist()
    write_text(comfort.LINEAR, json.dumps(head)[:-1] + ',\n"weights": {\n' + ",\n".join(lines) + "\n}}\n")


def main(folder: str = "") -> None:
    """Train on all but each fold, score it, train on all, choose thresholds, write everything and print the kappas."""
    torch.set_num_threads(1)
    rows, kept = read_labels(), Path(folder) if folder else None
    values = {name: np.zeros((len(rows), 3)) for name in ("linear", "encoder")}
    for fold in (*FOLDS, ("first_sight",)):
        linear, adapter = models(
            [row for row in rows if row["file"] not in (*fold, "first_sight")], kept, "+".join(fold)
        )
        held = [place for place, row in enumerate(rows) if row["file"] in fold]
        pairs = [(rows[place]["question"], rows[place]["answer"]) for place in held]
        values["linear"][held], values["encoder"][held] = expected(pairs, linear), expected(pairs, adapter=adapter)
    values["both"] = (values["linear"] + values["encoder"]) / 2
    values["words"] = length_only([row["answer"] for row in rows])[:, None].repeat(3, axis=1).astype(float)
    report = {name: figures(rows, each) for name, each in values.items()}
    usual, truth = peers(rows), labels_of(rows)
    save(linear, {name: choose_thresholds(values[name][usual], truth[usual]) for name in ("linear", "both")})
    save_file(small(adapter), comfort.ADAPTER)
    write_json(LABELS / "report.json", {"replies": len(rows), **report})
    for name, table in report.items():
        print(
            name,
            json.dumps(table["kappa"]),
            json.dumps(table["pairs"]),
            json.dumps(table["heard in replies of 0"]),
            sep="\n  ",
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
