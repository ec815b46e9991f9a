"""Rows one by one into batches of bounded size."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from core.data.rows import EXCERPT, MAX_BYTES, MAX_ROW_BYTES, MAX_ROWS, RowBatch

TOO_LONG = f"longer than {MAX_ROW_BYTES >> 20} MB"
"""Why a row is unusable that would not fit into memory beside others."""
Note = Callable[[str], None]
"""Told what a person should know about a file that is read nevertheless."""


class Row(NamedTuple):
    """One row on its way into a batch."""

    text: str
    line: int
    problem: str | None = None


def ignore(note: str) -> None:
    """Tell nobody."""


def checked(text: str, line: int) -> Row:
    """Return a row, unusable if it is too long."""
    return unusable(text, line, TOO_LONG) if len(text) > MAX_ROW_BYTES else Row(text, line)


def unusable(text: str, line: int, problem: str) -> Row:
    """Return an unusable row; of its text only the beginning is kept."""
    return Row(text[:EXCERPT], line, problem)


def in_batches(rows: Iterable[Row]) -> Iterator[RowBatch]:
    """Gather rows into batches of at most ``MAX_ROWS``, closed once ``MAX_BYTES`` long."""
    batch, size = RowBatch([], [], []), 0
    for row in rows:
        batch.rows.append(row.text)
        batch.lines.append(row.line)
        batch.problems.append(row.problem)
        size += len(row.text)
        if len(batch.rows) >= MAX_ROWS or size >= MAX_BYTES:
            yield batch
            batch, size = RowBatch([], [], []), 0
    if batch.rows:
        yield batch
