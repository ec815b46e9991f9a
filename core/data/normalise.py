"""Level what copying and exporting leave behind in a text, and nothing a reader would miss."""

import re
import unicodedata

# Zero-width space, word joiner, byte order mark, soft hyphen. The zero-width joiner and
# non-joiner stay: emoji, Persian and several Indian scripts are spelled with them.
_INVISIBLE = "\u200b\u2060\ufeff\u00ad"
_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000"
_LINE_ENDS = "\r\x0b\x0c\x85\u2028\u2029"
_KEPT_CONTROLS = "\t\n"

_LEVELLED = (
    {code: None for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in _KEPT_CONTROLS}
    | dict.fromkeys(map(ord, _INVISIBLE))
    | dict.fromkeys(map(ord, _SPACES), " ")
    | dict.fromkeys(map(ord, _LINE_ENDS), "\n")
)
_ODD_ASCII = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
_ODD = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u1680\u2000-\u200b\u2028\u2029\u202f\u205f\u2060\u3000\ufeff]"
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_MANY_BLANK_LINES = re.compile(r"\n{4,}")


def clean(text: str) -> str:
    """Return a text as it should be trained on.

    Canonical composition (NFC), line ends, odd spaces, invisible characters, control characters,
    spaces at line ends and more than two blank lines are levelled. Letters are not: Twi ``ɛ``
    and ``ɔ``, tone marks, other scripts, joiners inside emoji and ``x²`` stay as they are.

    Args:
        text: Any text; half a surrogate pair, which no file can hold, becomes U+FFFD.

    Returns:
        The cleaned text; cleaning it again changes nothing.
    """
    if not text.isascii():
        text = _levelled_letters(text)
    elif _ODD_ASCII.search(text):
        text = _with_plain_ends(text).translate(_LEVELLED)
    return _levelled_layout(text)


def _levelled_letters(text: str) -> str:
    if _SURROGATE.search(text):
        # Two halves that belong together become the character they stand for.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if _ODD.search(text):
        text = _with_plain_ends(text).translate(_LEVELLED)
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _with_plain_ends(text: str) -> str:
    return text.replace("\r\n", "\n")


def _levelled_layout(text: str) -> str:
    if " \n" in text or "\t\n" in text:
        text = _trimmed_lines(text)
    if "\n\n\n\n" in text:
        text = _MANY_BLANK_LINES.sub("\n\n\n", text)
    return text.strip()


def _trimmed_lines(text: str) -> str:
    # A pattern for "blanks before a line end" is quadratic in a long run of blanks.
    return "\n".join(line.rstrip(" \t") for line in text.split("\n"))
