"""Early stopping and the best step, from the losses alone."""

import pytest

from core.training.stopping import best_step, is_worn_out, since_improvement


def evals(*losses: float) -> tuple[tuple[int, float], ...]:
    return tuple((10 * n, loss) for n, loss in enumerate(losses, 1))


@pytest.mark.parametrize(
    ("losses", "threshold", "waited"),
    [
        ((), 0.0, 0),
        ((1.0,), 0.0, 0),
        ((1.0, 0.9, 0.8), 0.0, 0),
        ((1.0, 1.0), 0.0, 1),
        ((1.0, 0.9, 0.95, 0.9), 0.0, 2),
        ((1.0, 0.9, 0.95, 0.89), 0.0, 0),
        ((1.0, 0.995, 0.985), 0.01, 0),
        ((1.0, 0.995, 0.991), 0.01, 2),
        ((1.0, 0.99), 0.01, 1),
        ((1.0, 0.75), 0.25, 1),
    ],
)
def test_waiting_is_counted_from_the_last_loss_that_improved(losses, threshold, waited):
    assert since_improvement(evals(*losses), threshold) == waited


def test_patience_runs_out_at_its_number_and_null_never_does():
    falling_then_flat = evals(1.0, 0.5, 0.6, 0.7, 0.8)
    assert [is_worn_out(falling_then_flat, n, 0.0) for n in (1, 3, 4)] == [True, True, False]
    assert not is_worn_out(evals(*[1.0] * 50), None, 0.0)


def test_the_best_is_the_lowest_and_of_equals_the_earliest():
    assert best_step(()) is None
    assert best_step(evals(1.0, 0.5, 0.5, 0.7)) == 20
