"""The data reports as the page draws them: positions, shares and pieces of text."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from core.data.learning_reports import LearnReport
from core.data.reports import FormatReport, IngestReport, LabelBalance, LengthProfile, SplitReport
from core.data.sources.places import redacted
from tasks.report.charts import Bar, bars, composition
from tasks.report.data_charts import HistogramChart, Stack, histogram, stacks
from tasks.test_uses import TestUses

LONGEST_TEXT = 700
"""Characters shown of a duplicate."""
FIRST_VALUES = 8
"""Values of a label shown before someone asks for all of them."""
PIECE = re.compile(r"\s+|\w+|[^\w\s]")


class DataReports(NamedTuple):
    """What is known of the data; any part may be missing."""

    ingest: IngestReport | None = None
    formatted: FormatReport | None = None
    split: SplitReport | None = None
    learning: LearnReport | None = None
    test_uses: TestUses | None = None


class SourceBar(NamedTuple):
    """What one source gave, and what it was asked for."""

    path: str
    files: int
    rows: int
    used: int
    """Rows in the mix."""
    share: float
    """Of all rows in the mix."""
    width: float
    wanted: float | None
    """Share asked for; None where weights ask for nothing."""
    wanted_at: float


class Piece(NamedTuple):
    """A stretch of one of two texts."""

    text: str
    differs: bool


class Pair(NamedTuple):
    """A dropped text beside the one it resembles."""

    dropped: tuple[Piece, ...]
    kept: tuple[Piece, ...]


class LabelView(NamedTuple):
    """The values of one field."""

    field: str
    first: tuple[Bar, ...]
    rest: tuple[Bar, ...]
    evenness: float
    values: int
    others: int
    missing: int


class CompositionView(NamedTuple):
    """The splits by the values of one property."""

    property: str
    names: tuple[str, ...]
    """The values, in the order they are drawn."""
    stacks: tuple[Stack, ...]


class DataView(NamedTuple):
    """The data section."""

    sources: tuple[SourceBar, ...]
    fates: tuple[Bar, ...]
    words: HistogramChart | None
    tokens: HistogramChart | None
    labels: tuple[LabelView, ...]
    near: tuple[Pair, ...]
    compositions: tuple[CompositionView, ...]


def data_view(reports: DataReports) -> DataView:
    """Prepare the data section; what was not measured stays empty."""
    formatted, split, learning = reports.formatted, reports.split, reports.learning
    quality = formatted.quality if formatted else None
    return DataView(
        sources=source_bars(reports.ingest, formatted) if reports.ingest else (),
        fates=fates(formatted) if formatted else (),
        words=lengths(quality.words) if quality else None,
        tokens=lengths(learning.lengths, learning.counts.max_length) if learning else None,
        labels=tuple(label_view(label) for label in quality.labels) if quality else (),
        near=tuple(pair(*texts) for texts in formatted.near_examples) if formatted else (),
        compositions=tuple(
            composition_view(part.property, part.counts) for part in (split.composition if split else ())
        ),
    )


def source_bars(ingest: IngestReport, formatted: FormatReport | None) -> tuple[SourceBar, ...]:
    """Lay out what every source gave to the mix.

    Weights are promises about the kept rows. Where those are not counted by source and nothing was
    left out of the raw ones, what was asked for has nothing to be compared with and is not drawn.
    """
    kept = formatted.kept_by_source if formatted else {}
    paths = {source.path for source in ingest.sources}
    by_source = paths <= kept.keys() and len(paths) == len(ingest.sources)
    used = [kept[source.path] if by_source else source.taken for source in ingest.sources]
    is_compared = ingest.is_weighted and (by_source or any(s.taken != s.rows for s in ingest.sources))
    total = sum(used)
    shares = [n / total if total else 0.0 for n in used]
    longest = max([*shares, *(s.wanted for s in ingest.sources if is_compared)], default=0.0) or 1.0
    return tuple(
        SourceBar(
            path=redacted(source.path),
            files=source.files,
            rows=source.rows,
            used=count,
            share=share,
            width=round(100 * share / longest, 3),
            wanted=source.wanted if is_compared else None,
            wanted_at=round(100 * source.wanted / longest, 3),
        )
        for source, count, share in zip(ingest.sources, used, shares, strict=True)
    )


def fates(formatted: FormatReport) -> tuple[Bar, ...]:
    """Lay end to end what became of the raw rows; what no count explains is shown as such."""
    counts = {
        "kept": formatted.kept,
        "exact duplicates": formatted.duplicates,
        "near-duplicates": formatted.near_duplicates,
        "rejected": formatted.rejected,
        "in a benchmark": formatted.contaminated,
        "left out for the weights": formatted.mixed_out,
    }
    counts["not accounted for"] = max(0, formatted.rows - sum(counts.values()))
    return composition({name: count for name, count in counts.items() if count or name == "kept"})


def lengths(profile: LengthProfile, limit: int | None = None) -> HistogramChart | None:
    """Place the histogram of a length profile."""
    marks = {"median": profile.median, "p95": profile.p95}
    return histogram(profile.histogram.edges, profile.histogram.counts, marks, limit)


def label_view(label: LabelBalance) -> LabelView:
    """Lay out the values of a field, most frequent first."""
    total = sum(label.counts.values()) + label.others
    placed = bars({name or "(empty)": float(n) for name, n in label.counts.items()}, total)
    return LabelView(
        field=label.field,
        first=placed[:FIRST_VALUES],
        rest=placed[FIRST_VALUES:],
        evenness=label.evenness,
        values=len(label.counts),
        others=label.others,
        missing=label.missing,
    )


def composition_view(name: str, counts: Mapping[str, Mapping[str, int]]) -> CompositionView:
    """Lay the values of a property end to end for every split."""
    laid = stacks({split: _by_place(parts) for split, parts in counts.items()})
    return CompositionView(name, tuple(part.label for part in laid[0].parts) if laid else (), laid)


def _by_place(parts: Mapping[str, int]) -> dict[str, int]:
    # Rows may be told apart by the address they come from.
    return {redacted(name): count for name, count in parts.items()}


def pair(dropped: str, kept: str) -> Pair:
    """Split two similar texts into what they share and what they do not."""
    one, other = _pieces(dropped), _pieces(kept)
    matcher = difflib.SequenceMatcher(None, one, other, autojunk=False)
    left, right = [], []
    for tag, a, b, c, d in matcher.get_opcodes():
        left.append(Piece("".join(one[a:b]), tag != "equal"))
        right.append(Piece("".join(other[c:d]), tag != "equal"))
    return Pair(_told(left), _told(right))


def _pieces(text: str) -> list[str]:
    cut = text if len(text) <= LONGEST_TEXT else text[:LONGEST_TEXT] + "…"
    return PIECE.findall(cut)


def _told(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    return tuple(piece for piece in pieces if piece.text)
