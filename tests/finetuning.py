"""What the tests of fine-tuning share: runs of a few steps of a model so small that each takes a second."""

import filecmp

import pytest

from medcomfort_utils.finetune import data, trainers
from medcomfort_utils.finetune.methods import METHODS
from medcomfort_utils.schema import Hyper

HYPER = Hyper(learning_rate=3e-3, max_steps=5, batch_size=2, max_length=96, save_steps=2)
RANKS = {"lora": 4, "full": 0}
EACH = pytest.mark.parametrize("method", METHODS)


def changed(**values):
    return HYPER.model_copy(update=values)


def rows_of(method, rewrites, seed=0):
    return data.rows_for(method, rewrites, seed, against=["original", "comfort_only"])


def fit(method, way, rewrites, base, folder, seed=0, hyper=HYPER, **options):
    """One run of a few steps; the curves."""
    hyper = hyper.model_copy(update={"lora_rank": RANKS[way]})
    examples = data.prepare(method, rows_of(method, rewrites, seed), base, hyper, seed)
    return trainers.train(examples, base, folder, **options)


def undisturbed(rewrites, base, folder):
    """A function that gives (folder, curves) of a method trained in one of both ways, once each, when first asked."""
    curves = {}

    def run(method, way):
        out = folder / f"{method}-{way}-seed0"
        if out not in curves:
            curves[out] = fit(method, way, rewrites, base, out)
        return out, curves[out]

    return run


def same_weights(one, other):
    return filecmp.cmp(one / "model.safetensors", other / "model.safetensors", shallow=False)


def loss(curves):
    return curves.query("metric == 'loss'")["value"].tolist()
