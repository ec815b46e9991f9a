"""Payment cards, in runs of digit groups of any length."""

import re
from typing import Final

import numpy as np
import numpy.typing as npt

from core.data.quality.detectors import Spans, stands_alone

# Issuer prefixes and the lengths they come in (ISO/IEC 7812; 506 and 507 are Nigeria's Verve).
_ISSUERS: Final = (
    (re.compile(r"4"), (13, 16, 19)),
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),
    (re.compile(r"3[47]"), (15,)),
    (re.compile(r"30[0-59]|3[689]"), (14, 16, 17, 18, 19)),
    (re.compile(r"6011|64[4-9]|65|62|352[89]|35[3-8]"), (16, 17, 18, 19)),
    (re.compile(r"5018|5020|5038|5893|6304|6759|676[1-3]"), (16, 17, 18, 19)),
    (re.compile(r"506[01]|507[89]"), (16, 18, 19)),
)
# Lengths of the groups that cards are printed in, longest first.
_GROUPS: Final = (
    (4, 4, 4, 4, 3),
    (4, 4, 4, 4, 2),
    (4, 4, 4, 4),
    (4, 4, 4, 1),
    (4, 6, 5),
    (4, 6, 4),
    *((length,) for length in range(19, 12, -1)),
)
# Numbers of 13 and 14 digits are products and factorials far more often than old cards.
_CUE: Final = re.compile(r"card|visa|diners|maestro", re.IGNORECASE)
_CUE_REACH: Final = 32
_DOUBLED: Final = np.array([0, 2, 4, 6, 8, 1, 3, 5, 7, 9])

Places = npt.NDArray[np.int64]


def find_cards(text: str, start: int, end: int) -> Spans:
    """Return the cards in a run of digits, spaces and hyphens; what stands around one are other numbers."""
    run = text[start:end]
    octets = np.frombuffer(run.encode(), np.uint8)
    is_digit = np.concatenate(([False], octets >= ord("0"), [False]))
    borders = np.flatnonzero(is_digit[1:] != is_digit[:-1])
    firsts, lasts = borders[::2], borders[1::2]
    digits = octets[octets >= ord("0")].astype(np.int64) - ord("0")
    found, done = [], 0
    for first, last in sorted(_likely(firsts, lasts, digits), key=lambda span: (span[0], -span[1])):
        if first >= done and _is_issued(run[first:last]) and _is_meant(text, start + first, start + last):
            found.append((start + first, start + last))
            done = last
    return tuple(found)


def _likely(firsts: Places, lasts: Places, digits: Places) -> list[tuple[int, int]]:
    """Return where groups of the right lengths and check digit start and end."""
    sizes = lasts - firsts
    offsets = np.cumsum(sizes) - sizes
    spans: list[tuple[int, int]] = []
    shapes = np.minimum(sizes, 255).astype(np.uint8).tobytes()
    for shape in _GROUPS:
        if bytes(shape) not in shapes:
            continue
        starts = _with_shape(sizes, shape)
        starts = starts[(digits[offsets[starts]] > 1) & (digits[offsets[starts]] < 7)]
        starts = starts[_has_check_digit(digits, offsets[starts], sum(shape))]
        spans += zip(firsts[starts].tolist(), lasts[starts + len(shape) - 1].tolist(), strict=True)
    return spans


def _with_shape(sizes: Places, shape: tuple[int, ...]) -> Places:
    count = max(0, len(sizes) - len(shape) + 1)
    fits = np.ones(count, np.bool_)
    for step, size in enumerate(shape):
        fits &= sizes[step : step + count] == size
    return np.flatnonzero(fits)


def _has_check_digit(digits: Places, offsets: Places, length: int) -> npt.NDArray[np.bool_]:
    """Return Luhn's verdict on the numbers of some length that start at offsets."""
    total = np.zeros(len(offsets), np.int64)
    for place in range(length):
        digit = digits[offsets + place]
        total += _DOUBLED[digit] if (length - place) % 2 == 0 else digit
    return np.asarray(total % 10 == 0)


def _is_issued(shown: str) -> bool:
    if " " in shown and "-" in shown:
        return False
    digits = shown.replace(" ", "").replace("-", "")
    return any(prefix.match(digits) and len(digits) in sizes for prefix, sizes in _ISSUERS)


def _is_meant(text: str, start: int, end: int) -> bool:
    needs_cue = end - start < 15
    if needs_cue and not _CUE.search(text[max(0, start - _CUE_REACH) : start]):
        return False
    return stands_alone(text, start, end)
