"""What kind of character a code point is, looked up for whole arrays at once."""

from functools import cache
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Codes = npt.NDArray[np.uint32]
Kinds = npt.NDArray[np.uint8]

OTHER: Final = 0
"""Neither letter nor mark nor digit: it ends a word."""
WORD: Final = 1
"""Part of a word."""
ALONE: Final = 2
"""A letter of a script without spaces: a word of its own."""
ALONE_MARK: Final = 3
"""A mark of such a script; it belongs to the letter before it."""
_UNKNOWN: Final = 255

UNSPACED: Final = ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan")
SCRIPTS: Final = (
    "Other",
    "Latin",
    "Greek",
    "Cyrillic",
    "Arabic",
    "Hebrew",
    "Devanagari",
    "Bengali",
    "Gurmukhi",
    "Gujarati",
    "Oriya",
    "Tamil",
    "Telugu",
    "Kannada",
    "Malayalam",
    "Sinhala",
    *UNSPACED,
    "Hangul",
    "Georgian",
    "Armenian",
    "Ethiopic",
    "Mongolian",
    "Cherokee",
    "Canadian_Aboriginal",
    "Coptic",
    "Tifinagh",
    "Nko",
    "Vai",
    "Adlam",
    "Bopomofo",
    "Common",
)
"""Scripts told apart, by their Unicode names; the rest is "Other", signs shared by scripts are "Common"."""

LATIN: Final = SCRIPTS.index("Latin")
GREEK: Final = SCRIPTS.index("Greek")
CYRILLIC: Final = SCRIPTS.index("Cyrillic")


class CodePoints:
    """A table over all code points, filled for those that turn up."""

    def __init__(self) -> None:
        """Start with nothing known."""
        self._kind = np.full(0x110000, _UNKNOWN, np.uint8)
        self._script = np.zeros(0x110000, np.uint8)
        self._letter = np.zeros(0x110000, np.bool_)

    def learn(self, codes: Codes) -> None:
        """Make sure that the other methods know these code points."""
        unknown = codes[self._kind[codes] == _UNKNOWN]
        if unknown.size:
            self._fill(np.unique(unknown))

    def kind(self, codes: Codes) -> Kinds:
        """Return OTHER, WORD, ALONE or ALONE_MARK for each."""
        return self._kind[codes]

    def script(self, codes: Codes) -> Kinds:
        """Return the place in ``SCRIPTS`` for each."""
        return self._script[codes]

    def letter(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Return whether each is a letter."""
        return self._letter[codes]

    def _fill(self, codes: Codes) -> None:
        characters = pa.array([chr(code) for code in codes.tolist()])
        for place, script in enumerate(SCRIPTS[1:], start=1):
            self._script[codes[_matches(characters, rf"\p{{{script}}}")]] = place
        marks = _matches(characters, r"\p{M}")
        self._letter[codes] = _matches(characters, r"\p{L}")
        kinds = np.where(_matches(characters, r"[\p{L}\p{M}\p{N}]"), WORD, OTHER).astype(np.uint8)
        unspaced = np.isin(self._script[codes], [SCRIPTS.index(name) for name in UNSPACED])
        kinds[unspaced & (kinds == WORD)] = ALONE
        kinds[unspaced & marks] = ALONE_MARK
        self._kind[codes] = kinds


@cache
def code_points() -> CodePoints:
    """Return the table of this process."""
    return CodePoints()


def _matches(characters: pa.Array, pattern: str) -> npt.NDArray[np.bool_]:
    found = pc.match_substring_regex(characters, pattern)
    return np.asarray(found.to_numpy(zero_copy_only=False), np.bool_)
