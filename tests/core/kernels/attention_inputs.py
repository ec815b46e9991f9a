"""What attention is tried on: tensors as a layer has them, packed documents, and the way there and back."""

import itertools
from typing import NamedTuple

import torch

from core.kernels.attention import Documents, Kernel, agreement
from tests.core.kernels.conftest import DEVICE, normal

STARTS = (0, 1, 17, 30, 63, 64, 126)
"""Documents of two rows of 63 tokens; two have one token only."""


class Inputs(NamedTuple):
    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    grad: torch.Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(*(each.to(dtype) for each in self))


def drawn(
    b: int = 2,
    h: int = 4,
    g: int = 2,
    s: int = 63,
    d: int = 16,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Inputs:
    """Draw queries, keys and values as views of one wide matrix, as a layer has them."""
    wide = normal(b, s, h + 2 * g, d, dtype=dtype, seed=seed)
    q, k, v = (each.transpose(1, 2) for each in wide.split([h, g, g], dim=2))
    return Inputs(q, k, v, normal(b, s, h, d, dtype=dtype, seed=seed + 1).transpose(1, 2))


def documents(starts: tuple[int, ...] = STARTS, longest: int | None = None) -> Documents:
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    return Documents(torch.tensor(starts, dtype=torch.int32, device=DEVICE), longest or max(lengths))


def walked(
    kernel: Kernel, inputs: Inputs, window: int | None = None, held: Documents | None = None
) -> tuple[torch.Tensor, ...]:
    """Return a kernel's result and gradients."""
    return agreement.walked(kernel, inputs, inputs.q.shape[3] ** -0.5, window, held)
