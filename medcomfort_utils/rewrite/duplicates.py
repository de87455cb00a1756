"""Near duplicates among many texts, by MinHash with banding: deterministic, and linear in the number of texts."""

import random
from zlib import crc32

import numpy as np

_BANDS, _ROWS = 12, 4  # a pair of Jaccard similarity 0.8 shares a bucket with probability 0.998
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


class Near:
    """The last `remember` texts that were met, as shingles, each with a label.

    MinHash with banding (Broder 1997; Leskovec et al., Mining of Massive Datasets, ch. 3): only sets that share a
    bucket are compared, and those exactly. Memory: about 3 kB a remembered text.
    """

    def __init__(self, threshold: float = 0.8, remember: int = 50_000):
        self.threshold, self.remember = threshold, remember
        self._buckets: dict[int, int] = {}
        self._kept: dict[int, tuple[np.ndarray, list[int], str]] = {}  # in order of arrival
        self._number = 0

    def label(self, tokens: list[str], own: str) -> str:
        """The label of the earliest remembered text that is near to this one, else `own`; under it this one is kept."""
        each = shingles(tokens)
        keys = _keys(each)
        others = sorted({self._buckets[key] for key in keys if key in self._buckets})
        label = next((self._kept[n][2] for n in others if _jaccard(each, self._kept[n][0]) >= self.threshold), own)
        self._number += 1
        self._kept[self._number] = each, keys, label
        self._buckets |= {key: self._number for key in keys if key not in self._buckets}
        if len(self._kept) > self.remember:
            oldest = next(iter(self._kept))
            for key in self._kept.pop(oldest)[1]:
                if self._buckets.get(key) == oldest:
                    del self._buckets[key]
        return label


def _keys(each: np.ndarray) -> list[int]:
    """One number a band: equal where two texts share the band's least hashes."""
    least = ((each.astype(np.uint64)[:, None] * _SCALE + _SHIFT) >> np.uint64(32)).min(axis=0)
    keys = np.arange(_BANDS, dtype=np.uint64)
    for row in range(_ROWS):
        keys = (keys + least[row::_ROWS]) * _PRIME
    return keys.tolist()


def _jaccard(one: np.ndarray, other: np.ndarray) -> float:
    both = np.intersect1d(one, other, assume_unique=True).size
    return both / (one.size + other.size - both)
