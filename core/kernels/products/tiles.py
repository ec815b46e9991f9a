"""Which tile of a result suits a product: how full its waves are, and what it costs in energy.

cuBLASLt offers several algorithms for a product. They differ by a few percent, and which is best depends on whether
the GPU is at its power limit: on an H200 in training the one that wins a short run loses 6 % against the first on its
list once the GPU is warm. What is left is arithmetic: a result is cut into tiles, one for each processor at a time, and
the last wave of tiles may leave most processors idle.
"""

import math
from typing import NamedTuple


class Tile(NamedTuple):
    """One of the library's tiles (cublasLtMatmulTile_t)."""

    rows: int
    """Of the column-major result: columns of ours."""
    columns: int
    rate: float
    """Of the best, where all waves are full; both layouts on average, on an H200 at its power limit (2026-11-22)."""


TILES = {
    20: Tile(128, 128, 0.94),
    23: Tile(128, 256, 0.985),
    24: Tile(256, 128, 1.0),
    29: Tile(128, 160, 1.0),
    31: Tile(192, 128, 0.955),
    32: Tile(128, 192, 0.95),
    197: Tile(168, 128, 1.005),
    201: Tile(176, 128, 1.01),
    209: Tile(192, 192, 0.975),
    248: Tile(320, 128, 0.985),
    495: Tile(256, 96, 0.965),
}
"""By the library's number; those it offers for a layer's products."""


def fullness(tile: Tile, n: int, t: int, processors: int) -> float:
    """Return which share of the tiles' work is wanted: the edges of a result and of the last wave are not.

    Args:
        tile: How the result is cut.
        n: Columns of the result.
        t: Its rows.
        processors: That compute a tile each at a time.
    """
    count = math.ceil(n / tile.rows) * math.ceil(t / tile.columns)
    waves = math.ceil(count / processors)
    return n * t / (waves * processors * tile.rows * tile.columns)


def best(offered: list[int], n: int, t: int, processors: int) -> int:
    """Choose among offered algorithms by their tiles.

    Args:
        offered: The tile of each, in the library's own order.
        n: Columns of the result.
        t: Its rows.
        processors: Of the GPU.

    Returns:
        The place of the one with the highest predicted rate; the library's first if it offers no known tile.
    """
    rates = [
        TILES[each].rate * fullness(TILES[each], n, t, processors) if each in TILES else 0.0
        for each in offered
    ]
    return rates.index(max(rates))
