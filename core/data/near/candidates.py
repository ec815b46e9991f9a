"""Rows that share a band key."""

from collections.abc import Iterator

import numpy as np

from core.data.near.shingles import I64, U64

ALL_PAIRS = 32
"""In a bucket of more rows, not every row is held against every other but only against its neighbours."""
NEIGHBOURS = 8


def candidate_pairs(keys: U64, rows: I64, total: int) -> I64:
    """Return pairs of rows with equal keys, as rising codes ``left * total + right`` with left < right.

    In a large bucket every row meets the first one and its ``NEIGHBOURS`` successors: the buckets of the other
    bands shuffle them anew, and one similar row is enough to be found.

    Args:
        keys: One band's key of each row.
        rows: The rows' numbers, rising.
        total: More than any row number.
    """
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    border = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1], [True]]))
    sizes = np.diff(border)
    found = [*_small(rows, border, sizes, total), *_large(rows, border, sizes, total)]
    return np.unique(np.concatenate(found)) if found else np.zeros(0, np.int64)


def _small(rows: I64, border: I64, sizes: I64, total: int) -> Iterator[I64]:
    # Buckets of one size are a matrix, whose columns are paired all at once.
    for size in np.unique(sizes[(sizes > 1) & (sizes <= ALL_PAIRS)]):
        starts = border[:-1][sizes == size]
        members = rows[starts[:, None] + np.arange(size)]
        left, right = np.triu_indices(size, 1)
        yield (members[:, left] * total + members[:, right]).ravel()


def _large(rows: I64, border: I64, sizes: I64, total: int) -> Iterator[I64]:
    for start, size in zip(border[:-1][sizes > ALL_PAIRS], sizes[sizes > ALL_PAIRS], strict=True):
        members = rows[start : start + size]
        yield members[0] * total + members[1:]
        for step in range(1, NEIGHBOURS + 1):
            yield members[:-step] * total + members[step:]
