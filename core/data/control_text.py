"""Control tokens that a message merely spells out stay text.

Tokenizers turn the text of a control token into that token wherever it stands: a user who writes
``<|im_end|>`` would end the turn. A cut is therefore put inside every such spelling before the template
is rendered, and no token may reach across a cut. Training, evaluation and the llama.cpp worker all use
this module, so that they agree on the ids; it needs nothing but the standard library.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

CUT = "\udbff"
"""Half of a surrogate pair: no text that can be written to a file contains it."""

Encode = Callable[[list[str]], list[list[int]]]
"""Token ids of texts, without anything put around them; control tokens in them count as such."""


class ControlText:
    """Finds the control tokens of one vocabulary in what people and models say."""

    def __init__(self, control: Iterable[str]) -> None:
        """Prepare the search.

        Args:
            control: Texts of the tokens nobody may spell. Those of one character cannot be cut.
        """
        names = sorted({token for token in control if len(token) > 1}, key=lambda name: (-len(name), name))
        spelled = "|".join(map(re.escape, names)) or r"(?!)"
        self._any = re.compile(spelled)
        # Looks ahead, so that one that begins inside another is cut as well.
        self._first = re.compile(f"(?={spelled}).", re.DOTALL)

    def cut(self, text: str) -> str:
        """Return the text with a cut after the first character of every control token in it."""
        return self._first.sub(rf"\g<0>{CUT}", text) if self._any.search(text) else text

    def cut_turns(self, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return turns as templates take them, with every text in them cut, roles included.

        Args:
            turns: Rows of the shape of Hugging Face and OpenAI; not changed.
        """
        return [self._cut_value(turn) for turn in turns]

    def _cut_value(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.cut(value)
        if isinstance(value, dict):
            return {self._cut_value(key): self._cut_value(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._cut_value(item) for item in value]
        return value


def uncut(text: str) -> str:
    """Return the text as it is read, without cuts."""
    return text.replace(CUT, "")


def encode_cut(texts: Sequence[str], encode: Encode) -> list[list[int]]:
    """Return the token ids of rendered texts, in which no token reaches across a cut.

    Args:
        texts: As a template rendered them.
        encode: The tokenizer.
    """
    if not any(CUT in text for text in texts):
        return encode(list(texts))
    anchor = _anchor(encode)
    skipped = len(encode([anchor])[0]) if anchor else 0
    parts = [text.split(CUT) for text in texts]
    pieces = [anchor * (number > 0) + piece for part in parts for number, piece in enumerate(part)]
    ids = iter(encode(pieces))
    return [_joined([next(ids) for _ in part], skipped) for part in parts]


def _joined(pieces: list[list[int]], skipped: int) -> list[int]:
    first, *others = pieces
    return [*first, *(token for piece in others for token in piece[skipped:])]


def _anchor(encode: Encode) -> str:
    """Return what keeps a tokenizer from putting a space before a piece from the middle of a text.

    SentencePiece's kind does so at the start of a text. A line break takes that place: it merges
    with nothing, and its tokens are dropped. Other tokenizers need none.
    """
    return "\n" if len(encode(["\n"])[0]) > 1 else ""
