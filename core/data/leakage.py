"""What splits have in common, measured from the files themselves."""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from core.data.asked import number, repeated
from core.data.columns import compared
from core.data.dedup import KEY_BYTES, keys_of, question_wording, whole_wording
from core.data.fields import group_of
from core.data.near import Texts, find_similar
from core.data.records import from_row
from core.data.reports import Composition, Leakage
from core.data.workers import Inline, Workers

NAMES = ("train", "val", "test")
_ASKED = pa.schema([("asked", pa.binary(KEY_BYTES)), ("earlier", pa.list_(pa.binary(KEY_BYTES)))])
_CHUNK = 8 << 20
_MOST_VALUES = 12
"""A property with more values is no property a person compares splits by."""
_OWN_SEED = 0x5EED
"""Not the seed of the split: what its hash functions missed, these find."""

Advanced = Callable[[int, int, str], None]


class Chunk(NamedTuple):
    """Whole lines of a split file, by their bytes."""

    split: str
    path: Path
    start: int
    end: int


class Shared(NamedTuple):
    """What was found in the three files."""

    rows: dict[str, int]
    duplicates: int
    """Rows equal to another row of their split."""
    leakage: dict[str, Leakage]
    """By pair: train/val, train/test, val/test."""
    composition: tuple[Composition, ...]


class _Seen(NamedTuple):
    split: str
    rows: int
    keys: Path
    asked: Path
    groups: tuple[str, ...]
    values: dict[str, Counter[str]]
    """Of every scalar metadata field, how often each value occurs; fields with too many values are empty."""


def measure(
    folder: Path,
    workers: Workers,
    scratch: Path,
    *,
    group_by: str | None = None,
    threshold: float | None = None,
    numbers_matter: bool = True,
    advanced: Advanced = lambda done, total, what: None,
) -> Shared:
    """Read the split files again and count what every two of them share.

    It knows nothing of how the rows were divided, so it also judges splits made elsewhere.

    Args:
        folder: Holds ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``.
        workers: Where the files are read.
        scratch: Existing folder for keys.
        group_by: Metadata field whose values should lie on one side only.
        threshold: Similarity from which two questions count as nearly the same; None does not look.
        numbers_matter: As for ``near.find_similar``.
        advanced: Told how much of the files is read.

    Raises:
        DataError: If a row lacks the group field.
    """
    chunks = [chunk for name in NAMES for chunk in _chunks(name, folder / f"{name}.jsonl")]
    if sum(chunk.end - chunk.start for chunk in chunks) < _CHUNK:
        # Three small files are three jobs, and not worth starting processes for.
        workers = Inline()
    seen = []
    for part in workers.map(functools.partial(_look, group_by, scratch), chunks):
        seen.append(part)
        advanced(len(seen), len(chunks), "pieces checked")
    keys = {name: _Keys.of([part for part in seen if part.split == name]) for name in NAMES}
    near = _near(chunks, seen, threshold, numbers_matter, workers, scratch, advanced)
    again = _repeated(seen)
    return Shared(
        rows={name: len(keys[name].whole) for name in NAMES},
        duplicates=sum(len(keys[name].whole) - pc.count_distinct(keys[name].whole).as_py() for name in NAMES),
        leakage={
            f"{a}/{b}": _leakage(keys[a], keys[b], near[a, b], again[a, b]) for a, b in combinations(NAMES, 2)
        },
        composition=_composition(seen),
    )


def _chunks(name: str, path: Path) -> Iterator[Chunk]:
    size, start = path.stat().st_size, 0
    with path.open("rb") as file:
        while start < size:
            file.seek(min(start + _CHUNK, size))
            file.readline()
            yield Chunk(name, path, start, end := file.tell())
            start = end


def _rows(chunk: Chunk) -> Iterator[dict[str, Any]]:
    with chunk.path.open("rb") as file:
        file.seek(chunk.start)
        for line in file.read(chunk.end - chunk.start).splitlines():
            yield orjson.loads(line)


def _look(group_by: str | None, scratch: Path, chunk: Chunk) -> _Seen:
    keys, groups, values = [], set(), {"source": Counter[str]()}
    earlier: dict[str, list[Any]] = {"asked": [], "earlier": []}
    for row in _rows(chunk):
        found = keys_of(from_row(row))
        keys.append(b"".join((found.exact, found.question, found.whole)))
        earlier["asked"].append(found.asked)
        earlier["earlier"].append(found.earlier)
        if group_by is not None:
            groups.add(group_of(row, group_by))
        _count(row, values)
    path = scratch / f"keys-{chunk.split}-{chunk.start}.npy"
    np.save(path, np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), 3, KEY_BYTES))
    asked = scratch / f"asked-{chunk.split}-{chunk.start}.parquet"
    pq.write_table(pa.table(earlier, schema=_ASKED), asked)
    return _Seen(chunk.split, len(keys), path, asked, tuple(sorted(groups)), values)


def _count(row: dict[str, Any], values: dict[str, Counter[str]]) -> None:
    values["source"][(row.get("origin") or {}).get("file", "unknown")] += 1
    for field, value in row.get("metadata", {}).items():
        if isinstance(value, str | bool | int) and field != "source":
            _bounded(values.setdefault(field, Counter()), str(value)[:60])


def _bounded(counts: Counter[str], value: str) -> None:
    # Full counters are kept, one over the limit, so that no later chunk takes the field up again.
    if len(counts) <= _MOST_VALUES or value in counts:
        counts[value] += 1


class _Keys(NamedTuple):
    exact: pa.Array
    question: pa.Array
    whole: pa.Array
    groups: set[str]

    @classmethod
    def of(cls, parts: Sequence[_Seen]) -> "_Keys":
        empty = [np.zeros((0, 3, KEY_BYTES), np.uint8)]
        table = np.concatenate([np.load(part.keys) for part in parts] or empty)
        exact, question, whole = (_binary(np.ascontiguousarray(table[:, place])) for place in range(3))
        return cls(exact, question, whole, {group for part in parts for group in part.groups})


def _binary(keys: npt.NDArray[np.uint8]) -> pa.Array:
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(KEY_BYTES), len(keys), [None, pa.py_buffer(keys)])


def _leakage(left: _Keys, right: _Keys, near: int | None, again: int) -> Leakage:
    return Leakage(
        exact=_common(left.exact, right.exact),
        normalised=_common(left.question, right.question),
        groups=len(left.groups & right.groups),
        near=near,
        repeated=again,
    )


def _common(left: pa.Array, right: pa.Array) -> int:
    return int(pc.count_distinct(right.filter(pc.is_in(right, value_set=left))).as_py())


def _questions(chunk: Chunk) -> Texts:
    return compared(map(from_row, _rows(chunk)), question_wording)


def _wholes(chunk: Chunk) -> Texts:
    return compared(map(from_row, _rows(chunk)), whole_wording)


def _repeated(seen: Sequence[_Seen]) -> dict[tuple[str, str], int]:
    table = pa.concat_tables([pq.read_table(part.asked) for part in seen] or [_ASKED.empty_table()])
    asked = number(table["asked"], table["earlier"])
    side = _sides(seen)
    return {(a, b): repeated(asked, side, i, j) for (i, a), (j, b) in combinations(enumerate(NAMES), 2)}


def _sides(seen: Sequence[_Seen]) -> npt.NDArray[np.int64]:
    return np.repeat([NAMES.index(part.split) for part in seen], [part.rows for part in seen])


def _near(
    chunks: Sequence[Chunk],
    seen: Sequence[_Seen],
    threshold: float | None,
    numbers_matter: bool,
    workers: Workers,
    scratch: Path,
    advanced: Advanced,
) -> dict[tuple[str, str], int | None]:
    if threshold is None:
        return dict.fromkeys(combinations(NAMES, 2))
    side = _sides(seen)
    found: dict[tuple[str, str], list[npt.NDArray[np.int64]]] = {}
    for read in (_questions, _wholes):
        similar = find_similar(
            chunks,
            read,
            threshold=threshold,
            workers=workers,
            scratch=scratch,
            seed=_OWN_SEED,
            numbers_matter=numbers_matter,
            advanced=lambda at, total: advanced(at, total, "pieces compared"),
        )
        # Chunks come in the order of the splits, so the left row is of the same split or an earlier one.
        for (i, a), (j, b) in combinations(enumerate(NAMES), 2):
            across = (side[similar.left] == i) & (side[similar.right] == j)
            found.setdefault((a, b), []).append(similar.right[across])
    return {pair: len(np.unique(np.concatenate(rows))) for pair, rows in found.items()}


def _composition(seen: Sequence[_Seen]) -> tuple[Composition, ...]:
    fields = list(dict.fromkeys(field for part in seen for field in part.values))
    return tuple(found for field in fields if (found := _of_field(field, seen)) is not None)


def _of_field(field: str, seen: Sequence[_Seen]) -> Composition | None:
    counts: dict[str, Counter[str]] = {name: Counter() for name in NAMES}
    for part in seen:
        counts[part.split].update(part.values.get(field, {}))
    total = sum(counts.values(), Counter())
    if not 1 <= len(total) <= _MOST_VALUES or (len(total) == 1 and field != "source"):
        return None
    order = [value for value, _ in total.most_common()]
    return Composition(
        property=field, counts={name: {value: counts[name][value] for value in order} for name in NAMES}
    )
