"""Figures of several rounds put together, and set beside each other."""

import statistics
from collections.abc import Sequence
from functools import reduce

from core.config import Frozen
from core.training.benchmark.case import Case
from core.training.benchmark.reports import (
    LEAST_COSINE,
    LOSS_TOLERANCE,
    Measured,
    Memory,
    Speed,
    refusal,
    worse,
)


class Line(Frozen):
    """One system in the table."""

    system: str
    problem: str | None = None
    """Why it has no speed: skipped, failed or refused."""
    ms: float | None = None
    """Median of all timed steps."""
    ms_p10: float | None = None
    ms_p90: float | None = None
    wall_ms: float | None = None
    tokens_per_second: float | None = None
    labelled_per_second: float | None = None
    rounds_ms: tuple[float, ...] = ()
    """Median of each round."""
    measured: Measured | None = None
    remark: str | None = None
    """What its parity rests on, where that is not the plain rule."""


class Comparison(Frozen):
    """All systems on one base."""

    model: str
    case: Case
    lines: tuple[Line, ...]
    """Ours first."""

    def checked(self) -> "Comparison":
        """Refuse ours where its first step on the timed rows gave a loss that no peer had."""
        ours, *peers = self.lines
        mine = ours.measured.first_loss if ours.measured else None
        theirs = [p.measured.first_loss for p in peers if p.ms and p.measured and p.measured.first_loss]
        if not ours.ms or not theirs or mine is None:
            return self
        if any(abs(mine - loss) <= LOSS_TOLERANCE * abs(loss) for loss in theirs):
            return self
        why = f"refused: the loss of its first step, {mine:.6g}, is not that of the peers, {theirs[0]:.6g}"
        bare = Line(system=ours.system, problem=why, measured=ours.measured)
        return self.model_copy(update={"lines": (bare, *peers)})

    def relative(self, line: Line) -> float | None:
        """Return how many times as fast as a peer we are; None if either has no speed."""
        ours = self.lines[0].ms
        return line.ms / ours if ours and line.ms and line is not self.lines[0] else None


def line_of(system: str, rounds: Sequence[Measured], bar: float = LEAST_COSINE) -> Line:
    """Put the rounds of one system together; no speed unless every round computed what the reference does.

    Args:
        system: Its name.
        rounds: What its processes found.
        bar: The cosine that its gradients must reach.
    """
    failed = next((each for each in rounds if each.error), None)
    if failed is not None:
        return Line(system=system, problem=f"failed: {failed.error}", measured=failed)
    refused = next((why for each in rounds if (why := refusal(each, bar))), None)
    whole = merged(rounds)
    if refused is not None or whole.speed is None:
        return Line(system=system, problem=f"refused: {refused}", measured=whole)
    times, middle = sorted(whole.speed.step_ms), statistics.median(whole.speed.step_ms)
    return Line(
        system=system,
        ms=middle,
        ms_p10=ranked(times, 10),
        ms_p90=ranked(times, 90),
        wall_ms=whole.speed.wall_ms,
        tokens_per_second=whole.speed.tokens / middle * 1e3,
        labelled_per_second=whole.speed.labelled / middle * 1e3,
        rounds_ms=tuple(statistics.median(each.speed.step_ms) for each in rounds if each.speed),
        measured=whole,
        remark=remark_on(whole, bar),
    )


def remark_on(measured: Measured, bar: float) -> str | None:
    """Say so where a system passed by being as near to float32 as hf, and not by the plain rule."""
    parity = measured.parity
    if parity is None or parity.worst_cosine >= LEAST_COSINE:
        return None
    return (
        f"its worst gradient cosine is {parity.worst_cosine:.5f}, below {LEAST_COSINE:g}; shown because hf, rounding to "
        f"the same 16 bits, comes to {bar:.5f} on this base"
    )


def merged(rounds: Sequence[Measured]) -> Measured:
    """Put figures together: all steps, the highest peaks, the worst parity; the rest is the first round's."""
    parities = [each.parity for each in rounds if each.parity]
    speeds = [each.speed for each in rounds if each.speed]
    memories = [each.memory for each in rounds if each.memory]
    return rounds[0].model_copy(
        update={
            "parity": reduce(worse, parities) if parities else None,
            "speed": _speeds(speeds) if speeds else None,
            "memory": _memories(memories) if memories else None,
        }
    )


def _speeds(found: Sequence[Speed]) -> Speed:
    steps = tuple(ms for each in found for ms in each.step_ms)
    wall = statistics.mean(each.wall_ms for each in found)
    return found[0].model_copy(update={"step_ms": steps, "wall_ms": wall})


def _memories(found: Sequence[Memory]) -> Memory:
    return Memory(**{name: max(getattr(each, name) for each in found) for name in Memory.model_fields})


def ranked(ordered: Sequence[float], share: int) -> float:
    """Return a percentile by the nearest rank."""
    return ordered[min(len(ordered) - 1, len(ordered) * share // 100)]
