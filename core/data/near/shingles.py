"""Texts as sets of word sequences, a whole batch at a time."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from core.data.scatter import scattered

WORDS = 3
"""Words of a sequence: one changed word of a short question then changes most of it, as it should."""
NUMBERS_MATTER_BELOW = 150
"""Shorter texts with different numbers are different: in a school corpus the numbers are the question. In
longer ones they are dates and counters."""
ANY_NUMBERS = np.uint64(2**64 - 1)
"""Stands for the numbers of a text in which they do not matter."""

# Scripts that write words without spaces between them: each letter is a word of its own.
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"
_BETWEEN_WORDS = r"[^\p{L}\p{N}\p{M}]+"
_DIGIT = r"\p{N}"

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


class Shingles(NamedTuple):
    """Sets of hashed word sequences of several texts, laid end to end."""

    hashes: U64
    """All sequences; within a text a repeated one stands once and the hashes rise."""
    offsets: I64
    """[rows + 1]; text i has ``hashes[offsets[i]:offsets[i + 1]]``."""
    numbers: U64
    """[rows]; equal for texts with the same numbers in any order; ``ANY_NUMBERS`` for long texts."""

    @property
    def rows(self) -> int:
        """How many texts."""
        return len(self.offsets) - 1


class Texts(NamedTuple):
    """Texts to compare."""

    texts: pa.Array
    """Strings without nulls."""
    salts: U64 | None = None
    """[rows]; texts with different salts have nothing in common, whatever they say."""


def shingle(given: Texts) -> Shingles:
    """Turn texts into sets of sequences of three words.

    Case, punctuation, spacing and Unicode composition do not count. A text of fewer than three words is one
    sequence; a text without any word counts as its own characters.
    """
    texts = given.texts
    words, starts = _words(texts)
    hashes, numeric = _hash_words(words)
    lengths = np.diff(starts)
    sequences, owners = _sequences(hashes, starts, lengths)
    short = np.flatnonzero(lengths < WORDS)
    if len(short):
        sequences = np.concatenate([sequences, _short(texts, hashes, starts, short)])
        owners = np.concatenate([owners, short])
    if given.salts is not None:
        sequences = scattered(sequences ^ given.salts[owners])
    numbers = _sums(np.where(numeric, scattered(hashes), np.uint64(0)), starts)
    numbers[lengths >= NUMBERS_MATTER_BELOW] = ANY_NUMBERS
    return _as_sets(sequences, owners, len(texts), numbers)


def _words(texts: pa.Array) -> tuple[pa.Array, I64]:
    text = texts.cast(pa.large_string())
    # ASCII is its own composition; asking is a hundred times cheaper than composing.
    if not pc.all(pc.string_is_ascii(text)).as_py():
        text = pc.utf8_normalize(text, form="NFC")
        if pc.any(pc.match_substring_regex(text, _UNSPACED)).as_py():
            text = pc.replace_substring_regex(text, _UNSPACED, r" \1 ")
    spaced = pc.replace_substring_regex(pc.utf8_lower(text), _BETWEEN_WORDS, " ")
    parts = pc.split_pattern(pc.utf8_trim(spaced, " "), " ")
    return _without_blanks(parts)


def _without_blanks(parts: pa.LargeListArray) -> tuple[pa.Array, I64]:
    # Only a text without words leaves a blank: splitting "" gives [""].
    starts = parts.offsets.to_numpy().astype(np.int64)
    words = parts.values[starts[0] : starts[-1]]
    starts = starts - starts[0]
    filled = pc.not_equal(words, "").to_numpy(zero_copy_only=False)
    if filled.all():
        return words, starts
    before = np.concatenate([[0], np.cumsum(filled)])
    return words.filter(pa.array(filled)), before[starts]


def _hash_words(words: pa.Array) -> tuple[U64, npt.NDArray[np.bool_]]:
    if not len(words):
        return np.zeros(0, np.uint64), np.zeros(0, bool)
    coded = words.dictionary_encode()
    vocabulary = coded.dictionary
    digests = np.array(
        [xxhash.xxh3_64_intdigest(word.encode()) for word in vocabulary.to_pylist()], np.uint64
    )
    has_digit = pc.match_substring_regex(vocabulary, _DIGIT).to_numpy(zero_copy_only=False)
    codes = coded.indices.to_numpy()
    return digests[codes], has_digit[codes]


def _sequences(hashes: U64, starts: I64, lengths: I64) -> tuple[U64, I64]:
    if len(hashes) < WORDS:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    joined = scattered(_joined([hashes[i : len(hashes) - WORDS + 1 + i] for i in range(WORDS)]))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    # A sequence must not run from one text into the next.
    inside = owner[: len(joined)] == owner[WORDS - 1 :]
    return joined[inside], owner[: len(joined)][inside]


def _short(texts: pa.Array, hashes: U64, starts: I64, short: I64) -> U64:
    return np.array([_short_one(texts, hashes[starts[i] : starts[i + 1]], int(i)) for i in short], np.uint64)


def _short_one(texts: pa.Array, words: U64, row: int) -> int:
    content = words.tobytes() if len(words) else texts[row].as_py().strip().encode()
    return xxhash.xxh3_64_intdigest(content)


def _joined(columns: list[U64]) -> U64:
    total = np.zeros_like(columns[0])
    for column in columns:
        # Odd multipliers keep every word's place: "a b c" and "c b a" differ. Overflow wraps around.
        total = total * np.uint64(0x9E3779B97F4A7C15) + column
    return total


def _sums(values: U64, starts: I64) -> U64:
    running = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values, dtype=np.uint64)])
    sums: U64 = running[starts[1:]] - running[starts[:-1]]
    return sums


def _as_sets(sequences: U64, owners: I64, rows: int, numbers: U64) -> Shingles:
    order = np.lexsort((sequences, owners))
    sequences, owners = sequences[order], owners[order]
    first = np.ones(len(sequences), bool)
    first[1:] = (sequences[1:] != sequences[:-1]) | (owners[1:] != owners[:-1])
    counts = np.bincount(owners[first], minlength=rows)
    return Shingles(sequences[first], np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), numbers)
