"""The second half of a worker's part in the format phase: what stays is named, profiled and written."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from core.data.converting import Rules
from core.data.dataset_file import DATASET
from core.data.near.shingles import I64
from core.data.quality import Findings
from core.data.quality.passes import profile


class FinishJob(NamedTuple):
    """One part of the usable rows, and which of them stay."""

    number: int
    usable: Path
    rows: I64
    """Rows of the part that stay, rising."""
    names: dict[int, str]
    """New names for rows whose own is taken, by row."""
    first: int
    """How many kept rows lie before this part."""


class FinishedPart(NamedTuple):
    """What was written of one part."""

    path: Path
    by_source: list[int]
    """Kept rows by source number."""
    findings: Findings


def finish_part(rules: Rules, total: int, job: FinishJob) -> FinishedPart:
    """Write the rows of a part that stay, as the dataset has them, and profile them.

    Args:
        rules: As for ``convert_part``.
        total: How many rows stay in all parts together.
        job: The part.
    """
    table = pq.read_table(job.usable).take(pa.array(job.rows))
    if job.names:
        names = [
            job.names.get(row, name)
            for row, name in zip(job.rows.tolist(), table["id"].to_pylist(), strict=True)
        ]
        table = table.set_column(0, "id", pa.array(names))
    path = rules.scratch / f"finished-{job.number:06d}.parquet"
    pq.write_table(table.select(DATASET.names), path, compression="lz4")
    by_source = np.bincount(table["source"].to_numpy(), minlength=len(rules.sources)).tolist()
    return FinishedPart(path, by_source, _profile(table, rules, total, job.first))


def _profile(table: pa.Table, rules: Rules, total: int, first: int) -> Findings:
    rows = [orjson.loads(body) for body in table["body"].to_pylist()]
    metadata = [row["metadata"] for row in rows]
    answers = [row["conversations"][-1]["content"] if "conversations" in row else "" for row in rows]
    lines = zip(table["file"].to_pylist(), table["line"].to_pylist(), strict=True)
    origins = [f"{file}:{line}" for file, line in lines]
    ordinals = np.arange(first, first + table.num_rows)
    return profile(
        table["wording"].combine_chunks(), metadata, origins, ordinals, total, rules.quality, answers
    )
