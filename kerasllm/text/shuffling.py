"""Permutations of which each place is computed by itself, so that none is held in memory."""

import numpy as np

ROUNDS = 6


def permuted(places, size, *key):
    """What stands at some places of a permutation of 0 to `size` - 1, which looks random.

    A Feistel network over the next power of four, applied again to what falls beyond `size` (Black & Rogaway, 2002,
    Ciphers with arbitrary finite domains, "cycle walking"): no memory but that of the places.

    Args:
        places: array of ints from 0 to `size` - 1.
        size: of the permutation.
        *key: whole numbers from 0 on; others give another permutation.

    Returns:
        An array of the shape of `places`, int64.

    Example:
        >>> permuted(np.arange(5), 5, 1)
        array([2, 4, 0, 1, 3])
    """
    half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
    lowest = np.uint64((1 << int(half)) - 1)
    keys = np.random.SeedSequence(key).generate_state(ROUNDS, np.uint64)
    numbers = np.array(places, "uint64").reshape(-1)
    walking = np.arange(len(numbers))
    while len(walking):
        left, right = numbers[walking] >> half, numbers[walking] & lowest
        for round_key in keys:
            left, right = right, left ^ (_mixed(right ^ round_key) & lowest)
        numbers[walking] = left << half | right
        walking = walking[numbers[walking] >= size]
    return numbers.astype("int64").reshape(np.shape(places))


def _mixed(x):
    """The finalizer of SplitMix64 (Steele et al., 2014), of uint64 that wrap round."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
