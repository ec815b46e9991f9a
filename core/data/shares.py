"""Whole rows from fractions: how large a mix may be, and how many rows each part of it gets."""

import math
from collections.abc import Sequence

from core.errors import DataError

TOLERANCE = 0.02
"""Largest distance between a source's share of the mix and its weight."""


def mix_sizes(available: Sequence[int], weights: Sequence[float]) -> list[int]:
    """Return how many rows each source gives to the largest mix without repetition.

    Args:
        available: Rows each source has.
        weights: Wanted shares, relative to each other.

    Raises:
        DataError: If no mix comes within ``TOLERANCE`` of every share.
    """
    shares = [weight / math.fsum(weights) for weight in weights]
    largest = math.floor(min(have / share for have, share in zip(available, shares, strict=True)) + 1e-9)
    for total in range(largest, 0, -1):
        sizes = apportion(total, shares)
        if min(sizes) > 0 and all(
            abs(n / total - s) <= TOLERANCE for n, s in zip(sizes, shares, strict=True)
        ):
            return sizes
    wanted = ", ".join(f"{share:.3f} of {have} rows" for have, share in zip(available, shares, strict=True))
    raise DataError(
        f"the sources are too small for the wanted shares ({wanted})",
        where="sources",
        fix="bring the weights closer to each other, or add rows to the smallest source",
    )


def apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Divide a whole number by shares that sum to 1; the largest remainders are rounded up.

    Returns:
        Whole numbers that sum to ``total``, each within 1 of its exact part.
    """
    exact = [total * share for share in shares]
    sizes = [math.floor(part + 1e-9) for part in exact]
    by_remainder = sorted(range(len(shares)), key=lambda i: (sizes[i] - exact[i], i))
    for index in by_remainder[: total - sum(sizes)]:
        sizes[index] += 1
    return sizes
