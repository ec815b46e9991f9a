"""The ladder of quantized files as the page draws it: a table from small to large, and size against score."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from core.evaluation.reports import LOWER_IS_BETTER, EvalReport
from core.quantization.reports import OnnxFile, PytorchFile, QuantizedFile, QuantReport
from gates.rungs import ladder
from tasks.report import numbers
from tasks.report.charts import NARROWEST_SCORES, Span, Tick, nice_step, rounded, ticks_within

SHIPPED, GOOD, REJECTED, UNJUDGED = "shipped", "good enough", "rejected", "not judged"


class Judged(Protocol):
    """A check as the page holds it."""

    @property
    def name(self) -> str:
        """What was compared."""
        ...

    @property
    def passed(self) -> bool:
        """Whether it held."""
        ...

    @property
    def threshold(self) -> float | int | str | bool | None:
        """What was allowed."""
        ...


class Rung(NamedTuple):
    """One file of the ladder, and what the gate made of it."""

    file: QuantizedFile
    outcome: str
    why: str
    """What it was rejected for."""
    share: float | None
    """Of the merged model's bytes."""
    score: str
    interval: str
    drop: float | None


class Spot(NamedTuple):
    """One file in the chart; positions are percentages of the plot."""

    label: str
    x: float
    low: float
    value: float
    high: float
    outcome: str


class SizeChart(NamedTuple):
    """Scores by size, with the merged model's score as a line, and what the gate allows below it."""

    spots: tuple[Spot, ...]
    merged: float | None
    allowed: float | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    metric: str


class SizeRow(NamedTuple):
    """What one file takes on disk."""

    name: str
    bytes: int
    share: float | None


class Beside(NamedTuple):
    """A model that is made beside those of the ladder."""

    file: PytorchFile
    score: str


class LadderView(NamedTuple):
    """All that the page shows of the quantized files."""

    rungs: tuple[Rung, ...]
    chart: SizeChart | None
    onnx: tuple[OnnxFile, ...]
    pytorch: tuple[Beside, ...]
    sizes: tuple[SizeRow, ...]
    report: QuantReport


def ladder_view(
    report: QuantReport, tuned: EvalReport | None, checks: Sequence[Judged], shipped: str | None
) -> LadderView:
    """Lay the ladder out.

    Args:
        report: The files.
        tuned: The merged model's evaluation.
        checks: What the gate compared, rungs that were only tried included; empty if it was not judged.
        shipped: Digest of the file that ships, or None.
    """
    rungs = tuple(_rung(file, report, tuned, checks, shipped) for file in ladder(report.files))
    chart, sizes = size_chart(rungs, tuned, checks), tuple(_sizes(report))
    pytorch = tuple(Beside(f, _score(f.evaluation, f.evaluation.value)) for f in report.pytorch)
    return LadderView(rungs, chart, report.onnx, pytorch, sizes, report)


def size_chart(rungs: Sequence[Rung], tuned: EvalReport | None, checks: Sequence[Judged]) -> SizeChart | None:
    """Place files by their bytes from left to right, and by their score from bottom to top."""
    if not rungs:
        return None
    allowed = _allowed(tuned, checks)
    values = [end for rung in rungs for end in _ends(rung.file.evaluation)]
    values += [tuned.value] if tuned else []
    values += [allowed] if allowed is not None else []
    spare = max(0.0, NARROWEST_SCORES - (max(values) - min(values))) / 2
    y_step = nice_step(min(values) - spare, max(values) + spare, 5)
    y = rounded(min(values) - spare, max(values) + spare, y_step)
    largest = max(rung.file.bytes for rung in rungs) * 1.05
    x_step = nice_step(0.0, largest, 5)
    x = Span(0.0, float(largest))
    falls = rungs[0].file.evaluation.metric in LOWER_IS_BETTER
    return SizeChart(
        spots=tuple(_spot(rung, x, y) for rung in rungs),
        merged=_below(y, tuned.value) if tuned else None,
        allowed=_below(y, allowed) if allowed is not None else None,
        x_ticks=tuple(Tick(x.at(t), numbers.size(t)) for t in ticks_within(x, x_step)),
        y_ticks=tuple(
            Tick(_below(y, t), numbers.number(t) if falls else f"{100 * t:.4g}{numbers.GAP}%")
            for t in ticks_within(y, y_step)
        ),
        metric=rungs[0].file.evaluation.metric,
    )


def _rung(
    file: QuantizedFile,
    report: QuantReport,
    tuned: EvalReport | None,
    checks: Sequence[Judged],
    shipped: str | None,
) -> Rung:
    scored = file.evaluation
    mine = [check for check in checks if check.name.startswith(f"{file.type} ")]
    failed = [check.name.removeprefix(f"{file.type} ") for check in mine if not check.passed]
    good = (SHIPPED if file.digest == shipped else GOOD) if not failed else REJECTED
    drop = (tuned.value - scored.value) / tuned.value if tuned and tuned.value else None
    low, _, high = _ends(scored)
    return Rung(
        file=file,
        outcome=good if mine else SHIPPED if file.digest == shipped else UNJUDGED,
        why=", ".join(failed),
        share=file.bytes / report.merged_bytes if report.merged_bytes else None,
        score=_score(scored, scored.value),
        interval=f"{_score(scored, low)} to {_score(scored, high)}",
        drop=-drop if drop is not None and scored.metric in LOWER_IS_BETTER else drop,
    )


def _sizes(report: QuantReport) -> list[SizeRow]:
    """List the real bytes of everything that was made, the largest first."""
    rows = [("merged model", report.merged_bytes), *((f"GGUF {f.type}", f.bytes) for f in report.files)]
    rows += [(f"ONNX {file.type}", file.bytes) for file in report.onnx]
    rows += [(f"PyTorch {file.type}", file.bytes) for file in report.pytorch]
    whole = report.merged_bytes
    return [
        SizeRow(name, size, size / whole if whole else None)
        for name, size in sorted(rows, key=lambda r: -r[1])
    ]


def _allowed(tuned: EvalReport | None, checks: Sequence[Judged]) -> float | None:
    """Return the score at the largest drop that the gate allows."""
    limit = next((c.threshold for c in checks if c.name.endswith(" drop")), None)
    if tuned is None or isinstance(limit, bool) or not isinstance(limit, int | float):
        return None
    return tuned.value * (1 + limit if tuned.metric in LOWER_IS_BETTER else 1 - limit)


def _ends(scored: EvalReport) -> tuple[float, float, float]:
    # A malformed report closes a gate, and the page about that must not fail over it.
    entry = scored.metrics.get(scored.metric)
    low, high = (entry.low, entry.high) if entry else (scored.value, scored.value)
    return min(low, scored.value), scored.value, max(high, scored.value)


def _spot(rung: Rung, x: Span, y: Span) -> Spot:
    low, value, high = (_below(y, end) for end in _ends(rung.file.evaluation))
    return Spot(rung.file.type, x.at(rung.file.bytes), low, value, high, rung.outcome)


def _below(y: Span, value: float) -> float:
    return round(100 - y.at(value), 3)


def _score(scored: EvalReport, value: float) -> str:
    return numbers.number(value) if scored.metric in LOWER_IS_BETTER else numbers.percent(value)
