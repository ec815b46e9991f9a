"""The three split files, in an order that depends on the rows' content alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xxhash

from core.artifacts import atomic_path
from core.data.dataset_file import line_of
from core.data.ingest import Advanced
from core.data.leakage import NAMES
from core.data.parts import Part, read_part

BUCKET_BYTES = 64 << 20
"""Rows are sorted in pieces of about this size, so that memory does not grow with the data."""
MOST_BITS = 8
"""256 pieces of three splits are as many files as may be open at once; beyond 16 GB pieces grow."""


def write_splits(
    folder: Path, parts: Sequence[Part], places: npt.NDArray[np.int8], seed: int, advanced: Advanced
) -> None:
    """Write ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``, replaced as a whole.

    Args:
        folder: Where they go.
        parts: The rows.
        places: [rows]; 0 train, 1 val, 2 test, anything else nowhere.
        seed: Shuffles them.
        advanced: Told how many parts are done.
    """
    with atomic_path(folder) as target:
        target.mkdir()
        buckets = _Buckets(target, parts)
        first = 0
        for done, part in enumerate(parts, start=1):
            table = read_part(part, ["id", "body"])
            rows = zip(places[first : first + table.num_rows].tolist(), table["id"].to_pylist(), table["body"].to_pylist(), strict=True)  # fmt: skip
            for place, identity, body in rows:
                if 0 <= place < len(NAMES):
                    buckets.add(place, line_of(identity, body), seed)
            first += table.num_rows
            advanced(done, len(parts), "parts divided")
        buckets.merge()


class _Buckets:
    """Rows by split and by the first bits of their place in the order."""

    def __init__(self, folder: Path, parts: Sequence[Part]) -> None:
        self.folder = folder
        size = sum(path.stat().st_size for path in {part.path for part in parts})
        # Text on disk is packed about four times.
        self.bits = min(MOST_BITS, int(4 * size / BUCKET_BYTES).bit_length())
        self.files = {
            (split, bucket): (folder / f"{split}-{bucket:04d}.part").open("wb")
            for split in range(len(NAMES))
            for bucket in range(1 << self.bits)
        }

    def add(self, split: int, line: bytes, seed: int) -> None:
        # Where a row stood in its source must not decide, so the origin, which comes last, is left out.
        rank = xxhash.xxh3_64_intdigest(line[: line.rfind(b'"origin":')], seed % 2**64)
        self.files[split, rank >> (64 - self.bits) if self.bits else 0].write(b"%016x" % rank + line)

    def merge(self) -> None:
        for file in self.files.values():
            file.close()
        for split, name in enumerate(NAMES):
            with (self.folder / f"{name}.jsonl").open("wb") as out:
                for bucket in range(1 << self.bits):
                    path = self.folder / f"{split}-{bucket:04d}.part"
                    out.writelines(line[16:] for line in sorted(path.read_bytes().splitlines(keepends=True)))
                    path.unlink()
