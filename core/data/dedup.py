"""When two rows count as the same: normalised text and the keys built from it."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence

from core.data.records import Message

# Characters without width or meaning that copying from web pages leaves behind.
_INVISIBLE = dict.fromkeys((0x200B, 0x2060, 0xFEFF))


def normalise(text: str) -> str:
    """Return text without differences that no reader would call a difference.

    Canonical composition, case and whitespace are levelled; letters are not: Twi ``ɛ`` is not ``e``,
    a tone mark stays, and ``x²`` does not become ``x2`` (so no compatibility composition).

    Args:
        text: Any text.

    Returns:
        The normalised text; normalising it again changes nothing.
    """
    folded = unicodedata.normalize("NFC", text).casefold()
    return " ".join(unicodedata.normalize("NFC", folded).translate(_INVISIBLE).split())


def exact_question_key(messages: Sequence[Message]) -> str:
    """Return the key of the system and user turns, byte for byte."""
    return _key([(turn.role, turn.content) for turn in messages if turn.role != "assistant"])


def question_key(messages: Sequence[Message]) -> str:
    """Return the key of the system and user turns after normalisation.

    Rows with this key in common must not be divided between training and test.
    """
    return _key([(turn.role, normalise(turn.content)) for turn in messages if turn.role != "assistant"])


def conversation_key(messages: Sequence[Message]) -> str:
    """Return the key of all turns after normalisation: rows that share it are duplicates."""
    return _key([(turn.role, normalise(turn.content)) for turn in messages])


def _key(turns: list[tuple[str, str]]) -> str:
    # JSON keeps the borders between turns, which joining with a separator would not.
    return hashlib.sha256(json.dumps(turns, ensure_ascii=False).encode()).hexdigest()
