"""Random numbers that are a function of what they are for: no generator has a state, so nothing depends on order."""

import numpy as np

# What a draw is for; two purposes never share a number.
PERMUTATION, ROW_ORDER, CHUNK_LENGTH, SPLIT, IS_NEXT, PARTNER, CUT, MASK, TORCH, SUBSET, ALIGN = range(11)
CROP, FLIP, OPERATION, STRENGTH, ERASING, NOISE, MIXING, WEIGHT = range(11, 19)

Key = int | np.ndarray


def hash_key(*key: Key) -> np.ndarray:
    """A 64-bit hash of every part of the key, arrays broadcast: SplitMix64's finaliser (Steele 2014), chained."""
    state: np.ndarray = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in key:
            z = (state ^ np.asarray(part).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
            z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = z ^ (z >> np.uint64(31))
    return np.asarray(state)


def uniform(*key: Key) -> np.ndarray:
    """Numbers in [0, 1), one for each element of the key's arrays."""
    return (hash_key(*key) >> np.uint64(11)) * 2.0**-53


def integers(high: Key, *key: Key) -> np.ndarray:
    """Whole numbers in [0, high); `high` is broadcast too."""
    return np.minimum((uniform(*key) * high).astype(np.int64), np.asarray(high) - 1)


def generator(*key: int) -> np.random.Generator:
    """A generator for one purpose, where many numbers of one kind are drawn."""
    return np.random.default_rng(int(hash_key(*key)))
