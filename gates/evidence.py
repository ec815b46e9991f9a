"""Questions that several gates ask of their reports before they compare numbers."""

import math
from collections.abc import Sequence
from typing import TypeVar

from pydantic import ValidationError

from core.config import Frozen
from core.evaluation.reports import LOWER_IS_BETTER, EvalReport
from gates.verdict import Check, at_least, at_most, equals, is_true, near

R = TypeVar("R", bound=Frozen)

MEGABYTE = 1_000_000


def whole(label: str, report: R | None, kind: type[R]) -> tuple[R | None, Check]:
    """Accept a report only if it is there, complete, and all its numbers are finite.

    A report can be built around its own validation, and a file can be edited. So its content is
    validated again, and what the gate goes on with is the validated copy.

    Args:
        label: Whose report it is, for the check's name.
        report: The report, or None if the phase left none.
        kind: The model it must satisfy.

    Returns:
        The validated copy, or None if the gate must close, and the check that says so.
    """
    name = f"{label} report"
    if report is None:
        return None, equals(name, "missing", "complete")
    if not isinstance(report, kind):
        return None, equals(name, "malformed", "complete", f"it is no {kind.__name__}")
    try:
        valid = kind.model_validate(report.model_dump(warnings=False))
    except ValidationError as error:
        return None, equals(name, "malformed", "complete", _faults(error))
    return valid, equals(name, "complete", "complete")


def honest(label: str, report: EvalReport) -> list[Check]:
    """Check that an evaluation's summary follows from its own examples.

    Args:
        label: The arm the report must be of, which also names the checks.
        report: A validated report.
    """
    entry = report.metrics.get(report.metric)
    return [
        equals(f"{label} arm", report.arm, label),
        at_least(f"{label} examples", report.n, 1),
        equals(f"{label} ids", len(set(report.ids)), report.n, "distinct ids against examples"),
        equals(f"{label} ids listed", len(report.ids), report.n),
        near(f"{label} metrics entry", entry.value if entry else None, report.value),
        *adds_up(label, report, report.metric, report.value),
        at_least(f"{label} resamples", report.resamples, 1000),
        at_least(f"{label} confidence", report.confidence, 0.5),
        at_most(f"{label} confidence below certainty", report.confidence, 1),
    ]


def adds_up(label: str, report: EvalReport, metric: str, value: float | None) -> list[Check]:
    """Check that a metric's value follows from one score per example.

    Args:
        label: Names the checks.
        report: A validated report.
        metric: The metric.
        value: What is said to be its value; None if nothing is.
    """
    scores = report.scores.get(metric, ())
    return [
        equals(f"{label} scores", len(scores), report.n),
        # Gains are shares of a score: below zero they would change sign.
        at_least(f"{label} lowest score", min(scores, default=None), 0),
        *(
            _of_tokens(label, report, metric, value)
            if metric in LOWER_IS_BETTER
            else _of_shares(label, scores, value)
        ),
    ]


def _of_shares(label: str, scores: Sequence[float], value: float | None) -> list[Check]:
    return [
        near(f"{label} value", value, _mean(scores), "reported against the mean of its scores"),
        at_most(f"{label} highest score", max(scores, default=None), 1),
    ]


def _of_tokens(label: str, report: EvalReport, metric: str, value: float | None) -> list[Check]:
    """Check a perplexity: the exponential of a mean over tokens, so long answers count for more."""
    scores, tokens = report.scores.get(metric, ()), report.weights.get(metric, ())
    told = math.log(value) if value is not None and value > 0 else None
    # Compared as logarithms: rounding grows with a perplexity, not with a mean loss.
    return [
        equals(f"{label} token counts", len(tokens), len(scores)),
        at_least(f"{label} fewest tokens", min(tokens, default=None), 1),
        near(f"{label} value", told, _weighted(scores, tokens), "its logarithm, against the mean loss"),
    ]


def comparable(label: str, report: EvalReport, reference: EvalReport) -> list[Check]:
    """Check that two evaluations asked the same questions in the same way.

    Prompt digests are left to the caller: a GGUF file's own tokenizer is compared prompt by prompt.

    Args:
        label: Names the checks.
        report: A validated report.
        reference: The validated report it is held against.
    """
    mine, theirs = report.decoding, reference.decoding
    return [
        equals(f"{label} metric", report.metric, reference.metric),
        equals(f"{label} test file", report.split_digest, reference.split_digest),
        equals(f"{label} number of examples", report.n, reference.n),
        is_true(
            f"{label} same examples in order", report.ids == reference.ids, _first_gap(report, reference)
        ),
        equals(f"{label} decoding strategy", mine.strategy, theirs.strategy),
        equals(f"{label} max_new_tokens", mine.max_new_tokens, theirs.max_new_tokens),
        equals(f"{label} interval confidence", report.confidence, reference.confidence),
    ]


def all_hold(checks: Sequence[Check]) -> bool:
    """Tell whether numbers built on these checks mean anything."""
    return all(check.passed for check in checks)


def _mean(scores: Sequence[float]) -> float | None:
    return math.fsum(scores) / len(scores) if scores else None


def _weighted(scores: Sequence[float], weights: Sequence[float]) -> float | None:
    total = math.fsum(weights)
    if len(scores) != len(weights) or total <= 0:
        return None
    return math.fsum(s * w for s, w in zip(scores, weights, strict=True)) / total


def _first_gap(report: EvalReport, reference: EvalReport) -> str:
    for place, (mine, theirs) in enumerate(zip(report.ids, reference.ids, strict=False)):
        if mine != theirs:
            return f"example {place} is {mine!r} here and {theirs!r} there"
    return ""


def _faults(error: ValidationError) -> str:
    faults = error.errors(include_url=False, include_context=False)
    told = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in faults[:3]]
    more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
    return "; ".join(told) + more
