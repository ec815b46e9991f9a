"""Tell which scripts texts are written in, and find words that mix them.

Somebody without a Twi keyboard types Greek ``ε`` or Cyrillic ``є`` for ``ɛ``. It looks the same,
yet a tokenizer sees another word, and a model learns two spellings.
"""

import re
from collections import Counter
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

from core.data.quality.codepoints import CYRILLIC, GREEK, LATIN, SCRIPTS, code_points
from core.data.quality.words import Octets, Places, Words

_ASCII_LETTER = bytes(byte < 0x80 and chr(byte).isalpha() for byte in range(256))

_TWI_LOOKALIKES: Final = frozenset("εєэͻᴐΕϵ")
_LOOKALIKES: Final = _TWI_LOOKALIKES | frozenset(
    "οαινκρυχΑΒΖΗΙΚΜΝΟΡΤΥΧаеорсухіѕјһԁԛԝӏАВЕКМНОРСТХУІЅЈҮҺ"  # Greek, then Cyrillic
)
_LATIN_LOOKALIKES: Final = frozenset("aeocpxyisjABCEHIKMOPTXYSJɛɔƐƆ")
_FUNCTION = re.compile(r"(?:a|arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|lim|exp|max|min)h?")


def count_scripts(words: Words) -> Counter[str]:
    """Return letters by script."""
    counts = Counter({"Latin": int(np.count_nonzero(_ascii_letters(words)))})
    if words.wide.size:
        table = code_points()
        letters = words.codes[table.letter(words.codes)]
        scripts = np.bincount(table.script(letters), minlength=len(SCRIPTS))
        counts.update({SCRIPTS[place]: int(scripts[place]) for place in np.flatnonzero(scripts)})
    return +counts


def mixed_words(words: Words) -> dict[int, str]:
    """Return, by number of the text, the first word in which a letter poses as one of another script."""
    table = code_points()
    scripts = table.script(words.codes)
    foreign = words.wide[(scripts == GREEK) | (scripts == CYRILLIC)]
    if not foreign.size:
        return {}
    candidates = np.unique(_word_at(words, foreign))
    latin = _word_at(words, words.wide[(scripts == LATIN) & table.letter(words.codes)])
    both = candidates[np.isin(candidates, latin) | _has_ascii_letter(words, candidates)]
    rows = np.searchsorted(words.rows, both, side="right") - 1
    mixed: dict[int, str] = {}
    for row, number in zip(rows.tolist(), both.tolist(), strict=True):
        if row not in mixed and is_mixed(words.text(number)):
            mixed[row] = words.text(number)
    return mixed


@lru_cache(maxsize=4096)
def is_mixed(word: str) -> bool:
    """Return whether letters of a word come from two scripts and look as if they came from one.

    Formulas mix scripts on purpose: ``Δx``, ``2πr`` and ``sinα`` do not count.
    """
    table = code_points()
    codes = np.array([ord(letter) for letter in word], np.uint32)
    table.learn(codes)
    by_letter = list(zip(word, table.script(codes).tolist(), table.letter(codes).tolist(), strict=True))
    latin = "".join(letter for letter, script, is_letter in by_letter if script == LATIN and is_letter)
    foreign = "".join(letter for letter, script, _ in by_letter if script in (GREEK, CYRILLIC))
    if not latin or not foreign or _FUNCTION.fullmatch(latin):
        return False
    if _LOOKALIKES.issuperset(foreign):
        return len(latin) > 1 or _TWI_LOOKALIKES.issuperset(foreign)
    return len(foreign) > len(latin) and _LATIN_LOOKALIKES.issuperset(latin)


def _ascii_letters(words: Words) -> Octets:
    return np.frombuffer(words.octets.tobytes().translate(_ASCII_LETTER), np.uint8)


def _word_at(words: Words, places: Places) -> Places:
    found: Places = np.searchsorted(words.starts, places, side="right") - 1
    return found


def _has_ascii_letter(words: Words, numbers: Places) -> npt.NDArray[np.bool_]:
    letters = np.flatnonzero(_ascii_letters(words))
    first = np.searchsorted(letters, words.starts[numbers])
    return first < np.searchsorted(letters, words.ends[numbers])
