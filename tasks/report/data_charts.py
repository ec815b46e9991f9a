"""Where things lie in the charts of data: lengths, and the parts of several wholes."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tasks.report import numbers
from tasks.report.charts import Bar, Span, Tick, composition, nice_step, rounded, ticks_within

ROOM = 7.0
"""Least distance between two labels of a length axis."""
LEAST = 35.0
"""Least width of the bars beside a far limit."""
SLACK = 1e-9
"""Logarithms there and back are not exact."""


class Bin(NamedTuple):
    """One bar of a histogram; it stands on the lower edge of the plot."""

    start: float
    width: float
    top: float
    """Of its upper edge, counted from the top."""
    height: float
    low: float
    high: float
    n: int
    is_beyond: bool
    """It lies behind the limit."""


class Mark(NamedTuple):
    """A value worth a line of its own in a histogram."""

    at: float
    label: str
    value: float


class HistogramChart(NamedTuple):
    """Bars over a length axis, with marks."""

    bins: tuple[Bin, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    marks: tuple[Mark, ...]
    limit: float | None
    """Where the limit lies; None without one, or if it lies far beyond the longest."""


class Stack(NamedTuple):
    """One whole among several that are compared: its parts end to end."""

    label: str
    total: float
    parts: tuple[Bar, ...]


def histogram(
    edges: Sequence[float], counts: Sequence[int], marks: Mapping[str, float], limit: float | None = None
) -> HistogramChart | None:
    """Place a histogram of lengths; a wide range of them gets a logarithmic axis.

    Args:
        edges: n + 1 rising edges.
        counts: n counts.
        marks: Values to draw a line at, by name; those outside the axis are left out.
        limit: Length that nothing may exceed; bars behind it are marked. The axis is stretched to show it, unless
            that would squeeze the bars into less than ``LEAST`` of the plot.

    Returns:
        Positions; None when nothing was counted.
    """
    if len(edges) < 2 or len(edges) != len(counts) + 1 or not any(counts):
        return None
    stretched = None if limit is None else _length_axis(edges[0], max(edges[-1], limit), edges[-1])
    shown = (
        limit is not None and stretched is not None and edges[0] < limit and stretched.at(edges[-1]) >= LEAST
    )
    axis = stretched if stretched and shown else _length_axis(edges[0], edges[-1], edges[-1])
    top = nice_step(0, max(counts), 3)
    y = rounded(0, max(counts), top)
    placed = [
        _bin(low, high, n, axis, y, limit) for low, high, n in zip(edges, edges[1:], counts, strict=False)
    ]
    inside = {label: value for label, value in marks.items() if edges[0] <= value <= edges[-1]}
    return HistogramChart(
        bins=tuple(bar for bar in placed if bar.n),
        x_ticks=tuple(Tick(axis.at(t), numbers.compact(t)) for t in _length_ticks(axis)),
        y_ticks=tuple(Tick(100 - y.at(t), numbers.compact(t)) for t in ticks_within(y, max(1.0, top))),
        marks=tuple(Mark(axis.at(value), label, value) for label, value in inside.items()),
        limit=axis.at(limit) if limit is not None and shown else None,
    )


def stacks(counts: Mapping[str, Mapping[str, int]], most: int = 6) -> tuple[Stack, ...]:
    """Lay the parts of several wholes end to end, each filling the width, in one common order of parts.

    Args:
        counts: By whole, then by part.
        most: Parts told apart; the rarer ones are drawn as one, ``numbers.OTHERS``.
    """
    total: Counter[str] = Counter()
    for parts in counts.values():
        total.update(parts)
    names = [name for name, _ in total.most_common()]
    kept = names if len(names) <= most else names[: most - 1]
    laid = []
    for label, parts in counts.items():
        known = {name: parts.get(name, 0) for name in kept}
        rest = {} if len(kept) == len(names) else {numbers.OTHERS: sum(parts.values()) - sum(known.values())}
        laid.append(Stack(label, sum(parts.values()), composition({**known, **rest})))
    return tuple(laid)


class _LengthAxis(NamedTuple):
    """What a length axis covers, straight or logarithmic."""

    span: Span
    is_log: bool

    def at(self, value: float) -> float:
        """Return the position of a length, 0 to 100."""
        return self.span.at(math.log1p(value) if self.is_log else value)


def _length_axis(low: float, high: float, longest: float) -> _LengthAxis:
    # A wide range, or one stretched far beyond the longest, has its bars squeezed on a straight axis.
    if low >= 0 and (longest > 20 * max(1.0, low) or high > 2.5 * longest):
        # Of one more than the length: there are empty texts.
        return _LengthAxis(Span(math.log1p(low), math.log1p(high)), is_log=True)
    return _LengthAxis(Span(low, high), is_log=False)


def _length_ticks(axis: _LengthAxis) -> tuple[float, ...]:
    """Return round lengths whose labels have room."""
    if not axis.is_log:
        return ticks_within(axis.span, nice_step(*axis.span, 5))
    low, high = math.expm1(axis.span.low), math.expm1(axis.span.high)
    powers = [10.0**n for n in range(math.ceil(math.log10(high)) + 1)]
    kept: list[float] = []
    # Powers of ten first; what lies between them has to find room.
    for value in [*powers, 0.0, *(factor * power for power in powers for factor in (2, 5))]:
        free = all(abs(axis.at(value) - axis.at(other)) >= ROOM for other in kept)
        if low - SLACK <= value <= high * (1 + SLACK) and free:
            kept.append(value)
    return tuple(sorted(kept))


def _bin(low: float, high: float, n: int, axis: _LengthAxis, y: Span, limit: float | None) -> Bin:
    start, height = axis.at(low), y.at(n)
    return Bin(
        start=start,
        width=round(axis.at(high) - start, 3),
        top=round(100 - height, 3),
        height=height,
        low=low,
        high=high,
        n=n,
        is_beyond=limit is not None and low >= limit,
    )
