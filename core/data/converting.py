"""What a worker does in the format phase: one part of the corpus in, usable rows and rejects out."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from core.data.config import FieldsConfig, RowFormat
from core.data.dedup import KEY_BYTES, Keys, keys_of, whole_wording
from core.data.formats import Converted, Rejected, convert
from core.data.near import Texts
from core.data.normalise import clean
from core.data.parts import Part, read_part
from core.data.quality import Findings, Prepared, redact
from core.data.quality.passes import scan
from core.data.records import ID_PATTERN, Conversation, Document, Message, Record, first_problem, to_row
from core.data.redacting import redacted, texts_in

NOT_JSON = "not valid JSON"
NOT_AN_OBJECT = "row is not an object"
_EXCERPT = 200
_KEY = pa.binary(KEY_BYTES)
USABLE = pa.schema(
    [
        ("id", pa.string()),
        ("body", pa.large_string()),
        ("file", pa.dictionary(pa.int32(), pa.string())),
        ("line", pa.int64()),
        ("source", pa.int16()),
        ("exact_key", _KEY),
        ("question_key", _KEY),
        ("whole_key", _KEY),
        ("asked_key", _KEY),
        ("earlier_keys", pa.list_(_KEY)),
        ("wording", pa.large_string()),
        ("salt", pa.uint64()),
    ]
)


class Rules(NamedTuple):
    """How to read rows; the same for every part."""

    sources: Sequence[dict[str, Any]]
    """Notes of the corpus, by source number."""
    normalise: bool
    quality: Prepared
    scratch: Path


class ConvertedPart(NamedTuple):
    """What one part of the corpus gave."""

    usable: Path
    rejects: Path
    rows: int
    kept: int
    reasons: Counter[str]
    first_rejected: tuple[str, ...]
    looks: dict[tuple[str, RowFormat], tuple[int, tuple[str, ...]]]
    """By file and format: how many rows, and the fields used."""
    changed: int
    """Rows that normalisation changed."""
    findings: Findings
    """Personal data and overlap with benchmarks."""
    left: Counter[str]
    """Personal data found again after redaction, by kind."""


class _Usable(NamedTuple):
    record: Record
    given_id: str | None
    origin: dict[str, Any]
    source: int
    keys: Keys


def convert_part(rules: Rules, part: Part) -> ConvertedPart:
    """Convert, clean and key every row of a part of the corpus; write usable rows and rejects to scratch."""
    work = _Work(rules)
    table = read_part(part)
    for row in _rows(table):
        work.take(*row)
    findings, left = work.scanned(part.number)
    usable = rules.scratch / f"usable-{part.number:06d}.parquet"
    rejects = rules.scratch / f"rejects-{part.number:06d}.jsonl"
    rejects.write_bytes(b"".join(orjson.dumps(reject) + b"\n" for reject in work.rejects))
    pq.write_table(_table(work.usable), usable, compression="lz4")
    return ConvertedPart(
        usable,
        rejects,
        table.num_rows,
        len(work.usable),
        work.reasons,
        tuple(work.first_rejected),
        work.looks,
        work.changed,
        findings,
        left,
    )


def _rows(table: pa.Table) -> Iterator[tuple[str, str | None, str, int, int]]:
    columns = [table[name].to_pylist() for name in ("row", "problem", "file", "line", "source")]
    return zip(*columns, strict=True)


class _Work:
    """Counts while it converts."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.fields = [
            FieldsConfig.model_validate(source["fields"]) if source["fields"] else None
            for source in rules.sources
        ]
        self.usable: list[_Usable] = []
        self.rejects: list[dict[str, Any]] = []
        self.reasons: Counter[str] = Counter()
        self.first_rejected: list[str] = []
        self.looks: dict[tuple[str, RowFormat], tuple[int, tuple[str, ...]]] = {}
        self.changed = 0

    def take(self, text: str, problem: str | None, file: str, line: int, source: int) -> None:
        """Sort one row into usable or rejected."""
        try:
            if problem is not None:
                raise Rejected(problem)
            row = _parse(text)
            converted = self._convert(row, source)
            record = self._record(converted)
        except Rejected as refusal:
            self._reject(text, str(refusal), file, line)
            return
        count, used = self.looks.get((file, converted.format), (0, converted.used))
        self.looks[file, converted.format] = (count + 1, used)
        origin = {"file": file, "line": line}
        self.usable.append(_Usable(record, _given_id(row.get("id")), origin, source, keys_of(record)))

    def _convert(self, row: dict[str, Any], source: int) -> Converted:
        rule, fields = self.rules.sources[source], self.fields[source]
        try:
            return convert(row, rule["format"], fields)
        except Rejected:
            name = rule["text_field"]
            if rule["format"] != "auto" or fields is not None or not isinstance(row.get(name), str):
                raise
        return convert(row, "mapped", FieldsConfig(text=name))

    def _record(self, converted: Converted) -> Record:
        if converted.text is not None:
            text = self._final(converted.text)
            self.changed += text != converted.text
            if not text:
                raise Rejected("empty text")
            return Document.model_construct(id="-", text=text, metadata=converted.metadata)
        said = [self._final(turn.content) for turn in converted.messages]
        messages = tuple(map(_with_content, converted.messages, said))
        if messages != converted.messages:
            self.changed += 1
            # Text of nothing but invisible characters is no text.
            if problem := first_problem(messages):
                raise Rejected(problem)
        return Conversation.model_construct(id="-", messages=messages, metadata=converted.metadata)

    def scanned(self, part: int) -> tuple[Findings, Counter[str]]:
        """Look for personal data and benchmark passages in the usable rows, and redact if that is wanted.

        Returns:
            What was found, and what is still there after redaction.
        """
        prepared = self.rules.quality
        findings = self._scan(part)
        if prepared.config.pii.action != "redact":
            return findings, Counter()
        records = redacted([row.record for row in self.usable], prepared)
        self.usable = [
            row if record is row.record else row._replace(record=record, keys=keys_of(record))
            for row, record in zip(self.usable, records, strict=True)
        ]
        shown = redact([reject["row"] for reject in self.rejects], prepared)
        self.rejects = [{**reject, "row": text} for reject, text in zip(self.rejects, shown, strict=True)]
        return findings, self._scan(part).pii.counts

    def _scan(self, part: int) -> Findings:
        texts = pa.array(["\n".join(texts_in(row.record)) for row in self.usable], pa.large_string())
        origins = [f"{row.origin['file']}:{row.origin['line']}" for row in self.usable]
        # Unique and rising over all parts, whatever their size.
        return scan(texts, origins, np.arange(len(self.usable)) + (part << 32), self.rules.quality)

    def _final(self, text: str) -> str:
        return clean(text) if self.rules.normalise else text

    def _reject(self, text: str, problem: str, file: str, line: int) -> None:
        # "not UTF-8 (byte 0xff at column 3)": the reason is counted, what is special about this row only listed.
        reason, _, detail = problem.partition(" (")
        self.reasons[reason] += 1
        if len(self.first_rejected) < 3:
            self.first_rejected.append(f"{file}:{line}: {problem}{_fields_of(text)}")
        known = {"detail": detail.removesuffix(")")} if detail else {}
        self.rejects.append({"file": file, "line": line, "reason": reason, **known, "row": text[:_EXCERPT]})


def _fields_of(text: str) -> str:
    """Name the fields of a row, so that a missing one is seen."""
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:
        return ""
    return f" (fields: {', '.join(map(str, list(row)[:8]))})" if isinstance(row, dict) else ""


def _with_content(turn: Message, content: str) -> Message:
    return turn if turn.content == content else turn.model_copy(update={"content": content})


def _parse(text: str) -> dict[str, Any]:
    try:
        row = orjson.loads(text)
    except orjson.JSONDecodeError:
        # NaN, infinity and half characters are no JSON either.
        raise Rejected(NOT_JSON) from None
    if not isinstance(row, dict):
        raise Rejected(NOT_AN_OBJECT)
    return row


def _given_id(value: object) -> str | None:
    text = str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""
    return text if ID_PATTERN.fullmatch(text) else None


def _table(usable: Sequence[_Usable]) -> pa.Table:
    wordings = [whole_wording(row.record) for row in usable]
    columns = {
        "id": [row.given_id or row.keys.whole.hex()[:16] for row in usable],
        "body": [_body(row) for row in usable],
        "file": pa.array([row.origin["file"] for row in usable], pa.string()).dictionary_encode(),
        "line": [row.origin["line"] for row in usable],
        "source": [row.source for row in usable],
        "exact_key": [row.keys.exact for row in usable],
        "question_key": [row.keys.question for row in usable],
        "whole_key": [row.keys.whole for row in usable],
        "asked_key": [row.keys.asked for row in usable],
        "earlier_keys": [row.keys.earlier for row in usable],
        "wording": [wording.text for wording in wordings],
        "salt": [wording.salt for wording in wordings],
    }
    return pa.table(columns, schema=USABLE)


def _body(usable: _Usable) -> str:
    row = to_row(usable.record, usable.origin)
    del row["id"]
    return orjson.dumps(row).decode()


def wordings_of(usable: Path) -> Texts:
    """Read what the rows of a part are compared by."""
    table = pq.read_table(usable, columns=["wording", "salt"]).combine_chunks()
    return Texts(table["wording"].combine_chunks(), np.asarray(table["salt"].to_numpy(), np.uint64))
