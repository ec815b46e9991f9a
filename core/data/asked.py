"""Questions that meet again in another setting: under another system text, or inside a longer conversation."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

I64 = npt.NDArray[np.int64]

PHRASE_SHARE = 0.01
FEWEST_PHRASES = 50
"""What more than one row in a hundred (and more than 50 rows) asks is a phrase, such as "Continue." or "Hello", and
says nothing about what two rows have in common."""


class Asked(NamedTuple):
    """What rows ask, as numbers: equal questions have equal numbers."""

    last: I64
    """[rows]; what each row asks in the end."""
    earlier: I64
    """What longer conversations ask before, all rows together."""
    rows: I64
    """The row of each entry of ``earlier``."""
    phrases: npt.NDArray[np.bool_]
    """[numbers]; whether a question is a mere phrase."""


def number(keys: pa.ChunkedArray, earlier: pa.ChunkedArray) -> Asked:
    """Number the questions of rows.

    Args:
        keys: ``asked_key`` of each row.
        earlier: ``earlier_keys`` of each row, lists.
    """
    lists = earlier.combine_chunks() if earlier.num_chunks != 1 else earlier.chunk(0)
    lengths = np.diff(lists.offsets.to_numpy()) if len(lists) else np.zeros(0, np.int64)
    everything = pa.chunked_array([*keys.chunks, lists.flatten()], type=keys.type)
    codes = everything.dictionary_encode().combine_chunks().indices.to_numpy().astype(np.int64)
    last, before = codes[: len(keys)], codes[len(keys) :]
    counts = np.bincount(last, minlength=int(codes.max(initial=-1)) + 1)
    phrases = counts > max(FEWEST_PHRASES, PHRASE_SHARE * len(keys))
    return Asked(last, before, np.repeat(np.arange(len(lengths)), lengths), phrases)


def links(asked: Asked) -> tuple[I64, I64]:
    """Return pairs of rows of which one asks what the other asks too, in the end or before."""
    rows = np.arange(len(asked.last))
    first = np.full(len(asked.phrases), -1, np.int64)
    # Written backwards, the first row of each question is the one that stays.
    first[asked.last[::-1]] = rows[::-1]
    codes = np.concatenate([asked.last, asked.earlier])
    owners = np.concatenate([rows, asked.rows])
    meets = (first[codes] >= 0) & (first[codes] != owners) & ~asked.phrases[codes]
    return first[codes][meets], owners[meets]


def repeated(asked: Asked, side: Sequence[int] | npt.NDArray[np.int64], left: int, right: int) -> int:
    """Count the rows of one side whose question the other side holds, in the end or before.

    Args:
        asked: The questions of all rows.
        side: [rows]; which side each row is on.
        left: The side that may hold the questions.
        right: The side whose rows are counted.
    """
    sides = np.asarray(side)
    held = np.zeros(len(asked.phrases), bool)
    held[asked.last[sides == left]] = True
    held[asked.earlier[sides[asked.rows] == left]] = True
    return int((held & ~asked.phrases)[asked.last[sides == right]].sum())
