"""Matrix products of many rows, by the algorithm that suits a GPU at its power limit."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from core.kernels.backend import runs_fused

__all__ = ["NAME", "multiply"]

NAME = "kernels::multiply"
"""What a profiler shows a product as that PyTorch did not launch."""

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

        with shown(x, w):
            found = try_multiply(x, w, out, onto=onto)
        if found is not None:
            return found
    if onto:
        assert out is not None
        return out.addmm_(x, w)
    return torch.mm(x, w) if out is None else torch.mm(x, w, out=out)


def shown(x: Tensor, w: Tensor) -> AbstractContextManager[object]:
    """Let a profiler that runs see what is multiplied, with its sizes."""
    if not torch._C._autograd._profiler_enabled():
        return nullcontext()
    from torch._C._profiler import _RecordFunctionFast

    found: AbstractContextManager[object] = _RecordFunctionFast(NAME, (x, w))
    return found


def is_large(x: Tensor, w: Tensor) -> bool:
    """Tell whether choosing an algorithm is worth the while."""
    return x.dtype in (torch.bfloat16, torch.float16) and min(*x.shape, w.shape[1]) >= SMALLEST
