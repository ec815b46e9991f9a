"""Gather what a run left behind into the data of its report page."""

from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import yaml

from core.artifacts import read_jsonl, write_text
from core.config import Frozen
from core.evaluation.reports import LOWER_IS_BETTER, EvalReport
from gates.verdict import GATE_NAMES
from tasks.addresses import without_secrets
from tasks.context import RunContext
from tasks.events import PHASES, GateRecord
from tasks.report.page import AnswerRow, CheckView, CurvePoint, GateView, PhaseView, ReportData, render_report
from tasks.test_uses import TestUses, count_uses

PACKAGES = ("torch", "transformers", "peft", "llama-cpp-python", "prefect", "mlflow")


Status = Literal["passed", "partial", "blocked", "failed"]


class Ending(Frozen):
    """How a run ended."""

    status: Status
    error: str | None
    started_at: str
    seconds: float


def write_report(context: RunContext, settings: Frozen, ending: Ending) -> Path:
    """Write ``report.html`` of a run, however it ended."""
    page = render_report(gather(context, settings, ending))
    return write_text(context.workspace.report, page)


def gather(context: RunContext, settings: Frozen, ending: Ending) -> ReportData:
    """Read what the phases of this run reported; phases it never reached stay empty."""
    blocked_at = context.judged[-1].gate if ending.status == "blocked" else None
    reports: dict[str, Any] = context.reports
    return ReportData(
        name=context.name,
        status=ending.status,
        headline=headline(context, ending),
        blocked_at=blocked_at,
        error=ending.error if ending.status == "failed" else None,
        started_at=ending.started_at,
        seconds=ending.seconds,
        config_text=yaml.safe_dump(
            without_secrets(settings.model_dump(mode="json")), sort_keys=False, allow_unicode=True
        ),
        gates=gate_views(context.judged),
        phases=tuple(phase_views(context)),
        ingest=reports.get("ingest"),
        formatted=reports.get("format"),
        split=reports.get("split"),
        learning=reports.get("learning"),
        test_uses=test_uses(context),
        training=reports.get("finetune"),
        curve=curve(context),
        baseline=reports.get("baseline"),
        compared=compared.arm if (compared := reports.get("compared")) else None,
        tuned=reports.get("evaluate"),
        quantized=reports.get("quantize"),
        shipped=shipped_digest(context),
        answers=tuple(answers(context)),
        bundle=reports.get("deploy"),
        links={"MLflow run": context.tracker.link},
        versions={name: found for name in PACKAGES if (found := _installed(name))},
    )


def headline(context: RunContext, ending: Ending) -> str:
    """Say the outcome in one sentence."""
    match ending.status:
        case "passed" if any(record.status == "waived" for record in context.judged):
            waived = ", ".join(record.gate for record in context.judged if record.status == "waived")
            return f"Released with a waiver for {waived}; every other gate is open."
        case "passed":
            return "Every gate is open: the model is bundled, registered and ready to serve."
        case "blocked":
            return f"Stopped at {context.judged[-1].gate}: the model has not earned the next step."
        case "partial":
            return f"Stopped as asked after {context.until}; the gates so far are open."
    return "The run failed; run the same command again to continue where it stopped."


def gate_views(judged: list[GateRecord]) -> tuple[GateView, ...]:
    """Lay out all five gates, judged or not."""
    known = {record.gate: record for record in judged}
    return tuple(_gate_view(name, known.get(name)) for name in GATE_NAMES)


def _gate_view(name: str, record: GateRecord | None) -> GateView:
    if record is None:
        return GateView(gate=name, status="not judged")
    return GateView(
        gate=name,
        status=record.status,
        checks=tuple(CheckView.model_validate(check) for check in record.checks),
        tried=tuple(CheckView.model_validate(check) for check in record.tried),
        waiver_reason=record.waiver["reason"] if record.waiver else None,
        hints=record.hints,
        checked_at=record.checked_at,
    )


def phase_views(context: RunContext) -> Iterator[PhaseView]:
    """Lay out all eight phases, reached or not."""
    known = {name: (state, seconds, note) for name, state, seconds, note in context.timings}
    for name in PHASES:
        if name in known:
            state, seconds, note = known[name]
            yield PhaseView(name=name, state=state, seconds=seconds, note=note)
        else:
            yield PhaseView(name=name, state="not started")


def test_uses(context: RunContext) -> TestUses | None:
    """Count how often the test set was used by all runs of this home."""
    split: Any = context.reports.get("split")
    if context.test_uses is None or split is None:
        return None
    return count_uses(context.test_uses, split.digests["test"])


def curve(context: RunContext) -> tuple[CurvePoint, ...]:
    """Read the loss of every step, if this run has trained or reused training."""
    if "finetune" not in context.reports:
        return ()
    return tuple(
        CurvePoint(step=row["step"], loss=row["loss"]) for row in read_jsonl(context.workspace.curve)
    )


def answers(context: RunContext) -> Iterator[AnswerRow]:
    """Join the answers of base, tuned model and shipped file, question by question."""
    baseline = _rows(context, "compared", "baseline")
    tuned = _rows(context, "evaluate", "evaluation")
    shipped = _rows(context, "quantize", f"quantization-{_shipped_type(context)}")
    asked, graded = baseline or tuned, context.reports.get("compared")
    for key, row in asked.items():
        before, after, small = baseline.get(key), tuned.get(key), shipped.get(key)
        yield AnswerRow(
            id=key,
            question=row["question"],
            reference=row["reference"],
            topic=_topic(row),
            baseline=before["answer"] if before else None,
            tuned=after["answer"] if after else None,
            shipped=small["answer"] if small else None,
            baseline_scores=_scores(graded, before),
            tuned_scores=_scores(graded, after),
            shipped_scores=_scores(graded, small),
        )


def shipped_digest(context: RunContext) -> str | None:
    """Return the digest of the file that ships; None where its gate stopped the run, or was not reached."""
    chosen: Any = context.reports.get("shipped")
    gate = next((record for record in context.judged if record.gate == "quantization-verified"), None)
    return str(chosen.digest) if chosen and gate and gate.status != "blocked" else None


def _shipped_type(context: RunContext) -> str:
    chosen: Any = context.reports.get("shipped")
    return str(chosen.type) if chosen else "none"


def _rows(context: RunContext, phase: str, stem: str) -> dict[str, dict[str, Any]]:
    if phase not in context.reports:
        return {}
    return {row["id"]: row for row in read_jsonl(context.workspace.metrics / f"{stem}-answers.jsonl")}


def _topic(row: dict[str, Any]) -> str | None:
    topic = row["metadata"].get("topic")
    return None if topic is None else str(topic)


def _scores(report: Any, row: dict[str, Any] | None) -> dict[str, float]:
    """Pick the scores that lie between 0 and 1, the primary one first."""
    if not isinstance(report, EvalReport) or row is None:
        return {}
    names = sorted(report.metrics, key=lambda name: name != report.metric)
    return {name: row[name] for name in names if name in row and name not in LOWER_IS_BETTER}


def _installed(name: str) -> str | None:
    """Return a package's version; a run that stops before quantizing needs no llama.cpp."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
