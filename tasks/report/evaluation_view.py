"""The evaluations as the page draws them: what tuning gained over each way of asking, where, and at what price."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from core.evaluation.reports import LOWER_IS_BETTER, BaselineReport, EvalReport, MetricValue, Subgroup, Suite
from gates.forgetting import suites_of
from gates.gains import Pair, Unit, gain_interval
from tasks.report import numbers
from tasks.report.answers import AnswerRow
from tasks.report.charts import IntervalChart, Whisker, interval_chart

RESAMPLES = 2000
"""Behind the intervals that the page computes itself; the gate's own are in its checks."""
MOST_MOVED = 5
"""Examples shown of those whose score rose, and of those whose score fell."""
DIFFERENCE = Unit("absolute", 0.0)


class Scored(NamedTuple):
    """The evaluations of a run; any part may be missing."""

    base: BaselineReport | None = None
    compared: str | None = None
    """The way of asking the base that the gate compared with."""
    tuned: EvalReport | None = None
    files: tuple[EvalReport, ...] = ()
    answers: tuple[AnswerRow, ...] = ()

    @property
    def shown(self) -> EvalReport | None:
        """The base that stands for all its arms."""
        arms = self.base.arms if self.base else ()
        return next((arm for arm in arms if arm.arm == self.compared), arms[0] if arms else None)


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
    is_compared: bool
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


class SuiteLine(NamedTuple):
    """Another set than the test split, before and after tuning."""

    name: str
    metric: str
    n: int
    before: str
    after: str
    change: str
    verdict: str


class Moved(NamedTuple):
    """An example whose score changed."""

    row: AnswerRow
    before: str
    after: str
    change: str


class EvaluationView(NamedTuple):
    """Everything about scores that is more than one table."""

    metric: str
    confidence: float
    metrics: tuple[str, ...]
    lines: tuple[ArmLine, ...]
    scores: IntervalChart | None
    gains: Gains | None
    groups: tuple[GroupTable, ...]
    suites: tuple[SuiteLine, ...]
    diversity: tuple[tuple[str, str, str], ...]
    """What is measured, before, after."""
    fallen: tuple[Moved, ...]
    risen: tuple[Moved, ...]


def evaluation_view(scored: Scored) -> EvaluationView | None:
    """Lay out every evaluation there is; None without any."""
    arms = (*(scored.base.arms if scored.base else ()), *((scored.tuned,) if scored.tuned else ()))
    everyone = (*arms, *scored.files)
    if not everyone:
        return None
    metric, names = everyone[0].metric, tuple(dict.fromkeys(name for arm in everyone for name in arm.metrics))
    moved = list(_moved(scored))
    return EvaluationView(
        metric=metric,
        confidence=everyone[0].confidence,
        metrics=names,
        lines=tuple(_arm_line(arm, names, scored) for arm in everyone),
        scores=_chart([_whisker(arm.arm, arm.value, arm.metrics.get(metric)) for arm in everyone], metric),
        gains=_gains(scored),
        groups=tuple(_groups(scored)),
        suites=tuple(_suites(scored)),
        diversity=tuple(_diversity(scored)),
        fallen=tuple(one for gain, one in moved if gain < 0)[:MOST_MOVED],
        risen=tuple(one for gain, one in reversed(moved) if gain > 0)[:MOST_MOVED],
    )


# Every metric of every model


def _arm_line(arm: EvalReport, names: Sequence[str], scored: Scored) -> ArmLine:
    base = scored.shown
    return ArmLine(
        name=arm.arm,
        is_compared=arm is base,
        cells=tuple(_cell(name, arm, None if arm is base else base) for name in names),
        n=arm.n,
        speed=arm.tokens_per_second,
    )


def _cell(metric: str, arm: EvalReport, base: EvalReport | None) -> Cell | None:
    mine, other = arm.metrics.get(metric), base.metrics.get(metric) if base else None
    if mine is None:
        return None
    ends = f"{numbers.score(mine.low, metric)} to {numbers.score(mine.high, metric)}"
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
            numbers.change(0.0, ends.value, metric, is_gain=True),
            f"{numbers.change(0.0, ends.low, metric, is_gain=True)} to "
            f"{numbers.change(0.0, ends.high, metric, is_gain=True)}",
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
    if base is None and tuned is None:
        return
    known = (tuned or base).subgroups if (tuned or base) else ()  # type: ignore[union-attr]
    for key in dict.fromkeys(group.key for group in known):
        before = {g.name: g for g in (base.subgroups if base else ()) if g.key == key}
        after = {g.name: g for g in (tuned.subgroups if tuned else ()) if g.key == key}
        table = _group_table(key, before, after, (tuned or base).metric)  # type: ignore[union-attr]
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
    if chart is None:
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


# What was asked beside the test split


def _suites(scored: Scored) -> Iterator[SuiteLine]:
    before = suites_of(scored.base) if scored.base else {}
    after = {(suite.name, suite.metric): suite for suite in (scored.tuned.suites if scored.tuned else ())}
    for key in dict.fromkeys([*before, *after]):
        yield _suite_line(key, before.get(key), after.get(key))


def _suite_line(key: tuple[str, str], before: Suite | None, after: Suite | None) -> SuiteLine:
    name, metric = key
    one = after or before
    assert one is not None
    both = before and after and before.digest == after.digest
    return SuiteLine(
        name=name,
        metric=metric,
        n=one.n,
        before=_suite_text(before),
        after=_suite_text(after),
        change=numbers.change(before.value, after.value, _unit(one)) if both else numbers.ABSENT,  # type: ignore[union-attr]
        verdict=_suite_verdict(before, after) if both else "not asked of both",  # type: ignore[arg-type]
    )


def _unit(suite: Suite) -> str:
    """Name a metric that is written like this suite's: as a share, or as a plain number."""
    return "accuracy" if suite.higher_is_better and 0 <= suite.value <= 1 else "perplexity"


def _suite_text(suite: Suite | None) -> str:
    if suite is None:
        return "not asked"
    ends = (numbers.score(end, _unit(suite)) for end in (suite.value, suite.low, suite.high))
    return "{} ({} to {})".format(*ends)


def _suite_verdict(before: Suite, after: Suite) -> str:
    apart = after.high < before.low or after.low > before.high
    if not apart:
        return "within chance"
    return "better" if (after.value > before.value) == after.higher_is_better else "worse"


def _diversity(scored: Scored) -> Iterator[tuple[str, str, str]]:
    base = next((arm.diversity for arm in (scored.base.arms if scored.base else ()) if arm.diversity), None)
    tuned = scored.tuned.diversity if scored.tuned else None
    one = tuned or base
    if one is None:
        return
    for what, pick in (
        ("Self-BLEU-4", lambda d: d.self_bleu),
        *((f"Distinct-{n}", lambda d, n=n: d.distinct.get(n)) for n in one.distinct),
        ("Different words among all", lambda d: d.type_token_ratio),
        ("Semantic distance", lambda d: d.semantic),
        ("Words per answer", lambda d: d.mean_words),
        *((f"Right within {k}", lambda d, k=k: d.pass_at.get(k)) for k in one.pass_at),
    ):
        yield what, *(_plain(pick(found) if found else None) for found in (base, tuned))


def _plain(value: float | None) -> str:
    return numbers.ABSENT if value is None else numbers.number(value)


# Examples whose score moved


def _moved(scored: Scored) -> Iterator[tuple[float, Moved]]:
    """Yield examples with their gain in the primary metric, worst first; right-or-wrong scores say no more than the table below."""
    base, tuned = scored.shown, scored.tuned
    if base is None or tuned is None or base.ids != tuned.ids:
        return
    metric, rows = tuned.metric, {row.id: row for row in scored.answers}
    before, after = base.scores.get(metric, ()), tuned.scores.get(metric, ())
    if len(before) != len(after) or set(before) | set(after) <= {0.0, 1.0}:
        return
    sign = -1 if metric in LOWER_IS_BETTER else 1
    changes = [(sign * (now - old), key, old, now) for key, old, now in zip(tuned.ids, before, after, strict=False)]
    for gain, key, old, now in sorted(changes, key=lambda change: change[:2]):
        if key in rows:
            yield gain, Moved(rows[key], numbers.number(old), numbers.number(now), numbers.signed(now - old))


# Charts


def _whisker(label: str, value: float, ends: MetricValue | None) -> Whisker:
    low, high = (ends.low, ends.high) if ends else (value, value)
    return Whisker(label, min(low, value), value, max(high, value))


def _chart(whiskers: Sequence[Whisker], metric: str) -> IntervalChart | None:
    if metric in LOWER_IS_BETTER:
        return interval_chart(whiskers, numbers.number, within=None)
    return interval_chart(whiskers)
