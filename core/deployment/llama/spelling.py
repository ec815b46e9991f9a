"""What a tokenizer does to text that llama.cpp does not: rules written into the file, kept by our worker.

llama.cpp normalises nothing, trims around control tokens for one family only, and cannot tell text that
a user wrote from what a template wrote. Imports nothing but the standard library and one module without
imports of its own, because the worker process does.
"""

import json
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Any

from core.data.control_text import ControlText, encode_cut

KEY = "data_factory.tokenizer"
"""Metadata key that holds the rules."""

# White space as Unicode defines it; Python's \s has four more.
_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"


class Spelling:
    """The rules of one vocabulary."""

    def __init__(
        self,
        control: Iterable[str],
        *,
        plain: Iterable[str] = (),
        strip_left: Iterable[str] = (),
        strip_right: Iterable[str] = (),
        normalization: str = "",
        stops: Iterable[int] = (),
    ) -> None:
        """Prepare the searches.

        Args:
            control: Control tokens, which messages may only spell.
            plain: Other tokens that are found in raw text; needed where text is normalised.
            strip_left: Tokens that swallow white space before them.
            strip_right: Tokens that swallow white space after them.
            normalization: Unicode form of the text between tokens, such as NFC, or nothing.
            stops: Ids that end an answer; none leaves it to llama.cpp, which also goes by tokens' names.
        """
        self.settings: dict[str, Any] = {
            "control": sorted(control),
            "plain": sorted(plain) if normalization else [],
            "strip_left": sorted(strip_left),
            "strip_right": sorted(strip_right),
            "normalization": normalization,
            "stops": sorted(stops),
        }
        self.control = ControlText(self.settings["control"])
        before, after = _either(self.settings["strip_left"]), _either(self.settings["strip_right"])
        # Possessive and looking back, or long runs of spaces would take quadratic time.
        self._before = re.compile(rf"(?<!{_SPACE}){_SPACE}++(?={before})")
        self._after = re.compile(rf"({after}){_SPACE}+")
        self._tokens = re.compile(f"({_either([*self.settings['control'], *self.settings['plain']])})")

    @classmethod
    def parse(cls, text: str) -> "Spelling":
        """Read rules that ``dump`` wrote."""
        settings = json.loads(text)
        return cls(settings.pop("control"), **settings)

    def dump(self) -> str:
        """Write the rules as one line."""
        return json.dumps(self.settings, ensure_ascii=False, separators=(",", ":"))

    def spelled(self, text: str) -> str:
        """Return the text as llama.cpp must get it to split it like the original tokenizer."""
        if self.settings["strip_left"]:
            text = self._before.sub("", text)
        if self.settings["strip_right"]:
            text = self._after.sub(r"\1", text)
        return self._normalised(text)

    def encode(self, text: str, tokenize: Callable[[str], list[int]]) -> list[int]:
        """Return the ids of a rendered conversation; no token reaches across a cut.

        Args:
            text: What the template made of turns that ``control`` cut.
            tokenize: llama.cpp, control tokens in the text counting as such.
        """
        return encode_cut([text], lambda pieces: [tokenize(self.spelled(piece)) for piece in pieces])[0]

    def _normalised(self, text: str) -> str:
        form: Any = self.settings["normalization"]
        if not form or unicodedata.is_normalized(form, text):
            return text
        # Every second part is a token, which is found before anything is normalised.
        parts = self._tokens.split(text)
        return "".join(
            part if number % 2 else unicodedata.normalize(form, part) for number, part in enumerate(parts)
        )


def _either(tokens: Iterable[str]) -> str:
    longest_first = sorted(tokens, key=lambda token: (-len(token), token))
    return "|".join(map(re.escape, longest_first)) or r"(?!)"
