"""Guess the language of a sample of the rows."""

from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from core.data.scatter import scattered

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

SAMPLE: Final = 20_000
"""About as many rows are looked at, however many there are."""
UNKNOWN: Final = "und"
_LONGEST = 1000
"""Characters looked at of a row."""
_FEWEST_LETTERS = 12
_SURE = 0.5
_NO_LANGUAGE = "zxx"


def in_sample(ordinals: npt.NDArray[np.int64], total: int) -> npt.NDArray[np.bool_]:
    """Return which rows belong to the sample; it depends on their numbers alone.

    Args:
        ordinals: Number of each row in the whole.
        total: Rows of the whole.
    """
    if total <= SAMPLE:
        return np.ones(len(ordinals), np.bool_)
    return _hashed(ordinals) < np.uint64(2**64 / total * SAMPLE)


def count_languages(texts: Iterable[str]) -> Counter[str]:
    """Return texts by ISO 639 code.

    py3langid knows 140 languages; Twi, Ewe, Ga and Dagbani are not among them, and it takes Twi
    for Lingala or Kabyle, mostly with little confidence. So a guess it is not sure of, and a text
    of hardly any letters, count as ``und``; markers and scripts show what it cannot.
    """
    return Counter(map(language_of, texts))


def language_of(text: str) -> str:
    """Return the ISO 639 code of a text's language, ``und`` if it cannot be told."""
    start = text[:_LONGEST]
    if sum(map(str.isalpha, start)) < _FEWEST_LETTERS:
        return UNKNOWN
    language, confidence = _identifier().classify(start)
    return UNKNOWN if confidence < _SURE or language == _NO_LANGUAGE else str(language)


@cache
def _identifier() -> "LanguageIdentifier":
    # Reading the model takes most of a second, so it waits until a text needs it.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _hashed(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """Scatter numbers evenly over 64 bits (the step and finaliser of SplitMix64)."""
    return scattered(numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
