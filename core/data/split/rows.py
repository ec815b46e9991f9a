"""What rows are divided by, read part by part."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from core.data.columns import compared
from core.data.config import SplitConfig
from core.data.dataset_file import records_of
from core.data.dedup import question_wording, whole_wording
from core.data.fields import group_of, time_of
from core.data.near import Texts
from core.data.parts import Part, parts_of, read_column, read_part
from core.data.workers import Workers
from core.errors import DataError

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


class Rows(NamedTuple):
    """The rows of a dataset, as far as dividing them needs."""

    parts: Sequence[Part]
    questions: pa.ChunkedArray
    """Key of each row's question, 16 bytes."""
    asked: pa.ChunkedArray
    """Key of the question without its system text."""
    earlier: pa.ChunkedArray
    """Lists of such keys: what a longer conversation asks before."""
    values: tuple[Any, ...]
    """Value of the field the strategy goes by, one a row; empty if it needs none."""

    @property
    def total(self) -> int:
        """How many rows."""
        return len(self.questions)


def read_rows(path: Path, config: SplitConfig, workers: Workers) -> Rows:
    """Read what the strategy needs.

    Raises:
        DataError: If there is no row, or a row lacks the field.
    """
    questions = read_column(path, "question_key")
    if not len(questions):
        raise DataError("holds no rows", where=str(path), fix="add rows")
    field = config.group_by or config.stratify_by or config.time_by
    asked, earlier = read_column(path, "asked_key"), read_column(path, "earlier_keys")
    parts = parts_of(path)
    if field is None:
        return Rows(parts, questions, asked, earlier, ())
    read = functools.partial(_values, config.strategy, field)
    return Rows(
        parts, questions, asked, earlier, tuple(value for some in workers.map(read, parts) for value in some)
    )


def questions_of(part: Part) -> Texts:
    """Read what the questions of a part are compared by."""
    return compared(records_of(read_part(part, ["id", "body"])), question_wording)


def wholes_of(part: Part) -> Texts:
    """Read what the whole rows of a part are compared by."""
    return compared(records_of(read_part(part, ["id", "body"])), whole_wording)


def _values(strategy: str, field: str, part: Part) -> list[Any]:
    table = read_part(part, ["id", "body"])
    take = time_of if strategy == "time" else group_of
    rows = zip(table["id"].to_pylist(), table["body"].to_pylist(), strict=True)
    return [take({"id": identity, **orjson.loads(body)}, field) for identity, body in rows]
