"""Check digits of numbers that people are known and billed by."""

from typing import Final

# ISO/IEC 7064; tables of Verhoeff (1969): the dihedral group D5 and its permutation.
_D5: Final = tuple(
    tuple(
        (a + b) % 5
        if a < 5 and b < 5
        else (a + b) % 5 + 5
        if a < 5
        else (a - b) % 5 + 5
        if b < 5
        else (a - b) % 5
        for b in range(10)
    )
    for a in range(10)
)
_P0: Final = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _permutations() -> tuple[tuple[int, ...], ...]:
    rows = [tuple(range(10))]
    for _ in range(7):
        rows.append(tuple(rows[-1][_P0[digit]] for digit in range(10)))
    return tuple(rows)


_PERMUTED: Final = _permutations()

# SWIFT IBAN registry: characters of an IBAN by country.
IBAN_LENGTHS: Final = {
    code: length
    for length, codes in {
        15: "NO", 16: "BE", 18: "DK FI FK FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV", 22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG", 25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA", 30: "JO KW MU YE", 31: "MT SC",
        32: "LC", 33: "RU",
    }.items()
    for code in codes.split()
}  # fmt: skip


def verhoeff(digits: str) -> bool:
    """Return whether the last digit is right by Verhoeff's scheme, which Aadhaar uses."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        check = _D5[check][_PERMUTED[place % 8][int(digit)]]
    return check == 0


def cpf(digits: str) -> bool:
    """Return whether both check digits of a Brazilian CPF of 11 digits are right."""
    if len(digits) != 11 or len(set(digits)) == 1:
        return False
    return all(
        sum(weight * int(digit) for weight, digit in zip(range(n + 1, 1, -1), digits, strict=False))
        * 10
        % 11
        % 10
        == int(digits[n])
        for n in (9, 10)
    )


def iban(compact: str) -> bool:
    """Return whether length and check digits of an IBAN without spaces are right (ISO 13616, mod 97)."""
    if IBAN_LENGTHS.get(compact[:2]) != len(compact):
        return False
    return int("".join(str(int(sign, 36)) for sign in compact[4:] + compact[:4])) % 97 == 1
