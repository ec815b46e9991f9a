"""Look at rows part by part, in any process, and add up what was seen."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.data.config import QualityConfig
from core.data.quality.contamination import Benchmark, Overlap, fold
from core.data.quality.labels import Labels
from core.data.quality.languages import count_languages, in_sample
from core.data.quality.lengths import Lengths
from core.data.quality.markers import count_markers, marker_patterns
from core.data.quality.pii import Pii, Scanner, check_national_ids
from core.data.quality.scripts import count_scripts, mixed_words
from core.data.quality.words import Words, ended, pieces
from core.data.reports import QualityReport

_EXAMPLES = 10

Ordinals = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prepared:
    """What inspecting needs, ready to travel to worker processes."""

    config: QualityConfig
    scanner: Scanner
    benchmark: Benchmark | None
    markers: Mapping[str, str]
    total_rows: int

    @property
    def looks_for_pii(self) -> bool:
        """Whether the settings want personal data to be found."""
        return self.config.pii.action != "off"

    @property
    def removes_contaminated(self) -> bool:
        """Whether rows that share a sequence with a benchmark are taken out."""
        return self.benchmark is not None and self.config.contamination.action == "remove"


@dataclass(frozen=True)
class Findings:
    """What some rows look like.

    ``merged`` is associative, and what ``report`` returns depends on the rows alone: not on how they
    were divided into parts, nor on the order in which the parts are added up.
    """

    lengths: Lengths
    languages: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    markers: Counter[str] = field(default_factory=Counter)
    mixed_rows: int = 0
    mixed_examples: tuple[tuple[int, str], ...] = ()
    labels: Labels = field(default_factory=Labels)
    pii: Pii = field(default_factory=Pii)
    overlap: Overlap = field(default_factory=Overlap)

    @property
    def contaminated(self) -> Ordinals:
        """Numbers of the rows that share a sequence with a benchmark, rising."""
        return self.overlap.rows

    def merged(self, other: Self) -> Self:
        """Return the findings of both."""
        return type(self)(
            lengths=self.lengths.merged(other.lengths),
            languages=self.languages + other.languages,
            scripts=self.scripts + other.scripts,
            markers=self.markers + other.markers,
            mixed_rows=self.mixed_rows + other.mixed_rows,
            mixed_examples=tuple(sorted({*self.mixed_examples, *other.mixed_examples})[:_EXAMPLES]),
            labels=self.labels.merged(other.labels),
            pii=self.pii.merged(other.pii),
            overlap=self.overlap.merged(other.overlap),
        )

    def report(self, prepared: Prepared, changed_by_normalisation: int = 0) -> QualityReport:
        """Return what was found, for people and gates.

        Args:
            prepared: What the rows were inspected with.
            changed_by_normalisation: Rows that normalisation changed.
        """
        config, benchmark = prepared.config, prepared.benchmark
        expected = {*config.languages, "und"} if config.languages else set(self.languages)
        return QualityReport(
            words=self.lengths.profile("words"),
            languages=_ranked(self.languages),
            language_sample=self.languages.total(),
            unexpected_languages=sum(n for code, n in self.languages.items() if code not in expected),
            scripts=_ranked(self.scripts),
            markers={name: self.markers[name] for name in config.markers},
            mixed_script_rows=self.mixed_rows,
            mixed_script_examples=tuple(text for _, text in self.mixed_examples),
            labels=self.labels.balances(),
            pii=self.pii.report(config.pii.action),
            contamination=benchmark.report(self.overlap, removes=prepared.removes_contaminated)
            if benchmark
            else None,
            changed_by_normalisation=changed_by_normalisation,
        )


def prepare(config: QualityConfig, benchmark_texts: Sequence[str] = (), total_rows: int = 0) -> Prepared:
    """Make ready what inspecting needs, once per run.

    Args:
        config: The settings.
        benchmark_texts: Items of the benchmark files.
        total_rows: Rows there will be, to decide how many of them the language is guessed for.

    Raises:
        ConfigError: A pattern of the settings cannot be used.
    """
    texts = benchmark_texts
    return Prepared(
        config,
        Scanner.of(config.pii),
        Benchmark.of(texts, config.contamination.ngram) if texts else None,
        marker_patterns(config.markers),
        total_rows,
    )


def check_patterns(config: QualityConfig) -> None:
    """Make sure that the patterns of the settings can be used.

    Raises:
        ConfigError: One cannot; the message names its key.
    """
    check_national_ids(config.pii.national_ids)


def redact(texts: Sequence[str], prepared: Prepared) -> list[str]:
    """Return texts with personal data and secrets replaced by [EMAIL], [PHONE] and so on.

    Redacting again changes nothing. Many texts in one call cost little more than one.
    """
    return prepared.scanner.redact(texts)


def inspect(
    texts: pa.Array,
    metadata: Sequence[Mapping[str, Any]],
    origins: Sequence[str],
    ordinals: Ordinals,
    prepared: Prepared,
    answers: Sequence[str] | None = None,
) -> Findings:
    """Look at a part of the rows.

    Args:
        texts: Whole rows before redaction, turns joined by line ends; strings without nulls.
        metadata: Fields of each row.
        origins: file:line of each row.
        ordinals: Number of each row in the whole, rising.
        prepared: What ``prepare`` returned.
        answers: Answer of each row, if answers may be labels.

    Returns:
        What was seen. If contaminated rows are taken out, only they count as contaminated, and
        all else is about the others.
    """
    overlap = prepared.benchmark.find(texts, ordinals, origins) if prepared.benchmark else Overlap()
    overlap = without_pii(overlap, prepared)
    if prepared.removes_contaminated and len(overlap.rows):
        keep = np.flatnonzero(~np.isin(ordinals, overlap.rows))
        places = keep.tolist()
        texts, ordinals = texts.take(pa.array(keep)), ordinals[keep]
        metadata, origins = [metadata[place] for place in places], [origins[place] for place in places]
        answers = None if answers is None else [answers[place] for place in places]
    seen = look_at(texts, origins, ordinals, prepared)
    return replace(
        seen,
        labels=Labels.of(metadata, prepared.config.balance_by, answers),
        pii=find_pii(texts, origins, ordinals, prepared),
        overlap=overlap,
    )


def without_pii(overlap: Overlap, prepared: Prepared) -> Overlap:
    """Return the same with examples that carry no row and no word which redaction would take out."""
    examples = overlap.examples
    if examples and prepared.looks_for_pii:
        # Folded words have lost the signs by which an address is known, so the row itself is redacted.
        kept = fold(pa.array(prepared.scanner.redact([each.row for each in examples]), pa.large_string()))
        examples = tuple(each._replace(words=_left(each.words, kept, n)) for n, each in enumerate(examples))
    return replace(overlap, examples=tuple(each._replace(row="") for each in examples))


def _left(phrase: str, kept: Words, row: int) -> str:
    left = {kept.text(word) for word in range(kept.rows[row], kept.rows[row + 1])}
    return " ".join(word if word in left else "…" for word in phrase.split())


def find_pii(texts: pa.Array, origins: Sequence[str], ordinals: Ordinals, prepared: Prepared) -> Pii:
    """Look for personal data and secrets, if the settings want that."""
    return (
        Pii.of(prepared.scanner.scan(texts), ordinals.tolist(), origins) if prepared.looks_for_pii else Pii()
    )


def look_at(texts: pa.Array, origins: Sequence[str], ordinals: Ordinals, prepared: Prepared) -> Findings:
    """Look at lengths, languages, scripts and markers."""
    lengths, scripts = [np.zeros(0, np.int64)], Counter[str]()
    mixed: dict[int, str] = {}
    for start, piece in pieces(texts):
        words = Words.of(*ended(piece))
        lengths.append(words.per_row())
        scripts.update(count_scripts(words))
        mixed.update((start + row, word) for row, word in mixed_words(words).items())
    return Findings(
        lengths=Lengths.of(np.concatenate(lengths)),
        languages=_languages(texts, ordinals, prepared.total_rows),
        scripts=scripts,
        markers=Counter(count_markers(texts, prepared.markers)),
        mixed_rows=len(mixed),
        mixed_examples=tuple(
            (int(ordinals[row]), f"{origins[row]}: {mixed[row]}") for row in _showable(texts, mixed, prepared)
        ),
    )


def _showable(texts: pa.Array, mixed: Mapping[int, str], prepared: Prepared) -> list[int]:
    """Return the first rows whose word is no piece of something personal."""
    first = sorted(mixed)[: 2 * _EXAMPLES]
    if prepared.looks_for_pii:
        shown = prepared.scanner.redact(texts.take(pa.array(first, pa.int64())).to_pylist())
        first = [row for row, text in zip(first, shown, strict=True) if mixed[row] in text]
    return first[:_EXAMPLES]


def _languages(texts: pa.Array, ordinals: Ordinals, total: int) -> Counter[str]:
    chosen = np.flatnonzero(in_sample(ordinals, total))
    starts = pc.utf8_slice_codeunits(texts.take(pa.array(chosen)), 0, 1000)
    return count_languages(starts.to_pylist())


def _ranked(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
