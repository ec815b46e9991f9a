"""The format phase: raw rows in, usable rows out, and an account of every row that was left behind."""

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from core.artifacts import atomic_path, scratch_beside
from core.data.columns import repeated
from core.data.config import FormatConfig, QualityConfig, RowFormat
from core.data.converting import ConvertedPart, Rules, convert_part, wordings_of
from core.data.dataset_file import DATASET
from core.data.finishing import FinishedPart, FinishJob, finish_part
from core.data.formats import ACCEPTED, UNKNOWN_SHAPE, describe
from core.data.identities import unique_ids
from core.data.ingest import Advanced, quiet
from core.data.near import doubles, find_similar
from core.data.near.shingles import I64
from core.data.parts import PartWriter, notes_of, parts_of
from core.data.quality import Findings, prepare
from core.data.reports import FormatReport, QualityReport
from core.data.shares import mix_sizes
from core.data.workers import Workers
from core.errors import DataError

Mask = npt.NDArray[np.bool_]
_EXAMPLES = 5
_EXCERPT = 300


class Decided(NamedTuple):
    """Which usable rows stay, and why others do not."""

    kept: Mask
    duplicates: int
    near: dict[int, int]
    """Rows dropped as near-duplicates, each with the kept row it resembles."""
    contaminated: int
    mixed_out: int


def format_records(
    corpus: Path,
    target: Path,
    rejected: Path,
    config: FormatConfig,
    quality: QualityConfig | None = None,
    *,
    workers: Workers,
    benchmarks: Sequence[str] = (),
    seed: int = 0,
    advanced: Advanced = quiet,
) -> FormatReport:
    """Turn a corpus into a dataset.

    One row is kept of every group that is equal, or nearly equal, after normalisation. Rows that ask the same but
    answer differently all stay; the split keeps them together. If the sources' weights differ, the largest mix
    with these shares is taken from what is left: no row is repeated, the source that is scarcest for its weight
    gives all its rows, the others a random sample.

    Args:
        corpus: File written by ``ingest``.
        target: The dataset, see ``dataset_file.DATASET``.
        rejected: Unusable rows with file, line, reason and an excerpt; written even when the phase fails.
        config: How much may be unusable, and what becomes of duplicates.
        quality: What is looked for in the rows.
        workers: Where parts are worked on; the result does not depend on them.
        benchmarks: Texts that training rows must not contain.
        seed: Decides which rows a sample of a source holds.
        advanced: Told how many parts are done.

    Raises:
        DataError: If more rows than allowed are unusable, none is usable, or a source is too small for its weight.
    """
    quality = quality or QualityConfig()
    with scratch_beside(target) as scratch:
        prepared = prepare(quality, benchmarks)
        rules = Rules(notes_of(corpus), config.normalise, prepared, scratch)
        done = _convert(corpus, rules, workers, advanced)
        _write_rejects(done, rejected)
        _judge(done, rejected, config.max_rejected)
        decided = _decide(done, rules, config, quality, workers, seed, advanced)
        finished = _finish(done, decided, rules, workers, target, advanced)
        return _report(done, decided, finished, rules, config)


def _convert(corpus: Path, rules: Rules, workers: Workers, advanced: Advanced) -> list[ConvertedPart]:
    parts, done = parts_of(corpus), []
    for part in workers.map(functools.partial(convert_part, rules), parts):
        done.append(part)
        advanced(len(done), len(parts), "parts read")
    return done


def _write_rejects(done: Sequence[ConvertedPart], rejected: Path) -> None:
    with atomic_path(rejected) as part, part.open("wb") as out:
        for piece in done:
            out.write(piece.rejects.read_bytes())


def _judge(done: Sequence[ConvertedPart], rejected: Path, limit: float) -> None:
    rows, kept = sum(part.rows for part in done), sum(part.kept for part in done)
    reasons = _reasons(done)
    count = reasons.total()
    if kept and count <= limit * rows:
        return
    if not rows:
        raise DataError("the corpus holds no rows", where="sources", fix="add rows to the sources")
    listed = ", ".join(f"{reason}: {number}" for reason, number in reasons.most_common(5))
    if len(reasons) > 5:
        listed += f", and {len(reasons) - 5} other reasons"
    first = [line for part in done for line in part.first_rejected][:3]
    what = [f"{count} of {rows} rows are unusable, {limit:.1%} are allowed ({listed})", *first]
    fix = f"mend these rows (all are listed in {rejected}) or raise max_rejected"
    if UNKNOWN_SHAPE in reasons:
        fix += f"; known shapes are {ACCEPTED}"
    raise DataError("\n    ".join(what), where="format", fix=fix)


def _reasons(done: Sequence[ConvertedPart]) -> Counter[str]:
    return sum((part.reasons for part in done), Counter())


def _decide(
    done: Sequence[ConvertedPart],
    rules: Rules,
    config: FormatConfig,
    quality: QualityConfig,
    workers: Workers,
    seed: int,
    advanced: Advanced,
) -> Decided:
    kept = np.ones(sum(part.kept for part in done), bool)
    contaminated = np.zeros(0, np.int64)
    if quality.contamination.action == "remove":
        contaminated = _contaminated(done)
        kept[contaminated] = False
    duplicates = _duplicates(done, kept) if config.deduplicate else np.zeros(0, np.int64)
    kept[duplicates] = False
    near: dict[int, int] = {}
    if config.deduplicate and config.near_duplicates == "remove":
        near = _near_duplicates(done, kept, rules, config, workers, advanced)
        kept[list(near)] = False
    left_out = _left_out(done, kept, rules, seed)
    kept[left_out] = False
    return Decided(kept, len(duplicates), near, len(contaminated), len(left_out))


def _contaminated(done: Sequence[ConvertedPart]) -> I64:
    firsts = _firsts(done)
    # Ordinals count from the number of the part, see converting.
    rows = [
        (part.findings.contaminated & 0xFFFFFFFF) + first for part, first in zip(done, firsts, strict=True)
    ]
    return np.concatenate(rows).astype(np.int64) if rows else np.zeros(0, np.int64)


def _firsts(done: Sequence[ConvertedPart]) -> I64:
    return np.concatenate([[0], np.cumsum([part.kept for part in done])]).astype(np.int64)[:-1]


def _duplicates(done: Sequence[ConvertedPart], kept: Mask) -> I64:
    rows = np.flatnonzero(kept)
    keys = _column(done, "whole_key").take(pa.array(rows))
    found: I64 = rows[repeated(keys)]
    return found


def _column(done: Sequence[ConvertedPart], name: str) -> pa.ChunkedArray:
    tables = [pq.read_table(part.usable, columns=[name]) for part in done]
    return pa.concat_tables(tables).column(0).unify_dictionaries()


def _near_duplicates(
    done: Sequence[ConvertedPart],
    kept: Mask,
    rules: Rules,
    config: FormatConfig,
    workers: Workers,
    advanced: Advanced,
) -> dict[int, int]:
    similar = find_similar(
        [part.usable for part in done],
        wordings_of,
        threshold=config.near_threshold,
        numbers_matter=config.near_numbers == "distinct",
        workers=workers,
        scratch=rules.scratch,
        advanced=lambda at, total: advanced(at, total, "parts compared"),
    )
    return doubles(similar.only(kept))


def _left_out(done: Sequence[ConvertedPart], kept: Mask, rules: Rules, seed: int) -> I64:
    weights = [float(source["weight"]) for source in rules.sources]
    if len(set(weights)) == 1:
        return np.zeros(0, np.int64)
    source = _column(done, "source").to_numpy()
    members = [np.flatnonzero(kept & (source == number)) for number in range(len(weights))]
    sizes = mix_sizes([len(rows) for rows in members], weights)
    spare = [
        np.random.default_rng([seed, number]).permutation(rows)[size:]
        for number, (rows, size) in enumerate(zip(members, sizes, strict=True))
    ]
    return np.sort(np.concatenate(spare))


def _finish(
    done: Sequence[ConvertedPart],
    decided: Decided,
    rules: Rules,
    workers: Workers,
    target: Path,
    advanced: Advanced,
) -> list[FinishedPart]:
    ids = unique_ids(_column(done, "id"), _column(done, "whole_key"), decided.kept)
    total, finished = int(decided.kept.sum()), []
    with atomic_path(target) as part, PartWriter(part, DATASET) as writer:
        jobs = _finish_jobs(done, decided.kept, ids)
        for piece in workers.map(functools.partial(finish_part, rules, total), jobs):
            writer.write(pq.read_table(piece.path))
            piece.path.unlink()
            finished.append(piece)
            advanced(len(finished), len(done), "parts written")
    return finished


def _finish_jobs(done: Sequence[ConvertedPart], kept: Mask, renamed: dict[int, str]) -> Iterator[FinishJob]:
    first_kept = 0
    for number, (part, first) in enumerate(zip(done, _firsts(done), strict=True)):
        rows = np.flatnonzero(kept[first : first + part.kept])
        names = (
            {int(row): renamed[row + first] for row in rows.tolist() if row + first in renamed}
            if renamed
            else {}
        )
        yield FinishJob(number, part.usable, rows, names, first_kept)
        first_kept += len(rows)


def _report(
    done: Sequence[ConvertedPart],
    decided: Decided,
    finished: Sequence[FinishedPart],
    rules: Rules,
    config: FormatConfig,
) -> FormatReport:
    reasons = _reasons(done)
    sources = np.sum([part.by_source for part in finished], axis=0).tolist()
    return FormatReport(
        rows=sum(part.rows for part in done),
        kept=int(decided.kept.sum()),
        rejected=reasons.total(),
        duplicates=decided.duplicates,
        near_duplicates=len(decided.near),
        contaminated=decided.contaminated,
        mixed_out=decided.mixed_out,
        reasons=dict(reasons.most_common()),
        formats=_formats(done),
        max_rejected=config.max_rejected,
        near_examples=_examples(done, decided.near),
        near_threshold=config.near_threshold if config.near_duplicates == "remove" else None,
        looks_like=_looks(done),
        kept_by_source={str(rule["name"]): rows for rule, rows in zip(rules.sources, sources, strict=True)},
        quality=_quality(done, finished, rules),
    )


def _quality(done: Sequence[ConvertedPart], finished: Sequence[FinishedPart], rules: Rules) -> QualityReport:
    scanned = functools.reduce(Findings.merged, (part.findings for part in done))
    profiled = functools.reduce(Findings.merged, (part.findings for part in finished))
    report = scanned.merged(profiled).report(rules.quality, sum(part.changed for part in done))
    left = sum((part.left for part in done), Counter())
    return report.model_copy(
        update={"pii": report.pii.model_copy(update={"left": dict(sorted(left.items()))})}
    )


def _formats(done: Sequence[ConvertedPart]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for part in done:
        for (_, shape), (rows, _) in part.looks.items():
            counts[shape] += rows
    return dict(counts.most_common())


def _looks(done: Sequence[ConvertedPart]) -> tuple[str, ...]:
    """Say what was made of every file, the largest first."""
    total: dict[tuple[str, RowFormat], tuple[int, tuple[str, ...]]] = {}
    for part in done:
        for key, (rows, used) in part.looks.items():
            total[key] = (total.get(key, (0, used))[0] + rows, total.get(key, (0, used))[1])
    ordered = sorted(total.items(), key=lambda item: -item[1][0])
    return tuple(
        f"{file} {describe(shape, used)} ({rows:,} rows)" for (file, shape), (rows, used) in ordered[:20]
    )


def _examples(done: Sequence[ConvertedPart], near: dict[int, int]) -> tuple[tuple[str, str], ...]:
    pairs = list(near.items())[:: max(1, len(near) // _EXAMPLES)][:_EXAMPLES]
    return tuple((_wording(done, dropped), _wording(done, kept)) for dropped, kept in pairs)


def _wording(done: Sequence[ConvertedPart], row: int) -> str:
    firsts = _firsts(done)
    number = int(np.searchsorted(firsts, row, side="right")) - 1
    table: Any = pq.read_table(done[number].usable, columns=["wording"])
    return str(table["wording"][row - int(firsts[number])].as_py()[:_EXCERPT])
