"""How far two models' logits are apart, added up passage by passage."""

import math

import numpy as np
from numpy.typing import NDArray

from core.quantization.reports import Distance

Logits = NDArray[np.float32]

CELLS = 1 << 21
"""Logits held in float64 at once: 16 MB a copy."""


class DistanceSum:
    """The distance over every position added so far; what was added is not kept."""

    def __init__(self) -> None:
        """Start with nothing."""
        self.tokens, self._agree, self._divergence, self._largest = 0, 0, 0.0, 0.0

    def add(self, reference: Logits, found: Logits) -> None:
        """Add the logits of both models at the same positions.

        Divergence at a position is KL(p || q) = sum over v of p (log p - log q), p being the reference's
        distribution (Kullback and Leibler, Annals of Mathematical Statistics 22, 1951).

        Args:
            reference: What is right, ``[s, v]``.
            found: What is compared with it, ``[s, v]``.

        Raises:
            ValueError: If the shapes differ.
        """
        if reference.shape != found.shape:
            raise ValueError(f"logits of shape {reference.shape} cannot be compared with {found.shape}")
        step = max(1, CELLS // max(1, reference.shape[-1]))
        for first in range(0, len(reference), step):
            self._add(reference[first : first + step], found[first : first + step])

    def _add(self, reference: Logits, found: Logits) -> None:
        wanted, given = log_softmax(reference), log_softmax(found)
        self.tokens += len(reference)
        self._agree += int((reference.argmax(-1) == found.argmax(-1)).sum())
        self._divergence += float((np.exp(wanted) * (wanted - given)).sum())
        # A logit that is no number shows in the divergence, which keeps it.
        self._largest = max(self._largest, float(np.abs(reference.astype(np.float64) - found).max()))

    @property
    def is_finite(self) -> bool:
        """Whether every logit so far was a number."""
        return math.isfinite(self._divergence)

    def total(self) -> Distance:
        """Return the distance.

        Raises:
            ValueError: If nothing was added, or a logit was not a finite number.
        """
        if not self.tokens or not self.is_finite:
            raise ValueError("there is no distance without positions, or between logits that are no numbers")
        return Distance(
            max_abs=self._largest,
            kl=max(0.0, self._divergence / self.tokens),
            argmax_agreement=self._agree / self.tokens,
            tokens=self.tokens,
        )


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """Return log-probabilities, ``[s, v]``, in float64."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))
