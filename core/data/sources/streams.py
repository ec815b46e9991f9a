"""Texts from sources of any size, mixed on the way; nothing is counted beforehand and nothing is held."""

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Generic, TypeVar

import orjson

from core.data.sources.opened import Opened
from core.data.sources.presets import find_text_field

T = TypeVar("T")
_BLOCK = 256
"""Draws that are planned together; within a block every source gets its share to one draw."""


class TextStream(Generic[T]):
    """Items of several sources, mixed by weight in an order that a seed decides.

    Args:
        sources: For each source, what starts reading it from the beginning.
        weights: Shares of the mix, any positive numbers. The stream ends with the source that is first used up,
            so that no item comes twice and the shares hold to the end. None takes every item of every source
            exactly once, the sources in turn.
        seed: Decides the order of a weighted mix.
        repeat: Start a source that is used up again instead; the stream then never ends.
    """

    def __init__(
        self,
        sources: Sequence[Callable[[], Iterator[T]]],
        weights: Sequence[float] | None = None,
        *,
        seed: int = 0,
        repeat: bool = False,
    ) -> None:
        """Take over the sources without starting them.

        Raises:
            ValueError: If weights do not fit the sources.
        """
        if weights is not None and (len(weights) != len(sources) or min(weights, default=0) <= 0):
            raise ValueError("give one positive weight for every source")
        if repeat and weights is None:
            raise ValueError("a stream that repeats needs weights")
        self._sources, self._weights, self._seed, self._repeat = tuple(sources), weights, seed, repeat

    def __iter__(self) -> Iterator[T]:
        """Start from the beginning."""
        return self._in_turn() if self._weights is None else self._by_weight(self._weights)

    def shard(self, index: int, count: int) -> Iterator[T]:
        """Yield every ``count``-th item from the ``index``-th on: the part of one of ``count`` readers.

        All readers run through the same stream, so together they yield each item exactly once.
        """
        return islice(iter(self), index, None, count)

    def _in_turn(self) -> Iterator[T]:
        living = [start() for start in self._sources]
        while living:
            for source in tuple(living):
                try:
                    yield next(source)
                except StopIteration:
                    living.remove(source)

    def _by_weight(self, weights: Sequence[float]) -> Iterator[T]:
        running = [start() for start in self._sources]
        for number in draws(weights, self._seed):
            try:
                item = next(running[number])
            except StopIteration:
                if not self._repeat:
                    return
                running[number] = self._sources[number]()
                try:
                    item = next(running[number])
                except StopIteration:
                    # A source without any item can never give its share.
                    return
            yield item


def draws(weights: Sequence[float], seed: int) -> Iterator[int]:
    """Yield for ever which source is next.

    Draws are random, yet planned in blocks by systematic sampling (Madow 1949): one random offset decides how
    the fractions of a block's shares are rounded, so that a block errs by one draw per source at most and
    not at all on average.
    """
    chance = random.Random(seed)
    total = sum(weights)
    while True:
        offset, reached, block = chance.random(), 0.0, []
        for number, weight in enumerate(weights):
            before, reached = reached, reached + weight / total * _BLOCK
            block += [number] * (int(reached + offset) - int(before + offset))
        chance.shuffle(block)
        yield from block


class Texts:
    """The texts of an opened source, from the beginning each time it is called."""

    def __init__(self, source: Opened, field: str | None = None) -> None:
        """Remember where texts come from.

        Args:
            source: An opened source.
            field: The field that holds a text; None looks for a usual name in each row.
        """
        self._source, self._field = source, field

    def __call__(self) -> Iterator[str]:
        """Yield the texts; rows without one are passed over, as unusable rows are."""
        for _, batch in self._source.batches():
            for row, problem in zip(batch.rows, batch.problems, strict=True):
                text = None if problem else self._text(row)
                if text:
                    yield text

    def _text(self, row: str) -> str | None:
        try:
            value = orjson.loads(row)
        except orjson.JSONDecodeError:
            return None
        if not isinstance(value, dict):
            return None
        field = self._field or find_text_field(value)
        text = value.get(field) if field else None
        return text if isinstance(text, str) else None
