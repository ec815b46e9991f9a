"""Format: turn raw rows into conversations, reject what cannot be one, drop duplicates."""

from core.artifacts import Corpus, Dataset, PhaseResult
from core.data.config import FormatConfig
from core.data.formatting import format_records as convert
from core.data.reports import FormatReport
from tasks.context import RunContext
from tasks.phase import Outcome, phase


class Formatted(PhaseResult[Dataset, FormatReport]):
    """The conversations and what became of every row."""


READS = ("core.data.formatting", "core.data.formats", "core.data.records", "core.data.dedup")


@phase("format", Formatted, reads=READS)
def format_records(context: RunContext, key: str, corpus: Corpus, config: FormatConfig) -> Outcome:
    """Convert, reject, deduplicate; rejected rows are kept aside with file, line and reason."""
    target, rejected = context.workspace.dataset, context.workspace.rejected
    report = convert(corpus.verified(), target, rejected, config)
    note = f"{report.kept:,} kept, {report.rejected} rejected, {report.duplicates} duplicates"
    return Outcome(Formatted(artifact=Dataset.of(target), report=report), (target, rejected), note)
