"""Texts that tokenizers are trained on, and texts that tell tokenizers apart."""

import random
import unicodedata

TEXTS = [
    "Sɛ wo wɔ GH₵17 na wotua GH₵5 a, ɛka sɛn? GH₵12.\nQuestion: what is 12 + 7? Answer: 19\n\n",
    "The capital of Ghana is Accra, isn't it? They'll say so.  Two  spaces   here.\n",
    "Ɔkɔɔ fie. Meda wo ase paa. Ɛyɛ me dɛ sɛ mahu wo. 3 kilometres are 3000 metres.",
]
TWI = ("GH₵17", "ɛyɛ dɛ, Ɔkɔɔ fie ɛnnɛ", "Sɛ wotua GH₵5 a, ɛka GH₵12.")
TRICKY = (
    *TWI,
    "12345 6789 0",
    "a\nb\n\nc\r\n d\r\n\r\n",
    "  two  leading   and trailing  ",
    unicodedata.normalize("NFD", "é è ü ɛ́ ɔ̀ ñ"),
    "don't DON'T we'LL 's 'ſ",
    "\t\tx\t y",
    "日本語 텍스트 👩‍👩‍👧 👍🏽",
    "½ ² Ⅳ ١٢٣ １２",
    "x\u00a0y\u2003z\u200bw",
    "snake_case...!!??\n\n",
)


def mixed_strings(count: int, seed: int = 7) -> list[str]:
    """Return the tricky strings, then random mixes of awkward characters."""
    draw = random.Random(seed)
    alphabet = "ab 1 2\n\r\t'sStTɛɔ₵é\u0301.,!?<|>-_  \u00a0\u2003½²日👍\u200d'llLL"
    mixes = ["".join(draw.choices(alphabet, k=draw.randint(1, 40))) for _ in range(count)]
    return [*TRICKY, *mixes]
