"""Split: divide conversations so that nothing in the test set can be copied from training."""

from pathlib import Path

from core.artifacts import Dataset, PhaseResult, Splits
from core.config import Frozen
from core.data.config import ContaminationConfig, FormatConfig, QualityConfig, SourceConfig, SplitConfig
from core.data.formatting import format_records
from core.data.ingest import ingest
from core.data.reports import FormatReport, SplitReport
from core.data.sources import source_digests
from core.data.split import split as divide
from core.data.workers import Workers
from tasks.context import RunContext, current
from tasks.data_figures import track_split
from tasks.format_records import READS as FORMAT
from tasks.ingest import READS as INGEST
from tasks.phase import Outcome, phase

READS = (
    "core.data.asked",
    "core.data.columns",
    "core.data.scatter",
    "core.data.split",
    "core.data.dedup",
    "core.data.fields",
    "core.data.leakage",
    "core.data.records",
    "core.data.shares",
)


class GivenRules(Frozen):
    """How the rows of a given validation file are read: like all others."""

    format: FormatConfig = FormatConfig()
    quality: QualityConfig = QualityConfig()
    text_field: str = "text"


class Divided(PhaseResult[Splits, SplitReport]):
    """The splits and what they share."""


@phase("split", Divided, reads=(*READS, *FORMAT, *INGEST))
def _split(
    context: RunContext,
    key: str,
    dataset: Dataset,
    formatted: FormatReport,
    config: SplitConfig,
    given: SourceConfig | None,
    contents: list[tuple[str, str]],
    rules: GivenRules,
) -> Outcome:
    target = context.workspace.splits
    with context.workers() as workers:
        validation, account = prepare_given(context, given, rules, workers) if given else (None, None)
        report = divide(
            dataset.verified(),
            target,
            config,
            workers=workers,
            validation=validation,
            formatted=formatted,
            advanced=context.advanced("split"),
        )
    if account is not None and account.quality is not None:
        report = report.model_copy(update={"validation_pii": account.quality.pii})
    note = f"train {report.train:,} · val {report.val:,} · test {report.test:,}"
    track_split(context, report)
    return Outcome(Divided(artifact=Splits.of(target), report=report), (target,), note)


def split(
    dataset: Dataset,
    formatted: FormatReport,
    config: SplitConfig,
    validation_path: str | None,
    rules: GivenRules,
) -> Divided:
    """Divide, then measure leakage from the written files; a given validation file becomes ``val``."""
    given = SourceConfig(path=validation_path) if validation_path else None
    run = current()
    contents = source_digests([given], run.base, cache=run.workspace.downloads) if given else []
    result: Divided = _split(dataset, formatted, config, given, contents, rules)
    return result


def prepare_given(
    context: RunContext, source: SourceConfig, rules: GivenRules, workers: Workers
) -> tuple[Path, FormatReport]:
    """Turn the rows of a given validation file into conversations, by the same rules as the rest."""
    folder = context.workspace.private / "validation"
    corpus, dataset = folder / "corpus.parquet", folder / "dataset.parquet"
    # Whoever gives a validation file means its rows; only true repetitions go.
    config = rules.format.model_copy(update={"near_duplicates": "keep"})
    ingest(
        [source], corpus, base=context.base, cache=context.workspace.downloads, text_field=rules.text_field
    )
    quality = rules.quality.model_copy(update={"contamination": ContaminationConfig()})
    account = format_records(corpus, dataset, folder / "rejected.jsonl", config, quality, workers=workers)
    return dataset, account
