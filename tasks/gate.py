"""Carry a verdict out: write it, track it, show it, and stop the run if it is closed."""

import getpass
import os
from collections.abc import Sequence
from datetime import UTC, datetime

from core.artifacts import write_json
from gates.thresholds import GatesConfig
from gates.verdict import Check, GateClosed, Verdict, Waiver
from tasks.context import RunContext, current
from tasks.events import GateRecord, GateStatus


def through(verdict: Verdict, advice: Sequence[str] = ()) -> GateRecord:
    """Record a verdict and pass, or stop.

    Gates are judged anew in every run; only phases are reused.

    Args:
        verdict: What the gate says.
        advice: What to change if it is closed.

    Returns:
        The record as written to ``gates/<name>.json``.

    Raises:
        GateClosed: If a check failed and nobody waived the gate.
    """
    context = current()
    waiver = find_waiver(context.gates, verdict)
    record = make_record(context, verdict, waiver, () if verdict.passed else tuple(advice))
    write_json(context.workspace.gate(verdict.gate), record)
    context.judged.append(record)
    context.tracker.gate(
        verdict.gate,
        record.status,
        observed((*verdict.tried, *verdict.checks)),
        waiver.reason if waiver else None,
    )
    context.watcher.judged(record, verdict)
    if record.status == "blocked":
        raise GateClosed(verdict)
    return record


def verdicts() -> list[str]:
    """Say in one line each what the gates of this run answered so far."""
    return [f"{record.gate} {record.status}: {record.summary}" for record in current().judged]


def find_waiver(gates: GatesConfig, verdict: Verdict) -> Waiver | None:
    """Return the waiver that applies: only to a closed gate, only by its name."""
    if verdict.passed:
        return None
    return next((waiver for waiver in gates.waivers if waiver.gate == verdict.gate), None)


def make_record(
    context: RunContext, verdict: Verdict, waiver: Waiver | None, hints: tuple[str, ...] = ()
) -> GateRecord:
    """Put a verdict, its evidence, its waiver and what may help into one record."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    status: GateStatus = "passed" if verdict.passed else "waived" if waiver else "blocked"
    return GateRecord(
        gate=verdict.gate,
        passed=verdict.passed,
        status=status,
        checks=tuple(check.model_dump(mode="json") for check in verdict.checks),
        tried=tuple(check.model_dump(mode="json") for check in verdict.tried),
        checked_at=now,
        summary=verdict.summary,
        evidence=dict(context.evidence),
        hints=hints,
        waiver={"reason": waiver.reason, "by": person(), "at": now} if waiver else None,
    )


def person() -> str:
    """Name who runs this, or their number where a container knows no names."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


def observed(checks: tuple[Check, ...]) -> dict[str, float]:
    """Pick the numbers of a verdict's checks, with their thresholds, for the tracker."""
    found: dict[str, float] = {}
    for check in checks:
        for suffix, value in (("", check.observed), (".threshold", check.threshold)):
            if isinstance(value, int | float) and not isinstance(value, bool):
                found[check.name.replace(" ", "_") + suffix] = float(value)
    return found
