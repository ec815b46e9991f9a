"""Find personal data and secrets in many texts at once, and take them out."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from core.data.config import PiiConfig
from core.data.quality.credentials import credential_detectors
from core.data.quality.detectors import Detector
from core.data.quality.identities import identity_detectors
from core.data.quality.phones import phone_detectors
from core.data.reports import PiiExample, PiiReport
from core.errors import ConfigError

_EXAMPLES = 10
_CONTEXT = 30
_ROUNDS = 8
_OPEN, _CLOSE = "\ue000", "\ue001"
"""Private characters that mark candidates; in a text they become question marks first."""
Replacement = tuple[int, int, str, str]
"""Start, end, kind and tag."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TAG: Final = re.compile(r"\[(?:EMAIL|PHONE|CARD|IBAN|API_KEY|PRIVATE_KEY|PASSWORD|ID:[A-Za-z0-9_-]+)\]")

# What every text is looked through for; only texts with a hit meet the detectors.
_HINTS: Final = (
    r"[^\s@]@[^\s@]+\.\pL\pL",
    r"\d(?:[ ()./-]{0,2}\d){8}",
    r"\b[A-Z]{2}\d{2}[ -]?[A-Z0-9]{2}",
    r"\b[A-Z]{2} ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b",
    r"AKIA|ASIA|AROA|AIDA|ABIA|ACCA|gh[pousr]_|github_pat_|glpat-|xox[abeoprs]-|AIza|ya29|sk-|[srp]k_|whsec_|hf_"
    r"|npm_|SG\.|eyJ|hooks\.slack|PRIVATE KEY",
    r"(?i:pass|pwd|senha|contrase|mot de|api[_ -]?key|secret|token|private|access|credential)[^:=\n]{0,40}[:=]",
)


@dataclass(frozen=True)
class Finding:
    """One thing to be replaced."""

    kind: str
    start: int
    """Where its tag starts in the redacted text."""
    end: int


@dataclass(frozen=True)
class Scanned:
    """A text with something in it."""

    text: str
    """The text after redaction."""
    findings: tuple[Finding, ...]

    def replacements(self) -> list[Replacement]:
        """Return the findings as replacements of themselves, to keep count of them in a later round."""
        return [(each.start, each.end, each.kind, self.text[each.start : each.end]) for each in self.findings]


@dataclass(frozen=True)
class Scanner:
    """Looks through texts with a set of detectors."""

    detectors: tuple[Detector, ...]
    hints: tuple[str, ...]

    @classmethod
    def of(cls, config: PiiConfig) -> Self:
        """Take what is built in and the patterns of the settings.

        Raises:
            ConfigError: A pattern of the settings cannot be used.
        """
        check_national_ids(config.national_ids)
        detectors = (*credential_detectors(), *identity_detectors(config.national_ids), *phone_detectors())
        return cls(detectors, ("|".join(f"(?:{hint})" for hint in _HINTS), *config.national_ids.values()))

    def scan(self, texts: pa.Array) -> dict[int, Scanned]:
        """Return the texts with findings, by place.

        Texts are looked through until nothing is found in what redaction leaves, so what is redacted
        once stays as it is.
        """
        places = self._suspects(texts)
        found: dict[int, Scanned] = {}
        suspects = dict(zip(places, texts.take(pa.array(places, pa.int64())).to_pylist(), strict=True))
        for _ in range(_ROUNDS):
            spans = self._replacements(suspects)
            for place, fresh in spans.items():
                earlier = found[place].replacements() if place in found else []
                found[place] = _redacted(suspects[place], sorted(fresh + earlier))
            suspects = {place: found[place].text for place in spans}
            if not suspects:
                break
        return found

    def redact(self, texts: Sequence[str]) -> list[str]:
        """Return texts with every finding replaced by its tag."""
        cleaned = list(texts)
        for place, scanned in self.scan(pa.array(cleaned, pa.large_string())).items():
            cleaned[place] = scanned.text
        return cleaned

    def _suspects(self, texts: pa.Array) -> list[int]:
        hit = np.zeros(len(texts), np.bool_)
        for hint in self.hints:
            hit |= pc.match_substring_regex(texts, hint).to_numpy(zero_copy_only=False)
        places: list[int] = np.flatnonzero(hit).tolist()
        return places

    def _replacements(self, suspects: Mapping[int, str]) -> dict[int, list[Replacement]]:
        """Return what to replace, by place of the text, without overlaps."""
        places, texts = list(suspects), [_unmarked(text) for text in suspects.values()]
        column = pa.array(texts, pa.large_string())
        found: dict[int, list[Replacement]] = {}
        for detector in self.detectors:
            for number, candidates in _candidates(column, detector.pattern):
                spans = (detector.confirm(texts[number], *candidate) for candidate in candidates)
                confirmed = [(*span, detector.kind, detector.tag) for span in chain.from_iterable(spans)]
                found.setdefault(number, []).extend(confirmed)
        kept = {places[number]: _apart(spans, texts[number]) for number, spans in found.items()}
        return {place: spans for place, spans in kept.items() if spans}


@dataclass(frozen=True)
class Pii:
    """Findings in some rows."""

    rows: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    examples: Mapping[str, tuple[tuple[int, PiiExample], ...]] = field(default_factory=dict)
    """Some examples of each kind, by the number of their row."""

    @classmethod
    def of(cls, found: Mapping[int, Scanned], ordinals: Sequence[int], origins: Sequence[str]) -> Self:
        """Count findings.

        Args:
            found: Texts with findings, by place.
            ordinals: Number of each row in the whole, by place.
            origins: file:line of each row, by place.
        """
        counts: Counter[str] = Counter()
        examples: dict[str, list[tuple[int, PiiExample]]] = {}
        for place in sorted(found):
            kinds = {finding.kind: finding for finding in reversed(found[place].findings)}
            counts.update(finding.kind for finding in found[place].findings)
            for kind, finding in kinds.items():
                shown = examples.setdefault(kind, [])
                if len(shown) < _EXAMPLES:
                    preview = _preview(found[place].text, finding)
                    example = PiiExample(kind=kind, origin=origins[place], preview=preview)
                    shown.append((int(ordinals[place]), example))
        return cls(len(found), counts, {kind: tuple(shown) for kind, shown in examples.items()})

    def merged(self, other: Self) -> Self:
        """Return the findings of both."""
        examples = {
            kind: _first(self.examples.get(kind, ()) + other.examples.get(kind, ()))
            for kind in self.examples.keys() | other.examples.keys()
        }
        return type(self)(self.rows + other.rows, self.counts + other.counts, examples)

    def report(self, action: str) -> PiiReport:
        """Return what was found, for people and gates.

        Args:
            action: report, redact or off.
        """
        return PiiReport(
            looked=action != "off",
            redacted=action == "redact",
            rows=self.rows,
            findings=dict(sorted(self.counts.items())),
            examples=self._shown(),
        )

    def _shown(self) -> tuple[PiiExample, ...]:
        # The first of every kind, then the second: a thousand e-mails must not hide the one password.
        rounds = [
            (turn, kind, example)
            for kind, examples in self.examples.items()
            for turn, (_, example) in enumerate(examples)
        ]
        ranked = sorted(rounds, key=lambda entry: entry[:2])
        return tuple(example for _, _, example in ranked[:_EXAMPLES])


def check_national_ids(patterns: Mapping[str, str]) -> None:
    """Make sure that patterns of the settings can be used.

    Args:
        patterns: Regular expressions in RE2 syntax, by name.

    Raises:
        ConfigError: A name or pattern is unusable; the message names its key.
    """
    for name, pattern in patterns.items():
        where = f"quality.pii.national_ids.{name}"
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be shown as [ID:{name[:20]}]",
                where=where,
                fix="use letters, digits, - and _",
            )
        try:
            matches_nothing = pc.match_substring_regex(pa.array([""]), pattern)[0].as_py()
        except pa.ArrowInvalid as error:
            reason = str(error).removeprefix("Invalid regular expression: ")
            raise ConfigError(
                f"{pattern!r} is no regular expression in RE2 syntax: {reason}",
                where=where,
                fix="correct it; RE2 has no lookaround and no back-references",
            ) from None
        if matches_nothing:
            raise ConfigError(
                f"{pattern!r} matches the empty text", where=where, fix="let it need at least one character"
            )


def _unmarked(text: str) -> str:
    if _OPEN in text or _CLOSE in text:
        return text.replace(_OPEN, "?").replace(_CLOSE, "?")
    return text


def _candidates(texts: pa.Array, pattern: str) -> Iterable[tuple[int, list[tuple[int, int]]]]:
    """Yield the place of every text with candidates, and where they start and end."""
    hit = np.flatnonzero(pc.match_substring_regex(texts, pattern).to_numpy(zero_copy_only=False))
    if hit.size:
        marked = pc.replace_substring_regex(texts.take(pa.array(hit)), f"({pattern})", f"{_OPEN}\\1{_CLOSE}")
        for place, text in zip(hit.tolist(), marked.to_pylist(), strict=True):
            yield place, _marked_spans(text)


def _marked_spans(text: str) -> list[tuple[int, int]]:
    spans, place = [], 0
    before, *pieces = text.split(_OPEN)
    place = len(before)
    for piece in pieces:
        inside, _, after = piece.partition(_CLOSE)
        if inside:
            spans.append((place, place + len(inside)))
        place += len(inside) + len(after)
    return spans


def _apart(spans: list[Replacement], text: str) -> list[Replacement]:
    """Return spans that overlap neither each other nor a tag; the detector named first wins."""
    taken = np.zeros(len(text), np.bool_)
    for tag in _TAG.finditer(text):
        taken[tag.start() : tag.end()] = True
    kept = []
    for span in spans:
        place = slice(span[0], span[1])
        if span[0] < span[1] and not taken[place].any():
            taken[place] = True
            kept.append(span)
    return kept


def _redacted(text: str, spans: Sequence[Replacement]) -> Scanned:
    pieces, findings, done, length = [], [], 0, 0
    for start, end, kind, tag in spans:
        length += start - done
        findings.append(Finding(kind, length, length + len(tag)))
        pieces += [text[done:start], tag]
        length += len(tag)
        done = end
    return Scanned("".join([*pieces, text[done:]]), tuple(findings))


def _first(examples: tuple[tuple[int, PiiExample], ...]) -> tuple[tuple[int, PiiExample], ...]:
    return tuple(
        sorted(examples, key=lambda entry: (entry[0], entry[1].origin, entry[1].preview))[:_EXAMPLES]
    )


def _preview(text: str, finding: Finding) -> str:
    """Return a finding's surroundings, taken from the redacted text so that nothing else shows."""
    start, end = max(0, finding.start - _CONTEXT), finding.end + _CONTEXT
    before, after = text[start : finding.start], text[finding.end : end]
    shown = f"{'…' if start else ''}{before}{text[finding.start : finding.end]}{after}{'…' if end < len(text) else ''}"
    return " ".join(shown.split())
