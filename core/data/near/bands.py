"""MinHash band keys: two sets share a key with a probability that rises steeply with their similarity."""

import numpy as np
from rensa import RMinHash

from core.data.near.shingles import ANY_NUMBERS, U64, Shingles

BANDS = 25
ROWS = 5
"""Hashes per band. 25 bands of 5 find two sets of similarity 0.8 with probability 1 - (1 - 0.8^5)^25 = 0.99995
(Leskovec, Rajaraman, Ullman: Mining of Massive Datasets, section 3.4.2); wrong candidates are weeded out later."""


def band_keys(shingles: Shingles, seed: int, *, numbers_matter: bool = False) -> U64:
    """Return ``[BANDS, rows]`` keys; sets that agree in all hashes of a band share its key.

    Args:
        shingles: The sets.
        seed: Picks the hash functions; another seed is an independent look.
        numbers_matter: Sets of short texts with different numbers share no key. Without this the exercises of one
            template would all be candidates, thousands against thousands, only to be told apart afterwards.
    """
    if not shingles.rows:
        return np.zeros((BANDS, 0), np.uint64)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        shingles.hashes, shingles.offsets.astype(np.uint64), BANDS * ROWS, seed
    )
    signatures = np.array(matrix.to_rows(), np.uint64).reshape(shingles.rows, BANDS, ROWS)
    keys = np.zeros((shingles.rows, BANDS), np.uint64)
    for place in range(ROWS):
        keys = (keys ^ signatures[:, :, place]) * np.uint64(0x9E3779B97F4A7C15)
        keys ^= keys >> np.uint64(29)
    if numbers_matter:
        own = shingles.numbers != ANY_NUMBERS
        keys[own] ^= shingles.numbers[own, None]
    return np.ascontiguousarray(keys.T)
