"""What the data phases show in MLflow beside their reports: shares, tables, inputs, and the data page."""

import itertools
from collections.abc import Mapping
from typing import Any

from core.artifacts import Splits, file_digest
from core.data.reports import FormatReport, IngestReport, QualityReport, SplitReport
from core.data.sources.places import redacted
from tasks.context import RunContext
from tasks.data_inputs import source_inputs
from tasks.report.data_page import DataReports, render_data_page
from tasks.tracking import MOST_KEYS

PAGE = "data-report"
READ_FOR = {"train": "training", "val": "validation", "test": "evaluation"}
"""What MLflow says a split was read for."""


def track_ingest(context: RunContext, report: IngestReport) -> None:
    """Log every source as an input, and its share of the rows."""
    if run := context.phase_run:
        run.datasets(source_inputs(report, context.base), "raw rows")
        taken = {redacted(source.path): source.taken for source in report.sources}
        run.log(0, shares(taken, report.rows, "ingest.share"))


def track_format(context: RunContext, report: FormatReport) -> None:
    """Log what became of the rows, as shares and as tables."""
    if run := context.phase_run:
        run.log(0, format_figures(report))
        run.table(table(report.reasons, report.rejected, "reason"), "rejected-reasons")
        if report.quality:
            run.table(
                table(report.quality.languages, report.quality.language_sample, "language"), "languages"
            )


def track_split(context: RunContext, report: SplitReport) -> None:
    """Log the data page: everything the three data phases found, to be looked at."""
    if run := context.phase_run:
        known: Mapping[str, Any] = context.reports
        parts = DataReports(
            ingest=known.get("ingest"),
            formatted=known.get("format"),
            split=report,
            learning=known.get("learning"),
        )
        run.page(render_data_page(context.name, parts), PAGE)
        rows = report.train + report.val + report.test
        run.log(
            0, shares({"train": report.train, "val": report.val, "test": report.test}, rows, "split.share")
        )


def track_reads(context: RunContext, splits: Splits, *names: str) -> None:
    """Log split files as inputs of the phase at work.

    Args:
        context: The run.
        splits: Where they lie.
        names: train, val, test.
    """
    if context.phase_run is None:
        return
    split = context.reports.get("split")
    known = split if isinstance(split, SplitReport) else None
    for name in names:
        path = splits.path / f"{name}.jsonl"
        rows = getattr(known, name) if known else None
        context.phase_run.dataset(path, file_digest(path), READ_FOR[name], rows)


def format_figures(report: FormatReport) -> dict[str, float]:
    """Return what became of the raw rows, and what the kept ones are like, as shares."""
    fates = {
        "kept": report.kept,
        "rejected": report.rejected,
        "duplicates": report.duplicates,
        **({} if report.near_threshold is None else {"near_duplicates": report.near_duplicates}),
    }
    return {
        **shares(fates, report.rows, "format.share"),
        **(_quality_figures(report.quality, report.kept) if report.quality else {}),
    }


def _quality_figures(quality: QualityReport, kept: int) -> dict[str, float]:
    rows = {"pii": quality.pii.rows} if quality.pii.looked else {}
    return {
        **shares(quality.languages, quality.language_sample, "format.language_share"),
        **shares(rows | {"mixed_script": quality.mixed_script_rows}, kept, "format.share_of_kept"),
    }


def shares(counts: Mapping[str, int], total: int, name: str) -> dict[str, float]:
    """Return shares of a total under dotted names, of the first entries; without a total there are none."""
    if total <= 0:
        return {}
    first = itertools.islice(counts.items(), MOST_KEYS)
    return {f"{name}.{key.replace('/', '_')}": count / total for key, count in first}


def table(counts: Mapping[str, int], total: int, what: str) -> list[dict[str, Any]]:
    """Lay counts out as the rows of a table."""
    return [
        {what: key, "rows": count, "share": round(count / total, 6) if total else None}
        for key, count in counts.items()
    ]
