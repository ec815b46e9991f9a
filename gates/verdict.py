"""What a gate answers: checks, a verdict, and the exception of a closed gate.

Every helper that builds a check fails it when the observed value is missing or not a finite
number: an absent measurement is not evidence.
"""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal, Self, TypeAlias, get_args

from pydantic import StringConstraints, model_validator

from core.config import Frozen

GateName = Literal[
    "dataset-validated",
    "baseline-established",
    "model-performance",
    "quantization-verified",
    "deployment-ready",
]
GATE_NAMES: tuple[GateName, ...] = get_args(GateName)

Value: TypeAlias = float | int | str | bool | None

ROUNDING = 1e-9
"""Slack of number comparisons: (0.6 - 0.5) / 0.5 must count as 0.2."""


class Check(Frozen):
    """One comparison, with both sides in plain sight."""

    name: str
    observed: Value
    """What the report says; a non-finite number is written as text, so it survives JSON."""
    threshold: Value
    """What it was held against."""
    comparison: str
    """How: >=, <=, >, <, ==, !=."""
    passed: bool
    detail: str = ""
    """What helps a person understand the numbers."""
    is_limit: bool = False
    """The threshold is one that the run config sets; the other checks ask whether evidence is sound."""


class Verdict(Frozen):
    """A gate's answer. It is open only if there is evidence and all of it holds."""

    gate: GateName
    passed: bool
    checks: tuple[Check, ...]
    tried: tuple[Check, ...] = ()
    """Comparisons of candidates that were not chosen: on record, but they decide nothing."""

    @model_validator(mode="after")
    def _follows_from_checks(self) -> Self:
        if not self.checks:
            raise ValueError("a verdict needs at least one check")
        if self.passed != all(check.passed for check in self.checks):
            raise ValueError("passed contradicts the checks")
        return self

    @classmethod
    def of(cls, gate: GateName, checks: Sequence[Check], tried: Sequence[Check] = ()) -> Self:
        """Judge checks: the gate is open only if every one of them passed; ``tried`` is put on record."""
        passed = all(check.passed for check in checks)
        return cls(gate=gate, passed=passed, checks=tuple(checks), tried=tuple(tried))

    @property
    def failed(self) -> tuple[Check, ...]:
        """Checks that did not hold."""
        return tuple(check for check in self.checks if not check.passed)

    @property
    def summary(self) -> str:
        """One line that names every failed check with its numbers."""
        if self.passed:
            return f"{self.gate}: passed, {len(self.checks)} checks"
        return f"{self.gate}: " + "; ".join(_against(check) for check in self.failed)


class Waiver(Frozen):
    """A person's decision to go on past one closed gate. It alters no check."""

    gate: GateName
    """The gate to pass although it is closed."""
    reason: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    """Why; recorded beside the verdict."""


class GateClosed(Exception):
    """Stops a run at a gate. The verdict says why."""

    def __init__(self, verdict: Verdict) -> None:
        """Keep the verdict; as the only argument, so the exception survives pickling."""
        super().__init__(verdict)
        self.verdict = verdict

    def __str__(self) -> str:
        """Give the verdict's one line."""
        return self.verdict.summary


def at_least(name: str, observed: Value, threshold: Value, detail: str = "") -> Check:
    """Check observed >= threshold."""
    return _ordered(name, observed, ">=", threshold, detail, lambda o, t: o >= t - ROUNDING)


def at_most(name: str, observed: Value, threshold: Value, detail: str = "") -> Check:
    """Check observed <= threshold."""
    return _ordered(name, observed, "<=", threshold, detail, lambda o, t: o <= t + ROUNDING)


def above(name: str, observed: Value, threshold: Value, detail: str = "") -> Check:
    """Check observed > threshold, strictly."""
    return _ordered(name, observed, ">", threshold, detail, lambda o, t: o > t)


def below(name: str, observed: Value, threshold: Value, detail: str = "") -> Check:
    """Check observed < threshold, strictly."""
    return _ordered(name, observed, "<", threshold, detail, lambda o, t: o < t)


def near(name: str, observed: Value, threshold: Value, detail: str = "") -> Check:
    """Check that two numbers are the same but for the rounding of a sum."""
    return _ordered(name, observed, "==", threshold, detail, lambda o, t: abs(o - t) <= 1e-6)


def equals(name: str, observed: Value, threshold: Value, detail: str = "") -> Check:
    """Check that two values are equal, of one type, and say something: blanks equal nothing."""
    known = _says_something(observed) and _says_something(threshold)
    same = type(observed) is type(threshold) and observed == threshold
    return _check(name, observed, "==", threshold, detail, known and same)


def differs(name: str, observed: Value, other: Value, detail: str = "") -> Check:
    """Check that two values are known and not the same."""
    known = _says_something(observed) and _says_something(other)
    return _check(name, observed, "!=", other, detail, known and observed != other)


def limit(check: Check) -> Check:
    """Mark a check whose threshold the run config sets, so that summaries can lead with it."""
    return check.model_copy(update={"is_limit": True})


def is_true(name: str, observed: Value, detail: str = "") -> Check:
    """Check that a value is True itself; what merely counts as true does not do."""
    return _check(name, observed, "==", True, detail, observed is True)


def _ordered(
    name: str,
    observed: Value,
    comparison: str,
    threshold: Value,
    detail: str,
    holds: Callable[[float, float], bool],
) -> Check:
    left, right = _number(observed), _number(threshold)
    passed = left is not None and right is not None and holds(left, right)
    return _check(name, observed, comparison, threshold, detail, passed)


def _check(name: str, observed: Value, comparison: str, threshold: Value, detail: str, passed: bool) -> Check:
    return Check(
        name=name,
        observed=_safe(observed),
        threshold=_safe(threshold),
        comparison=comparison,
        passed=passed,
        detail=detail,
    )


def _number(value: Value) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if isinstance(value, int) or math.isfinite(value) else None


def _says_something(value: Value) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, bool) or _number(value) is not None


def _safe(value: Value) -> Value:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _against(check: Check) -> str:
    left, right = _short(check.observed), _short(check.threshold)
    if left == right:
        # Rounded to the same text, they would look as if the check had held.
        left, right = str(check.observed), str(check.threshold)
    return f"{check.name} {left} against {right}"


def _short(value: Value) -> str:
    if value is None:
        return "missing"
    if isinstance(value, float):
        return f"{value:.3f}"
    text = str(value)
    return text[:19] if text.startswith("sha256:") else text[:60]
