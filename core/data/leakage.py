"""What splits have in common, measured from the files themselves."""

from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from core.artifacts import read_jsonl
from core.data.dedup import conversation_key, exact_question_key, question_key
from core.data.records import from_row
from core.data.reports import Leakage
from core.errors import DataError

NAMES = ("train", "val", "test")


def group_of(row: dict[str, Any], group_by: str) -> str:
    """Return the value of a row's group field, as text that is equal only for equal values.

    Raises:
        DataError: If the row has no such metadata field, or it is empty or a structure.
    """
    value = row.get("metadata", {}).get(group_by)
    if isinstance(value, str | int | float) and str(value).strip():
        return f"{type(value).__name__}:{value}"
    origin = row.get("origin") or {}
    place = f" ({origin['file']}:{origin['line']})" if "file" in origin else ""
    raise DataError(
        f"the row has no metadata field {group_by!r}" + ("" if value is None else " with a plain value"),
        where=f"row {row['id']}{place}",
        fix=f"give every row {group_by!r}, choose another split.group_by, or use strategy: random",
    )


class _Keys(NamedTuple):
    exact: set[str]
    normalised: set[str]
    groups: set[str]


def measure_leakage(folder: Path, group_by: str | None = None) -> dict[str, Leakage]:
    """Read the split files again and count what every two of them share.

    It knows nothing of how the rows were divided, so it also judges splits made elsewhere.

    Args:
        folder: Holds ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``.
        group_by: Metadata field whose values should lie on one side only.

    Returns:
        Numbers of different questions and groups in common, by pair: train/val, train/test, val/test.

    Raises:
        DataError: If a row lacks the group field.
    """
    keys = {name: _read_keys(folder / f"{name}.jsonl", group_by) for name in NAMES}
    return {
        f"{left}/{right}": Leakage(
            exact=len(keys[left].exact & keys[right].exact),
            normalised=len(keys[left].normalised & keys[right].normalised),
            groups=len(keys[left].groups & keys[right].groups),
        )
        for left, right in combinations(NAMES, 2)
    }


def _read_keys(path: Path, group_by: str | None) -> _Keys:
    keys = _Keys(set(), set(), set())
    for row in read_jsonl(path):
        messages = from_row(row).messages
        keys.exact.add(exact_question_key(messages))
        keys.normalised.add(question_key(messages))
        if group_by is not None:
            keys.groups.add(group_of(row, group_by))
    return keys


def count_duplicates(path: Path) -> int:
    """Return how many rows of a file equal an earlier row after normalisation."""
    keys = [conversation_key(from_row(row).messages) for row in read_jsonl(path)]
    return len(keys) - len(set(keys))
