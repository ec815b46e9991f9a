"""Matrix products of many rows, by the algorithm that suits a GPU at its power limit."""

import torch
from torch import Tensor

from core.kernels.backend import runs_fused

__all__ = ["multiply"]

SMALLEST = 512
"""Rows, inner length and columns below which a product is PyTorch's own: there is nothing to gain."""


def multiply(x: Tensor, w: Tensor, *, out: Tensor | None = None, onto: bool = False) -> Tensor:
    """Multiply two matrices; called below autograd, which does not see it.

    Args:
        x: [t, k]; the last dimension is contiguous, the row stride is free.
        w: [k, n], either dimension contiguous: a matrix, or the transposed view of one.
        out: Where the product is written [t, n], any row stride; None allocates.
        onto: Add to what is in ``out``; the sum is rounded once.

    Returns:
        [t, n] in x's dtype, summed in float32 (float64 for float64).
    """
    if is_large(x, w) and runs_fused(x.device):
        from core.kernels.products.cublaslt import try_multiply

        found = try_multiply(x, w, out, onto=onto)
        if found is not None:
            return found
    if onto:
        assert out is not None
        return out.addmm_(x, w)
    return torch.mm(x, w) if out is None else torch.mm(x, w, out=out)


def is_large(x: Tensor, w: Tensor) -> bool:
    """Tell whether choosing an algorithm is worth the while."""
    return x.dtype in (torch.bfloat16, torch.float16) and min(*x.shape, w.shape[1]) >= SMALLEST
