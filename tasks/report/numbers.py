"""Numbers, sizes and times as people write them."""

from collections.abc import Callable
from datetime import datetime

from core.evaluation.reports import LOWER_IS_BETTER
from gates.verdict import Value

GAP = "\N{NARROW NO-BREAK SPACE}"
"""Between a number and its unit, so that they never part at a line's end."""
MINUS = "\N{MINUS SIGN}"
ABSENT = "\N{EM DASH}"
OTHERS = "others"
DIGEST_HEAD = len("sha256:") + 12
LONGEST_VALUE = 80
COMPARISONS = {">=": "≥", "<=": "≤", ">": ">", "<": "<", "==": "=", "!=": "≠"}
METRICS = {
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "rouge_1": "ROUGE-1",
    "rouge_2": "ROUGE-2",
    "rouge_l": "ROUGE-L",
    "chrf": "chrF",
    "numeric": "Numeric match",
    "json_valid": "Valid JSON",
    "similarity": "Similarity",
    "perplexity": "Perplexity",
    "judge": "Judge",
}
ARMS = {
    "zero_shot": "Base, as it is",
    "few_shot": "Base, after examples",
    "prompted": "Base, instructed",
    "tuned": "Tuned model",
}
"""Who answered, in words; a quantized file goes by its type."""


def percent(share: float | None) -> str:
    """Write a share as per cent: 0.923 is 92.3 %."""
    return ABSENT if share is None else f"{_signed(share * 100, '.1f')}{GAP}%"


def points(difference: float | None) -> str:
    """Write a difference of two shares in percentage points, always with a sign."""
    return ABSENT if difference is None else _signed(difference * 100, "+.1f")


def score(value: float, metric: str) -> str:
    """Write a metric's value: a share in per cent, a perplexity as a number."""
    return number(value) if metric in LOWER_IS_BETTER else percent(value)


def change(before: float, after: float, metric: str) -> str:
    """Write a difference of two values in points, or in a perplexity's own unit."""
    return signed(after - before) if metric in LOWER_IS_BETTER else points(after - before)


def gain_tick(metric: str) -> Callable[[float], str]:
    """Return the function that labels an axis of gains."""
    return signed if metric in LOWER_IS_BETTER else lambda value: _signed(100 * value, "+.4g")


def signed(difference: float) -> str:
    """Write a difference of unknown unit with its sign and three digits that count."""
    return _signed(difference, "+.3g")


def arm(name: str) -> str:
    """Say who answered."""
    return ARMS.get(name, name)


def count(number: float) -> str:
    """Write a whole number with separators."""
    return f"{number:,.0f}"


def some(number: float, singular: str, plural: str = "") -> str:
    """Write a count with its noun: 1 row, 2 rows."""
    return f"{count(number)}{GAP}{singular if number == 1 else plural or singular + 's'}"


def compact(number: float) -> str:
    """Write a large number with its magnitude: 3 400 000 is 3.4 M."""
    return _magnitude(number, ("", "k", "M", "G", "T")) if number >= 10_000 else count(number)


def size(amount: float) -> str:
    """Write bytes in decimal units: 2 100 000 is 2.1 MB."""
    return _magnitude(amount, ("B", "kB", "MB", "GB", "TB"))


def duration(seconds: float) -> str:
    """Write a time span with the two units that matter."""
    if seconds < 10:
        return f"{seconds:.1f}{GAP}s"
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole % 3600 // 60, whole % 60
    if hours:
        return f"{hours}{GAP}h {minutes}{GAP}min"
    return f"{minutes}{GAP}min {rest}{GAP}s" if minutes else f"{rest}{GAP}s"


def moment(text: str) -> str:
    """Write an ISO time to the minute; a text that is no ISO time stays as it is."""
    try:
        parsed = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{parsed:%Y-%m-%d %H:%M} {parsed.tzname() or ''}".rstrip()


def number(value: float) -> str:
    """Write a number of unknown unit, with four digits that count."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}".replace("e-0", "e-")
    return MINUS + text[1:] if text.startswith("-") else text


def short(digest: str) -> str:
    """Cut a digest to the head that is enough to tell files apart."""
    return digest[:DIGEST_HEAD] + "…" if digest.startswith("sha256:") else digest


def value(side: Value) -> str:
    """Write one side of a check."""
    if side is None:
        return "missing"
    if isinstance(side, bool):
        return "yes" if side else "no"
    if isinstance(side, str):
        return short(side) if side.startswith("sha256:") else side[:LONGEST_VALUE] or "(empty)"
    return count(side) if isinstance(side, int) else number(side)


def sides(observed: Value, threshold: Value) -> tuple[str, str]:
    """Write both sides of a check; two values that differ never look the same."""
    left, right = value(observed), value(threshold)
    if left == right and observed != threshold:
        left, right = str(observed), str(threshold)
    return left, right


def comparison(sign: str) -> str:
    """Write a comparison as a mathematical sign."""
    return COMPARISONS.get(sign, sign)


def metric(name: str) -> str:
    """Write a metric's name in words."""
    return METRICS.get(name, name.replace("_", " "))


def capitalize_first(text: str) -> str:
    """Start a text with a capital letter and leave the rest."""
    return text[:1].upper() + text[1:]


def _magnitude(amount: float, units: tuple[str, ...]) -> str:
    power = 0
    # 999 950 would be written 1000.0 k, so a unit ends where rounding reaches the next one.
    while power < len(units) - 1 and amount / 1000**power >= (999.95 if power else 1000):
        power += 1
    return f"{amount / 1000**power:.{1 if power else 0}f}{GAP}{units[power]}"


def _signed(number: float, form: str) -> str:
    text = f"{number:{form}}"
    # What rounds to nothing has no sign.
    return text.lstrip("+-") if float(text) == 0 else text.replace("-", MINUS)
