"""Numbers as people write them: the last one of a text.

Rules:

1. ``3/4`` and ``1 3/4`` are fractions, so are ½ and 1½; ``12/3/24`` is none.
2. With both ``,`` and ``.`` the later one is the decimal mark: 1,234.5 and 1.234,5.
3. Groups of exactly three digits after one to three that do not start with 0 are thousands if they are set off
   by commas, spaces or apostrophes, or by two full stops or more: 1,234 and 1 234 and 1.234.567. A single full
   stop is a decimal mark (1.234), and so is a comma before any other count of digits (2,5), or after a leading
   0 (0,125). What fits neither is a list: 1,2,3 are three numbers.
4. ``e`` or ``× 10^`` gives a power of ten.
5. A minus belongs to the number if it stands before it or its currency sign, without a space, and after no
   digit, letter or closing bracket: -5, -$5, $-5; but 3-5 is 3 and 5, and so is 3 - 5.
6. Digits that follow a letter are no number (H2O, B12) unless the letters are a currency code (GHS50).

Number words are not read.
"""

import math
import re
import unicodedata
from typing import NamedTuple

_SPACES = "\u00a0\u2009\u202f"
_NUMBER = re.compile(
    rf"""
    (?<!\w)(?P<sign>(?<!\))[-+−])?
    (?:(?:[A-Z]{{0,3}}[$€£¥₵₦₹]|[A-Z]{{3}})\s?(?P<inner>[-+−])?)?
    (?P<body>
        (?<!\d/)(?:(?P<whole>\d+)\s)?(?P<top>\d+)[/⁄](?P<bottom>0*[1-9]\d*)(?![/⁄\d])
      | (?<!\d[.,])(?:
            [1-9]\d{{0,2}}(?:,\d{{3}})+(?:\.\d+)?
          | [1-9]\d{{0,2}}(?:\.\d{{3}})+,\d+
          | [1-9]\d{{0,2}}(?:\.\d{{3}}){{2,}}
          | [1-9]\d{{0,2}}(?:[ {_SPACES}]\d{{3}})+(?:[.,]\d+)?
          | [1-9]\d{{0,2}}(?:['’]\d{{3}})+(?:[.,]\d+)?
          | \d+[.,]\d+
          | \.\d+
        )(?![.,]?\d)
      | \d+
    )
    (?:[eE](?P<power>[-+]?\d{{1,3}})(?!\w)|\s?[×x*]\s?10\s?\^\s?(?P<ten>[-+−]?\d{{1,3}})(?!\w))?
    (?P<percent>\s?%)?
    """,
    re.VERBOSE,
)
_RELATIVE, _ABSOLUTE = 1e-6, 1e-9


class Number(NamedTuple):
    """A value, and whether it stood before a percent sign."""

    value: float
    percent: bool


def last_number(text: str) -> Number | None:
    """Return the last number of a text, or None if there is none."""
    found = list(_NUMBER.finditer(_written_out(text)))
    return _number(found[-1]) if found else None


def same_number(left: Number, right: Number) -> bool:
    """Tell whether two numbers are equal to one part in a million.

    If just one of them is a percentage, it may also stand for its hundredth: 50 % is 50 and 0.5.
    """
    if _close(left.value, right.value):
        return True
    if left.percent == right.percent:
        return False
    share, other = (left, right) if left.percent else (right, left)
    return _close(share.value / 100, other.value)


def _close(left: float, right: float) -> bool:
    return math.isclose(left, right, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE)


def _written_out(text: str) -> str:
    """Write ½ as 1/2, with a space after a whole number before it."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    return re.sub(r"[¼-¾⅐-⅞]", lambda found: unicodedata.normalize("NFKC", found[0]), text)


def _number(found: re.Match[str]) -> Number:
    value = _fraction(found) if found["top"] else float(_unmarked(found["body"]))
    power = int((found["power"] or found["ten"] or "0").replace("−", "-"))
    negative = (found["sign"] or found["inner"] or "+") in "-−"
    value *= 10.0 ** min(power, 300)
    return Number(-value if negative else value, found["percent"] is not None)


def _fraction(found: re.Match[str]) -> float:
    return float(found["whole"] or 0) + float(found["top"]) / float(found["bottom"])


def _unmarked(body: str) -> str:
    """Return digits with at most one full stop, the decimal mark."""
    body = re.sub(rf"[ {_SPACES}'’]", "", body)
    last = max(body.rfind(","), body.rfind("."))
    if last < 0 or _groups(body):
        return re.sub("[.,]", "", body)
    return re.sub("[.,]", "", body[:last]) + "." + body[last + 1 :]


def _groups(body: str) -> bool:
    """Tell whether the only kind of mark in a number sets off thousands."""
    return bool(re.fullmatch(r"[1-9]\d{0,2}(?:(?:,\d{3})+|(?:\.\d{3}){2,})", body))
