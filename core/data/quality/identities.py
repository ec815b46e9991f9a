"""Cards, bank accounts, national ids and e-mail addresses."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from core.data.quality.cards import find_cards
from core.data.quality.checksums import IBAN_LENGTHS, cpf, iban, verhoeff
from core.data.quality.detectors import (
    Announced,
    Checked,
    Detector,
    Spans,
    anything,
    digits_of,
    stands_alone,
)

_NINO_NEVER: Final = ("BG", "GB", "NK", "KN", "TN", "NT", "ZZ")
_EMAIL_SIGN: Final = r"[^\s@<>()\[\]{},;:\"'`/\\|=!?*&]"
_LABEL = re.compile(r"[^\W_](?:[\w-]{0,61}[^\W_])?")
_IDEOGRAPHS: Final = "\u2e80"


def identity_detectors(national_ids: Mapping[str, str]) -> tuple[Detector, ...]:
    """Return the detectors, surest first.

    Args:
        national_ids: More patterns by name; one with the name of a built-in replaces it.
    """
    own = [_national_id(name, pattern, anything) for name, pattern in national_ids.items()]
    built_in = [each for each in _national_ids() if each.kind.partition(".")[2] not in national_ids]
    return (
        *own,
        Detector("email", "[EMAIL]", rf"{_EMAIL_SIGN}+@{_EMAIL_SIGN}+\.\pL\pL+", _email),
        Detector("iban", "[IBAN]", r"\b[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{2,8}){2,12}", _iban),
        Detector("card", "[CARD]", r"\b\d(?:[ -]?\d){12,}\b", find_cards),
        *built_in,
    )


def _national_id(name: str, pattern: str, confirm: Callable[[str, int, int], Spans]) -> Detector:
    return Detector(f"national_id.{name}", f"[ID:{name}]", pattern, confirm)


def _national_ids() -> Iterator[Detector]:
    nino = r"\b[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z] ?\d{2} ?\d{2} ?\d{2} ?[A-D]\b"
    aadhaar = r"\b[2-9]\d{3}(?: \d{4} |-\d{4}-)\d{4}\b"
    yield _national_id("us_ssn", r"\b\d{3}-\d{2}-\d{4}\b", Checked(_is_ssn))
    yield _national_id("uk_nino", nino, Checked(_is_nino))
    yield _national_id("ghana_card", r"\bGHA-?\d{9}-?\d\b", Checked(bool))
    yield _national_id("india_aadhaar", aadhaar, _grouped_aadhaar)
    yield _national_id("brazil_cpf", r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b", Checked(_is_cpf))
    # Bare digits are an id only if a word says so.
    words = r"(?i)\b(?:aadhaar|aadhar|uidai)[^\d\n]{0,16}[2-9]\d{11}\b"
    yield _national_id("india_aadhaar", words, Announced(verhoeff))
    yield _national_id("brazil_cpf", r"(?i)\bcpf[^\d\n]{0,12}\d{11}\b", Announced(cpf))
    yield _national_id("nigeria_nin", r"(?i)\b(?:nin|bvn)\b[^\d\n]{0,12}\d{11}\b", Announced(bool))


def _is_ssn(shown: str) -> bool:
    area, group, serial = shown.split("-")
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def _is_nino(shown: str) -> bool:
    return not shown.startswith(_NINO_NEVER)


def _is_cpf(shown: str) -> bool:
    return cpf(digits_of(shown))


def _grouped_aadhaar(text: str, start: int, end: int) -> Spans:
    groups = re.split(r"[ -]", text[start:end])
    years_or_terms = int(groups[1]) - int(groups[0]) == int(groups[2]) - int(groups[1])
    # A fourth group makes it a card, or the row of a table.
    goes_on = re.match(r"[ -]\d", text[end : end + 2]) or re.search(
        r"\d[ -]\Z", text[max(0, start - 2) : start]
    )
    if years_or_terms or goes_on or not verhoeff("".join(groups)):
        return ()
    return Checked(bool)(text, start, end)


def _email(text: str, start: int, end: int) -> Spans:
    at = text.index("@", start)
    start = _local_start(text, max(start, at - 64), at)
    labels = text[at + 1 : end].split(".")
    is_call = text[end : end + 1] == "("
    is_repository = text[start:at] == "git" and text[end : end + 1] == ":"
    if start == at or is_call or is_repository or end - at > 254:
        return ()
    return ((start, end),) if all(map(_LABEL.fullmatch, labels)) and len(labels[-1]) <= 24 else ()


def _local_start(text: str, start: int, at: int) -> int:
    """Return where the name before the @ starts: scripts without spaces put words right before it."""
    place = at
    while place > start and (text[place - 1] in "._%+-~" or text[place - 1].isalnum()):
        if text[place - 1] >= _IDEOGRAPHS and text[at - 1] < _IDEOGRAPHS:
            break
        place -= 1
    return place


def _iban(text: str, start: int, end: int) -> Spans:
    length = IBAN_LENGTHS.get(text[start : start + 2], 0)
    places = [place for place in range(start, end) if text[place].isalnum()][:length]
    if not length or len(places) < length:
        return ()
    end = places[-1] + 1
    compact = "".join(text[place] for place in places)
    return ((start, end),) if stands_alone(text, start, end) and iban(compact) else ()
