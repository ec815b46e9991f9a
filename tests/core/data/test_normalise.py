import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.normalise import clean

ANY_TEXT = st.text(st.characters(codec=None), max_size=60) | st.text(
    st.sampled_from("a ɛé\u0301\r\n\t\u00a0\u200b\u200d\u00ad\ufeff\x00\x0b\x85\u2028\ud83d\ude00"),
    max_size=30,
)


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("a\r\nb\rc", "a\nb\nc"),
        ("a\u00a0b\u2009c\u3000d", "a b c d"),
        ("a\u200bb\ufeffc\u2060d\u00ade", "abcde"),
        ("a\x00b\x07c\x7fd\x9fe", "abcde"),
        ("one  \ntwo\t\nthree", "one\ntwo\nthree"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("a\n\n\nb", "a\n\n\nb"),
        ("a\n \n \n \n \nb", "a\n\n\nb"),
        ("  a\n    indented\n\tcode ", "a\n    indented\n\tcode"),
        ("e\u0301", "é"),
        ("e\u200b\u0301", "é"),
        ("a\u2028b\x0cc", "a\nb\nc"),
        ("half \ud83d of a pair", "half \ufffd of a pair"),
        ("\ud83d\ude00", "😀"),
        ("\ufeff", ""),
    ],
)
def test_odd_characters_are_levelled(raw, cleaned):
    assert clean(raw) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Ɛyɛ me dɛ sɛ mehu wo; Ɔkɔɔ fie, ɔ\u0301 ɛ\u0300",
        "x² + ½ ≠ 10⁻³ ﬁ Ⅳ",
        "مرحبا بكم في غانا",
        "می\u200cخواهم",
        "क्\u200dष नमस्ते",
        "สวัสดีครับ",
        "👩🏾\u200d🏫 👨\u200d👩\u200d👧 🇬🇭 ❤\ufe0f",
        "def f(x):\n\treturn x\n\n\nclass A:\n    pass",
    ],
)
def test_letters_emoji_and_code_stay(text):
    assert clean(text) == unicodedata.normalize("NFC", text)


@settings(max_examples=60, deadline=None)
@given(ANY_TEXT)
def test_cleaning_twice_changes_nothing_more(text):
    assert clean(clean(text)) == clean(text)


@settings(max_examples=60, deadline=None)
@given(ANY_TEXT)
def test_what_comes_out_is_composed_and_can_be_stored(text):
    cleaned = clean(text)
    assert unicodedata.is_normalized("NFC", cleaned)
    assert cleaned == cleaned.strip()
    assert not re.search(r"[ \t]\n|\n{4}|[\r\u00a0\u200b\ufeff\x00-\x08\x7f-\x9f]", cleaned)
    cleaned.encode()


@settings(max_examples=60, deadline=None)
@given(ANY_TEXT)
def test_letters_digits_and_signs_are_never_touched(text):
    def marrow(text):
        whole = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        kept = [
            sign for sign in whole if unicodedata.category(sign)[0] in "LNPS" or unicodedata.combining(sign)
        ]
        return unicodedata.normalize("NFC", unicodedata.normalize("NFD", "".join(kept)))

    assert marrow(clean(text)) == marrow(text)


def test_a_long_run_of_blanks_takes_no_longer_than_its_length():
    assert clean("a" + " " * 1_000_000 + "b") == "a" + " " * 1_000_000 + "b"
    assert clean("a" + " \n" * 500_000 + "b") == "a\n\n\nb"
