"""Benchmark files as texts: what training rows must not contain."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson

from core.data.config import SourceConfig
from core.data.sources import open_sources


def read_texts(files: Sequence[str], base: Path, cache: Path) -> tuple[str, ...]:
    """Return the texts of all items of all benchmark files, each text field of an item on its own.

    An item may have any shape: a question and an answer, a passage, a list of choices.

    Args:
        files: Paths, globs or addresses, as a source may have them.
        base: Directory that relative paths start from.
        cache: Folder for downloads.

    Raises:
        DataError: If a file is missing or broken.
    """
    if not files:
        return ()
    texts: dict[str, None] = {}
    for source in open_sources([SourceConfig(path=path) for path in files], base, cache=cache):
        for _, batch in source.batches():
            for row, problem in zip(batch.rows, batch.problems, strict=True):
                if problem is None:
                    texts |= dict.fromkeys(_strings(_parsed(row)))
    return tuple(texts)


def _parsed(row: str) -> Any:
    try:
        return orjson.loads(row)
    except orjson.JSONDecodeError:
        return None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)
