"""Learn an adapter of the sentence encoder: low-rank updates of its upper layers, and heads. Shared by two trainers.

The lower layers stay as they are, so what they make of each text is computed once and kept. Training runs in bfloat16
on one thread with fixed seeds: the same machine gives the same bytes; what is learnt is used in 32-bit floats.
"""

import math
import random
import time
from collections.abc import Callable, Sequence

import torch
from torch import nn

from medcomfort_utils.evaluate import encoder
from medcomfort_utils.evaluate.encoder import LAYERS, LINEAR, WIDTH, Reading, Tensors

KEPT = 3  # lower layers that are not trained
RANK = 16
DROP = 0.1  # of what a head sees
RATE = 1e-3
WARM = 60  # steps until the full rate, which then falls linearly to 0
TOKENS = 1536  # in a batch, with padding
POOL = 256  # units sorted by length together, so that batches hold texts of like length


def fresh(heads: int, outputs: int, seed: int) -> Tensors:
    """An untrained adapter: its updates are 0."""
    torch.manual_seed(seed)
    adapter = {}
    for number in range(KEPT, LAYERS):
        for name in LINEAR:
            out, into = encoder.base()[f"encoder.layer.{number}.{name}.weight"].shape
            adapter[f"encoder.layer.{number}.{name}.a"] = torch.randn(RANK, into) / math.sqrt(into)
            adapter[f"encoder.layer.{number}.{name}.b"] = torch.zeros(out, RANK)
    shapes = {"attention": (heads, WIDTH), "weights": (heads, outputs, WIDTH)}
    return (
        adapter
        | {name: 0.03 * torch.randn(shape) for name, shape in shapes.items()}
        | {"bias": torch.zeros(heads, outputs)}
    )


class Texts:
    """Readings with what the lower layers make of each: `batch(places)` gives what the upper layers start from."""

    def __init__(self, readings: Sequence[Reading], whole: bool):
        self.readings, self.whole = readings, whole
        self.weights = {name: tensor.bfloat16() for name, tensor in encoder.base().items()}
        self.lower = [torch.empty(0)] * len(readings)
        with torch.inference_mode():
            for places in encoder.batches([len(each.tokens) for each in readings]):
                ids, second, hidden, _ = encoder.padded([readings[i] for i in places], self.width(places), whole)
                x = encoder.embed(self.weights, ids, second)
                for number in range(KEPT):
                    x = encoder.layer(self.weights, number, x, hidden.bfloat16())
                for row, place in enumerate(places):
                    self.lower[place] = x[row, : len(readings[place].tokens)].clone()

    def width(self, places: Sequence[int]) -> int:
        """Tokens of the longest text, up to a multiple of 16: few shapes are faster than short ones."""
        return -(-max(len(self.readings[place].tokens) for place in places) // 16) * 16

    def log_odds(self, adapter: Tensors, places: Sequence[int], drop: float = 0.0) -> torch.Tensor:
        """Log odds (texts, heads, outputs) of the texts at these places."""
        width = self.width(places)
        *_, hidden, pooled = encoder.padded([self.readings[place] for place in places], width, self.whole)
        x = torch.zeros(len(places), width, WIDTH, dtype=torch.bfloat16)
        for row, place in enumerate(places):
            x[row, : len(self.lower[place])] = self.lower[place]
        for number in range(KEPT, LAYERS):
            x = encoder.layer(self.weights, number, x, hidden.bfloat16(), adapter)
        return encoder.head(adapter, torch.dropout(x.float(), drop, train=drop > 0), pooled)


def _batches(units: Sequence[Sequence[int]], texts: Texts, chance: random.Random) -> list[list[int]]:
    """The units (places that stay together) in random order, as batches of at most TOKENS."""
    units = chance.sample(units, len(units))
    found: list[list[int]] = []
    for start in range(0, len(units), POOL):
        batch: list[int] = []
        for unit in sorted(units[start : start + POOL], key=texts.width):
            if batch and texts.width([*batch, *unit]) * len([*batch, *unit]) > TOKENS:
                found.append(batch)
                batch = []
            batch = [*batch, *unit]
        found.append(batch)
    return chance.sample(found, len(found))


Loss = Callable[[torch.Tensor, list[int]], torch.Tensor]


def fit(
    texts: Texts, units: Sequence[Sequence[int]], shape: tuple[int, int], loss: Loss, epochs: int, seed: int = 0
) -> Tensors:
    """The adapter learnt from the units of texts; `loss` compares log odds with the labels at the places of a batch."""
    chance, adapter = random.Random(seed), fresh(*shape, seed)
    learnt = [nn.Parameter(tensor) for tensor in adapter.values()]
    adapter = dict(zip(adapter, learnt, strict=True))
    search = torch.optim.AdamW(learnt, lr=RATE, weight_decay=0.01)
    plan = [batch for _ in range(epochs) for batch in _batches(units, texts, chance)]
    began, summed = time.process_time(), 0.0
    for step, batch in enumerate(plan):
        search.param_groups[0]["lr"] = RATE * min((step + 1) / WARM, 1 - step / len(plan))
        found = loss(texts.log_odds(adapter, batch, DROP), batch)
        search.zero_grad()
        found.backward()
        nn.utils.clip_grad_norm_(learnt, 1.0)
        search.step()
        summed += found.item()
        if (step + 1) % 100 == 0:
            print(
                f"  step {step + 1} of {len(plan)}: loss {summed / 100:.3f}, {time.process_time() - began:.0f} s",
                flush=True,
            )
            summed = 0.0
    return {name: tensor.detach().half().float() for name, tensor in adapter.items()}


def small(adapter: Tensors) -> Tensors:
    """The adapter as it is stored, in 16-bit floats."""
    return {name: tensor.half().contiguous() for name, tensor in adapter.items()}
