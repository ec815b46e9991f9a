"""Sampled answers as the page draws them: how much they differ in every arm, and what more tries are worth."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from core.evaluation.reports import AtK, Diversity, EvalReport
from core.evaluation.result_reports import ArmSummary
from core.evaluation.summary import arm_summaries
from tasks.report import numbers
from tasks.report.charts import Dot, Span, Tick, nice_step, rounded, ticks_within

EQUAL = 1e-9
"""Curves that differ by less are one."""


class Line(NamedTuple):
    """One curve over the number of tries."""

    name: str
    kind: str
    """Of the stroke: a class of the style sheet."""
    dots: tuple[Dot, ...]


class Mark(NamedTuple):
    """A position on the axis of tries, with what is to be said of it."""

    at: float
    text: str


class TriesChart(NamedTuple):
    """What k tries are worth."""

    title: str
    lines: tuple[Line, ...]
    collapse: Mark | None
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


class Sampled(NamedTuple):
    """Everything about sampled answers."""

    arms: tuple[str, ...]
    lines: tuple[tuple[str, tuple[str, ...]], ...]
    """Figure, and its value for each arm."""
    note: str
    """How the answers were drawn."""
    chart: TriesChart | None


def sampled(arms: Sequence[EvalReport], shown: EvalReport | None, tuned: EvalReport | None) -> Sampled | None:
    """Lay out the sampled answers of all arms; None if nobody's were drawn.

    Args:
        arms: Every way of asking the base, and the tuned model.
        shown: The way of asking the base that stands for all.
        tuned: The tuned model's report.
    """
    known = [(arm, arm.diversity) for arm in arms if arm.diversity]
    if not known:
        return None
    summaries = {one.arm: one for one in arm_summaries([arm for arm, _ in known])}
    is_graded = any(_differ(drawn.tries) for _, drawn in known)
    columns = [dict(_figures(drawn, summaries[arm.arm], is_graded=is_graded)) for arm, drawn in known]
    names = dict.fromkeys(name for column in columns for name in column)
    lines = tuple((name, tuple(column.get(name, numbers.ABSENT) for column in columns)) for name in names)
    latest = next((arm for arm in (tuned, shown) if arm and arm.diversity), known[0][0])
    return Sampled(tuple(arm.arm for arm, _ in known), lines, _note(known[0][1]), _chart(latest, shown))


def _note(drawn: Diversity) -> str:
    seeds = f"{len(drawn.seeds)} seeds: mean ± standard deviation" if len(drawn.seeds) > 1 else "one seed"
    return (
        f"{numbers.some(drawn.samples, 'answer')} to each of {numbers.some(drawn.questions, 'question')}, "
        f"temperature {drawn.temperature:g}, top-p {drawn.top_p:g}, {seeds}; "
        f"right is {numbers.metric(drawn.metric)} at 1"
    )


def _figures(drawn: Diversity, summary: ArmSummary, *, is_graded: bool) -> Iterator[tuple[str, str]]:
    """Yield every figure of sampled answers by its name in words."""
    yield "Self-BLEU-4 (1: all the same)", _told(drawn, "self_bleu", drawn.self_bleu)
    for n, value in drawn.distinct.items():
        yield f"Distinct-{n}", _told(drawn, f"distinct_{n}", value)
    if drawn.type_token_ratio is not None:
        yield "Different words among all", _told(drawn, "type_token_ratio", drawn.type_token_ratio)
    if drawn.semantic is not None:
        yield "Semantic distance", _told(drawn, "semantic", drawn.semantic)
    yield "Words per answer", _told(drawn, "mean_words", drawn.mean_words)
    for k, value in drawn.pass_at.items():
        yield f"Right among {_tries(k)} (pass@{k})", _share(drawn, f"pass_at_{k}", value)
    for k in drawn.pass_at if is_graded else ():
        yield f"Best score of {_tries(k)} (USQ@{k})", _share(drawn, f"usq_at_{k}", drawn.tries[k - 1].usq_at)
    yield from _worth(drawn)
    yield "No arm beats it in score and diversity", "yes" if summary.pareto_optimal else "no"


def _tries(k: int) -> str:
    return numbers.some(k, "try", "tries")


def _told(drawn: Diversity, figure: str, value: float) -> str:
    return numbers.number(value) + _deviation(drawn, figure, 1)


def _share(drawn: Diversity, figure: str, value: float) -> str:
    return numbers.percent(value) + _deviation(drawn, figure, 100)


def _deviation(drawn: Diversity, figure: str, unit: float) -> str:
    """Write how much a figure varies between seeds, in its own unit; nothing with one seed."""
    spread = drawn.spread.get(figure)
    deviation = spread.deviation if spread else None
    return "" if deviation is None else f" ± {numbers.number(float(f'{unit * deviation:.2g}'))}"


def _few(drawn: Diversity) -> str:
    return numbers.some(round(100 * drawn.collapse_below, 3), "point")


def _worth(drawn: Diversity) -> Iterator[tuple[str, str]]:
    last = drawn.tries[-1]
    if last.k > 1:
        yield f"DER@{last.k} (equal to independent tries)", _ratio(last)
        share = numbers.ABSENT if last.efficiency is None else numbers.percent(last.efficiency)
        yield f"Gain of {_tries(last.k)}, of what independent ones gain", share
    if last.k > 1:
        yield f"One more try adds under {_few(drawn)} from", _collapsed(drawn)


def _collapsed(drawn: Diversity) -> str:
    if drawn.collapse_point is not None:
        return str(drawn.collapse_point)
    return f"not within {drawn.samples}" if drawn.tries[-1].pass_at else "none right"


def _ratio(last: AtK) -> str:
    if last.der is None or last.der_independent is None:
        return "none right"
    ends = f"{numbers.number(last.der_identical)} to {numbers.number(last.der_independent)}"
    return f"{numbers.number(last.der)} ({ends})"


def _differ(tries: Sequence[AtK]) -> bool:
    """Tell whether the best score is another curve than the share of right ones."""
    return any(abs(one.usq_at - one.pass_at) > EQUAL for one in tries)


# The curve


def _chart(latest: EvalReport, shown: EvalReport | None) -> TriesChart | None:
    drawn = latest.diversity
    if drawn is None or drawn.samples < 2:
        return None
    name, base = numbers.arm(latest.arm), shown.diversity if shown and shown is not latest else None
    curves = [(f"{name}: right among k", "smooth", [(t.k, t.pass_at) for t in drawn.tries])]
    if _differ(drawn.tries):
        curves.append((f"{name}: best score of k (dotted)", "best", [(t.k, t.usq_at) for t in drawn.tries]))
    curves.append(
        ("independent tries at the same pass@1 (dashed)", "held", [(t.k, t.independent) for t in drawn.tries])
    )
    if base:
        curves.append(
            (
                f"{numbers.arm(shown.arm if shown else '')} (thin)",
                "raw",
                [(t.k, t.pass_at) for t in base.tries],
            )
        )
    top = max(value for _, _, points in curves for _, value in points)
    y_step = nice_step(0.0, top, 5)
    x, y = Span(1.0, float(drawn.samples)), rounded(0.0, top, y_step)
    at_x = sorted({1.0, *ticks_within(x, max(1.0, nice_step(x.low, x.high, 8)))})
    return TriesChart(
        title=f"{name}: what k tries at a question are worth",
        lines=tuple(
            Line(what, kind, tuple(_dot(k, v, x, y) for k, v in points)) for what, kind, points in curves
        ),
        collapse=_collapse(drawn, x),
        x_ticks=tuple(Tick(x.at(k), numbers.count(k)) for k in at_x),
        y_ticks=tuple(Tick(100 - y.at(t), f"{100 * t:.4g}{numbers.GAP}%") for t in ticks_within(y, y_step)),
    )


def _dot(k: int, value: float, x: Span, y: Span) -> Dot:
    return Dot(x.at(k), round(100 - y.at(value), 3))


def _collapse(drawn: Diversity, x: Span) -> Mark | None:
    k = drawn.collapse_point
    return None if k is None else Mark(x.at(k), f"one more adds under {_few(drawn)}")
