"""Where things lie in the charts: numbers in, positions out.

Every position is a percentage of the plot, 0 to 100 from left to right and from top to
bottom, so a chart fills whatever width it gets while its text keeps its size. What is drawn
at these positions is up to the template.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tasks.report import numbers

MOST_POINTS = 800
"""More points than this are invisible on a screen and only make the page heavy."""
NARROWEST_SCORES = 0.1
"""The score axis never spans less, or noise would look like a difference."""


class Tick(NamedTuple):
    """A labelled position on an axis."""

    at: float
    text: str


class Dot(NamedTuple):
    """A point of a curve."""

    x: float
    y: float


class Whisker(NamedTuple):
    """A value with its interval."""

    label: str
    low: float
    value: float
    high: float


class IntervalChart(NamedTuple):
    """Whiskers above one common axis."""

    whiskers: tuple[Whisker, ...]
    ticks: tuple[Tick, ...]


class Curve(NamedTuple):
    """A loss curve: raw and smoothed training loss, validation points, and the axes."""

    raw: tuple[Dot, ...]
    smooth: tuple[Dot, ...]
    validation: tuple[Dot, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


class Bar(NamedTuple):
    """One bar: where it starts, how long it is, and what it stands for."""

    label: str
    value: float
    share: float
    """Of the total, 0 to 1."""
    start: float
    width: float


class Span(NamedTuple):
    """What an axis covers."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return the position of a value, 0 to 100."""
        return round(100 * (value - self.low) / (self.high - self.low), 3)


def interval_chart(
    arms: Sequence[Whisker],
    label: Callable[[float], str] = lambda value: f"{100 * value:.4g}{numbers.GAP}%",
    *,
    within: tuple[float, float] | None = (0.0, 1.0),
) -> IntervalChart | None:
    """Place intervals on a common axis.

    Args:
        arms: Label and the three values of each, in the order to draw.
        label: Writes a tick; per cent by default.
        within: What the axis does not leave for the sake of room: scores are shares. None knows no bounds.

    Returns:
        The same whiskers as positions, and ticks; None without arms.
    """
    if not arms:
        return None
    low, high = min(arm.low for arm in arms), max(arm.high for arm in arms)
    spare = max(0.0, NARROWEST_SCORES - (high - low)) / 2
    first, last = within or (low - spare, high + spare)
    low, high = min(low, max(first, low - spare)), max(high, min(last, high + spare))
    step = nice_step(low, high, 5)
    span = rounded(low, high, step)
    placed = tuple(Whisker(a.label, span.at(a.low), span.at(a.value), span.at(a.high)) for a in arms)
    ticks = tuple(Tick(span.at(t), label(t)) for t in ticks_within(span, step))
    return IntervalChart(placed, ticks)


def loss_chart(
    training: Sequence[tuple[int, float]], validation: Sequence[tuple[int, float]]
) -> Curve | None:
    """Place losses by step.

    Args:
        training: Step and training loss, oldest first.
        validation: Step and validation loss, oldest first.

    Returns:
        Positions of both curves; None when there is nothing to draw.
    """
    everything = [*training, *validation]
    if not everything:
        return None
    steps, losses = [s for s, _ in everything], [loss for _, loss in everything]
    x, x_step = _step_axis(min(steps), max(steps))
    y_step = nice_step(min(losses), max(losses), 5)
    y = rounded(min(losses), max(losses), y_step)
    smooth = smoothed([loss for _, loss in training])
    return Curve(
        raw=_place(thinned(training), x, y),
        smooth=_place(thinned([(s, v) for (s, _), v in zip(training, smooth, strict=True)]), x, y),
        validation=_place(validation, x, y),
        x_ticks=tuple(Tick(x.at(t), numbers.count(t)) for t in ticks_within(x, x_step)),
        y_ticks=tuple(Tick(100 - y.at(t), _decimal(t, y_step)) for t in ticks_within(y, y_step)),
    )


def line_chart(values: Sequence[tuple[int, float]], steps: Sequence[int]) -> tuple[Dot, ...]:
    """Place one curve above zero, on the step axis of another chart that covers ``steps``."""
    top = max((value for _, value in values), default=0.0)
    if top <= 0:
        return ()
    x, _ = _step_axis(min(steps), max(steps))
    return _place(thinned(values), x, Span(0.0, top))


def bars(values: Mapping[str, float], total: float) -> tuple[Bar, ...]:
    """Make bars from zero; the longest fills the width, shares are of ``total``."""
    longest = max(values.values(), default=0.0) or 1.0
    return tuple(
        Bar(label, value, value / total if total else 0.0, 0.0, round(100 * value / longest, 3))
        for label, value in values.items()
    )


def composition(parts: Mapping[str, float]) -> tuple[Bar, ...]:
    """Lay parts of a whole end to end, filling the width."""
    total, start, laid = sum(parts.values()), 0.0, []
    for label, value in parts.items():
        share = value / total if total else 0.0
        laid.append(Bar(label, value, share, round(100 * start, 3), round(100 * share, 3)))
        start += share
    return tuple(laid)


def points(dots: Sequence[Dot]) -> str:
    """Write dots as the ``points`` attribute of a polyline."""
    return " ".join(f"{dot.x:g},{dot.y:g}" for dot in dots)


def smoothed(values: Sequence[float]) -> tuple[float, ...]:
    """Average every value with its neighbours on both sides, more of them the longer the curve is.

    Looking both ways, unlike a running average, does not lag behind a falling curve. Towards
    the ends the neighbourhood shrinks, so both end values stay and a straight line stays straight.
    """
    sums = (0.0, *itertools.accumulate(values))
    reach = max(2, len(values) // 40)
    result = []
    for i in range(len(values)):
        near = min(reach, i, len(values) - 1 - i)
        result.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
    return tuple(result)


def thinned(values: Sequence[tuple[int, float]], limit: int = MOST_POINTS) -> tuple[tuple[int, float], ...]:
    """Keep the ends, and the lowest and highest value of each stretch, so no spike is lost."""
    if len(values) <= limit:
        return tuple(values)
    width = math.ceil(len(values) / (limit // 2 - 1))
    kept = [values[0]]
    for start in range(0, len(values), width):
        stretch = values[start : start + width]
        kept += sorted({min(stretch, key=lambda v: v[1]), max(stretch, key=lambda v: v[1])})
    return tuple(dict.fromkeys([*kept, values[-1]]))


def nice_step(low: float, high: float, wanted: int) -> float:
    """Return a step of 1, 2 or 5 times a power of ten that gives about ``wanted`` ticks."""
    raw = ((high - low) or abs(high) or 1.0) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))


def ticks_within(span: Span, step: float) -> tuple[float, ...]:
    """Return the multiples of ``step`` inside a span, ends included."""
    first, last = math.ceil(span.low / step - 1e-9), math.floor(span.high / step + 1e-9)
    return tuple(round(i * step, 12) for i in range(first, last + 1))


def rounded(low: float, high: float, step: float) -> Span:
    """Widen a span to multiples of ``step``."""
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return Span(round(first * step, 12), round(max(last, first + 1) * step, 12))


def _step_axis(first: int, last: int) -> tuple[Span, float]:
    # A run of one step still needs an axis.
    span = Span(float(min(first, last - 1)), float(last))
    return span, max(1.0, nice_step(span.low, span.high, 6))


def _place(values: Sequence[tuple[int, float]], x: Span, y: Span) -> tuple[Dot, ...]:
    return tuple(Dot(x.at(step), round(100 - y.at(value), 3)) for step, value in values)


def _decimal(value: float, step: float) -> str:
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
