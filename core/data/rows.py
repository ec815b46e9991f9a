"""Rows on their way from a file into the corpus: still JSON text, in batches."""

from typing import NamedTuple

MAX_ROWS = 8192
"""Most rows of a batch."""
MAX_BYTES = 8 << 20
"""A batch is closed once its text is this long."""
MAX_ROW_BYTES = 16 << 20
"""A longer row is unusable: it would not fit into a training window anyhow, and memory must stay bounded."""
EXCERPT = 200
"""Characters shown of an unusable row."""


class RowBatch(NamedTuple):
    """Some rows of one file, in order."""

    rows: list[str]
    """JSON text of one row each, not parsed yet; of an unusable row its first ``EXCERPT`` characters."""
    lines: list[int]
    """Line (or row number, where a file has no lines) at which each starts, from 1."""
    problems: list[str | None]
    """Why a row is unusable, as a short stable phrase; None for rows to be used."""
