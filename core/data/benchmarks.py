"""Benchmark files as texts: what training rows must not contain."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from core.data.config import SourceConfig
from core.data.quality.contamination import FEWEST_WORDS
from core.data.rows import RowBatch
from core.data.sources import open_sources
from core.errors import DataError


def read_texts(files: Sequence[str], base: Path, cache: Path) -> tuple[str, ...]:
    """Return the texts of all items of all benchmark files, each text field of an item on its own.

    An item may have any shape: a question and an answer, a passage, a list of choices.

    Args:
        files: Paths, globs or addresses, as a source may have them.
        base: Directory that relative paths start from.
        cache: Folder for downloads.

    Raises:
        DataError: If a file is missing or broken, or holds nothing to compare with.
    """
    if not files:
        return ()
    texts: dict[str, None] = {}
    for path in files:
        (source,) = open_sources([SourceConfig(path=path)], base, cache=cache)
        found = dict.fromkeys(text for origin, batch in source.batches() for text in _texts(origin, batch))
        if not any(len(text.split()) >= FEWEST_WORDS for text in found):
            raise DataError(
                f"no item has {FEWEST_WORDS} words or more, so there is nothing to compare with",
                where=path,
                fix="name a file with the benchmark's questions, or take it out of quality.contamination.files",
            )
        texts |= found
    return tuple(texts)


def _texts(origin: str, batch: RowBatch) -> Iterator[str]:
    for row, line, problem in zip(batch.rows, batch.lines, batch.problems, strict=True):
        try:
            value = None if problem else orjson.loads(row)
        except orjson.JSONDecodeError:
            problem = "not valid JSON"
        if problem:
            # A benchmark with holes would clear rows that it should catch.
            raise DataError(
                f"the benchmark cannot be read: {problem}", where=f"{origin}:{line}", fix="mend that line"
            )
        yield from _strings(value)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
