import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.quality.cards import find_cards
from core.data.quality.checksums import IBAN_LENGTHS, cpf, iban, verhoeff

DIGITS = st.text("0123456789", min_size=4, max_size=18)


def test_published_numbers_pass():
    # Verhoeff's own example, 236 with its check digit 3; two CPF numbers used as samples everywhere.
    assert verhoeff("2363")
    assert cpf("52998224725") and cpf("11144477735")
    # Examples of the SWIFT IBAN registry.
    for number in (
        "GB29NWBK60161331926819",
        "DE89370400440532013000",
        "FR1420041010050500013M02606",
        "NO9386011117947",
        "MT84MALT011000012345MTLCAST001S",
    ):
        assert iban(number)


@settings(max_examples=60, deadline=None)
@given(DIGITS, st.integers(0, 17), st.integers(1, 9))
def test_one_wrong_digit_is_always_noticed(digits, place, shift):
    place %= len(digits)
    right = next(digits + last for last in "0123456789" if verhoeff(digits + last))
    wrong = right[:place] + str((int(right[place]) + shift) % 10) + right[place + 1 :]
    assert not verhoeff(wrong)


@settings(max_examples=60, deadline=None)
@given(DIGITS, st.integers(0, 16))
def test_verhoeff_notices_swapped_neighbours(digits, place):
    right = next(digits + last for last in "0123456789" if verhoeff(digits + last))
    place %= len(right) - 1
    swapped = right[:place] + right[place + 1] + right[place] + right[place + 2 :]
    assert swapped == right or not verhoeff(swapped)


@pytest.mark.parametrize("digits", ["52998224726", "11111111111", "5299822472", "52998224715"])
def test_wrong_cpf_is_refused(digits):
    assert not cpf(digits)


def test_wrong_iban_is_refused():
    assert not iban("GB29NWBK60161331926818")
    assert not iban("GB29NWBK6016133192681")
    assert not iban("ZZ29NWBK60161331926819")
    assert IBAN_LENGTHS["NO"] == 15 and IBAN_LENGTHS["RU"] == 33


def luhn(digits):
    """As ISO/IEC 7812-1 describes it, digit by digit."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        doubled = int(digit) * (1 + place % 2)
        total += doubled - 9 if doubled > 9 else doubled
    return total % 10 == 0


@pytest.mark.parametrize(
    "digits",
    [
        "4111111111111111",
        "378282246310005",
        "5555555555554444",
        "6011111111111117",
        "30569309025904",
        "3530111333300000",
    ],
)
def test_test_numbers_of_the_card_networks_are_found(digits):
    assert luhn(digits) and find_cards(f"card {digits} b", 5, 5 + len(digits)) == ((5, 5 + len(digits)),)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(4 * 10**15, 5 * 10**15 - 1).map(str),
    st.sampled_from(["", " ", "-"]),
    st.lists(st.sampled_from(["12", "7"]), max_size=3),
)
def test_a_card_among_other_numbers_is_found_if_its_check_digit_is_right(digits, sign, around):
    card = sign.join(digits[n : n + 4] for n in range(0, 16, 4))
    text = " ".join([*around, card, *around])
    start = len(" ".join([*around, ""]))
    assert find_cards(text, 0, len(text)) == (((start, start + len(card)),) if luhn(digits) else ())


def test_short_bare_numbers_need_a_word_that_says_card():
    assert luhn("4222222222222") and find_cards("4222222222222", 0, 13) == ()
    assert find_cards("Visa: 4222222222222", 6, 19) == ((6, 19),)
