"""The evaluations as the page draws them: what tuning gained over each way of asking, where, and at what price."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from core.evaluation.reports import LOWER_IS_BETTER, EvalReport, MetricValue, Subgroup
from gates.gains import Pair, Unit, gain_interval
from tasks.report import numbers
from tasks.report.beside_view import MovedMost, Scored, SuiteLine, moved, suite_lines
from tasks.report.charts import IntervalChart, Whisker, interval_chart
from tasks.report.sampled_view import Sampled, sampled

RESAMPLES = 2000
"""Behind the intervals that the page computes itself; the gate's own are in its checks."""
DIFFERENCE = Unit("absolute", 0.0)


class Cell(NamedTuple):
    """One metric of one model, in words."""

    value: str
    ends: str
    change: str
    """Against the base; empty for the base itself."""
    tone: str
    """up, down, or nothing where chance explains it."""


class ArmLine(NamedTuple):
    """One model in the table of all metrics."""

    name: str
    is_base: bool
    is_compared: bool
    primary: str
    ends: str
    cells: tuple[Cell | None, ...]
    n: int
    speed: float


class GainLine(NamedTuple):
    """What tuning gained over one way of asking the base."""

    name: str
    is_compared: bool
    text: str
    ends: str


class Gains(NamedTuple):
    """Gains as a chart, with the place of zero on its axis."""

    lines: tuple[GainLine, ...]
    chart: IntervalChart
    zero: float


class GroupLine(NamedTuple):
    """The examples that share one value: before and after tuning."""

    name: str
    n: int
    before: str
    after: str
    change: str
    tone: str
    base_at: Whisker | None
    """Positions on the group's axis."""
    tuned_at: Whisker | None


class GroupTable(NamedTuple):
    """The values of one metadata key."""

    key: str
    lines: tuple[GroupLine, ...]
    chart: IntervalChart


class EvaluationView(NamedTuple):
    """Everything about scores that is more than one table."""

    metric: str
    confidence: float
    metrics: tuple[str, ...]
    lines: tuple[ArmLine, ...]
    chart: IntervalChart | None
    """Of the primary metric, one whisker for each line."""
    compared: str | None
    """The way of asking the base that changes are against."""
    less_is_better: bool
    gains: Gains | None
    groups: tuple[GroupTable, ...]
    suites: tuple[SuiteLine, ...]
    sampled: Sampled | None
    """Sampled answers of every arm, if there are any."""
    moved: MovedMost


def evaluation_view(scored: Scored) -> EvaluationView | None:
    """Lay out every evaluation there is; None without any."""
    arms = (*(scored.base.arms if scored.base else ()), *((scored.tuned,) if scored.tuned else ()))
    everyone = (*arms, *scored.files)
    if not everyone:
        return None
    metric = everyone[0].metric
    names = tuple(dict.fromkeys(name for arm in everyone for name in arm.metrics))
    return EvaluationView(
        metric=metric,
        confidence=everyone[0].confidence,
        metrics=names,
        lines=tuple(_arm_line(arm, names, scored) for arm in everyone),
        compared=scored.shown.arm if scored.shown else None,
        less_is_better=metric in LOWER_IS_BETTER,
        chart=_chart([_whisker(arm.arm, arm.value, arm.metrics.get(metric)) for arm in everyone], metric),
        gains=_gains(scored),
        groups=tuple(_groups(scored)),
        suites=tuple(suite_lines(scored)),
        sampled=sampled(arms, scored.shown, scored.tuned),
        moved=moved(scored),
    )


# Every metric of every model


def _arm_line(arm: EvalReport, names: Sequence[str], scored: Scored) -> ArmLine:
    base, entry = scored.shown, arm.metrics.get(arm.metric)
    return ArmLine(
        name=arm.arm,
        is_base=scored.base is not None and any(arm is one for one in scored.base.arms),
        is_compared=arm is base,
        primary=numbers.score(arm.value, arm.metric),
        ends=_ends(entry, arm.metric) if entry else "",
        cells=tuple(_cell(name, arm, None if arm is base else base) for name in names),
        n=arm.n,
        speed=arm.tokens_per_second,
    )


def _ends(entry: MetricValue, metric: str) -> str:
    return f"{numbers.score(entry.low, metric)} to {numbers.score(entry.high, metric)}"


def _cell(metric: str, arm: EvalReport, base: EvalReport | None) -> Cell | None:
    mine, other = arm.metrics.get(metric), base.metrics.get(metric) if base else None
    if mine is None:
        return None
    ends = _ends(mine, metric)
    if other is None:
        return Cell(numbers.score(mine.value, metric), ends, "", "")
    change = numbers.change(other.value, mine.value, metric)
    return Cell(numbers.score(mine.value, metric), ends, change, _tone(metric, other, mine))


def _tone(metric: str, before: MetricValue, after: MetricValue) -> str:
    """Say up for better and down for worse, where the intervals lie apart."""
    rises, falls = after.low > before.high, after.high < before.low
    if not rises and not falls:
        return ""
    return "up" if rises != (metric in LOWER_IS_BETTER) else "down"


# Gains


def _gains(scored: Scored) -> Gains | None:
    """Draw tuned minus base for every arm, with paired intervals; unpaired scores are left out."""
    if scored.base is None or scored.tuned is None:
        return None
    found = [(arm, _gain(arm, scored.tuned)) for arm in scored.base.arms]
    known = [(arm, ends) for arm, ends in found if ends is not None]
    if not known:
        return None
    metric = scored.tuned.metric
    origin = Whisker("", 0.0, 0.0, 0.0)
    chart = interval_chart([*(ends for _, ends in known), origin], numbers.gain_tick(metric), within=None)
    assert chart is not None
    lines = tuple(
        GainLine(
            arm.arm,
            arm is scored.shown,
            numbers.change(0.0, ends.value, metric),
            f"{numbers.change(0.0, ends.low, metric)} to {numbers.change(0.0, ends.high, metric)}",
        )
        for arm, ends in known
    )
    *placed, zero = chart.whiskers
    return Gains(lines, chart._replace(whiskers=tuple(placed)), zero.value)


def _gain(arm: EvalReport, tuned: EvalReport) -> Whisker | None:
    metric = tuned.metric
    same = arm.ids == tuned.ids and arm.split_digest == tuned.split_digest and arm.metric == metric
    if not same or not _whole(arm, metric) or not _whole(tuned, metric):
        return None
    after = tuned.model_copy(update={"resamples": min(RESAMPLES, tuned.resamples)})
    ends = gain_interval(Pair(metric, arm, after), DIFFERENCE)
    return Whisker(arm.arm, ends.low, ends.value, ends.high)


def _whole(report: EvalReport, metric: str) -> bool:
    # A malformed report closes a gate, and the page about that must not fail over it.
    scores, weights = report.scores.get(metric, ()), report.weights.get(metric, ())
    needs = metric in LOWER_IS_BETTER
    return (
        0 < len(scores) == len(report.ids)
        and metric in report.metrics
        and (not needs or (len(weights) == len(scores) and min(weights) > 0))
    )


# Subgroups


def _groups(scored: Scored) -> Iterator[GroupTable]:
    base, tuned = scored.shown, scored.tuned
    latest = tuned or base
    if latest is None:
        return
    for key in dict.fromkeys(group.key for group in latest.subgroups):
        before = {g.name: g for g in (base.subgroups if base else ()) if g.key == key}
        after = {g.name: g for g in (tuned.subgroups if tuned else ()) if g.key == key}
        table = _group_table(key, before, after, latest.metric)
        if table:
            yield table


def _group_table(
    key: str, before: Mapping[str, Subgroup], after: Mapping[str, Subgroup], metric: str
) -> GroupTable | None:
    names = list(dict.fromkeys([*after, *before]))
    whiskers = [
        _whisker(f"{side}:{name}", value.value, value)
        for name in names
        for side, groups in (("base", before), ("tuned", after))
        if (value := _of_group(groups, name, metric))
    ]
    chart = _chart(whiskers, metric)
    if chart is None or len(names) < 2:
        return None
    at = {whisker.label: whisker for whisker in chart.whiskers}
    lines = tuple(_group_line(name, before, after, metric, at) for name in names)
    return GroupTable(key, lines, chart._replace(whiskers=()))


def _group_line(
    name: str,
    before: Mapping[str, Subgroup],
    after: Mapping[str, Subgroup],
    metric: str,
    at: Mapping[str, Whisker],
) -> GroupLine:
    old, new = _of_group(before, name, metric), _of_group(after, name, metric)
    return GroupLine(
        name=name,
        n=(after.get(name) or before[name]).n,
        before=numbers.score(old.value, metric) if old else numbers.ABSENT,
        after=numbers.score(new.value, metric) if new else numbers.ABSENT,
        change=numbers.change(old.value, new.value, metric) if old and new else numbers.ABSENT,
        tone=_tone(metric, old, new) if old and new else "",
        base_at=at.get(f"base:{name}"),
        tuned_at=at.get(f"tuned:{name}"),
    )


def _of_group(groups: Mapping[str, Subgroup], name: str, metric: str) -> MetricValue | None:
    return groups[name].metrics.get(metric) if name in groups else None


# Charts


def _whisker(label: str, value: float, ends: MetricValue | None) -> Whisker:
    low, high = (ends.low, ends.high) if ends else (value, value)
    return Whisker(label, min(low, value), value, max(high, value))


def _chart(whiskers: Sequence[Whisker], metric: str) -> IntervalChart | None:
    if metric in LOWER_IS_BETTER:
        return interval_chart(whiskers, numbers.number, within=None)
    return interval_chart(whiskers)
