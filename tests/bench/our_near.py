"""Deduplicate plain-text rows with core.data.near, reading what datatrove reads.

    python -m tests.bench.our_near TEXTS OUT --workers 1

Prints one JSON line: seconds per stage. ``OUT/removed.txt`` has the ids of the rows it would drop.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import orjson
import pyarrow as pa

from core.data.near import Texts, doubles, find_similar
from core.data.workers import open_workers

JOB_BYTES = 8 << 20


class Piece(NamedTuple):
    """Whole lines of a file."""

    path: Path
    start: int
    end: int


def pieces(folder: Path) -> Iterator[Piece]:
    """Cut the files of a folder at line ends."""
    for path in sorted(folder.glob("*.jsonl")):
        with path.open("rb") as file:
            start = 0
            while True:
                file.seek(start + JOB_BYTES)
                file.readline()
                end = min(file.tell(), path.stat().st_size)
                if end <= start:
                    break
                yield Piece(path, start, end)
                start = end


def rows_of(piece: Piece) -> list[dict[str, str]]:
    """Parse the lines of a piece."""
    with piece.path.open("rb") as file:
        file.seek(piece.start)
        return [orjson.loads(line) for line in file.read(piece.end - piece.start).splitlines()]


def texts_of(piece: Piece) -> Texts:
    """Return the texts of a piece."""
    return Texts(pa.array([row["text"] for row in rows_of(piece)], pa.large_string()))


def our_dedup(
    texts: Path, out: Path, workers: int, threshold: float, numbers_matter: bool
) -> dict[str, float]:
    """Write the ids of the rows to remove; return the seconds of each stage."""
    shutil.rmtree(out, ignore_errors=True)
    scratch = out / "scratch"
    scratch.mkdir(parents=True)
    began = time.perf_counter()
    seconds = {}

    def advanced(done: int, total: int) -> None:
        if 2 * done == total:
            seconds["signature"] = time.perf_counter() - began

    jobs = list(pieces(texts))
    with open_workers("local", workers, None) as crew:
        similar = find_similar(
            jobs,
            texts_of,
            threshold=threshold,
            workers=crew,
            scratch=scratch,
            numbers_matter=numbers_matter,
            advanced=advanced,
        )
    seconds["search"] = time.perf_counter() - began - seconds["signature"]
    removed = doubles(similar)
    # The second reading stands for the filter stage: rows have ids only in their files.
    number = 0
    with (out / "removed.txt").open("w") as file:
        for job in jobs:
            for row in rows_of(job):
                if number in removed:
                    file.write(row["id"] + "\n")
                number += 1
    seconds["filter"] = time.perf_counter() - began - seconds["signature"] - seconds["search"]
    shutil.rmtree(scratch)
    return {name: round(value, 2) for name, value in seconds.items()}


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("--numbers", choices=["distinct", "ignore"], default="distinct")
    given = parser.parse_args()
    distinct = given.numbers == "distinct"
    print(json.dumps(our_dedup(given.texts, given.out, given.workers, given.threshold, distinct)))


if __name__ == "__main__":
    main()
