"""The micro-batch and the budget with which the fused engine is fastest at no more memory than another engine took."""

import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from core.models.fused.costs import peak_bytes
from core.models.fused.first_step import FirstStep
from core.models.fused.policy import choose_micro_batch, divisors
from core.models.fused.sites import addresses
from core.models.fused.state import FusedState, fused_state
from core.models.fused.unpacking import expansions
from core.training.benchmark.case import Case
from core.training.benchmark.measuring import Run
from core.training.benchmark.systems import Prepared, grant

NEAR = 0.98
"""Share of a limit that is worth no further search."""
AIM = 0.993
"""What the search aims at."""
TRIES = 4
GIB = 2**30


class Limit(NamedTuple):
    """A line of another engine."""

    label: str
    base: str
    storage: str
    rows: int
    micro_batch: int
    length: int
    peak: int
    """Bytes allocated."""
    ms: float


def front(lines: list[dict[str, Any]]) -> list[Limit]:
    """Return the lines of a results file that no other of the same work beats in both time and memory."""
    found = [limit_of(each) for each in lines if each["measured"]["speed"]]
    return [each for each in found if not any(beats(other, each) for other in found)]


def limit_of(each: dict[str, Any]) -> Limit:
    """Read a line."""
    case, measured = each["case"], each["measured"]
    return Limit(
        each["label"], case["model"].rsplit("/", 1)[-1].removesuffix("-tiny"), case["storage"], case["rows"],
        case["micro_batch"] or case["rows"], case["length"], measured["memory"]["allocated"],
        statistics.median(measured["speed"]["step_ms"]),
    )  # fmt: skip


def beats(one: Limit, other: Limit) -> bool:
    """Tell whether a line is as good as another in both time and memory, and better in one."""
    work = [(each.base, each.storage, each.rows, each.length) for each in (one, other)]
    costs = [(each.peak, each.ms) for each in (one, other)]
    return work[0] == work[1] and costs[0] != costs[1] and all(a <= b for a, b in zip(*costs, strict=True))


def fastest(make: Callable[[Case], Prepared], case: Case, limit: Limit) -> tuple[Case | None, list[str]]:
    """Search the budget for the planner's micro-batch and for the other engine's own.

    Args:
        make: Returns the model as before its first step.
        case: The load; micro-batch and budget are replaced.
        limit: The line to stay below.

    Returns:
        The fastest case that fits, and what was tried.
    """
    state = fused_state(make(case).model)
    assert state is not None
    room = limit.peak - held(state)
    sizes = dict.fromkeys((micro_batch_for(state, case, limit, room), limit.micro_batch))
    floors = {size: floor(state, size * case.length) for size in sizes}
    best: tuple[float, Case] | None = None
    told: list[str] = []
    for size in sizes:
        tried = case.model_copy(update={"micro_batch": size, "budget": max(0, room - floors[size]) / GIB})
        found = fitted(make, tried, limit, told)
        if found is not None and (best is None or found[0] < best[0]):
            best = found
    return (best[1] if best else None), told


def held(state: FusedState) -> int:
    """Count what is there before anything is computed: base, adapter, gradients, optimizer."""
    sites = state.sites(is_training=True)
    trained = sum(each.numel() for site in sites.values() for each in site.parameters)
    allocated = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
    return allocated + FirstStep().to_come(trained)


def floor(state: FusedState, tokens: int) -> int:
    """Return what the hungriest layer takes while it is computed, or the head."""
    shapes = state.shapes(state.sites(is_training=True))
    return max(peak_bytes(shape, tokens, state.settings.vocab_size) for shape in shapes)


def micro_batch_for(state: FusedState, case: Case, limit: Limit, room: int) -> int:
    """Ask the planner for a micro-batch as on a card of that size."""
    sites = state.sites(is_training=True)
    return choose_micro_batch(
        divisors(case.rows), limit.micro_batch, case.rows, case.length, state.shapes(sites), room, state.host_room(),
        state.rates, expansions=expansions(sites), vocabulary=state.settings.vocab_size,
    )  # fmt: skip


def fitted(
    make: Callable[[Case], Prepared], case: Case, limit: Limit, told: list[str]
) -> tuple[float, Case] | None:
    """Move the budget until the measured peak is close below the limit; a few steps each, on one model."""
    budget, best, prepared = case.budget or 0.0, None, make(case)
    for _ in range(TRIES):
        tried = case.model_copy(update={"budget": round(budget, 3), "warmup": 2, "steps": 2})
        grant(prepared.model, tried.budget)
        ms, peak, has_all = probed(prepared, tried)
        told.append(f"by {case.micro_batch} budget {budget:.1f}: {ms:.0f} ms {peak / GIB:.2f}")
        if peak <= limit.peak and (best is None or ms < best[0]):
            best = ms, case.model_copy(update={"budget": tried.budget})
        ahead = AIM * limit.peak - peak
        if NEAR * limit.peak <= peak <= limit.peak or (has_all and ahead > 0) or (budget == 0 and ahead <= 0):
            break
        budget = max(0.0, budget + ahead / GIB)
    return best


def probed(prepared: Prepared, case: Case) -> tuple[float, int, bool]:
    """Run a few steps: milliseconds, peak, and whether there is nothing more to keep."""
    try:
        speed, memory = Run(prepared, case).measure()
    except torch.OutOfMemoryError:
        return float("inf"), 1 << 62, False
    return min(speed.step_ms), memory.allocated, keeps_all(fused_state(prepared.model))


def keeps_all(state: FusedState | None) -> bool:
    """Tell whether more memory would be of no use: nothing is computed, sent or expanded again."""
    if state is None or state.planned is None:
        return True
    moves = state.planned.extra_ms > 0 or state.planned.host_bytes > 0
    groups = [group for site in state.sites().values() for group in site.groups]
    return not moves and all(group.home is not None or not addresses(group) for group in groups)
