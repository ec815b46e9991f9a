"""Streams of text as a torch dataset, for corpora too large to be counted."""

from collections.abc import Iterator
from typing import TypeVar

from torch.utils.data import IterableDataset, get_worker_info

from core.data.sources.streams import TextStream

T = TypeVar("T")


class StreamDataset(IterableDataset[T]):
    """A stream that workers and ranks share: together they yield each item exactly once.

    It has no length. Each reader runs through the whole stream and keeps its part, which costs reading, not
    tokenising; sources of many files may be read by file instead once that matters.
    """

    def __init__(self, stream: TextStream[T], *, rank: int = 0, ranks: int = 1) -> None:
        """Wrap a stream.

        Args:
            stream: Where items come from.
            rank: Number of this process in distributed training, from 0.
            ranks: Processes in distributed training.
        """
        super().__init__()
        self._stream, self._rank, self._ranks = stream, rank, ranks

    def __iter__(self) -> Iterator[T]:
        """Yield the items of this worker of this rank."""
        worker = get_worker_info()
        number, workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        return self._stream.shard(self._rank * workers + number, self._ranks * workers)
