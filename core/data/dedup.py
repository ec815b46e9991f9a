"""When two rows count as the same: normalised text and the keys built from it."""

import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from core.data.records import Conversation, Document, Message, Record

KEY_BYTES = 16
SHORT_QUESTION = 20
"""Words below which a question means nothing without its system text: "Good morning" to be translated."""

_PLAIN = 1
"""Salt of plain texts: an article must not displace a question that quotes it."""

# Characters without width or meaning that copying from web pages leaves behind.
_INVISIBLE = dict.fromkeys((0x200B, 0x2060, 0xFEFF))


class Keys(NamedTuple):
    """What a row is equal by; ``KEY_BYTES`` each."""

    exact: bytes
    """Of all that is given to the model, byte for byte. Of a plain text: of all of it."""
    question: bytes
    """The same after normalisation: rows that share it must not be divided between training and test."""
    whole: bytes
    """Of all turns after normalisation: rows that share it are duplicates."""
    asked: bytes
    """Of what the user and tools say, normalised, whatever the system text: the question itself."""
    earlier: tuple[bytes, ...] = ()
    """The ``asked`` of every earlier answer of a longer conversation, which is trained as well."""


class Wording(NamedTuple):
    """What a row is similar by."""

    text: str
    salt: int
    """Rows with different salts are not similar, whatever they say; 64 bits, 0 for none."""


def normalise(text: str) -> str:
    """Return text without differences that no reader would call a difference.

    Canonical composition, case and whitespace are levelled; letters are not: Twi ``ɛ`` is not ``e``,
    a tone mark stays, and ``x²`` does not become ``x2`` (so no compatibility composition).

    Args:
        text: Any text.

    Returns:
        The normalised text; normalising it again changes nothing.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).translate(_INVISIBLE).split())


def keys_of(record: Record) -> Keys:
    """Return the keys of a row."""
    if isinstance(record, Document):
        level = _key([("text", normalise(record.text))])
        return Keys(_key([("text", record.text)]), level, level, level)
    turns = [(turn.role, normalise(_said(turn))) for turn in record.messages]
    given = [turn for turn in turns if turn[0] != "assistant"]
    exact = [(turn.role, turn.content) for turn in record.messages if turn.role != "assistant"]
    asked = _asked(turns)
    return Keys(_key(exact), _key(given), _key(turns), asked[-1], tuple(asked[:-1]))


def _asked(turns: Sequence[tuple[str, str]]) -> list[bytes]:
    """Return the key of all that was asked up to each run of answers."""
    said: list[tuple[str, str]] = []
    keys: list[bytes] = []
    for role, text in turns:
        if role == "assistant":
            keys.append(_key(said))
        elif role != "system":
            said.append((role, text))
    return keys


def whole_wording(record: Record) -> Wording:
    """Return what decides whether a row is a near-duplicate: all but the system text, which must be equal.

    A long system text that many rows share would make them all alike.
    """
    if isinstance(record, Document):
        return Wording(record.text, _PLAIN)
    return Wording(_joined(turn for turn in record.messages if turn.role != "system"), _system_salt(record))


def question_wording(record: Record) -> Wording:
    """Return what decides whether two rows ask nearly the same.

    A short question is taken together with its system text; a long one speaks for itself, also when the
    instruction around it differs.
    """
    if isinstance(record, Document):
        return Wording(record.text, 0)
    text = _joined(turn for turn in record.messages if turn.role in ("user", "tool"))
    return Wording(text, _system_salt(record) if len(text.split()) < SHORT_QUESTION else 0)


def _said(turn: Message) -> str:
    calls = [f"{call.name} {call.arguments}" for call in turn.tool_calls]
    return "\n".join([turn.content, *calls]) if calls else turn.content


def _joined(turns: Iterable[Message]) -> str:
    return "\n".join(_said(turn) for turn in turns)


def _system_salt(record: Conversation) -> int:
    first = record.messages[0]
    if first.role != "system":
        return 0
    return int.from_bytes(_key([("system", normalise(first.content))])[:8], "little")


def _key(turns: Sequence[tuple[str, str]]) -> bytes:
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    for role, said in turns:
        content = said.encode()
        # The length keeps the borders between turns, which a separator would not.
        digest.update(b"%s %d\n" % (role.encode(), len(content)))
        digest.update(content)
    return digest.digest()
