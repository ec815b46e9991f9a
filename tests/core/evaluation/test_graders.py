"""Graders against values worked out by hand."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DataError
from core.evaluation.graders import (
    chrf,
    exact_match,
    json_valid,
    normalise,
    numeric,
    rouge_1,
    rouge_2,
    rouge_l,
    token_f1,
    words,
)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("GH₵11", "GH₵11", 1.0),
        (" gh₵11. ", "GH₵11", 1.0),
        ("GH₵ 11", "GH₵11", 0.0),
        ("Maakye", "maakye!", 1.0),
        ("mako", "makɔ", 0.0),
        ("Me\u0300daase", "M\u00e8daase", 1.0),
        ("", "x", 0.0),
        ("12", "1 2", 0.0),
    ],
)
def test_exact_match(answer: str, reference: str, score: float):
    assert exact_match(answer, reference) == score


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("the red ball", "the red ball", 1.0),
        ("red ball", "the red ball", 2 * 1.0 * (2 / 3) / (1 + 2 / 3)),
        ("ball ball", "ball", 2 * 0.5 * 1.0 / 1.5),
        ("green", "red", 0.0),
        ("", "red", 0.0),
        ("", "", 1.0),
    ],
)
def test_token_f1_is_the_harmonic_mean_of_precision_and_recall(answer: str, reference: str, score: float):
    assert token_f1(answer, reference) == pytest.approx(score)


def test_normalise_keeps_open_vowels():
    assert normalise("ƐTE SƐN") == "ɛte sɛn"
    assert normalise("ɔ") != normalise("o")


def longest_common(left, right):
    """Length of the longest common subsequence, by the textbook table."""
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(st.lists(st.sampled_from("abcde"), max_size=12), st.lists(st.sampled_from("abcde"), max_size=12))
def test_rouge_l_is_the_f1_of_the_longest_common_subsequence(left, right):
    size = len(left) + len(right)
    expected = 2 * longest_common(left, right) / size if left and right else float(left == right)
    assert rouge_l(" ".join(left), " ".join(right)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [
        ("The cat sat.", "the cat, sat", 1.0),
        ("police killed the gunman", "the gunman killed police", 0.5),
        ("+", "-", 0.0),
        ("", "x", 0.0),
        ("(seven)", "seven", 1.0),
    ],
)
def test_rouge_l_looks_at_words_without_the_punctuation_around_them(answer, reference, score):
    assert rouge_l(answer, reference) == pytest.approx(score)


def by_definition(answer, reference):
    """Return chrF2: mean precision and recall of character n-grams, 1 to 6, of orders that both texts have."""
    grams = lambda text, n: Counter(text[i : i + n] for i in range(len(text) - n + 1))  # noqa: E731
    got, wanted = answer.replace(" ", ""), reference.replace(" ", "")
    precisions, recalls = [], []
    for n in range(1, 7):
        mine, theirs = grams(got, n), grams(wanted, n)
        if mine and theirs:
            shared = (mine & theirs).total()
            precisions.append(shared / mine.total())
            recalls.append(shared / theirs.total())
    if not precisions:
        return 0.0
    p, r = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 5 * p * r / (4 * p + r) if p + r else 0.0


@pytest.mark.parametrize(
    ("answer", "reference"),
    [("the cat sat", "the cat sat"), ("Maakye", "Maaha"), ("seven", "7"), ("", "x"), ("a longer answer", "an answer"),
     ("GH₵11", "GH₵ 11"), ("xyz", "abc")],
)  # fmt: skip
def test_chrf_matches_its_definition(answer: str, reference: str):
    assert chrf(answer, reference) == pytest.approx(by_definition(answer, reference), abs=1e-9)


@pytest.mark.parametrize(
    ("answer", "reference", "score"),
    [("She pays GH₵1,100.", "1100", 1.0), ("0.5", "50%", 1.0), ("3 + 4 = 8", "7", 0.0), ("seven", "7", 0.0),
     ("It is 7, not 8", "7", 0.0), ("1/3", "0.3333333333", 1.0)],
)  # fmt: skip
def test_numeric_compares_last_numbers(answer, reference, score):
    assert numeric(answer, reference) == score


def test_a_reference_without_a_number_is_an_error_and_no_zero():
    with pytest.raises(DataError, match="no number"):
        numeric("7", "seven")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ('{"a": [1, 2.5, null, true]}', 1.0), (' [1]\n', 1.0), ("7", 1.0), ('"x"', 1.0), ("9" * 5000, 1.0),
        ('```json\n{"a": 1}\n```', 1.0), ('```\n{"a": 1}\n```', 1.0), ('Here: {"a": 1}', 0.0), ("{'a': 1}", 0.0),
        ('{"a": 1,}', 0.0), ("NaN", 0.0), ('[Infinity]', 0.0), ("", 0.0), ('```json\n{"a": 1}\n``` done', 0.0),
        ("[" * 100_000, 0.0), ('{"a": 1} {"b": 2}', 0.0), ('```json\n1\n```\n```json\n2\n```', 0.0),
    ],
)  # fmt: skip
def test_json_valid(answer: str, score: float):
    assert json_valid(answer, "whatever") == score


def test_words_of_nothing_but_signs_stay():
    assert words("Well, 3 + (4) = -7!") == ["well", "3", "+", "4", "=", "7"]
    assert words("+ -") == ["+", "-"]


@pytest.mark.parametrize(
    ("answer", "reference", "one", "two"),
    [
        ("the cat sat", "the cat sat", 1.0, 1.0),
        # Two of three words and of four; one of two pairs and of three.
        ("the cat ran", "the cat sat down", 2 * 2 / 7, 2 * 1 / 5),
        # Order matters to pairs alone.
        ("sat cat the", "the cat sat", 1.0, 0.0),
        # Repeats count as often as they are shared.
        ("a a a", "a a", 2 * 2 / 5, 2 * 1 / 3),
        ("Accra.", "accra", 1.0, 1.0),
        ("Accra", "Kumasi", 0.0, 0.0),
        ("Accra", "in Accra", 2 / 3, 0.0),
        ("makɔ", "mako", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("", "x y", 0.0, 0.0),
        ("x y", "", 0.0, 0.0),
    ],
)
def test_rouge_1_and_2_are_the_f1_of_shared_words_and_pairs(
    answer: str, reference: str, one: float, two: float
):
    assert rouge_1(answer, reference) == pytest.approx(one)
    assert rouge_2(answer, reference) == pytest.approx(two)


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7))
def test_rouge_1_and_2_by_counting_one_by_one(left: list[str], right: list[str]):
    def shared(n: int) -> float:
        mine, theirs = ([tuple(x[i : i + n]) for i in range(len(x) - n + 1)] for x in (left, right))
        if not mine and not theirs:
            return float(left == right)
        size, rest, hits = len(mine) + len(theirs), list(theirs), 0
        for gram in mine:
            if gram in rest:
                rest.remove(gram)
                hits += 1
        return 2 * hits / size

    assert rouge_1(" ".join(left), " ".join(right)) == pytest.approx(shared(1))
    assert rouge_2(" ".join(left), " ".join(right)) == pytest.approx(shared(2))
