"""Ingest: gather raw rows from every source."""

from typing import Any

from core.artifacts import Corpus, PhaseResult
from core.data.config import SourceConfig
from core.data.ingest import ingest as gather
from core.data.reports import IngestReport
from core.data.sources import source_digests
from tasks.context import RunContext, current
from tasks.phase import Outcome, phase


class Ingested(PhaseResult[Corpus, IngestReport]):
    """The corpus and what was gathered."""


READS = (
    "core.data.decoding",
    "core.data.ingest",
    "core.data.readers",
    "core.data.shares",
    "core.data.sources",
    "core.data.strict_json",
)


@phase("ingest", Ingested, reads=READS)
def _ingest(
    context: RunContext, key: str, sources: Any, contents: list[tuple[str, str]], seed: int
) -> Outcome:
    target = context.workspace.corpus
    report = gather(sources, target, base=context.base, seed=seed)
    files = sum(source.files for source in report.sources)
    note = f"{report.rows:,} rows from {files} files"
    return Outcome(Ingested(artifact=Corpus.of(target), report=report), (target,), note)


def ingest(sources: tuple[SourceConfig, ...], seed: int) -> Ingested:
    """Gather rows; a changed file changes the phase's key through its digest."""
    contents = source_digests(sources, current().base)
    result: Ingested = _ingest(sources, contents, seed)
    return result
