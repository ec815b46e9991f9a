"""Format: turn raw rows into conversations, reject what cannot be one, drop duplicates, look for trouble."""

from core.artifacts import Corpus, Dataset, PhaseResult
from core.data.benchmarks import read_texts
from core.data.config import FormatConfig, QualityConfig, SourceConfig
from core.data.formatting import format_records as convert
from core.data.reports import FormatReport
from core.data.sources import source_digests
from tasks.context import RunContext, current
from tasks.data_figures import track_format
from tasks.phase import Outcome, phase


class Formatted(PhaseResult[Dataset, FormatReport]):
    """The rows to use and what became of every other one."""


READS = (
    "core.data.benchmarks",
    "core.data.columns",
    "core.data.scatter",
    "core.data.converting",
    "core.data.dataset_file",
    "core.data.dedup",
    "core.data.finishing",
    "core.data.formats",
    "core.data.formatting",
    "core.data.identities",
    "core.data.ingest",
    "core.data.near",
    "core.data.normalise",
    "core.data.parts",
    "core.data.quality",
    "core.data.readers",
    "core.data.records",
    "core.data.redacting",
    "core.data.rows",
    "core.data.shares",
    "core.data.sources",
    "core.data.workers",
)


@phase("format", Formatted, reads=READS)
def _format(
    context: RunContext,
    key: str,
    corpus: Corpus,
    config: FormatConfig,
    quality: QualityConfig,
    benchmarks: list[tuple[str, str]],
    seed: int,
) -> Outcome:
    target, rejected = context.workspace.dataset, context.workspace.rejected
    texts = read_texts(quality.contamination.files, context.base, context.workspace.downloads)
    with context.workers() as workers:
        report = convert(
            corpus.verified(),
            target,
            rejected,
            config,
            quality,
            workers=workers,
            benchmarks=texts,
            seed=seed,
            advanced=context.advanced("format"),
        )
    note = f"{report.kept:,} kept, {report.rejected:,} rejected, {report.duplicates:,} duplicates"
    if report.near_duplicates:
        note += f", {report.near_duplicates:,} near-duplicates"
    track_format(context, report)
    return Outcome(Formatted(artifact=Dataset.of(target), report=report), (target, rejected), note)


def format_records(corpus: Corpus, config: FormatConfig, quality: QualityConfig, seed: int) -> Formatted:
    """Convert, reject, deduplicate; rejected rows are kept aside with file, line and reason."""
    run = current()
    files = tuple(SourceConfig(path=path) for path in quality.contamination.files)
    contents = source_digests(files, run.base, cache=run.workspace.downloads) if files else []
    result: Formatted = _format(corpus, config, quality, contents, seed)
    return result
