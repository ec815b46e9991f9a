"""Rows that must stay on one side: equal questions, nearly equal ones, and those of one group."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from core.data.asked import links, number
from core.data.columns import first_of_same
from core.data.config import SplitConfig
from core.data.ingest import Advanced
from core.data.near import Texts, find_similar
from core.data.parts import Part
from core.data.scatter import scattered
from core.data.split.rows import I64, U64, Rows
from core.data.workers import Workers


class Links(NamedTuple):
    """Pairs of rows that belong together."""

    left: I64
    right: I64


def same(values: pa.ChunkedArray | pa.Array) -> Links:
    """Link every row with the first one of the same value."""
    first = first_of_same(values)
    linked = np.flatnonzero(first != np.arange(len(first)))
    return Links(first[linked], linked)


def nearly_same(
    rows: Sequence[Rows],
    read: Callable[[Part], Texts],
    config: SplitConfig,
    workers: Workers,
    scratch: Path,
    advanced: Advanced,
) -> Links:
    """Link rows whose questions, or whose whole texts, are nearly the same, over all given rows in order."""
    similar = find_similar(
        [part for some in rows for part in some.parts],
        read,
        threshold=config.near_threshold or 1.0,
        numbers_matter=config.near_numbers == "distinct",
        workers=workers,
        scratch=scratch,
        seed=config.seed,
        advanced=lambda at, total: advanced(at, total, "parts compared"),
    )
    return Links(similar.left, similar.right)


def asked_again(rows: Sequence[Rows]) -> Links:
    """Link rows that ask the same under another system text or inside a longer conversation."""
    keys = pa.chunked_array([chunk for some in rows for chunk in some.asked.chunks])
    earlier = pa.chunked_array([chunk for some in rows for chunk in some.earlier.chunks])
    return Links(*links(number(keys, earlier)))


def families(found: Sequence[Links], total: int) -> I64:
    """Return the number of each row's family, from 0: rows linked directly or through others."""
    left = np.concatenate([link.left for link in found])
    right = np.concatenate([link.right for link in found])
    table = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(total, total))
    _, labels = connected_components(table, directed=False)
    members: I64 = labels.astype(np.int64)
    return members


def ranks(questions: pa.ChunkedArray, seed: int) -> U64:
    """Return a pseudo-random number for each row, by its question and the seed alone."""
    raw = np.frombuffer(b"".join(questions.to_pylist()), np.uint64).reshape(-1, 2)
    value = raw[:, 0] ^ np.uint64((seed * 0x9E3779B97F4A7C15 + 0x632BE59BD9B4E019) % 2**64)
    return np.asarray(scattered(value) ^ raw[:, 1], np.uint64)


def smallest_of(values: npt.NDArray[np.uint64], family: I64) -> U64:
    """Return the smallest value of each family."""
    least = np.full(int(family.max(initial=-1)) + 1, np.iinfo(np.uint64).max, np.uint64)
    np.minimum.at(least, family, values)
    return least
