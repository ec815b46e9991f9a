"""Graders against values worked out by hand."""

import pytest

from core.evaluation.graders import exact_match, normalise, token_f1


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
