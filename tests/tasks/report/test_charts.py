import math

import pytest

from tasks.report import charts
from tasks.report.charts import Dot, Span, Tick, Whisker


def inside(dots: tuple[Dot, ...]) -> bool:
    return all(0 <= dot.x <= 100 and 0 <= dot.y <= 100 for dot in dots)


def axis(ticks: tuple[Tick, ...]):
    """Read an axis like a person: two labelled ticks give the position of any value."""
    (a, x), (b, y) = [(t.at, float(t.text.rstrip("%\u202f").replace(",", ""))) for t in (ticks[0], ticks[-1])]
    return lambda value: a + (b - a) * (value - x) / (y - x)


def test_whiskers_lie_where_the_axis_says() -> None:
    arms = [Whisker("baseline", 0.152, 0.2, 0.248), Whisker("tuned", 0.874, 0.908, 0.942)]
    chart = charts.interval_chart(arms)
    assert chart is not None
    at = axis(chart.ticks)
    for arm, placed in zip(arms, chart.whiskers, strict=True):
        assert placed.label == arm.label
        assert placed.low == pytest.approx(at(100 * arm.low), abs=0.01)
        assert placed.value == pytest.approx(at(100 * arm.value), abs=0.01)
        assert placed.high == pytest.approx(at(100 * arm.high), abs=0.01)


def test_full_range_of_scores_is_drawn_one_to_one() -> None:
    chart = charts.interval_chart([Whisker("a", 0.0, 0.5, 1.0)])
    assert chart is not None
    assert chart.whiskers[0][1:] == (0, 50, 100)
    assert [tick.at for tick in chart.ticks] == [0, 20, 40, 60, 80, 100]


@pytest.mark.parametrize("value", [0.0, 0.004, 0.5, 0.999, 1.0])
def test_degenerate_intervals_stay_inside(value: float) -> None:
    chart = charts.interval_chart([Whisker("a", value, value, value)])
    assert chart is not None
    assert all(0 <= position <= 100 for position in chart.whiskers[0][1:])
    assert len(chart.ticks) >= 2


def test_scores_beyond_the_unit_interval_stay_inside() -> None:
    chart = charts.interval_chart([Whisker("malformed", -0.4, 1.2, 1.7)])
    assert chart is not None
    assert all(0 <= position <= 100 for position in chart.whiskers[0][1:])


def test_an_axis_without_bounds_leaves_the_unit_interval_and_labels_its_own_way() -> None:
    chart = charts.interval_chart([Whisker("a", 3.0, 4.0, 9.0)], lambda value: f"{value:g} x", within=None)
    assert chart is not None
    assert next(tick.text for tick in chart.ticks) == "2 x"
    narrow = charts.interval_chart([Whisker("a", 4.0, 4.0, 4.0)], str, within=None)
    assert narrow is not None and 0 < narrow.whiskers[0].value < 100


def test_no_arms_no_chart() -> None:
    assert charts.interval_chart([]) is None


def test_losses_lie_where_the_axes_say() -> None:
    training = [(step, 3 * math.exp(-step / 40) + 0.2) for step in range(1, 121)]
    validation = [(0, 3.4), (60, 1.1), (120, 0.41)]
    chart = charts.loss_chart(training, validation)
    assert chart is not None
    across, down = axis(chart.x_ticks), axis(chart.y_ticks)
    for (step, loss), dot in zip(training, chart.raw, strict=True):
        assert dot == pytest.approx((across(step), down(loss)), abs=0.01)
    for (step, loss), dot in zip(validation, chart.validation, strict=True):
        assert dot == pytest.approx((across(step), down(loss)), abs=0.01)
    assert inside(chart.raw + chart.smooth + chart.validation)


def test_higher_losses_lie_higher_up() -> None:
    chart = charts.loss_chart([(1, 2.0), (2, 1.0)], [])
    assert chart is not None
    assert chart.raw[0].y < chart.raw[1].y


@pytest.mark.parametrize(
    ("training", "validation"),
    [
        ([(1, 2.0)], []),
        ([], [(0, 2.0), (10, 1.0)]),
        ([(1, 0.0), (2, 0.0)], []),
        ([(5, 1e-7), (6, 3e4)], [(6, 1.0)]),
    ],
)
def test_odd_curves_are_drawn_inside(
    training: list[tuple[int, float]], validation: list[tuple[int, float]]
) -> None:
    chart = charts.loss_chart(training, validation)
    assert chart is not None
    assert inside(chart.raw + chart.smooth + chart.validation)
    assert all(0 <= tick.at <= 100 for tick in (*chart.x_ticks, *chart.y_ticks))
    assert len(chart.y_ticks) >= 2


def test_nothing_logged_no_chart() -> None:
    assert charts.loss_chart([], []) is None
    assert charts.line_chart([], []) == ()


def test_learning_rate_shares_the_step_axis_of_the_losses() -> None:
    rates = charts.line_chart([(50, 1e-4), (100, 2e-4)], [0, 100])
    assert rates == (Dot(50, 50), Dot(100, 0))


def test_smoothing_keeps_straight_lines_and_calms_noise() -> None:
    line = [3 - 0.01 * i for i in range(200)]
    assert charts.smoothed(line) == pytest.approx(line)
    noisy = [2 + (-1) ** i for i in range(200)]
    assert max(abs(v - 2) for v in charts.smoothed(noisy)[20:-20]) < 0.2


def test_smoothing_answers_every_value() -> None:
    assert [len(charts.smoothed([1.0] * n)) for n in (0, 1, 2, 7)] == [0, 1, 2, 7]


def test_thinning_keeps_ends_and_spikes() -> None:
    curve = [(step, 1.0) for step in range(20_000)]
    curve[7_777] = (7_777, 99.0)
    kept = charts.thinned(curve, limit=100)
    assert len(kept) <= 100
    assert kept[0] == curve[0] and kept[-1] == curve[-1]
    assert (7_777, 99.0) in kept
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})


def test_short_curves_are_not_thinned() -> None:
    assert charts.thinned([(1, 2.0), (2, 1.0)]) == ((1, 2.0), (2, 1.0))


@pytest.mark.parametrize(
    ("low", "high", "step"), [(0, 1, 0.2), (0, 10, 2), (0.3, 2.7, 0.5), (0, 0, 0.2), (7, 7, 2)]
)
def test_steps_are_round_numbers(low: float, high: float, step: float) -> None:
    assert charts.nice_step(low, high, 5) == pytest.approx(step)


def test_ticks_include_both_ends() -> None:
    assert charts.ticks_within(Span(0.1, 0.4), 0.1) == (0.1, 0.2, 0.3, 0.4)


def test_longest_bar_is_full_and_shares_are_of_the_total() -> None:
    longest, other = charts.bars({"no answer": 30, "too long": 15}, 60)
    assert (longest.width, longest.share) == (100, 0.5)
    assert (other.width, other.share) == (50, 0.25)
    assert charts.bars({"none": 0}, 0)[0].width == 0


def test_composition_lies_end_to_end() -> None:
    train, val, test = charts.composition({"train": 80, "val": 0, "test": 20})
    assert (train.start, train.width) == (0, 80)
    assert (val.start, val.width) == (80, 0)
    assert (test.start, test.width) == (80, 20)
    assert [part.width for part in charts.composition({"train": 0, "test": 0})] == [0, 0]


def test_points_are_written_for_svg() -> None:
    assert charts.points([Dot(0, 100), Dot(33.333, 0.5)]) == "0,100 33.333,0.5"
