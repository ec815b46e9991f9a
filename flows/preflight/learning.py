"""Will it learn? Rows straight from the sources, through the base's own tokenizer and, if it is small, the model.

Nothing is downloaded and nothing is written. Libraries are loaded here only when there is something to look at.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from core.data.config import DatasetConfig, SourceConfig
from core.data.learning_reports import LearnFinding, LearnReport
from core.data.records import ID_PATTERN, Conversation, Document, Record
from core.errors import DataError, UserError
from flows.preflight.models import find_model
from flows.preflight.report import Finding
from flows.run_config import RunConfig

MOST_FILES = 64
"""Files of a source that are looked into; more would take more than seconds."""

_KINDS = {"model": "model", "dataset": "model", "training": "setting", "lora": "setting", "sources": "data"}


class Learning(NamedTuple):
    """What the look at the tokens found."""

    report: LearnReport | None
    """None if there was nothing to look at; ``findings`` or ``skipped`` say why."""
    findings: tuple[Finding, ...] = ()
    """What stops a run; the rest is in the report."""
    skipped: str = ""
    """Why nothing was looked at, where that is no fault."""


class Sample(NamedTuple):
    """Some rows of the sources."""

    records: list[Record]
    read: int
    """Rows read, usable or not."""
    reasons: Counter[str]
    """Why rows were not usable."""
    remote: tuple[str, ...]
    """Sources that are not on this machine and were not looked into."""


def learning(config: RunConfig, config_path: Path, *, fast: bool = False) -> Learning:
    """Look at the tokens of the first rows of every source file.

    Args:
        config: The run.
        config_path: Its file; a model folder may lie beside it.
        fast: Leave out learning one batch by heart.
    """
    found, _ = find_model(config, config_path)
    folder = found and (found.folder or _cached_tokenizer(config.model.name))
    if folder is None:
        return Learning(None, skipped="the base model's tokenizer is not on this machine")
    try:
        sample = sample_sources(config)
    except DataError as error:
        return Learning(None, (_error("data", error),))
    if not sample.records:
        return _nothing(sample)
    # The libraries behind it take seconds to load.
    from tasks.learnable import Setup, learn

    template = (config.dataset or DatasetConfig()).chat_template
    setup = Setup(config.model, config.lora, config.training, template)
    try:
        report = learn(sample.records, folder, setup, overfit=not fast)
    except UserError as error:
        return Learning(None, (_error("model", error),))
    report = report.model_copy(update={"findings": (*report.findings, *_of_sample(sample, config))})
    return Learning(report, tuple(_as_error(finding) for finding in report.errors))


def sample_sources(config: RunConfig, size: int | None = None) -> Sample:
    """Convert the first rows of every source file on this machine, as the format phase would.

    Args:
        config: The run; paths of sources lead somewhere from the current directory.
        size: Rows in all; without it as many as the look after the split takes.

    Raises:
        DataError: If a source is missing or cannot be read.
    """
    from core.data.sources.places import kind_of
    from tasks.learnable import SAMPLE

    sources = config.training_sources
    local = [source for source in sources if kind_of(source.path) == "files"]
    share = -(-(size or SAMPLE) // max(1, len(local)))
    maker = _Maker(config)
    for source in local:
        for row in _first_rows(source, share):
            maker.take(row, source)
    remote = tuple(source.path for source in sources if source not in local)
    return Sample(maker.records, maker.read, maker.reasons, remote)


def _first_rows(source: SourceConfig, share: int) -> Iterator[tuple[str, str | None]]:
    """Yield the text of the first rows of a source's files, and why a row is unusable, if it is."""
    from core.data.readers import read_batches
    from core.data.sources import expand

    files = expand(source.path, Path.cwd()).files
    files = files[:: -(-len(files) // MOST_FILES)]
    each = -(-share // len(files))
    for file in files:
        batches = read_batches(file.path, file.name)
        rows = (pair for batch in batches for pair in zip(batch.rows, batch.problems, strict=True))
        yield from islice(rows, min(each, source.max_rows or each))


class _Maker:
    """Makes records of rows and counts what cannot be used."""

    def __init__(self, config: RunConfig) -> None:
        self.normalises = config.format.normalise
        self.text_field = config.dataset.text_field if config.dataset else None
        self.records: list[Record] = []
        self.read = 0
        self.reasons: Counter[str] = Counter()

    def take(self, row: tuple[str, str | None], source: SourceConfig) -> None:
        """Add one row."""
        from core.data.formats import Rejected

        self.read += 1
        try:
            self.records.append(self._record(row, source))
        except Rejected as refusal:
            self.reasons[str(refusal)] += 1

    def _record(self, row: tuple[str, str | None], source: SourceConfig) -> Record:
        import orjson

        from core.data.formats import Rejected

        text, problem = row
        try:
            if problem is not None:
                raise Rejected(problem)
            value = orjson.loads(text)
            return self._converted(value, source, _name(value, self.read))
        except ValueError as error:
            # Text of nothing but invisible characters is cleaned away, and no JSON is no row.
            raise Rejected(
                "not valid JSON" if isinstance(error, orjson.JSONDecodeError) else "empty text"
            ) from error

    def _converted(self, value: Any, source: SourceConfig, name: str) -> Record:
        from core.data.config import FieldsConfig
        from core.data.formats import Rejected, convert

        try:
            converted = convert(value, source.format, source.fields)
        except Rejected:
            named = isinstance(value, dict) and isinstance(value.get(self.text_field), str)
            if source.format != "auto" or source.fields is not None or not named:
                raise
            converted = convert(value, "mapped", FieldsConfig(text=self.text_field))
        if converted.text is not None:
            return Document(id=name, text=self._final(converted.text))
        turns = [
            turn.model_copy(update={"content": self._final(turn.content)}) for turn in converted.messages
        ]
        return Conversation(id=name, messages=tuple(turns))

    def _final(self, text: str) -> str:
        from core.data.normalise import clean

        return clean(text) if self.normalises else text


def _name(value: object, number: int) -> str:
    given = value.get("id") if isinstance(value, dict) else None
    return given if isinstance(given, str) and ID_PATTERN.fullmatch(given) else f"row-{number}"


def _cached_tokenizer(name: str) -> Path | None:
    """Return the folder of a Hub model whose tokenizer is in the cache, even without weights."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(name, "tokenizer.json")
    return Path(cached).parent if isinstance(cached, str) else None


def _nothing(sample: Sample) -> Learning:
    if not sample.read:
        return Learning(None, skipped="the rows are not on this machine yet")
    reasons = ", ".join(f"{reason}: {count}" for reason, count in sample.reasons.most_common(3))
    what = f"none of the first {sample.read} rows can be used ({reasons})"
    fix = "factory schema explains sources.format and sources.fields"
    return Learning(None, (Finding(level="error", kind="data", where="sources", what=what, fix=fix),))


def _of_sample(sample: Sample, config: RunConfig) -> Sequence[LearnFinding]:
    """Tell of rows that were left out: those of no use, and those that are elsewhere."""
    found = []
    unusable = sample.reasons.total()
    if unusable > config.format.max_rejected * sample.read:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in sample.reasons.most_common(3))
        what = f"{unusable} of the first {sample.read} rows cannot be used ({reasons})"
        fix = "mend them, map their fields with sources.fields, or raise format.max_rejected"
        found.append(LearnFinding(level="warning", where="sources", what=what, fix=fix))
    if sample.remote:
        what = f"{len(sample.remote)} sources are not on this machine and were not looked into"
        found.append(LearnFinding(level="info", where="sources", what=what))
    return found


def _as_error(finding: LearnFinding) -> Finding:
    kind = _KINDS[finding.where.partition(".")[0]]
    if finding.where == "model.max_seq_length":
        kind = "setting"
    return Finding.model_validate(
        {"level": "error", "kind": kind, "where": finding.where, "what": finding.what, "fix": finding.fix}
    )


def _error(kind: str, error: UserError) -> Finding:
    return Finding.model_validate(
        {"level": "error", "kind": kind, "where": error.where, "what": error.what, "fix": error.fix}
    )
