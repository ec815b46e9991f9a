"""Graders: how one answer compares with its reference, as a number in [0, 1]."""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import Any

from core.errors import DataError
from core.evaluation.numerals import last_number, same_number

Grader = Callable[[str, str], float]
"""(answer, reference) -> score."""
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*?)\n?```", re.DOTALL | re.IGNORECASE)


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


def words(text: str) -> list[str]:
    """Return the normalised words of a text, without the punctuation around them.

    A word of nothing but signs stays: to a calculation, + and - are not the same.
    """
    return [_bare(word) or word for word in normalise(text).split()]


def rouge_l(answer: str, reference: str) -> float:
    """Return the F1 of the longest common subsequence of words (Lin 2004, ROUGE-L, beta 1).

    2 * lcs / (words of the answer + words of the reference).
    """
    from rapidfuzz.distance import LCSseq

    got, wanted = words(answer), words(reference)
    if not got or not wanted:
        return float(got == wanted)
    return 2 * LCSseq.similarity(got, wanted) / (len(got) + len(wanted))


def rouge_1(answer: str, reference: str) -> float:
    """Return the F1 of shared words, counting repeats (Lin 2004, ROUGE-1)."""
    return _rouge_n(answer, reference, 1)


def rouge_2(answer: str, reference: str) -> float:
    """Return the F1 of shared pairs of neighbouring words, counting repeats (Lin 2004, ROUGE-2).

    A text of one word has no pair: against another such text it is 1 if the words are equal, else 0.
    """
    return _rouge_n(answer, reference, 2)


def chrf(answer: str, reference: str) -> float:
    """Return the F2 of character n-grams up to 6, spaces left out (Popović 2015, chrF2), by sacrebleu."""
    score = _chrf().sentence_score(answer, [reference]).score / 100
    return float(min(1.0, score))


def numeric(answer: str, reference: str) -> float:
    """Return 1 if the last number of the answer is that of the reference; see ``numerals``.

    Raises:
        DataError: If the reference holds no number: the question is not one for this metric.
    """
    wanted, got = last_number(reference), last_number(answer)
    if wanted is None:
        raise DataError(
            f"the reference {reference[:60]!r} holds no number",
            fix="leave the metric numeric out, or keep to rows whose answers are numbers",
        )
    return float(got is not None and same_number(got, wanted))


def json_valid(answer: str, reference: str) -> float:
    """Return 1 if the answer is one JSON value (RFC 8259), as it stands or as a single fenced block.

    What it says is not compared with the reference; a bare number or text in quotes is JSON too.
    """
    text = answer.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        # Numbers stay text: their size is no question of validity.
        json.loads(fenced[1] if fenced else text, parse_int=str, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return 0.0
    return 1.0


def _rouge_n(answer: str, reference: str, n: int) -> float:
    """Return 2 * shared / (n-grams of the answer + n-grams of the reference), over ``words``."""
    got, wanted = words(answer), words(reference)
    mine, theirs = (Counter(zip(*(each[i:] for i in range(n)), strict=False)) for each in (got, wanted))
    if not mine and not theirs:
        return float(got == wanted)
    return 2 * (mine & theirs).total() / (mine.total() + theirs.total())


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _bare(word: str) -> str:
    kept = [place for place, sign in enumerate(word) if unicodedata.category(sign)[0] not in "PS"]
    return word[kept[0] : kept[-1] + 1] if kept else ""


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


GRADERS: dict[str, Grader] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l": rouge_l,
    "chrf": chrf,
    "numeric": numeric,
    "json_valid": json_valid,
}
"""Metrics that need nothing but the two texts."""
