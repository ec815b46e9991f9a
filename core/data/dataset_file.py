"""The dataset: usable rows with the keys they are told apart by, as a table on disk."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from core.artifacts import atomic_path
from core.data.dedup import KEY_BYTES, keys_of
from core.data.parts import PART_ROWS, PartWriter, read_parts
from core.data.records import Record, from_row

_KEY = pa.binary(KEY_BYTES)
DATASET = pa.schema(
    [
        ("id", pa.string()),
        ("body", pa.large_string()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("exact_key", _KEY),
        ("question_key", _KEY),
        ("whole_key", _KEY),
        ("asked_key", _KEY),
        ("earlier_keys", pa.list_(_KEY)),
    ]
)
"""Columns: the row's id, the rest of it as JSON text, the file it comes from, and its keys (see ``dedup``)."""


def line_of(identity: str, body: str) -> bytes:
    """Return a row as a line of a split file."""
    return b'{"id":' + orjson.dumps(identity) + b"," + body.encode()[1:] + b"\n"


def row_of(identity: str, body: str) -> dict[str, Any]:
    """Return a row as written in a split file, parsed."""
    return {"id": identity, **orjson.loads(body)}


def records_of(table: pa.Table) -> Iterator[Record]:
    """Yield the rows of a part as records."""
    for identity, body in zip(table["id"].to_pylist(), table["body"].to_pylist(), strict=True):
        yield from_row(row_of(identity, body))


def write_dataset(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows that are conversations or texts already, such as those of a split file; return how many."""
    count, waiting = 0, []
    with atomic_path(path) as part, PartWriter(part, DATASET) as writer:
        for row in rows:
            waiting.append(row)
            count += 1
            if len(waiting) == PART_ROWS:
                writer.write(_table(waiting))
                waiting = []
        writer.write(_table(waiting))
    return count


def read_dataset(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of a dataset as they stand in a split file."""
    for table in read_parts(path, ["id", "body"]):
        for identity, body in zip(table["id"].to_pylist(), table["body"].to_pylist(), strict=True):
            yield row_of(identity, body)


def _table(rows: list[dict[str, Any]]) -> pa.Table:
    keys = [keys_of(from_row(row)) for row in rows]
    bodies = [{name: value for name, value in row.items() if name != "id"} for row in rows]
    columns = {
        "id": [row["id"] for row in rows],
        "body": [orjson.dumps(body).decode() for body in bodies],
        "file": pa.array([(row.get("origin") or {}).get("file", "") for row in rows]).dictionary_encode(),
        "exact_key": [key.exact for key in keys],
        "question_key": [key.question for key in keys],
        "whole_key": [key.whole for key in keys],
        "asked_key": [key.asked for key in keys],
        "earlier_keys": [key.earlier for key in keys],
    }
    return pa.table(columns, schema=DATASET)
