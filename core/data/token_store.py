"""Tokenized examples in columns: four bytes a token instead of Python's thirty-six, on disk or in memory."""

import bisect
import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from core.artifacts import atomic_path, file_digest, write_json
from core.config import Frozen
from core.data.batches import Truncated
from core.data.chat import IGNORE_INDEX, Encoded

_LISTS = pa.list_(pa.int32())
_SCHEMA = pa.schema([("input_ids", _LISTS), ("spans", _LISTS)])


class _Label(Frozen):
    """What lies beside a file of examples: how it was made and what it must hash to."""

    digest: str
    shortened: int
    dropped: int


class StoredExamples(Sequence[Encoded]):
    """Examples kept as Arrow columns and handed out one by one.

    A column holds the ids; another the borders of the trained spans, from which the labels follow.
    """

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Take batches of ``to_columns``; those of a memory-mapped file stay on disk until they are read."""
        self._columns = [tuple(_lists(batch, name) for name in ("input_ids", "spans")) for batch in batches]
        sizes = (len(ids[0]) - 1 for ids, _ in self._columns)
        self._ends = list(itertools.accumulate(sizes))

    def __len__(self) -> int:
        """Return how many examples there are."""
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> Encoded: ...
    @overload
    def __getitem__(self, index: slice) -> list[Encoded]: ...
    def __getitem__(self, index: int | slice) -> Encoded | list[Encoded]:
        """Return an example, or a list of them."""
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        batch = bisect.bisect_right(self._ends, place)
        row = place - (self._ends[batch - 1] if batch else 0)
        ids, spans = (_row(column, row) for column in self._columns[batch])
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in zip(spans[::2], spans[1::2], strict=True):
            labels[start:end] = ids[start:end]
        return Encoded(ids, labels)


_Lists = tuple[NDArray[np.int32], NDArray[np.int32]]


def _lists(batch: pa.RecordBatch, name: str) -> _Lists:
    column = batch.column(name)
    return column.offsets.to_numpy(), column.values.to_numpy()


def _row(column: _Lists, row: int) -> list[int]:
    offsets, values = column
    ids: list[int] = values[offsets[row] : offsets[row + 1]].tolist()
    return ids


def to_columns(examples: Sequence[Encoded]) -> pa.RecordBatch:
    """Return examples as columns, ids as int32."""
    ids = pa.array([example.input_ids for example in examples], _LISTS)
    spans = pa.array([_spans(example.labels) for example in examples], _LISTS)
    return pa.record_batch([ids, spans], schema=_SCHEMA)


def _spans(labels: list[int]) -> NDArray[np.int64]:
    trained = np.concatenate([[False], np.array(labels) != IGNORE_INDEX, [False]])
    return np.flatnonzero(trained[1:] != trained[:-1])


def in_memory(parts: Iterable[Truncated]) -> Truncated:
    """Gather tokenized parts without a file."""
    batches, shortened, dropped = [], 0, 0
    for part in parts:
        batches.append(to_columns(part.examples))
        shortened, dropped = shortened + part.shortened, dropped + part.dropped
    return Truncated(StoredExamples(batches), shortened, dropped)


def save(parts: Iterable[Truncated], target: Path) -> None:
    """Write tokenized parts as they come; a killed run leaves no half file under the name of a whole one.

    Args:
        parts: From the first row to the last.
        target: An Arrow file; its digest and counts go beside it, with the suffix ``.json``.
    """
    shortened = dropped = 0
    with atomic_path(target) as place, pa.OSFile(str(place), "wb") as sink:
        with pa.ipc.new_file(sink, _SCHEMA) as writer:
            for part in parts:
                writer.write_batch(to_columns(part.examples))
                shortened, dropped = shortened + part.shortened, dropped + part.dropped
        sink.flush()
    label = _Label(digest=file_digest(target), shortened=shortened, dropped=dropped)
    write_json(target.with_suffix(".json"), label)


def load(target: Path) -> Truncated | None:
    """Return what ``save`` wrote, memory-mapped; None if it is missing or damaged."""
    try:
        label = _Label.model_validate_json(target.with_suffix(".json").read_bytes())
        if file_digest(target) != label.digest:
            return None
        reader = pa.ipc.open_file(pa.memory_map(str(target)))
        batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
    except (OSError, ValueError):
        return None
    return Truncated(StoredExamples(batches), label.shortened, label.dropped)
