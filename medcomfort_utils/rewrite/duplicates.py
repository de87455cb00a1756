"""Near duplicates among many texts, by MinHash with banding: deterministic, and linear in the number of texts."""

import random
from zlib import crc32

import numpy as np

_BANDS, _ROWS = 12, 4  # a pair of Jaccard similarity 0.8 shares a bucket with probability 0.998
_BUCKET = 20  # earlier dialogues compared in one bucket, so that a corpus made from templates stays linear
_coin = random.Random(20250613)
_SCALE = np.array([_coin.getrandbits(64) | 1 for _ in range(_BANDS * _ROWS)], np.uint64)
_SHIFT = np.array([_coin.getrandbits(64) for _ in range(_BANDS * _ROWS)], np.uint64)
_PRIME = np.uint64(0x9E3779B97F4A7C15)


def shingles(tokens: list[str], size: int = 5) -> np.ndarray:
    """The set of a text's runs of `size` words, as sorted 32-bit hashes."""
    codes = np.fromiter((crc32(token.encode("utf-8")) for token in tokens), np.uint64, len(tokens))
    count = max(len(codes) - size + 1, 1)
    runs = np.zeros(count, np.uint64)
    for offset in range(min(size, len(codes))):
        runs = (runs + codes[offset : offset + count]) * _PRIME
    return np.unique((runs >> np.uint64(32)).astype(np.uint32))


def near_duplicates(sets: list[np.ndarray], threshold: float = 0.8) -> list[bool]:
    """For each set of shingles: is its Jaccard similarity to an earlier one that stays at least `threshold`?

    MinHash with banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3): only sets that share a
    bucket are compared, and those exactly. The same sets give the same result on every machine.
    """
    if not sets:
        return []
    least = np.stack([_signature(each) for each in sets])
    keys = np.zeros((len(sets), _BANDS), np.uint64) + np.arange(_BANDS, dtype=np.uint64)
    for row in range(_ROWS):
        keys = (keys + least[:, row::_ROWS]) * _PRIME
    values, members = np.unique(keys, return_counts=True)
    shared = np.isin(keys, values[members > 1])
    buckets, repeated = {}, []
    for index, each in enumerate(sets):
        mine = [buckets.setdefault(key, []) for key in keys[index][shared[index]].tolist()]
        earlier = np.array(sorted({other for bucket in mine for other in bucket}), int)
        alike = earlier[(least[earlier] == least[index]).mean(axis=1) >= threshold - 0.2] if len(earlier) else earlier
        repeated.append(any(_jaccard(each, sets[other]) >= threshold for other in alike))
        for bucket in mine:
            if not repeated[-1] and len(bucket) < _BUCKET:
                bucket.append(index)
    return repeated


def _signature(each: np.ndarray) -> np.ndarray:
    return ((each.astype(np.uint64)[:, None] * _SCALE + _SHIFT) >> np.uint64(32)).min(axis=0)


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    both = np.intersect1d(one, other, assume_unique=True).size
    return both / (one.size + other.size - both)
