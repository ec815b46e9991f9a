"""Gather the rows of all sources into one corpus file, each with the place it comes from."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from core.artifacts import atomic_path
from core.data.config import SourceConfig
from core.data.parts import PartWriter
from core.data.reports import IngestReport, SourceCount
from core.data.rows import RowBatch
from core.data.sources import Opened, open_sources
from core.errors import DataError

CORPUS = pa.schema(
    [
        ("row", pa.large_string()),
        ("problem", pa.string()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("line", pa.int64()),
        ("source", pa.int16()),
    ]
)
"""Columns of a corpus: the row's JSON text, why it is unusable (or null), and where it stands."""

Advanced = Callable[[int, int, str], None]
"""Told how far a phase is: done, total (0 if unknown), what is counted."""


def quiet(done: int, total: int, what: str) -> None:
    """Tell nobody."""


def ingest(
    sources: Sequence[SourceConfig],
    target: Path,
    *,
    base: Path,
    cache: Path,
    text_field: str | None = None,
    advanced: Advanced = quiet,
) -> IngestReport:
    """Write the corpus: every row of every source, once, in order.

    Rows are not looked into: what is wrong with one is found, counted and listed when it is formatted. The
    weights of a mix are applied there too, after duplicates and unusable rows are gone, so that they describe what
    is trained on.

    Args:
        sources: Where rows come from.
        target: The corpus file, written atomically; see ``CORPUS``. Its notes say how to read each source's rows.
        base: Directory that relative paths start from.
        cache: Folder for downloads.
        text_field: Field of plain-text rows, besides the usual names.
        advanced: Told how many rows were read.

    Raises:
        DataError: If a source is missing, broken or empty.
    """
    opened = open_sources(sources, base, cache=cache)
    counts = [0] * len(sources)
    names = source_names(sources)
    rules = [_rules(source, name, text_field) for source, name in zip(sources, names, strict=True)]
    with atomic_path(target) as part, PartWriter(part, CORPUS, rules) as writer:
        for number, source in enumerate(opened):
            for origin, batch in source.batches():
                writer.write(_table(batch, origin, number))
                counts[number] += len(batch.rows)
                advanced(writer.rows, 0, "rows")
            if not counts[number]:
                raise DataError("holds no rows", where=sources[number].path, fix="fill it, or take it out")
    return _report(sources, names, opened, counts)


def source_names(sources: Sequence[SourceConfig]) -> list[str]:
    """Return what reports call each source: its path, with the split or a number where two share it."""
    paths = [source.path for source in sources]
    names = [
        source.path if paths.count(source.path) == 1 else f"{source.path} ({source.split})"
        for source in sources
    ]
    return [
        name if names.count(name) == 1 else f"{name} #{number}" for number, name in enumerate(names, start=1)
    ]


def _rules(source: SourceConfig, name: str, text_field: str | None) -> dict[str, Any]:
    fields = source.fields.model_dump(mode="json") if source.fields else None
    return {
        "name": name,
        "format": source.format,
        "fields": fields,
        "weight": source.weight,
        "text_field": text_field,
    }


def _table(batch: RowBatch, origin: str, number: int) -> pa.Table:
    count = len(batch.rows)
    file = pa.DictionaryArray.from_arrays(pa.array([0] * count, pa.int32()), pa.array([origin]))
    columns = [
        pa.array(batch.rows, pa.large_string()),
        pa.array(batch.problems, pa.string()),
        file,
        pa.array(batch.lines, pa.int64()),
        pa.array([number] * count, pa.int16()),
    ]
    return pa.table(columns, schema=CORPUS)


def _report(
    sources: Sequence[SourceConfig], names: Sequence[str], opened: Sequence[Opened], counts: list[int]
) -> IngestReport:
    total = sum(source.weight for source in sources)
    return IngestReport(
        rows=sum(counts),
        sources=tuple(
            SourceCount(
                path=name,
                files=len(part.files),
                rows=rows,
                taken=rows,
                wanted=source.weight / total,
                digest=_joint_digest(part.digests()),
            )
            for source, name, part, rows in zip(sources, names, opened, counts, strict=True)
        ),
        notes=tuple(
            [f"{name}: not a data file, passed over" for part in opened for name in part.passed_over]
            + [note for part in opened for note in part.notes]
        ),
        is_weighted=len({source.weight for source in sources}) > 1,
    )


def _joint_digest(digests: list[tuple[str, str]]) -> str:
    text = "".join(f"{name}\0{digest}\n" for name, digest in digests)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()
