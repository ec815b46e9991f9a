"""Everything a finished, blocked or failed run has to say, as one HTML file.

Rows, answers and reasons are other people's text: the template escapes every value, and the
page's own content security policy lets nothing run or load but the style and script it
brings, which it names by their digests.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from core.config import Frozen
from core.data.learning_reports import LearnReport
from core.data.reports import FormatReport, IngestReport, SplitReport
from core.deployment.reports import BundleReport
from core.evaluation.reports import EvalReport
from core.quantization.reports import QuantReport
from core.training.reports import TrainReport
from gates.thresholds import GatesConfig
from gates.verdict import GATE_NAMES, Value
from tasks.report import charts
from tasks.report.answers import FILTERS, flip_rows, topic_rows
from tasks.report.answers import AnswerRow as AnswerRow
from tasks.report.answers import Flips as Flips
from tasks.report.answers import flips as flips
from tasks.report.data_view import DataReports, data_view
from tasks.report.learning_view import learning_view
from tasks.report.rendering import environment
from tasks.test_uses import TestUses

FIRST_ROWS = 200
"""Answers shown before someone asks for all of them."""


class CheckView(Frozen):
    """One comparison of a gate."""

    name: str
    observed: Value
    threshold: Value
    comparison: str
    passed: bool
    detail: str = ""
    is_limit: bool = False


class GateView(Frozen):
    """One gate, judged or not."""

    gate: str
    status: Literal["passed", "blocked", "waived", "not judged"]
    checks: tuple[CheckView, ...] = ()
    waiver_reason: str | None = None
    checked_at: str | None = None

    @property
    def failing(self) -> tuple[CheckView, ...]:
        """Checks that did not hold; a waiver changes none of them."""
        return tuple(check for check in self.checks if not check.passed)


class PhaseView(Frozen):
    """One phase and what became of it."""

    name: str
    state: Literal["done", "reused", "blocked", "not started", "failed"]
    seconds: float = 0.0
    note: str = ""


class CurvePoint(Frozen):
    """Training loss at one logged step."""

    step: int
    loss: float
    learning_rate: float | None = None


class ReportData(Frozen):
    """All a run knows about itself; what it never reached is None or empty."""

    name: str
    status: Literal["passed", "blocked", "failed", "partial"]
    headline: str
    """The outcome in one sentence."""
    started_at: str
    """ISO time."""
    seconds: float
    config_text: str
    """The resolved config, as YAML."""
    blocked_at: str | None = None
    """Gate that stopped the run."""
    error: str | None = None
    """What made the run fail."""
    gates: tuple[GateView, ...] = ()
    phases: tuple[PhaseView, ...] = ()
    ingest: IngestReport | None = None
    formatted: FormatReport | None = None
    split: SplitReport | None = None
    learning: LearnReport | None = None
    test_uses: TestUses | None = None
    training: TrainReport | None = None
    curve: tuple[CurvePoint, ...] = ()
    baseline: EvalReport | None = None
    tuned: EvalReport | None = None
    quantized: QuantReport | None = None
    answers: tuple[AnswerRow, ...] = ()
    bundle: BundleReport | None = None
    links: dict[str, str] = {}
    """Address of the run in other tools, by the tool's name."""
    versions: dict[str, str] = {}

    @property
    def arms(self) -> tuple[EvalReport, ...]:
        """Evaluations there are: the base model, the tuned one, each quantized file."""
        files = self.quantized.files if self.quantized else ()
        return tuple(e for e in (self.baseline, self.tuned, *(f.evaluation for f in files)) if e is not None)


class ThresholdRow(NamedTuple):
    """A setting of a gate, as it is written after ``-o``."""

    key: str
    default: Value
    meaning: str


def threshold_rows(gate: str) -> tuple[ThresholdRow, ...]:
    """List the settings of a gate with their meaning, for whoever wants to change one."""
    block = gate.replace("-", "_")
    if gate not in GATE_NAMES:
        return ()
    thresholds = getattr(GatesConfig(), block)
    return tuple(
        ThresholdRow(
            key=f"gates.{block}.{name}",
            default=getattr(thresholds, name),
            meaning=" ".join((field.description or "").split()),
        )
        for name, field in type(thresholds).model_fields.items()
    )


def likely_threshold(settings: Sequence[ThresholdRow], failing: Sequence[CheckView]) -> str | None:
    """Guess which setting a person would change: one equal to a failed check's threshold, or any number."""
    numeric = [
        row for row in settings if isinstance(row.default, int | float) and not isinstance(row.default, bool)
    ]
    sides = [check.threshold for check in failing if isinstance(check.threshold, int | float)]
    held = [row.key for row in numeric if row.default in sides]
    return next(iter([*held, *(row.key for row in numeric)]), None)


def digest_rows(data: ReportData) -> tuple[tuple[str, str], ...]:
    """List what the run's bytes hash to, by what they are; equal prompts of all models are one line."""
    rows = [("Base model", data.baseline.model_digest)] if data.baseline else []
    if data.training:
        made = data.training
        rows = [
            ("Base model", made.base_digest),
            ("Training file", made.train_digest),
            ("Adapter", made.adapter_digest),
            ("Merged model", made.merged_digest),
        ]
    rows += [(f"Split {name}", digest) for name, digest in (data.split.digests if data.split else {}).items()]
    prompts = {arm.arm: arm.decoding.prompt_digest for arm in data.arms}
    if len(set(prompts.values())) == 1:
        prompts = {"all models": next(iter(prompts.values()))}
    rows += [(f"Prompts, {name}", digest) for name, digest in prompts.items()]
    rows += [(f"File {file.type}", file.digest) for file in (data.quantized.files if data.quantized else ())]
    return tuple(rows)


def all_gates(judged: Sequence[GateView]) -> tuple[GateView, ...]:
    """Return the five gates in order, with those that nobody judged marked so."""
    known = {gate.gate: gate for gate in judged}
    missing = [name for name in GATE_NAMES if name not in known]
    filled = known | {name: GateView(gate=name, status="not judged") for name in missing}
    extra = [name for name in known if name not in GATE_NAMES]
    return tuple(filled[name] for name in (*GATE_NAMES, *extra))


def render_report(data: ReportData) -> str:
    """Write the page.

    Args:
        data: What the run left behind; every part of it may be missing.

    Returns:
        A complete HTML document that loads nothing from anywhere.
    """
    page = environment().get_template("template.html.jinja")
    rows = flip_rows(data.answers)
    return page.render(
        data=data,
        scores=charts.interval_chart([_whisker(arm) for arm in data.arms]),
        metrics=tuple(dict.fromkeys(name for arm in data.arms for name in arm.metrics)),
        topics=topic_rows(data.answers),
        rows=rows,
        filters=[(kind, title, sum(kind in r.kinds for r in rows)) for kind, title in FILTERS.items()],
        first_rows=FIRST_ROWS,
        digests=digest_rows(data),
        view=data_view(DataReports(data.ingest, data.formatted, data.split, data.learning, data.test_uses)),
        learn=learning_view(data.learning) if data.learning else None,
        **_gate_parts(data),
        **_curves(data),
    )


def _gate_parts(data: ReportData) -> dict[str, Any]:
    gates, settings = all_gates(data.gates), threshold_rows(data.blocked_at or "")
    blocking = next((gate for gate in gates if gate.gate == data.blocked_at), None)
    return {
        "gates": gates,
        "blocking": blocking,
        "thresholds": settings,
        "likely": likely_threshold(settings, blocking.failing if blocking else ()),
    }


def _curves(data: ReportData) -> dict[str, Any]:
    training = [(point.step, point.loss) for point in data.curve]
    validation = [(e.step, e.loss) for e in data.training.eval_losses] if data.training else []
    rates = [(p.step, p.learning_rate) for p in data.curve if p.learning_rate is not None]
    steps = [step for step, _ in (*training, *validation)]
    return {
        "losses": charts.loss_chart(training, validation),
        "rates": charts.line_chart(rates, steps),
        "peak_rate": max((rate for _, rate in rates), default=0.0),
    }


def _whisker(arm: EvalReport) -> charts.Whisker:
    # A malformed report closes a gate, and the page about that must not fail over it.
    interval = arm.metrics.get(arm.metric)
    low, high = (interval.low, interval.high) if interval else (arm.value, arm.value)
    return charts.Whisker(arm.arm, min(low, arm.value), arm.value, max(high, arm.value))
