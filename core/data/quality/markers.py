"""Find words and letters that show a language or a place.

They stand in where language identification has no answer: the library in use does not know Twi.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc

_BORDER = r"[^\pL\pM\pN]"


def marker_patterns(markers: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return a pattern in RE2 syntax for each name.

    Args:
        markers: By name, words that must stand alone, and single letters that may stand in a word.
    """
    return {name: _pattern(words) for name, words in markers.items() if any(map(str.strip, words))}


def count_markers(texts: pa.Array, patterns: Mapping[str, str]) -> dict[str, int]:
    """Return in how many texts each pattern is found."""
    return {
        name: pc.sum(pc.match_substring_regex(texts, pattern)).as_py() or 0
        for name, pattern in patterns.items()
    }


def _pattern(words: Sequence[str]) -> str:
    composed = [unicodedata.normalize("NFC", word.strip()) for word in words if word.strip()]
    letters = [re.escape(word) for word in composed if _is_letter(word)]
    whole = [re.escape(word) for word in composed if not _is_letter(word)]
    parts = ["|".join(letters)] if letters else []
    if whole:
        parts.append(f"(?:^|{_BORDER})(?:{'|'.join(whole)})(?:$|{_BORDER})")
    return f"(?i){'|'.join(parts)}"


def _is_letter(word: str) -> bool:
    return len([sign for sign in word if not unicodedata.combining(sign)]) == 1
