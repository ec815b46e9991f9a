"""What each token spells, so that the pieces joined are exactly the text.

Decoding tokens one by one shows broken characters, for a letter beyond ASCII is often several tokens.
Here tokens become bytes first, by the rules of the tokenizer's own decoder.
"""

import codecs
import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def _byte_of_letter() -> dict[str, int]:
    """Return the alphabet of byte-level tokenizers: printable bytes stand for themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in set(printable)]
    return {chr(b): b for b in printable} | {chr(0x100 + n): b for n, b in enumerate(others)}


class TokenText:
    """Spells the tokens of one tokenizer: byte-level, SentencePiece-like (with or without bytes), WordPiece."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast") -> None:
        """Read the rules of its decoder."""
        self._tokenizer = tokenizer
        self._added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}
        rules = list(_rules(tokenizer.backend_tokenizer.decoder))
        kinds = {rule["type"] for rule in rules}
        self._letters = _byte_of_letter() if "ByteLevel" in kinds else {}
        self._has_bytes = "ByteFallback" in kinds
        self._spaces = [each for rule in rules if (each := _space(rule)) is not None]
        self._drops_first_space = any(_drops_first_space(rule) for rule in rules)
        self._prefix = next((str(rule["prefix"]) for rule in rules if rule["type"] == "WordPiece"), None)

    @property
    def has_soft_spaces(self) -> bool:
        """A space may come or go at the start of a text and after a special token, as in SentencePiece."""
        return bool(self._spaces)

    def spell(self, ids: Sequence[int]) -> list[str]:
        """Return one piece of text for each token.

        A character spelled by several tokens stands whole at the last of them. Bytes that make no
        character are shown as ⟨E2⟩.

        Args:
            ids: Tokens of one sequence, from its start.
        """
        pieces: list[str] = []
        rest = b""
        for place, token in enumerate(ids):
            if token in self._added and rest:
                pieces[-1] += _hex(rest)
                rest = b""
            text, rest = _characters(rest + self._bytes(token, is_first=place == 0))
            pieces.append(text)
        if rest:
            pieces[-1] += _hex(rest)
        return pieces

    def _bytes(self, token: int, *, is_first: bool) -> bytes:
        if token in self._added:
            return self._added[token].encode()
        written = self._tokenizer.convert_ids_to_tokens(token)
        if not isinstance(written, str):
            return f"⟨{token}⟩".encode()
        if self._letters and all(letter in self._letters for letter in written):
            return bytes(self._letters[letter] for letter in written)
        byte = _BYTE.fullmatch(written) if self._has_bytes else None
        return bytes([int(byte[1], 16)]) if byte else self._plain(written, is_first=is_first).encode()

    def _plain(self, written: str, *, is_first: bool) -> str:
        if self._prefix is not None:
            inside = written.startswith(self._prefix)
            return written.removeprefix(self._prefix) if inside or is_first else f" {written}"
        for mark, space in self._spaces:
            written = written.replace(mark, space)
        return written.removeprefix(" ") if is_first and self._drops_first_space else written


def _rules(decoder: Any) -> Iterator[dict[str, Any]]:
    """Yield the steps of a decoder, as its own serialisation describes them."""
    if decoder is None:
        return
    state = json.loads(decoder.__getstate__())
    yield from state["decoders"] if state["type"] == "Sequence" else [state]


def _space(rule: dict[str, Any]) -> tuple[str, str] | None:
    """Return which mark of a vocabulary stands for which text, if the rule says so."""
    if rule["type"] == "Metaspace":
        return str(rule["replacement"]), " "
    if rule["type"] == "Replace" and "String" in rule["pattern"]:
        return str(rule["pattern"]["String"]), str(rule["content"])
    return (str(rule["suffix"]), " ") if rule["type"] == "BPEDecoder" else None


def _drops_first_space(rule: dict[str, Any]) -> bool:
    if rule["type"] == "Metaspace":
        return bool(rule.get("prepend_scheme", "always") != "never")
    return bool(rule["type"] == "Strip" and rule["content"] == " " and rule["start"] > 0)


def _characters(data: bytes) -> tuple[str, bytes]:
    """Return the characters that are complete, and the bytes of one that may still become so."""
    texts = []
    while True:
        try:
            text, used = codecs.utf_8_decode(data, "strict", False)
        except UnicodeDecodeError as error:
            texts += [data[: error.start].decode(), _hex(data[error.start : error.end])]
            data = data[error.end :]
        else:
            return "".join([*texts, text]), data[used:]


def _hex(data: bytes) -> str:
    return "".join(f"⟨{byte:02X}⟩" for byte in data)
