"""Phone numbers: international, in the layouts countries use, or announced by a word."""

import re
from itertools import pairwise
from typing import Final

from core.data.quality.detectors import Detector, Spans, digits_of, stands_alone

TAG: Final = "[PHONE]"
_FEWEST, _MOST = 9, 15

# ITU-T E.164: country codes in use.
_COUNTRY = re.compile(
    r"1|7|2[07]|3[0-469]|4[013-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]"
    r"|2(?:1[1-3689]|[2-46]\d|5[0-8]|9[01789])|3(?:5\d|7\d|8[0-35-79])|42[013]|50\d|59\d|67\d|68\d|69[0-2]"
    r"|80[08]|85[02356]|8[78]\d|96\d|97\d|99\d"
)
_CUE: Final = (
    r"(?:tel|telephone|phone|mobile|cell|cellphone|call|whatsapp|fax|sms|text|ring|dial|momo|frɛ|hotline)"
    r"(?: (?:no|nr|num|number|line|us|me|him|her|them|is|at|on|to)\b)*[ .:#=-]{0,3}"
)
_ISBN = re.compile(r"isbn[\s:-]*\Z", re.IGNORECASE)
_DATE = re.compile(r"\d{1,2}([ .-])\d{1,2}\1(?:19|20)\d\d(?!\d)")
_FORMULA_SIGNS = "=×÷*^+"


def phone_detectors() -> tuple[Detector, ...]:
    """Return the detectors of phone numbers, surest first."""
    grouped = "|".join(rf"(?:{sign}\d{{2,8}})+" for sign in (" ", "-", r"\."))
    patterns = (
        (r"(?:\+|\b00)[1-9](?:[ .()/-]{0,2}\d){7,15}", _international),
        (r"(?:\b1[ .-])?(?:\([2-9]\d\d\) ?|\b[2-9]\d\d[.-])[2-9]\d\d[.-]\d{4}\b", _north_american),
        (r"\(0?[1-9]\d{1,3}\) ?9?\d{3,4}[ -]?\d{3,4}\b", _in_brackets),
        (rf"\b0[1-9]\d{{0,3}}(?:{grouped})\b", _with_trunk_zero),
        (r"\b0[1-9]\d{8,9}\b", _unbroken),
        (rf"(?i)\b{_CUE}\(?\+?\d(?:[ .()/-]{{0,2}}\d){{8,18}}", _announced),
    )
    return tuple(Detector("phone", TAG, pattern, confirm) for pattern, confirm in patterns)


def _international(text: str, start: int, end: int) -> Spans:
    shown = text[start:end]
    digits = digits_of(shown).removeprefix("00")
    country = _country(digits)
    if not country or not _FEWEST <= len(digits) <= _MOST or (country in "17" and len(digits) != 11):
        return ()
    if shown.startswith("00"):
        # Digits after two zeros and nothing else are a code, more likely than not.
        likely = not shown.isdigit()
    else:
        lead = re.match(r"\d+", shown[1:])
        # "+3.14159265358" and "+1.4142135623" are decimals.
        is_decimal = shown.count(".") == 1 and not re.search(r"[ ()/-]", shown)
        likely = not is_decimal and lead is not None and len(lead.group()) >= len(country)
    return _if_bordered(text, start, end) if likely else ()


def _country(digits: str) -> str:
    found = [digits[:length] for length in (1, 2, 3) if _COUNTRY.fullmatch(digits[:length])]
    return found[0] if found else ""


def _announced(text: str, start: int, end: int) -> Spans:
    number = re.search(r"[(+]*\d", text[start:end])
    if number is None or not _FEWEST <= len(digits_of(text[start:end])) <= _MOST:
        return ()
    return _if_bordered(text, start + number.start(), end)


def _north_american(text: str, start: int, end: int) -> Spans:
    is_service = digits_of(text[start:end])[-7:-4].endswith("11")
    return () if is_service else _if_bordered(text, start, end)


def _in_brackets(text: str, start: int, end: int) -> Spans:
    fits = 10 <= len(digits_of(text[start:end])) <= 11
    return _if_bordered(text, start, end) if fits else ()


def _with_trunk_zero(text: str, start: int, end: int) -> Spans:
    shown = text[start : start + 64]
    groups = re.split(r"[ .-]", shown[: end - start])
    if len(groups[0]) < 2 or _DATE.match(shown) or _counts_on(groups):
        return ()
    ends = [sum(map(len, groups[: n + 1])) for n in range(len(groups))]
    # What follows may be no part of it: "024 412 3456 2024".
    fitting = [n for n, digits in enumerate(ends) if n and _FEWEST <= digits <= 11]
    if not fitting:
        return ()
    end = start + ends[fitting[-1]] + fitting[-1]
    return _if_bordered(text, start, end) if _is_telling(digits_of(text[start:end])) else ()


def _unbroken(text: str, start: int, end: int) -> Spans:
    return _if_bordered(text, start, end) if _is_telling(text[start:end]) else ()


def _if_bordered(text: str, start: int, end: int) -> Spans:
    is_book = _ISBN.search(text[max(0, start - 12) : start])
    is_formula = text[end : end + 2].lstrip(" ")[:1] in tuple(_FORMULA_SIGNS)
    return ((start, end),) if not is_book and not is_formula and stands_alone(text, start, end) else ()


def _is_telling(digits: str) -> bool:
    """Return whether digits are neither binary nor counted up or down."""
    steps = {(int(b) - int(a)) % 10 for a, b in pairwise(digits)}
    return not set(digits) <= {"0", "1"} and len(steps) > 1


def _counts_on(groups: list[str]) -> bool:
    """Return whether groups are the terms of a sequence such as 01 02 03."""
    numbers = [int(group) for group in groups]
    return len(groups) > 2 and len({b - a for a, b in pairwise(numbers)}) == 1
