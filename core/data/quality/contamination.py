"""Find rows that share word sequences with benchmarks.

Words are compared without case and punctuation. Sequences are hashed for whole batches at once;
what the hashes agree on is compared byte by byte, so no row is accused by a collision.
"""

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from core.data.quality.words import Octets, Places, Words, ended, pieces
from core.data.reports import Contamination

FEWEST_WORDS: Final = 3
"""Shorter benchmark items, such as "Paris", occur everywhere and are not looked for."""
_EXAMPLES = 10
_INVISIBLE = "\u200b\u2060\ufeff\u00ad"
_LONGEST_WORD = 1024
_BLOCK = 1 << 18
_COMPARED = 1 << 14

Hashes = npt.NDArray[np.uint64]

_BASE = np.uint64(0x9E3779B97F4A7C15)
# The base is odd, so it has an inverse modulo 2**64.
_BASE_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_STEP = np.uint64(0xD6E8FEB86659FD93)
_MIX = np.uint64(0xFF51AFD7ED558CCD)


@dataclass(frozen=True)
class Sequences:
    """The benchmark's distinct word sequences of one length, in order of their hashes."""

    words: int
    hashes: Hashes
    places: Places
    """For each, the number of its first word in the benchmark."""
    filled: npt.NDArray[np.bool_]
    """Whether any hash starts with these bits; most of a row's sequences end here."""


class Shared(NamedTuple):
    """One row that shares a sequence."""

    ordinal: int
    origin: str
    words: str
    row: str = ""
    """The whole row, until it is known which of the words may be shown."""


@dataclass(frozen=True)
class Overlap:
    """What some rows share with a benchmark."""

    rows: Places = field(default_factory=lambda: np.zeros(0, np.int64))
    """Numbers of the rows that share a sequence, rising."""
    found: Mapping[int, Places] = field(default_factory=dict)
    """By number of words: the benchmark's sequences that were found."""
    examples: tuple[Shared, ...] = ()

    def merged(self, other: Self) -> Self:
        """Return what the rows of both share."""
        none = np.zeros(0, np.int64)
        sizes = self.found.keys() | other.found.keys()
        return type(self)(
            np.union1d(self.rows, other.rows),
            {size: np.union1d(self.found.get(size, none), other.found.get(size, none)) for size in sizes},
            tuple(sorted({*self.examples, *other.examples})[:_EXAMPLES]),
        )


@dataclass(frozen=True)
class Benchmark:
    """What rows are compared with."""

    ngram: int
    items: int
    """Items compared with."""
    ignored: int
    """Items too short to be looked for."""
    octets: Octets
    starts: Places
    lengths: Places
    """First byte and number of bytes of every word."""
    owners: Mapping[int, tuple[Places, Places]]
    """By number of words: the sequences of all items, and the items they belong to."""
    sequences: tuple[Sequences, ...]

    @classmethod
    def of(cls, texts: Sequence[str], ngram: int) -> Self:
        """Index benchmark items.

        Args:
            texts: The items.
            ngram: Words in a row that must agree; shorter items must be contained whole.
        """
        words = fold(pa.array(texts, pa.large_string()))
        sizes = words.per_row()
        hashes = _word_hashes(words)
        spans = _spans(words.rows, sizes, ngram)
        made = {size: _sequences(hashes, size, at, owner) for size, (at, owner) in spans.items() if at.size}
        return cls(
            ngram,
            int((sizes >= FEWEST_WORDS).sum()),
            int((sizes < FEWEST_WORDS).sum()),
            words.octets,
            words.starts,
            words.ends - words.starts,
            {size: owners for size, (_, owners) in made.items()},
            tuple(sequences for _, (sequences, _) in sorted(made.items())),
        )

    def find(self, texts: pa.Array, ordinals: Places, origins: Sequence[str]) -> Overlap:
        """Compare rows.

        Args:
            texts: The rows.
            ordinals: Number of each row in the whole.
            origins: file:line of each row.
        """
        overlap = Overlap()
        for start, piece in pieces(texts):
            stop = start + len(piece)
            overlap = overlap.merged(self._find_piece(piece, ordinals[start:stop], origins[start:stop]))
        return overlap

    def report(self, overlap: Overlap, *, removes: bool) -> Contamination:
        """Return what was found, for people and gates."""
        hit = np.zeros(0, np.int64)
        for size, found in overlap.found.items():
            sequences, items = self.owners[size]
            hit = np.union1d(hit, items[np.isin(sequences, found)])
        return Contamination(
            items=self.items,
            ignored=self.ignored,
            ngram=self.ngram,
            rows=len(overlap.rows),
            items_hit=len(hit),
            removed=len(overlap.rows) if removes else 0,
            examples=tuple(f"{each.origin}: {each.words}" for each in overlap.examples),
        )

    def _find_piece(self, texts: pa.Array, ordinals: Places, origins: Sequence[str]) -> Overlap:
        words = fold(texts)
        row_ends = np.repeat(words.rows[1:], words.per_row())
        found, rows, shown = {}, [], {}
        for sequences, hashes in _rolling(_word_hashes(words), self.sequences):
            at = _likely(sequences, hashes)
            at = at[at + sequences.words <= row_ends[at]]
            numbers = np.searchsorted(sequences.hashes, hashes[at])
            equal = self._equal(words, at, sequences.places[numbers], sequences.words)
            at, numbers = at[equal], numbers[equal]
            hit, first = np.unique(np.searchsorted(words.rows, at, side="right") - 1, return_index=True)
            found[sequences.words] = np.unique(numbers)
            rows.append(hit)
            for row, place in zip(hit[:_EXAMPLES].tolist(), at[first[:_EXAMPLES]].tolist(), strict=True):
                shown[row] = (place, sequences.words)
        contaminated = np.unique(np.concatenate(rows)) if rows else np.zeros(0, np.int64)
        examples = tuple(
            Shared(int(ordinals[row]), origins[row], _phrase(words, *shown[row]), texts[row].as_py())
            for row in contaminated[:_EXAMPLES].tolist()
        )
        return Overlap(ordinals[contaminated], found, examples)

    def _equal(self, words: Words, at: Places, places: Places, size: int) -> npt.NDArray[np.bool_]:
        """Return which sequences of the rows are those of the benchmark."""
        blocks = [slice(start, start + _COMPARED) for start in range(0, len(at), _COMPARED)]
        found = [self._equal_block(words, at[block], places[block], size) for block in blocks]
        return np.concatenate(found) if found else np.zeros(0, np.bool_)

    def _equal_block(self, words: Words, at: Places, places: Places, size: int) -> npt.NDArray[np.bool_]:
        steps = np.arange(size)
        mine, theirs = at[:, None] + steps, places[:, None] + steps
        lengths = (words.ends - words.starts)[mine]
        same = np.asarray((lengths == self.lengths[theirs]).all(axis=1))
        spans = lengths[same].ravel()
        within = np.arange(spans.sum()) - np.repeat(np.cumsum(spans) - spans, spans)
        left = words.octets[np.repeat(words.starts[mine[same]].ravel(), spans) + within]
        right = self.octets[np.repeat(self.starts[theirs[same]].ravel(), spans) + within]
        owner = np.repeat(np.flatnonzero(same), lengths[same].sum(axis=1))
        same[owner[left != right]] = False
        return same


def fold(texts: pa.Array) -> Words:
    """Return the words of texts without differences of case, composition and invisible characters."""
    data, borders = ended(texts)
    if data.isascii():
        return Words.of(data.lower(), borders)
    text = unicodedata.normalize("NFC", unicodedata.normalize("NFC", data.decode()).casefold())
    for sign in _INVISIBLE:
        text = text.replace(sign, "")
    data = text.encode()
    ends = np.flatnonzero(np.frombuffer(data, np.uint8) == 0) + 1
    return Words.of(data, np.concatenate(([0], ends)))


def _phrase(words: Words, place: int, size: int) -> str:
    return " ".join(words.text(word) for word in range(place, place + size))


def _spans(rows: Places, sizes: Places, ngram: int) -> dict[int, tuple[Places, Places]]:
    """Return, by number of words, first words of the sequences to look for and the items they are of."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(owner))
    full = np.flatnonzero(place + ngram <= rows[1:][owner])
    spans = {ngram: (full, owner[full])}
    for size in range(FEWEST_WORDS, ngram):
        items = np.flatnonzero(sizes == size)
        spans[size] = (rows[items], items)
    return spans


def _sequences(
    hashes: Hashes, size: int, at: Places, owner: Places
) -> tuple[Sequences, tuple[Places, Places]]:
    rolled = hashes[at]
    for step in range(1, size):
        rolled = rolled * _STEP + hashes[at + step]
    distinct, first, numbers = np.unique(rolled * _MIX, return_index=True, return_inverse=True)
    bits = min(26, max(10, int(16 * len(distinct)).bit_length()))
    filled = np.zeros(1 << bits, np.bool_)
    filled[_slots(distinct, bits)] = True
    return Sequences(size, distinct, at[first], filled), (numbers, owner)


def _slots(hashes: Hashes, bits: int) -> Places:
    slots: Places = (hashes >> np.uint64(64 - bits)).astype(np.int64)
    return slots


def _likely(sequences: Sequences, hashes: Hashes) -> Places:
    """Return the places of hashes that the benchmark has."""
    bits = len(sequences.filled).bit_length() - 1
    at: Places = np.flatnonzero(sequences.filled[_slots(hashes, bits)])
    number = np.searchsorted(sequences.hashes, hashes[at])
    known = number < len(sequences.hashes)
    at, number = at[known], number[known]
    same: Places = at[sequences.hashes[number] == hashes[at]]
    return same


def _rolling(hashes: Hashes, wanted: Sequence[Sequences]) -> Iterator[tuple[Sequences, Hashes]]:
    """Yield the hash of as many words as wanted from every word on, shortest first."""
    rolled, size = hashes, 1
    for sequences in wanted:
        while size < sequences.words:
            rolled = rolled[:-1] * _STEP + hashes[size:]
            size += 1
        yield sequences, rolled * _MIX


def _word_hashes(words: Words) -> Hashes:
    """Return a polynomial hash of the bytes of every word."""
    weights, inverse = _weights()
    hashes = np.empty(len(words.starts), np.uint64)
    for start in range(0, len(words.octets), _BLOCK):
        first, last = np.searchsorted(words.starts, (start, start + _BLOCK))
        block = words.octets[start : start + len(weights)]
        sums = np.zeros(len(block) + 1, np.uint64)
        np.cumsum(block * weights[: len(block)], out=sums[1:])
        begin = words.starts[first:last] - start
        end = np.minimum(words.ends[first:last] - start, begin + _LONGEST_WORD)
        hashes[first:last] = (sums[end] - sums[begin]) * inverse[begin]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    return hashes ^ (hashes >> np.uint64(29))


@cache
def _weights() -> tuple[Hashes, Hashes]:
    """Return rising powers of the base and of its inverse, modulo 2**64."""
    length = _BLOCK + _LONGEST_WORD
    weights = np.multiply.accumulate(np.full(length, _BASE))
    return weights, np.multiply.accumulate(np.full(_BLOCK, _BASE_INVERSE))
