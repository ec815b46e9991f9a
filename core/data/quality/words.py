"""Find the words of many texts at once, as places in their UTF-8 bytes.

A word is a run of letters, marks and digits. Scripts that put no space between words (Han, Kana,
Thai and their like) count one word per letter.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from core.data.quality.codepoints import ALONE, ALONE_MARK, WORD, Codes, code_points

CHUNK_BYTES = 1 << 20
"""Texts are looked at in pieces of about this size, so that every step stays in the processor's cache."""

Places = npt.NDArray[np.int64]
Octets = npt.NDArray[np.uint8]

_ASCII_WORD = bytes(byte < 0x80 and chr(byte).isalnum() for byte in range(256))


@dataclass(frozen=True)
class Words:
    """The words of a piece of some texts."""

    octets: Octets
    """The texts' UTF-8 bytes, each text followed by a zero byte."""
    starts: Places
    """First byte of each word."""
    ends: Places
    """Byte after each word."""
    rows: Places
    """Number of the first word of each text, and at last the number of words."""
    wide: Places
    """First bytes of the characters beyond ASCII."""
    codes: Codes
    """Code points of those characters."""

    @classmethod
    def of(cls, data: bytes, borders: Places) -> Self:
        """Find the words.

        Args:
            data: UTF-8 text, each row followed by a byte that is no letter.
            borders: Where each row starts, and at last the length of data.
        """
        octets = np.frombuffer(data, np.uint8)
        values = np.frombuffer(data.translate(_ASCII_WORD), np.uint8)
        wide = np.flatnonzero(octets >= 0xC0)
        codes = _decoded(octets, wide)
        if wide.size:
            values = values.copy()
            _mark_wide(values, octets, wide, codes)
        starts, ends = _runs(values)
        return cls(octets, starts, ends, np.searchsorted(starts, borders), wide, codes)

    def per_row(self) -> Places:
        """Return how many words each text has."""
        return np.diff(self.rows)

    def text(self, word: int) -> str:
        """Return a word."""
        return self.octets[self.starts[word] : self.ends[word]].tobytes().decode()


def pieces(texts: pa.Array) -> Iterator[tuple[int, pa.Array]]:
    """Yield the number of the first text and the texts, piece by piece.

    Args:
        texts: Strings without nulls.
    """
    ends = np.cumsum(pc.binary_length(texts).to_numpy(zero_copy_only=False).astype(np.int64))
    start = 0
    while start < len(texts):
        done = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK_BYTES, side="right")))
        yield start, texts.slice(start, stop - start)
        start = stop


def ended(texts: pa.Array) -> tuple[bytes, Places]:
    """Return texts one behind the other, each followed by a zero byte, and where each starts.

    A zero byte inside a text becomes a space.
    """
    large = pa.large_string()
    lone = pc.replace_substring(texts.cast(large), "\0", " ")
    joined = pc.binary_join_element_wise(lone, pa.scalar("", large), pa.scalar("\0", large))
    _, offsets, data = joined.buffers()
    borders = np.frombuffer(offsets, np.int64, len(joined) + 1, joined.offset * 8)
    return data.to_pybytes()[borders[0] : borders[-1]], borders - borders[0]


def _runs(values: Octets) -> tuple[Places, Places]:
    """Return where runs of one value other than 0 start and end."""
    changes = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate(([0], changes)) if len(values) else changes
    ends = np.concatenate((changes, [len(values)])) if len(values) else changes
    inside = values[starts] != 0
    return starts[inside], ends[inside]


def _decoded(octets: Octets, leads: Places) -> Codes:
    """Return the code points of the characters that start at leads."""
    first = octets[leads].astype(np.uint32)
    last = len(octets) - 1
    second, third, fourth = (octets[np.minimum(leads + n, last)].astype(np.uint32) & 0x3F for n in (1, 2, 3))
    two = (first & 0x1F) << 6 | second
    three = (first & 0x0F) << 12 | second << 6 | third
    four = (first & 0x07) << 18 | second << 12 | third << 6 | fourth
    return np.where(first < 0xE0, two, np.where(first < 0xF0, three, four))


def _mark_wide(values: Octets, octets: Octets, leads: Places, codes: Codes) -> None:
    """Give every byte of the characters at leads the value of its kind."""
    table = code_points()
    table.learn(codes)
    kinds = table.kind(codes)
    marks = np.where(kinds == WORD, 1, 0).astype(np.uint8)
    alone = kinds == ALONE
    if alone.any():
        # Neighbours must differ, or two words would look like one run.
        turn = (2 + (np.cumsum(alone) & 1)).astype(np.uint8)
        marks = np.where(alone | (kinds == ALONE_MARK), turn, marks)
    first = octets[leads]
    values[leads] = marks
    values[leads + 1] = marks
    for width, above in ((2, 0xE0), (3, 0xF0)):
        longer = first >= above
        values[leads[longer] + width] = marks[longer]
