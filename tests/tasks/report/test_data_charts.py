import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.report.data_charts import histogram, stacks


def test_a_narrow_histogram_is_straight_and_bars_stand_on_the_ground():
    chart = histogram([0, 5, 10, 20], [10, 0, 30], {"median": 15}, None)
    assert chart is not None and chart.limit is None
    first, last = chart.bins
    assert (first.start, first.width, first.top, first.height) == (
        0,
        25,
        pytest.approx(66.667),
        pytest.approx(33.333),
    )
    assert (last.start, last.width, last.top, last.height) == (50, 50, 0, 100)
    assert [(tick.at, tick.text) for tick in chart.x_ticks] == [
        (0, "0"), (25, "5"), (50, "10"), (75, "15"), (100, "20"),
    ]  # fmt: skip
    assert [mark.at for mark in chart.marks] == [75]


def test_a_wide_histogram_is_logarithmic():
    chart = histogram([1, 10, 1000], [4, 2], {}, None)
    assert chart is not None
    tenth = 100 * (math.log1p(10) - math.log1p(1)) / (math.log1p(1000) - math.log1p(1))
    assert chart.bins[0].width == pytest.approx(tenth, abs=0.001)
    assert chart.bins[1].start == pytest.approx(tenth, abs=0.001)
    assert (chart.bins[0].height, chart.bins[1].height) == (100, 50)
    assert [tick.text for tick in chart.x_ticks] == ["1", "5", "10", "20", "50", "100", "200", "500", "1,000"]
    assert chart.x_ticks[2].at == pytest.approx(tenth, abs=0.001)


def test_bars_behind_the_limit_are_marked_and_the_limit_stands_between_them():
    chart = histogram([0, 4, 8, 12], [1, 1, 1], {}, 8)
    assert chart is not None
    assert [bar.is_beyond for bar in chart.bins] == [False, False, True]
    assert chart.limit == pytest.approx(66.667)


def test_the_axis_is_stretched_to_show_a_limit_that_nothing_reaches():
    chart = histogram([0, 4, 8], [1, 1], {}, 16)
    assert chart is not None
    assert chart.limit == 100 and chart.bins[-1].start + chart.bins[-1].width == 50


def test_a_limit_some_way_beyond_makes_the_axis_logarithmic_rather_than_squeeze_the_bars():
    chart = histogram([14, 33, 53], [1, 1], {}, 256)
    assert chart is not None and chart.limit == 100
    end = chart.bins[-1].start + chart.bins[-1].width
    assert end == pytest.approx(100 * math.log(54 / 15) / math.log(257 / 15), abs=0.01)
    assert end > 40


def test_a_limit_far_beyond_is_not_drawn_and_squeezes_nothing():
    chart = histogram([0, 4, 8], [1, 1], {}, 8192)
    assert chart is not None
    assert chart.limit is None and chart.bins[-1].start + chart.bins[-1].width == 100


def test_marks_outside_the_axis_are_left_out():
    chart = histogram([10, 20, 30], [1, 1], {"median": 15, "p95": 40}, None)
    assert chart is not None
    assert [mark.label for mark in chart.marks] == ["median"]


@pytest.mark.parametrize(("edges", "counts"), [((), ()), ((1,), ()), ((0, 1, 2), (0, 0)), ((0, 1), (1, 2))])
def test_nothing_counted_is_no_histogram(edges: tuple[float, ...], counts: tuple[int, ...]):
    assert histogram(edges, counts, {}) is None


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(st.integers(1, 5000), min_size=1, max_size=25),
    first=st.integers(0, 50),
    limit=st.none() | st.integers(1, 100_000),
    data=st.data(),
)
def test_whatever_is_counted_lies_inside_side_by_side(steps, first, limit, data):
    edges = [float(first + sum(steps[:n])) for n in range(len(steps) + 1)]
    counts = data.draw(st.lists(st.integers(0, 10**9), min_size=len(steps), max_size=len(steps)))
    chart = histogram(edges, counts, {"median": edges[0]}, limit)
    if not any(counts):
        assert chart is None
        return
    assert chart is not None and len(chart.bins) == sum(count > 0 for count in counts)
    assert all(0 <= bar.start <= bar.start + bar.width <= 100.01 for bar in chart.bins)
    assert all(bar.top + bar.height == pytest.approx(100, abs=0.002) for bar in chart.bins)
    assert all(a.start + a.width <= b.start + 0.01 for a, b in zip(chart.bins, chart.bins[1:], strict=False))
    places = [tick.at for tick in chart.x_ticks]
    assert places == sorted(places) and all(-0.01 <= at <= 100.01 for at in places)


def test_stacks_share_one_order_of_parts_and_each_fills_the_width():
    train, test = stacks({"train": {"a": 1, "b": 3}, "test": {"a": 8}})
    assert [(part.label, part.start, part.width) for part in train.parts] == [("a", 0, 25), ("b", 25, 75)]
    assert [(part.label, part.start, part.width) for part in test.parts] == [("a", 0, 100), ("b", 100, 0)]
    assert (train.total, test.total) == (4, 8)


def test_rare_parts_become_one_and_no_row_is_lost():
    counts = {"train": {name: 10 - place for place, name in enumerate("abcdefgh")}}
    [train] = stacks(counts)
    assert [part.label for part in train.parts] == ["a", "b", "c", "d", "e", "others"]
    assert train.parts[-1].value == 5 + 4 + 3
    assert sum(part.value for part in train.parts) == train.total == sum(counts["train"].values())


def test_an_empty_split_is_an_empty_bar():
    [val] = stacks({"val": {}})
    assert val.total == 0 and val.parts == ()
