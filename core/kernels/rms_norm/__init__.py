"""Root-mean-square normalisation, its gradient, and the residual addition that precedes or follows it."""

from collections.abc import Iterable

import torch

from core.kernels.backend import multiplies_from_shared_memory, runs_fused
from core.kernels.rms_norm import reference
from core.kernels.rms_norm.reference import Accumulated, NormGradients

__all__ = [
    "MOST_RANKS",
    "Accumulated",
    "NormGradients",
    "accumulate",
    "accumulate_rms_norm",
    "fits_norm_thin",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_backward_low",
    "rms_norm_gradients",
]

MOST_RANKS = 64
"""Ranks of one thin product that its kernel keeps in registers."""


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale every row to unit root mean square, then by a weight (arXiv 1910.07467, section 3).

    Args:
        x: rows [n, e]; the last dimension is contiguous, the row stride is free (so for every matrix here).
        weight: scale [e].
        eps: added to the mean square.
        offset: added to the weight (Gemma stores the scale less one: 1.0).
        out: where y is written [n, e]; None allocates.
        residual: added after the norm, before the one rounding [n, e] (Gemma's norms after a sublayer).

    Returns:
        y [n, e] in x's dtype, and the reciprocal root mean squares [n] in float32 (float64 for float64).
    """
    if runs_fused(x.device) and x.dtype != torch.float64:
        from core.kernels.rms_norm import fused

        return fused.rms_norm(x, weight, eps, offset=offset, out=out, residual=residual)
    return reference.rms_norm(x, weight, eps, offset=offset, out=out, residual=residual)


def accumulate_rms_norm(
    stream: torch.Tensor,
    rest: torch.Tensor | None,
    added: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> Accumulated:
    """Add to a residual stream that is more precise than its dtype, and normalise the sum before it is rounded.

    Rounding the stream after each of many additions is what makes a deep model in 16 bits wander off: on an H200,
    1B with random weights, the worst gradient of an adapter had a cosine of 0.9985 to float32's. So a stream of 16
    bits is two tensors: the rounded numbers, and 8 bits more of each, which rounding took off. One addition then errs
    by 2^-16 of the sum at most in bfloat16 and by 2^-19 in float16 (of whose numbers below 2^-14 less is kept). A
    float32 stream would be 4 bytes to read and 6 to write, with its rounded copy; this one is 3 and 3.

    Args:
        stream: the rounded stream [n, e] in added's dtype, contiguous; it stays as it is.
        rest: what rounding took off [n, e], int8, contiguous, as the call before returned it; it is overwritten.
            None for nothing: where a stream begins, and always in float32 and float64.
        added: what is added [n, e], in the dtype of the computation.
        weight: scale [e].
        eps: added to the mean square.
        offset: added to the weight.
        out: where y is written [n, e] in added's dtype; None allocates.

    Returns:
        The sum normalised, the sum, what rounding took off it, and the reciprocal root mean squares.
    """
    if runs_fused(added.device) and added.dtype != torch.float64:
        from core.kernels.rms_norm import fused

        return fused.accumulate_rms_norm(stream, rest, added, weight, eps, offset=offset, out=out)
    return reference.accumulate_rms_norm(stream, rest, added, weight, eps, offset=offset, out=out)


def accumulate(
    stream: torch.Tensor, rest: torch.Tensor | None, added: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Add to a residual stream as ``accumulate_rms_norm`` does, where no norm follows.

    It has no fused twin: only a model whose next layer is not one of ours asks for it, once where the kinds of
    layers change.

    Args:
        stream: the rounded stream [n, e] in added's dtype; it stays as it is.
        rest: what rounding took off [n, e], int8, overwritten; None for nothing, and in float32 and float64.
        added: what is added [n, e].

    Returns:
        The sum [n, e] in added's dtype, a tensor of its own, and what rounding took off it (None in 32 and 64 bits).
    """
    return reference.accumulate(stream, rest, added)


def rms_norm_backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    *,
    offset: float = 0.0,
    add: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Carry a gradient through the norm to its input; the weight is frozen.

    Args:
        dy: gradient of y [n, e].
        x: what was normalised [n, e].
        weight: scale [e].
        rstd: reciprocal root mean squares [n], as the forward pass returned them.
        offset: added to the weight.
        add: a gradient that reached x by another path, added before the one rounding [n, e].
        out: where the gradient is written [n, e], may be `dy` or `add` itself; None allocates.

    Returns:
        The gradient of x [n, e] in dy's dtype.
    """
    if runs_fused(x.device) and x.dtype != torch.float64:
        from core.kernels.rms_norm import fused

        return fused.rms_norm_backward(dy, x, weight, rstd, offset=offset, add=add, out=out)
    return reference.rms_norm_backward(dy, x, weight, rstd, offset=offset, add=add, out=out)


def rms_norm_backward_low(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    dot: torch.Tensor,
    low: torch.Tensor,
    narrow: torch.Tensor,
    *,
    rank: int | None = None,
    offset: float = 0.0,
    add: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Carry a gradient through the norm that lacks the adapters' share, and add that share on the way.

    With y the norm's result and z = [W B] [y ; (sA) y], what the layers after it make of it, one product gives
    dz [W B] = [dz W, dz B]. Its first columns lack (dz B) (sA), which costs nothing here, where they are read
    anyway. The sum over a row that the norm's gradient asks for is known beforehand: the whole gradient of y is dz's
    product with the matrix that made z, so its product with y is <dz, z>.

    Args:
        dy: gradient of y without the adapters' share [n, e], n at most 2 million.
        x: what was normalised [n, e].
        weight: scale [e].
        rstd: reciprocal root mean squares [n], as the forward pass returned them.
        dot: <dz, z> [n] in float32 (float64 for float64), z without the layers' biases.
        low: dz B [n, R] in dy's dtype.
        narrow: sA [R, e] in dy's dtype.
        rank: columns of ``low`` and rows of ``narrow`` that count; None for all. The others are not read.
        offset: added to the weight.
        add: a gradient that reached x by another path, added before the one rounding [n, e].
        out: where the gradient is written [n, e], may be `dy` or `add` itself; None allocates. ``low`` may lie
            beside it in the same rows and stays as it is.

    Returns:
        The gradient of x [n, e] in dy's dtype.
    """
    if runs_fused(x.device) and x.dtype != torch.float64:
        from core.kernels.rms_norm import fused

        return fused.rms_norm_backward_low(
            dy, x, weight, rstd, dot, low, narrow, rank=rank, offset=offset, add=add, out=out
        )
    return reference.rms_norm_backward_low(
        dy, x, weight, rstd, dot, low, narrow, rank=rank, offset=offset, add=add, out=out
    )


def fits_norm_thin(ranks: Iterable[int], dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether ``rms_norm_gradients`` saves anything, or ``rms_norm_backward_low`` and products are to be taken.

    Not in float16: the roots of small inputs would leave its range.

    Args:
        ranks: Of each thin product.
        dtype: What is computed in.
        device: Where; without the fused kernels there is nothing to lose.
    """
    if not runs_fused(device):
        return True
    fits = dtype is torch.bfloat16 and max(ranks, default=0) <= MOST_RANKS
    return fits and multiplies_from_shared_memory(device)


def rms_norm_gradients(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    rstd: torch.Tensor,
    dot: torch.Tensor,
    low: torch.Tensor,
    narrow: torch.Tensor,
    add: torch.Tensor,
    *,
    rank: int,
    offset: float = 0.0,
    low_add: torch.Tensor | None = None,
    rank_add: int = 0,
    low_x: torch.Tensor | None = None,
    rank_x: int = 0,
    out: torch.Tensor | None = None,
) -> NormGradients:
    """Carry a gradient through the norm as ``rms_norm_backward_low`` does, and to the adapters' matrices around it.

    Args:
        dy: gradient of y without the adapters' share [n, e], n at most 2 million.
        x: what was normalised [n, e].
        weight: scale [e].
        rstd: reciprocal root mean squares [n], as the forward pass returned them.
        dot: <dz, z> [n] in float32 (float64 for float64), z without the layers' biases.
        low: dz B [n, rank or more] in dy's dtype; columns beyond the rank are not read.
        narrow: sA [rank or more, e] in dy's dtype; rows beyond the rank are not read.
        add: a gradient that reached x by another path, added before the one rounding [n, e] in dy's dtype.
        rank: of the adapters behind the norm.
        offset: added to the weight.
        low_add: inner values of the adapters whose result's gradient is ``add`` [n, rank_add or more].
        rank_add: of those; may be 0.
        low_x: inner values of the adapters whose result's gradient is x's [n, rank_x or more].
        rank_x: of those; may be 0.
        out: where the gradient is written [n, e], may be `dy` or `add` itself; None allocates. ``low`` may lie
            beside it in the same rows and stays as it is.

    Returns:
        The gradients. Sums over rows are in float32 (float64 for float64): low' norm(x), whose factor low * rstd the
        fused kernel rounds once; add' low_add; and of x's rounded gradient with low_x.

    Raises:
        ValueError: if there are ranks and no inner values.
    """
    if (rank_add and low_add is None) or (rank_x and low_x is None):
        raise ValueError("a product with inner values needs them: low_add for rank_add, low_x for rank_x")
    op = reference.rms_norm_gradients
    if runs_fused(x.device) and fits_norm_thin([rank, rank_add, rank_x], x.dtype, x.device):
        from core.kernels.rms_norm import fused_thin

        op = fused_thin.rms_norm_gradients
    return op(
        dy, x, weight, rstd, dot, low, narrow, add,
        rank=rank, offset=offset, low_add=low_add, rank_add=rank_add, low_x=low_x, rank_x=rank_x, out=out,
    )  # fmt: skip
