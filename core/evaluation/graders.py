"""Graders: how one answer compares with its reference, as a number in [0, 1]."""

import unicodedata
from collections import Counter
from collections.abc import Callable

from core.evaluation.config import MetricName

Grader = Callable[[str, str], float]
"""(answer, reference) -> score."""


def normalise(text: str) -> str:
    """Make answers comparable: NFC, case folded, whitespace collapsed, final full stop dropped.

    Letters keep their diacritics: in Twi, o and an open o are different letters.
    """
    plain = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return plain.rstrip(".!").rstrip()


def exact_match(answer: str, reference: str) -> float:
    """Return 1 if the normalised texts are equal, else 0."""
    return float(normalise(answer) == normalise(reference))


def token_f1(answer: str, reference: str) -> float:
    """Return the harmonic mean of word precision and recall, counting repeats (SQuAD, arXiv:1606.05250)."""
    got, wanted = normalise(answer).split(), normalise(reference).split()
    if not got or not wanted:
        return float(got == wanted)
    shared = sum((Counter(got) & Counter(wanted)).values())
    return 2 * shared / (len(got) + len(wanted))


GRADERS: dict[MetricName, Grader] = {"exact_match": exact_match, "token_f1": token_f1}
