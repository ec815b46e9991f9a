"""The split phase: which rows are learnt from, which steer, and which only judge."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from core.artifacts import atomic_path, file_digest, read_jsonl, write_jsonl
from core.data.config import SplitConfig
from core.data.dedup import question_key
from core.data.leakage import NAMES, count_duplicates, group_of, measure_leakage
from core.data.records import from_row
from core.data.reports import FormatReport, SplitReport
from core.data.shares import apportion
from core.errors import DataError

Row = dict[str, Any]


class _Keyed(NamedTuple):
    row: Row
    question: str
    group: str | None


class _Cluster(NamedTuple):
    """Rows that must stay on one side."""

    rank: str
    """Pseudo-random by content and seed, so that neither file order nor luck decides."""
    rows: list[Row]


def split(
    dataset: Path,
    target_dir: Path,
    config: SplitConfig,
    *,
    validation: Path | None = None,
    formatted: FormatReport | None = None,
) -> SplitReport:
    """Divide a dataset into ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``.

    Rows that ask the same after normalisation always land together, with strategy ``group`` also rows
    of one group. The result depends on the rows and the seed, not on the order of the file.

    Args:
        dataset: File written by ``format_records``.
        target_dir: Folder of the three files, replaced as a whole.
        config: Shares, strategy and seed.
        validation: A dataset file whose rows become ``val``; train and test then share the rest, and
            lose the rows whose question it holds.
        formatted: Report of the format phase, whose rejected share goes into the report. Without it the
            dataset counts as given, with nothing rejected.

    Raises:
        DataError: If a split would be empty or a row lacks the group field.
    """
    given = _keyed(validation, config.group_by) if validation else []
    rows = _keyed(dataset, config.group_by)
    held = {item.question for item in given}
    free = [item for item in rows if item.question not in held]
    shares = _shares(config, validation)
    parts = _assign(_clusters(free, config.seed), len(free), shares)
    if validation:
        parts["val"] = [item.row for item in given]
    _write(target_dir, parts, config.seed)
    return _report(
        target_dir, config, _requested(shares, len(given), len(free)), len(rows) - len(free), formatted
    )


def _shares(config: SplitConfig, validation: Path | None) -> dict[str, float]:
    if validation is None:
        return {"train": config.train, "val": config.val, "test": config.test}
    rest = config.train + config.test
    return {"train": config.train / rest, "val": 0.0, "test": config.test / rest}


def _requested(shares: dict[str, float], given: int, free: int) -> dict[str, float]:
    if not given:
        return shares
    rest = free / (given + free)
    return {"train": shares["train"] * rest, "val": 1 - rest, "test": shares["test"] * rest}


def _keyed(path: Path, group_by: str | None) -> list[_Keyed]:
    rows = [
        _Keyed(row, question_key(from_row(row).messages), group_of(row, group_by) if group_by else None)
        for row in read_jsonl(path)
    ]
    if not rows:
        raise DataError("holds no rows", where=str(path), fix="add rows")
    return rows


def _clusters(rows: Sequence[_Keyed], seed: int) -> list[_Cluster]:
    # Equal conversations need no key of their own: they ask equal questions.
    parents: dict[str, str] = {}
    for item in rows:
        parents.setdefault(item.question, item.question)
        if item.group is not None:
            group = f"group:{item.group}"
            parents[_root(parents, item.question)] = _root(parents, parents.setdefault(group, group))
    members: dict[str, list[_Keyed]] = {}
    for item in rows:
        members.setdefault(_root(parents, item.question), []).append(item)
    return [
        _Cluster(_rank(seed, min(item.question for item in items)), [item.row for item in items])
        for items in members.values()
    ]


def _root(parents: dict[str, str], key: str) -> str:
    while parents[key] != key:
        parents[key] = parents[parents[key]]
        key = parents[key]
    return key


def _rank(seed: int, text: str) -> str:
    return hashlib.sha256(f"{seed}:{text}".encode()).hexdigest()


def _assign(clusters: Iterable[_Cluster], total: int, shares: dict[str, float]) -> dict[str, list[Row]]:
    """Give each cluster, largest first, to the split that it brings closest to its size."""
    ordered = sorted(clusters, key=lambda cluster: (-len(cluster.rows), cluster.rank))
    sizes = _sizes(total, shares, len(ordered))
    parts: dict[str, list[Row]] = {name: [] for name in NAMES}
    for place, cluster in enumerate(ordered):
        empty = [name for name in sizes if not parts[name]]
        # The last clusters are kept for splits that have none yet.
        candidates = empty if len(ordered) - place <= len(empty) else list(sizes)
        count = len(cluster.rows)
        best = min(candidates, key=lambda name: _cost(len(parts[name]), count, sizes[name]))
        parts[best].extend(cluster.rows)
    return parts


def _cost(have: int, more: int, want: int) -> tuple[int, float]:
    # First the distance that the cluster adds or takes away, then how empty the split still is.
    return abs(have + more - want) - abs(have - want), have / want


def _sizes(total: int, shares: dict[str, float], clusters: int) -> dict[str, int]:
    wanted = {name: share for name, share in shares.items() if share > 0}
    sizes = dict(zip(wanted, apportion(total, list(wanted.values())), strict=True))
    if 0 in sizes.values() or clusters < len(wanted):
        empty = next((name for name, size in sizes.items() if not size), "test")
        least = math.ceil(1 / min(wanted.values()) - 1e-9)
        raise DataError(
            f"{total} rows in {clusters} groups that must stay together leave {empty} empty "
            f"({', '.join(f'{name} {share:g}' for name, share in wanted.items())})",
            where="split",
            fix=f"give at least {least} different questions (or groups), or a larger share to split.{empty}",
        )
    return sizes


def _write(folder: Path, parts: dict[str, list[Row]], seed: int) -> None:
    with atomic_path(folder) as part:
        part.mkdir()
        for name in NAMES:
            write_jsonl(part / f"{name}.jsonl", sorted(parts[name], key=lambda row: _shuffled(seed, row)))


def _shuffled(seed: int, row: Row) -> str:
    # Without the origin: where a row stood in its source must not decide either.
    return _rank(seed, json.dumps([row["id"], row["conversations"], row["metadata"]], sort_keys=True))


def _report(
    folder: Path,
    config: SplitConfig,
    requested: dict[str, float],
    removed: int,
    formatted: FormatReport | None,
) -> SplitReport:
    files = {name: folder / f"{name}.jsonl" for name in NAMES}
    counts = {name: sum(1 for _ in read_jsonl(file)) for name, file in files.items()}
    return SplitReport(
        train=counts["train"],
        val=counts["val"],
        test=counts["test"],
        requested=requested,
        duplicates=sum(count_duplicates(file) for file in files.values()),
        leakage=measure_leakage(folder, config.group_by),
        digests={name: file_digest(file) for name, file in files.items()},
        rejected_share=formatted.rejected / formatted.rows if formatted and formatted.rows else 0.0,
        max_rejected=formatted.max_rejected if formatted else 0.0,
        strategy=config.strategy,
        seed=config.seed,
        removed=removed,
    )
