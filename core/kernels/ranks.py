"""How many ranks of an adapter tensor cores multiply."""


def padded(rank: int) -> int:
    """Return the next power of two from a rank on, 16 at least: the fewest that a product may have."""
    return max(16, 1 << max(0, rank - 1).bit_length())
