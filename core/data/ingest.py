"""Gather the rows of all sources into one corpus file, each with the place it comes from."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.artifacts import write_jsonl
from core.data.config import SourceConfig
from core.data.readers import read_rows
from core.data.reports import IngestReport, SourceCount
from core.data.shares import mix_sizes
from core.data.sources import Expanded, expand_all


class _Place(NamedTuple):
    origin: str
    line: int
    value: dict[str, Any]


def ingest(sources: Sequence[SourceConfig], target: Path, *, base: Path, seed: int) -> IngestReport:
    """Write the corpus: every row of every source, or the largest mix that fits the weights.

    With equal weights each row is taken once. With different weights no row is repeated: the
    source that is scarcest for its weight gives all its rows, the others a random sample.

    Args:
        sources: Where rows come from.
        target: The corpus file, written atomically: rows {"row", "format", "origin": {"file", "line"}}.
        base: Directory that relative paths start from.
        seed: Decides which rows a sample holds.

    Raises:
        DataError: If a source is missing or broken, or too small for its weight.
    """
    parts = expand_all(sources, base)
    counts = [0] * len(sources)
    chosen = _choose(sources, parts, seed)

    def corpus() -> Iterator[dict[str, Any]]:
        for number, (source, part) in enumerate(zip(sources, parts, strict=True)):
            for index, place in enumerate(_rows(part)):
                counts[number] += 1
                if chosen is None or index in chosen[number]:
                    origin = {"file": place.origin, "line": place.line}
                    yield {"row": place.value, "format": source.format, "origin": origin}

    written = write_jsonl(target, corpus())
    taken = counts if chosen is None else [len(picks) for picks in chosen]
    return IngestReport(
        rows=written,
        sources=tuple(
            SourceCount(path=source.path, files=len(part.files), rows=rows, taken=kept)
            for source, part, rows, kept in zip(sources, parts, counts, taken, strict=True)
        ),
        notes=tuple(f"{name}: not a data file, passed over" for part in parts for name in part.passed_over),
    )


def _rows(part: Expanded) -> Iterator[_Place]:
    for file in part.files:
        for line, value in read_rows(file.path, file.name):
            yield _Place(file.origin, line, value)


def _choose(sources: Sequence[SourceConfig], parts: list[Expanded], seed: int) -> list[frozenset[int]] | None:
    if len({source.weight for source in sources}) == 1:
        return None
    available = [sum(1 for _ in _rows(part)) for part in parts]
    sizes = mix_sizes(available, [source.weight for source in sources])
    return [
        frozenset(random.Random(f"{seed}:{number}").sample(range(have), want))
        for number, (have, want) in enumerate(zip(available, sizes, strict=True))
    ]
