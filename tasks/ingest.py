"""Ingest: gather raw rows from every source."""

from typing import Any

from core.artifacts import Corpus, PhaseResult
from core.data.config import SourceConfig
from core.data.ingest import ingest as gather
from core.data.reports import IngestReport
from core.data.sources import source_digests
from tasks.context import RunContext, current
from tasks.data_figures import track_ingest
from tasks.phase import Outcome, phase


class Ingested(PhaseResult[Corpus, IngestReport]):
    """The corpus and what was gathered."""


READS = ("core.data.ingest", "core.data.parts", "core.data.readers", "core.data.rows", "core.data.sources")


@phase("ingest", Ingested, reads=READS)
def _ingest(
    context: RunContext, key: str, sources: Any, contents: list[tuple[str, str]], text_field: str
) -> Outcome:
    target = context.workspace.corpus
    report = gather(
        sources,
        target,
        base=context.base,
        cache=context.workspace.downloads,
        text_field=text_field,
        advanced=context.advanced("ingest"),
    )
    files = sum(source.files for source in report.sources)
    note = f"{report.rows:,} rows from {files} files"
    track_ingest(context, report)
    # The rows before redaction: personal data in them must not travel.
    return Outcome(Ingested(artifact=Corpus.of(target), report=report), (target,), note, (target,))


def ingest(sources: tuple[SourceConfig, ...], text_field: str) -> Ingested:
    """Gather rows; a changed file changes the phase's key through its digest."""
    run = current()
    contents = source_digests(sources, run.base, cache=run.workspace.downloads)
    result: Ingested = _ingest(sources, contents, text_field)
    return result
