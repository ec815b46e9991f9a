"""The format phase: raw rows in, conversations out, and an account of every row that was left behind."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.artifacts import atomic_path, read_jsonl
from core.data.config import FormatConfig
from core.data.dedup import conversation_key
from core.data.formats import ACCEPTED, UNKNOWN_SHAPE, Converted, Rejected, convert
from core.data.records import ID_PATTERN, Conversation, to_row
from core.data.reports import FormatReport
from core.errors import DataError

_EXCERPT = 200


def format_records(corpus: Path, target: Path, rejected: Path, config: FormatConfig) -> FormatReport:
    """Turn a corpus into a dataset of conversations.

    One row is kept of every group that is equal after normalisation. Rows that ask the same but
    answer differently all stay; the split keeps them together.

    Args:
        corpus: File written by ``ingest``.
        target: The dataset: rows {"id", "conversations", "metadata", "origin"}.
        rejected: Unusable rows with file, line, reason and an excerpt; written even when the phase fails.
        config: How much may be unusable, and whether duplicates go.

    Raises:
        DataError: If more rows than allowed are unusable, or none is usable.
    """
    formatter = _Formatter(deduplicate=config.deduplicate)
    with atomic_path(target) as good_part:
        _sort_out(formatter, read_jsonl(corpus), good_part, rejected)
        # The rejected rows are in place when this raises; the dataset is not.
        formatter.judge(rejected, config.max_rejected)
    return formatter.report(config.max_rejected)


def _sort_out(
    formatter: "_Formatter", corpus: Iterator[dict[str, Any]], good_part: Path, rejected: Path
) -> None:
    with (
        atomic_path(rejected) as bad_part,
        good_part.open("w", encoding="utf-8", newline="\n") as good,
        bad_part.open("w", encoding="utf-8", newline="\n") as bad,
    ):
        for usable, row in formatter.sort_out(corpus):
            (good if usable else bad).write(json.dumps(row, ensure_ascii=False) + "\n")


class _Formatter:
    """Counts while it converts; one per run."""

    def __init__(self, *, deduplicate: bool) -> None:
        self.deduplicate = deduplicate
        self.rows = self.kept = self.duplicates = 0
        self.reasons: Counter[str] = Counter()
        self.formats: Counter[str] = Counter()
        self.first_rejected: list[str] = []
        self._seen: set[str] = set()
        self._ids: set[str] = set()

    def sort_out(self, corpus: Iterator[dict[str, Any]]) -> Iterator[tuple[bool, dict[str, Any]]]:
        """Yield (True, dataset row) or (False, rejected row); duplicates yield nothing."""
        for entry in corpus:
            self.rows += 1
            try:
                converted = convert(entry["row"], entry["format"])
            except Rejected as refusal:
                yield False, self._reject(entry, str(refusal))
                continue
            kept = self._keep(entry, converted)
            if kept is not None:
                yield True, kept

    def _reject(self, entry: dict[str, Any], reason: str) -> dict[str, Any]:
        origin = entry["origin"]
        self.reasons[reason] += 1
        if len(self.first_rejected) < 3:
            self.first_rejected.append(f"{origin['file']}:{origin['line']}: {reason}")
        excerpt = json.dumps(entry["row"], ensure_ascii=False)[:_EXCERPT]
        return {"file": origin["file"], "line": origin["line"], "reason": reason, "row": excerpt}

    def _keep(self, entry: dict[str, Any], converted: Converted) -> dict[str, Any] | None:
        key = conversation_key(converted.messages)
        if self.deduplicate and key in self._seen:
            self.duplicates += 1
            return None
        self._seen.add(key)
        self.kept += 1
        self.formats[converted.format] += 1
        conversation = Conversation(
            id=self._unique_id(entry["row"].get("id"), key),
            messages=converted.messages,
            metadata=converted.metadata,
        )
        return to_row(conversation, entry["origin"])

    def _unique_id(self, given: object, key: str) -> str:
        text = str(given) if isinstance(given, str | int) and not isinstance(given, bool) else ""
        name = text if ID_PATTERN.fullmatch(text) else key[:16]
        if name in self._ids:
            # Two sources may both number from 1; the content tells the rows apart.
            name = f"{name}-{key[:8]}"
        copies, unique = 1, name
        while unique in self._ids:
            copies += 1
            unique = f"{name}-{copies}"
        self._ids.add(unique)
        return unique

    def judge(self, rejected: Path, limit: float) -> None:
        """Raise if too little is usable."""
        count = self.reasons.total()
        if self.kept and count <= limit * self.rows:
            return
        if not self.rows:
            raise DataError("the corpus holds no rows", where="sources", fix="add rows to the sources")
        reasons = ", ".join(f"{reason}: {number}" for reason, number in self.reasons.most_common())
        what = [
            f"{count} of {self.rows} rows are unusable, {limit:.1%} are allowed ({reasons})",
            *self.first_rejected,
        ]
        fix = f"mend these rows (all are listed in {rejected}) or raise max_rejected"
        if UNKNOWN_SHAPE in self.reasons:
            fix += f"; known shapes are {ACCEPTED}"
        raise DataError("\n    ".join(what), where="format", fix=fix)

    def report(self, limit: float) -> FormatReport:
        """Return the account of all rows."""
        return FormatReport(
            rows=self.rows,
            kept=self.kept,
            rejected=self.reasons.total(),
            duplicates=self.duplicates,
            reasons=dict(self.reasons),
            formats=dict(self.formats),
            max_rejected=limit,
        )
