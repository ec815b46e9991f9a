"""Whole columns at once: equal values, evenly scattered numbers, and the texts rows are compared by."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from core.data.dedup import Wording
from core.data.near import Texts
from core.data.records import Record

I64 = npt.NDArray[np.int64]


def first_of_same(values: pa.ChunkedArray | pa.Array) -> I64:
    """Return, for every value, the number of the first row that has it."""
    coded = values.dictionary_encode()
    codes = (coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded).indices.to_numpy()
    _, first = np.unique(codes, return_index=True)
    rows: I64 = first[codes].astype(np.int64)
    return rows


def repeated(values: pa.ChunkedArray | pa.Array) -> I64:
    """Return the rows whose value an earlier row has, rising."""
    return np.flatnonzero(first_of_same(values) != np.arange(len(values)))


def compared(records: Iterable[Record], word: Callable[[Record], Wording]) -> Texts:
    """Return what records are compared by.

    Args:
        records: Rows.
        word: ``dedup.question_wording`` or ``dedup.whole_wording``.
    """
    wordings = [word(record) for record in records]
    texts = pa.array([wording.text for wording in wordings], pa.large_string())
    return Texts(texts, np.array([wording.salt for wording in wordings], np.uint64))
