"""Count how long things are, so that counts of parts add up to the counts of the whole."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from core.data.reports import Histogram, LengthProfile

_EXACT_BITS = 12
_EXACT = 1 << _EXACT_BITS
"""Lengths below this are counted one by one."""
_STEPS_BITS = 7
"""Above, an octave has 2**7 bins, so that a quantile is at most 0.8 % too small."""
_OCTAVES = 20
_BINS = _EXACT + (_OCTAVES << _STEPS_BITS)

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lengths:
    """Lengths of some texts, as counts in fixed bins."""

    bins: Counts
    total: int = 0
    largest: int = 0

    @classmethod
    def of(cls, lengths: Counts) -> Self:
        """Count lengths from 0 to 2**32."""
        bins = np.bincount(_bin(lengths), minlength=_BINS).astype(np.int64)
        return cls(bins, int(lengths.sum()), int(lengths.max(initial=0)))

    def merged(self, other: Self) -> Self:
        """Return the counts of both."""
        return type(self)(self.bins + other.bins, self.total + other.total, max(self.largest, other.largest))

    def quantile(self, share: float) -> float:
        """Return the length that this share of the texts does not exceed; exact below 4096."""
        n = int(self.bins.sum())
        if not n:
            return 0.0
        place = np.searchsorted(np.cumsum(self.bins), max(1, int(np.ceil(share * n))))
        return float(_floors()[place])

    def profile(self, unit: str) -> LengthProfile:
        """Return what people want to know of the lengths.

        Args:
            unit: What was counted, such as words.
        """
        n = int(self.bins.sum())
        return LengthProfile(
            unit=unit,
            n=n,
            mean=self.total / n if n else 0.0,
            median=self.quantile(0.5),
            p95=self.quantile(0.95),
            largest=self.largest,
            histogram=self._histogram(),
        )

    def _histogram(self) -> Histogram:
        edges = [edge for edge in _edges() if edge <= self.largest]
        edges.append(_edges()[len(edges)])
        sums = np.concatenate(([0], np.cumsum(self.bins)))[np.searchsorted(_floors(), edges)]
        return Histogram(edges=tuple(map(float, edges)), counts=tuple(np.diff(sums).tolist()))


def _bin(lengths: Counts) -> Counts:
    """Return the bin of each length."""
    bins = lengths.copy()
    long = np.flatnonzero(lengths >= _EXACT)
    if long.size:
        values = np.minimum(lengths[long], (1 << 32) - 1)
        octave = np.log2(values.astype(np.float64)).astype(np.int64)
        step = (values >> (octave - _STEPS_BITS)) - (1 << _STEPS_BITS)
        bins[long] = _EXACT + ((octave - _EXACT_BITS) << _STEPS_BITS) + step
    return bins


def _floors() -> Counts:
    """Return the smallest length of each bin."""
    places = np.arange(_OCTAVES << _STEPS_BITS, dtype=np.int64)
    octave = _EXACT_BITS + (places >> _STEPS_BITS)
    step = places & ((1 << _STEPS_BITS) - 1)
    long = ((1 << _STEPS_BITS) + step) << (octave - _STEPS_BITS)
    return np.concatenate((np.arange(_EXACT, dtype=np.int64), long))


def _edges() -> list[int]:
    """Return 0, 1, 2, 3, 4, 6, 8, 12, 16 and on to 2**32: borders of bins, evenly spaced for a logarithm."""
    powers = [1 << bit for bit in range(33)]
    return sorted({0, *powers, *(power + power // 2 for power in powers[1:-1])})
