"""What a detector of personal data is, and the borders that numbers must have."""

import re
from collections.abc import Callable
from dataclasses import dataclass

Span = tuple[int, int]
Spans = tuple[Span, ...]
Confirm = Callable[[str, int, int], Spans]

_CURRENCIES = "$€£¥₵₦₹"
_DECIMAL_COMMA = re.compile(r"(?<!\d)\d,\Z")


@dataclass(frozen=True)
class Detector:
    """One way to find one kind of finding.

    The pattern is in RE2 syntax, which has no backtracking: any row takes time in proportion to its
    length. It finds candidates; what a pattern cannot say, ``confirm`` does.
    """

    kind: str
    """Kind as reports name it, such as card or national_id.us_ssn."""
    tag: str
    """What redaction puts in its place."""
    pattern: str
    confirm: Confirm
    """Takes a text and where a candidate starts and ends; returns what of it is to be replaced."""


@dataclass(frozen=True)
class Checked:
    """Confirms numbers that stand alone and pass a test of their text.

    A class, not a closure, because detectors travel to worker processes.
    """

    test: Callable[[str], bool]

    def __call__(self, text: str, start: int, end: int) -> Spans:
        """Return the candidate if it passes."""
        return ((start, end),) if stands_alone(text, start, end) and self.test(text[start:end]) else ()


@dataclass(frozen=True)
class Announced:
    """Confirms the number at the end of a candidate that starts with the words announcing it."""

    test: Callable[[str], bool]

    def __call__(self, text: str, start: int, end: int) -> Spans:
        """Return the number without the words."""
        first = re.search(r"\d", text[start:end])
        return Checked(self.test)(text, start + first.start(), end) if first else ()


def anything(text: str, start: int, end: int) -> Spans:
    """Accept a candidate as it is."""
    del text
    return ((start, end),)


def digits_of(text: str) -> str:
    """Return the digits of a text."""
    return "".join(sign for sign in text if "0" <= sign <= "9")


def stands_alone(text: str, start: int, end: int) -> bool:
    """Return whether a number is not a piece of a longer one, of a word, a decimal or a price."""
    before, after = text[max(0, start - 3) : start], text[end : end + 2]
    if before and (_is_word(before[-1]) or before[-1] in _CURRENCIES or before[-1] == "]"):
        return False
    if (before[-1:] == "." and before[-2:-1].isdigit()) or _DECIMAL_COMMA.search(before):
        return False
    if after and (_is_word(after[0]) or after[0] in "%["):
        return False
    return not (len(after) == 2 and after[0] in ".-" and after[1].isdigit())


def _is_word(sign: str) -> bool:
    return sign.isalnum() or sign == "_"
