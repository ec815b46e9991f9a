"""Values of metadata fields that rows are divided by."""

import math
from datetime import UTC, datetime
from typing import Any

from core.errors import DataError


def group_of(row: dict[str, Any], field: str) -> str:
    """Return the value of a row's field, as text that is equal only for equal values.

    Raises:
        DataError: If the row has no such metadata field, or it is empty or a structure.
    """
    value = row.get("metadata", {}).get(field)
    if isinstance(value, str | int | float) and str(value).strip():
        return f"{type(value).__name__}:{value}"
    raise _without(row, field, value, "a plain value")


def time_of(row: dict[str, Any], field: str) -> float:
    """Return a row's time in seconds since 1970; a time without zone counts as UTC.

    Raises:
        DataError: If the row has no such metadata field, or it is neither ISO 8601 nor a finite number.
    """
    value = row.get("metadata", {}).get(field)
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value.strip())
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        except ValueError:
            pass
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise _without(row, field, value, "a date such as 2026-03-31 or a number")


def _without(row: dict[str, Any], field: str, value: object, kind: str) -> DataError:
    origin = row.get("origin") or {}
    place = f" ({origin['file']}:{origin['line']})" if "file" in origin else ""
    return DataError(
        f"the row has no metadata field {field!r}" + ("" if value is None else f" with {kind}"),
        where=f"row {row['id']}{place}",
        fix=f"give every row {field!r}, choose another field (split.group_by, stratify_by or time_by), or use strategy: random",
    )
