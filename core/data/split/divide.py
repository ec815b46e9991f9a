"""The split phase itself."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from core.artifacts import file_digest, scratch_beside
from core.data.config import SplitConfig
from core.data.ingest import Advanced, quiet
from core.data.leakage import NAMES, Shared, measure
from core.data.near import Texts
from core.data.parts import Part
from core.data.reports import FormatReport, SplitReport
from core.data.split import strategies
from core.data.split.relatives import Links, asked_again, families, nearly_same, ranks, same
from core.data.split.rows import I64, Rows, questions_of, read_rows, wholes_of
from core.data.split.strategies import LEFT_OUT, Families, Places
from core.data.split.writing import write_splits
from core.data.workers import Workers


class _Divided(NamedTuple):
    places: Places
    """One a row of the dataset, then one a row of the validation file."""
    removed: int
    sizes: I64
    """Rows of every family."""


def split(
    dataset: Path,
    target_dir: Path,
    config: SplitConfig,
    *,
    workers: Workers,
    validation: Path | None = None,
    formatted: FormatReport | None = None,
    advanced: Advanced = quiet,
) -> SplitReport:
    """Divide a dataset into ``train.jsonl``, ``val.jsonl`` and ``test.jsonl``.

    Rows that ask the same, or nearly the same, always land together, with strategy ``group`` also rows of one
    group. The result depends on the rows and the seed, not on the order of the file.

    Args:
        dataset: File written by ``format_records``.
        target_dir: Folder of the three files, replaced as a whole.
        config: Shares, strategy and seed.
        workers: Where rows are read and compared; the result does not depend on them.
        validation: A dataset file whose rows become ``val``; train and test then share the rest, and lose the
            rows whose question, or nearly so, it holds.
        formatted: Report of the format phase, whose rejected share goes into the report. Without it the dataset
            counts as given, with nothing rejected.
        advanced: Told how many parts are done.

    Raises:
        DataError: If a split would be empty or a row lacks the field the strategy goes by.
    """
    with scratch_beside(target_dir) as scratch:
        rows = read_rows(dataset, config, workers)
        given = read_rows(validation, SplitConfig(), workers) if validation else None
        reads = _wordings(config, given, formatted)
        links = _relatives(rows, given, reads, config, workers, scratch, advanced)
        divided = _divide(rows, given, config, links)
        parts = [*rows.parts, *(given.parts if given else ())]
        write_splits(target_dir, parts, divided.places, config.seed, advanced)
        shared = measure(
            target_dir,
            workers,
            scratch,
            group_by=config.group_by,
            threshold=config.near_threshold,
            numbers_matter=config.near_numbers == "distinct",
            advanced=advanced,
        )
    requested = _requested(config, rows.total - divided.removed, given)
    return _report(target_dir, config, divided, shared, requested, formatted)


Reads = list[Callable[[Part], Texts]]


def _wordings(config: SplitConfig, given: Rows | None, formatted: FormatReport | None) -> Reads:
    """Choose what rows are compared by: their questions, and whole rows unless nearly equal ones are gone already."""
    if config.near_threshold is None:
        return []
    removed = formatted.near_threshold if formatted else None
    is_clean = removed is not None and removed <= config.near_threshold and config.near_numbers == "distinct"
    return [questions_of] if is_clean and given is None else [questions_of, wholes_of]


def _relatives(
    rows: Rows,
    given: Rows | None,
    reads: Reads,
    config: SplitConfig,
    workers: Workers,
    scratch: Path,
    advanced: Advanced,
) -> list[Links]:
    everything = [rows, *([given] if given else [])]
    questions = pa.chunked_array([chunk for some in everything for chunk in some.questions.chunks])
    near = [nearly_same(everything, read, config, workers, scratch, advanced) for read in reads]
    return [same(questions), asked_again(everything), *near]


def _divide(rows: Rows, given: Rows | None, config: SplitConfig, links: list[Links]) -> _Divided:
    total = rows.total + (given.total if given else 0)
    related = families(links, total)
    # Rows that ask what the validation file asks would leak into it.
    held = np.isin(related[: rows.total], related[rows.total :])
    free = np.flatnonzero(~held)
    if config.group_by:
        groups = same(pa.array(rows.values))
        related = families([*links, groups], total)
    _, family = np.unique(related[: rows.total][free], return_inverse=True)
    rank = ranks(rows.questions.take(pa.array(free)), config.seed)
    chosen = _choose(
        config,
        Families(family, rank),
        _shares(config, given),
        [rows.values[i] for i in free] if rows.values else [],
    )
    places = np.full(total, LEFT_OUT, np.int8)
    places[free] = chosen
    places[rows.total :] = NAMES.index("val")
    return _Divided(places, int(held.sum() + (chosen == LEFT_OUT).sum()), np.bincount(family))


def _choose(
    config: SplitConfig, members: Families, shares: list[float], values: list[str] | list[float]
) -> Places:
    match config.strategy:
        case "stratified":
            return strategies.stratified(members, shares, [str(value) for value in values])
        case "time":
            return strategies.by_time(members, shares, [float(value) for value in values])
        case "content":
            return strategies.by_content(members, shares)
    return strategies.at_random(members, shares)


def _shares(config: SplitConfig, given: Rows | None) -> list[float]:
    if given is None:
        return [config.train, config.val, config.test]
    rest = config.train + config.test
    return [config.train / rest, 0.0, config.test / rest]


def _requested(config: SplitConfig, free: int, given: Rows | None) -> dict[str, float]:
    shares = dict(zip(NAMES, _shares(config, given), strict=True))
    if given is None:
        return shares
    rest = free / (given.total + free)
    return {"train": shares["train"] * rest, "val": 1 - rest, "test": shares["test"] * rest}


def _report(
    folder: Path,
    config: SplitConfig,
    divided: _Divided,
    shared: Shared,
    requested: dict[str, float],
    formatted: FormatReport | None,
) -> SplitReport:
    return SplitReport(
        train=shared.rows["train"],
        val=shared.rows["val"],
        test=shared.rows["test"],
        requested=requested,
        duplicates=shared.duplicates,
        leakage=shared.leakage,
        digests={name: file_digest(folder / f"{name}.jsonl") for name in NAMES},
        rejected_share=formatted.rejected / formatted.rows if formatted and formatted.rows else 0.0,
        max_rejected=formatted.max_rejected if formatted else 0.0,
        strategy=config.strategy,
        seed=config.seed,
        removed=divided.removed,
        clusters=len(divided.sizes),
        largest_cluster=int(divided.sizes.max(initial=0)),
        near_threshold=config.near_threshold,
        composition=shared.composition,
    )
