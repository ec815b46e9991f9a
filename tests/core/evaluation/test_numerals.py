"""Numbers in text, against values read by a person."""

import pytest

from core.evaluation.numerals import Number, last_number, same_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42), ("The answer is 42.", 42), ("GH₵11", 11), ("3 + 4 = 7", 7), ("7 - 10 = -3", -3),
        ("1,234", 1234), ("1 234", 1234), ("1\u202f234,5", 1234.5), ("1'234.5", 1234.5), ("1,234.5", 1234.5),
        ("1.234,5", 1234.5), ("1.234", 1.234), ("1.234.567", 1234567), ("1,234,567.25", 1234567.25),
        ("2,5", 2.5), ("0,125", 0.125), ("0.001", 0.001), (".5", 0.5), ("12,34", 12.34), ("1234,567", 1234.567),
        ("1,2,3", 3), ("1, 2, 3", 3), ("5, 600", 600), ("from 3-5", 5), ("3 - 5", 5), ("(−5)", -5), ("x=-5", -5),
        ("-$5", -5), ("$-5", -5), ("-GH₵5", -5), ("US$1,200.50", 1200.5), ("GHS50", 50), ("GHS 50", 50),
        ("3/4", 0.75), ("1 3/4", 1.75), ("½", 0.5), ("1½ cups", 1.5), ("-3/4", -0.75), ("on 12/3/24", 24),
        ("1/0", 0), ("50%", 50), ("1e5", 1e5), ("1.5e-3", 0.0015), ("3 × 10^8", 3e8), ("2 x 10^−2", 0.02),
        ("5kg", 5), ("H2O", None), ("vitamin B12", None), ("none", None), ("", None), ("3.", 3), ("9.", 9),
        ("(2)-5", 5), ("a 007", 7), ("10 000 000", 10_000_000), ("1 2345", 2345), ("+8", 8), ("٣٤", 34),
    ],
)  # fmt: skip
def test_the_last_number_of_a_text(text, value):
    found = last_number(text)
    assert (found and found.value) == (value if value is None else pytest.approx(value))


def test_a_power_beyond_all_floats_is_no_crash():
    assert last_number("1e999").value > 1e299
    assert last_number("9" * 6000).value == float("inf")


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (Number(50, True), Number(50, True), True),
        (Number(50, True), Number(0.5, False), True),
        (Number(0.5, False), Number(50, True), True),
        (Number(50, True), Number(50, False), True),
        (Number(50, True), Number(0.5, True), False),
        (Number(50, False), Number(0.5, False), False),
        (Number(3.0000001, False), Number(3, False), True),
        (Number(3.00001, False), Number(3, False), False),
        (Number(0, False), Number(1e-12, False), True),
        (Number(-5, False), Number(5, False), False),
    ],
)
def test_numbers_are_the_same_within_a_millionth(left, right, same):
    assert same_number(left, right) is same
