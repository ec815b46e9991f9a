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
from core.evaluation.reports import BaselineReport, EvalReport
from core.quantization.reports import QuantReport
from core.training.reports import TrainReport
from gates.thresholds import GatesConfig
from gates.verdict import GATE_NAMES, Value
from tasks.report import charts
from tasks.report.answers import FILTERS, flip_rows, topic_rows
from tasks.report.answers import AnswerRow as AnswerRow
from tasks.report.answers import Flips as Flips
from tasks.report.answers import flips as flips
from tasks.report.beside_view import Scored
from tasks.report.data_view import DataReports, data_view
from tasks.report.evaluation_view import evaluation_view
from tasks.report.ladder_view import LadderView, ladder_view
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
    tried: tuple[CheckView, ...] = ()
    """Comparisons of candidates that were not chosen; they decide nothing."""
    waiver_reason: str | None = None
    hints: tuple[str, ...] = ()
    """What to change if it is closed."""
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
    baseline: BaselineReport | None = None
    compared: str | None = None
    """The way of asking the base that the gate compared with."""
    tuned: EvalReport | None = None
    quantized: QuantReport | None = None
    shipped: str | None = None
    """Digest of the quantized file that ships."""
    answers: tuple[AnswerRow, ...] = ()
    bundle: BundleReport | None = None
    links: dict[str, str] = {}
    """Address of the run in other tools, by the tool's name."""
    versions: dict[str, str] = {}

    @property
    def arms(self) -> tuple[EvalReport, ...]:
        """Evaluations there are: the base in every way it was asked, the tuned model, each quantized file."""
        base = self.baseline.arms if self.baseline else ()
        return (*base, *((self.tuned,) if self.tuned else ()), *self.files)

    @property
    def files(self) -> tuple[EvalReport, ...]:
        """Evaluations of the quantized files."""
        return tuple(file.evaluation for file in self.quantized.files) if self.quantized else ()


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
            default=_plain(getattr(thresholds, name)),
            meaning=" ".join((field.description or "").split()),
        )
        for name, field in type(thresholds).model_fields.items()
    )


def _plain(default: object) -> Value:
    """Write a default that is more than one value as text."""
    return default if default is None or isinstance(default, bool | int | float | str) else str(default)


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
    asked = data.baseline.arms if data.baseline else ()
    rows = [("Base model", arm.model_digest) for arm in asked[:1]]
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
        scores=evaluation_view(Scored(data.baseline, data.compared, data.tuned, data.files, data.answers)),
        topics=topic_rows(data.answers),
        rows=rows,
        filters=[(kind, title, sum(kind in r.kinds for r in rows)) for kind, title in FILTERS.items()],
        first_rows=FIRST_ROWS,
        digests=digest_rows(data),
        view=data_view(DataReports(data.ingest, data.formatted, data.split, data.learning, data.test_uses)),
        ladder=_ladder(data),
        learn=learning_view(data.learning) if data.learning else None,
        **_gate_parts(data),
        **_curves(data),
    )


def _ladder(data: ReportData) -> LadderView | None:
    if data.quantized is None:
        return None
    gate = next((gate for gate in data.gates if gate.gate == "quantization-verified"), None)
    checks = (*gate.checks, *gate.tried) if gate else ()
    return ladder_view(data.quantized, data.tuned, checks, data.shipped)


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
