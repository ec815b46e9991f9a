import pytest

from gates.verdict import Value
from tasks.report import numbers


def plain(text: str) -> str:
    return text.replace(numbers.GAP, " ").replace(numbers.MINUS, "-")


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.923, "92.3 %"),
        (1.0, "100.0 %"),
        (0.0, "0.0 %"),
        (-0.031, "-3.1 %"),
        (-0.0001, "0.0 %"),
        (None, "—"),
    ],
)
def test_percent(share: float | None, text: str) -> None:
    assert plain(numbers.percent(share)) == text


@pytest.mark.parametrize(
    ("difference", "text"), [(0.708, "+70.8"), (-0.02, "-2.0"), (0.0, "0.0"), (-0.0002, "0.0")]
)
def test_points_always_have_a_sign_unless_zero(difference: float, text: str) -> None:
    assert plain(numbers.points(difference)) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (2_140_000, "2.1 MB"),
        (999_960, "1.0 MB"),
        (3.2e12, "3.2 TB"),
        (5e15, "5000.0 TB"),
    ],
)
def test_size(amount: float, text: str) -> None:
    assert plain(numbers.size(amount)) == text


@pytest.mark.parametrize(
    ("amount", "text"), [(9_999, "9,999"), (10_000, "10.0 k"), (3_400_000, "3.4 M"), (271e9, "271.0 G")]
)
def test_compact(amount: float, text: str) -> None:
    assert plain(numbers.compact(amount)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.7, "1 min 0 s"), (192, "3 min 12 s"), (3840, "1 h 4 min")],
)
def test_duration(seconds: float, text: str) -> None:
    assert plain(numbers.duration(seconds)) == text


def test_moment() -> None:
    assert numbers.moment("2026-11-20T22:48:05+00:00") == "2026-11-20 22:48 UTC"
    assert numbers.moment("2026-11-20T22:48:05") == "2026-11-20 22:48"
    assert numbers.moment("yesterday") == "yesterday"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "missing"),
        (True, "yes"),
        (False, "no"),
        (1234, "1,234"),
        (0.034512, "0.03451"),
        (-0.5, "-0.5"),
        (3.1e-05, "3.1e-5"),
        (12345.6, "12,346"),
        ("", "(empty)"),
        ("nan", "nan"),
    ],
)
def test_value(value: Value, text: str) -> None:
    assert plain(numbers.value(value)) == text


def test_digests_are_cut() -> None:
    assert numbers.value("sha256:" + "a" * 64) == "sha256:aaaaaaaaaaaa…"


@pytest.mark.parametrize(
    ("one", "other"),
    [(0.19999999, 0.2), ("sha256:" + "a" * 64, "sha256:" + "a" * 63 + "b"), (1_000_000.2, 1_000_000.4)],
)
def test_sides_that_differ_never_look_equal(one: Value, other: Value) -> None:
    left, right = numbers.sides(one, other)
    assert left != right


def test_equal_sides_stay_short() -> None:
    assert numbers.sides(0.2, 0.2) == ("0.2", "0.2")


def test_names_and_signs() -> None:
    assert (numbers.metric("exact_match"), numbers.metric("my_metric")) == ("Exact match", "my metric")
    assert (numbers.comparison(">="), numbers.comparison("~")) == ("≥", "~")
