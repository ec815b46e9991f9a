"""What a run tells whoever watches it: the terminal, a JSON stream, a test."""

from collections.abc import Mapping
from typing import Literal, Protocol

from core.config import Frozen
from gates.verdict import Verdict

PHASES = ("ingest", "format", "split", "baseline", "finetune", "evaluate", "quantize", "deploy")
"""The eight phases, in order."""

GateStatus = Literal["passed", "blocked", "waived"]
PhaseState = Literal["done", "reused", "failed"]


class GateRecord(Frozen):
    """A judged gate, as written to ``gates/<name>.json``."""

    gate: str
    passed: bool
    """True only if every check passed; a waived gate stays false."""
    status: GateStatus
    checks: tuple[dict[str, object], ...]
    checked_at: str
    summary: str
    tried: tuple[dict[str, object], ...] = ()
    """Comparisons of candidates that were not chosen; they decide nothing."""
    evidence: dict[str, str]
    """Digest of every file the verdict was drawn from, by path in the workspace."""
    hints: tuple[str, ...] = ()
    """What to change if it is closed; none for a gate that is open."""
    waiver: dict[str, str] | None = None
    """reason, by, at."""


class Watcher(Protocol):
    """Hears what happens, as it happens."""

    def phase_started(self, phase: str) -> None:
        """A phase begins to work."""
        ...

    def phase_finished(self, phase: str, state: PhaseState, seconds: float, note: str) -> None:
        """A phase ended: state is done, reused or failed."""
        ...

    def advanced(self, phase: str, done: int, total: int, note: str) -> None:
        """A phase got further."""
        ...

    def noted(self, phase: str, note: str) -> None:
        """Something is to be said beside a phase that has ended."""
        ...

    def measured(self, phase: str, step: int, metrics: Mapping[str, float]) -> None:
        """Training logged a step."""
        ...

    def judged(self, record: GateRecord, verdict: Verdict) -> None:
        """A gate gave its verdict."""
        ...
