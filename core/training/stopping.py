"""When to stop early, and which validation loss was the best: functions of the losses so far alone.

Because nothing else is remembered, a resumed run decides what the uninterrupted one would have decided.
"""

from collections.abc import Sequence

Evals = Sequence[tuple[int, float]]
"""(step, validation loss), oldest first."""


def since_improvement(evals: Evals, threshold: float) -> int:
    """Count the latest validation losses in a row that brought no improvement.

    A loss improves if it lies more than ``threshold`` below the last one that improved; several small falls
    together count as one.

    Args:
        evals: Validation losses so far.
        threshold: Smallest fall that counts.
    """
    reference, waited = float("inf"), 0
    for _, loss in evals:
        if loss < reference - threshold:
            reference, waited = loss, 0
        else:
            waited += 1
    return waited


def is_worn_out(evals: Evals, patience: int | None, threshold: float) -> bool:
    """Tell whether training should stop; never without a patience."""
    return patience is not None and since_improvement(evals, threshold) >= patience


def best_step(evals: Evals) -> int | None:
    """Return the step of the lowest validation loss, the earliest of equals; None without any."""
    return min(evals, key=lambda each: each[1])[0] if evals else None
