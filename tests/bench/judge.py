"""How good a deduplication is: recall on planted pairs, precision of what was removed."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from tests.bench.make_rows import jaccard

BANDS = ((0.5, 0.6), (0.6, 0.7), (0.7, 0.8), (0.8, 0.85), (0.85, 0.9), (0.9, 0.9999), (0.9999, 1.1))
NUMBER = re.compile(r"\d+")


class Pair(NamedTuple):
    """A planted pair."""

    row: int
    of: int
    jaccard: float
    same_numbers: bool
    """Both texts have the same numbers in them."""


class Planted(NamedTuple):
    """What is known about a data set."""

    pairs: list[Pair]
    texts: dict[int, str]
    """Of all rows in a planted pair."""
    groups: dict[int, list[int]]
    """Rows by the row that all of them come from."""


class Quality(NamedTuple):
    """How good a deduplication is."""

    removed: int
    recall: float
    """Share of planted pairs at or above the threshold of which not both rows are left."""
    recall_same_numbers: float
    """The same among pairs with the same numbers in both texts."""
    bands: dict[str, float]
    """Share of planted pairs cut, by true similarity."""
    precise: float
    """Share of removed rows with a row at least this similar among those left."""
    loose: float
    """Share of removed rows with a row at least this similar anywhere."""
    strangers: int
    """Removed rows that are in no planted pair."""


def load(folder: Path) -> Planted:
    """Read what ``make_rows`` planted."""
    truth = [json.loads(line) for line in (folder / "truth.jsonl").open(encoding="utf-8")]
    involved = {pair["row"] for pair in truth} | {pair["of"] for pair in truth}
    texts = {}
    for path in sorted((folder / "texts").glob("*.jsonl")):
        with path.open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                if int(row["id"]) in involved:
                    texts[int(row["id"])] = row["text"]
    numbers = {row: Counter(NUMBER.findall(text)) for row, text in texts.items()}
    pairs = [
        Pair(pair["row"], pair["of"], pair["jaccard"], numbers[pair["row"]] == numbers[pair["of"]])
        for pair in truth
    ]
    groups = defaultdict(list)
    for pair in pairs:
        groups[pair.of].append(pair.row)
    return Planted(pairs, texts, {of: [of, *rows] for of, rows in groups.items()})


def judge(planted: Planted, removed: Collection[int], threshold: float = 0.8) -> Quality:
    """Compare what was removed with what was planted."""
    gone = set(removed)
    near = [pair for pair in planted.pairs if pair.jaccard >= threshold]
    bands = {
        f"{low:.2f}-{min(high, 1):.2f}" if high <= 1 else "1.00": _cut(
            [pair for pair in planted.pairs if low <= pair.jaccard < high], gone
        )
        for low, high in BANDS
    }
    known = [row for row in gone if row in planted.texts]
    precise, loose = _backed(planted, gone, threshold)
    return Quality(
        removed=len(gone),
        recall=_cut(near, gone),
        recall_same_numbers=_cut([pair for pair in near if pair.same_numbers], gone),
        bands=bands,
        precise=precise / max(1, len(gone)),
        loose=loose / max(1, len(gone)),
        strangers=len(gone) - len(known),
    )


def _cut(pairs: list[Pair], gone: set[int]) -> float:
    return sum(pair.row in gone or pair.of in gone for pair in pairs) / max(1, len(pairs))


def _backed(planted: Planted, gone: set[int], threshold: float) -> tuple[int, int]:
    precise = loose = 0
    for rows in planted.groups.values():
        for row in rows:
            if row not in gone:
                continue
            alike = [
                other
                for other in rows
                if other != row and jaccard(planted.texts[row], planted.texts[other]) >= threshold - 1e-9
            ]
            loose += bool(alike)
            precise += any(other not in gone for other in alike)
    return precise, loose
