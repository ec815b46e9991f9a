"""What every kind of source can do once it is opened."""

from collections.abc import Iterable, Iterator
from typing import Protocol

from core.data.rows import RowBatch
from core.errors import DataError


class Opened(Protocol):
    """A source that was found; nothing of it has been read yet."""

    files: tuple[str, ...]
    """Origins of what it stands for: what its rows remember as their file."""
    places: tuple[str, ...]
    """Addresses that no other source may share."""
    passed_over: tuple[str, ...]
    """Files in its folder that are neither data we read nor documentation."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know; complete once the rows were read."""
        ...

    def batches(self) -> Iterator[tuple[str, RowBatch]]:
        """Yield its rows in order with their origin, at most ``max_rows`` of them.

        Raises:
            DataError: If it cannot be read, or holds no rows.
        """
        ...

    def digests(self) -> list[tuple[str, str]]:
        """Return each origin with the digest of its content, or its revision.

        Raises:
            DataError: If it cannot be read.
        """
        ...


def at_most(batches: Iterable[tuple[str, RowBatch]], most: int | None) -> Iterator[tuple[str, RowBatch]]:
    """Yield batches until there are so many rows."""
    left = most
    for origin, batch in batches:
        if left is not None and len(batch.rows) >= left:
            yield origin, RowBatch(batch.rows[:left], batch.lines[:left], batch.problems[:left])
            return
        if left is not None:
            left -= len(batch.rows)
        yield origin, batch


def no_rows(where: str) -> DataError:
    """Return the error for a source without any row."""
    return DataError("holds no rows", where=where, fix="fill it, or take it out of the sources")
