"""Root-mean-square normalisation, its gradient, and the residual addition that precedes or follows it."""

import torch

from core.kernels.backend import runs_fused
from core.kernels.rms_norm import reference

__all__ = ["accumulate_rms_norm", "rms_norm", "rms_norm_backward", "rms_norm_backward_low"]


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
    added: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Add to a residual stream of higher precision, and normalise the sum before it is rounded.

    Rounding the stream after each of many additions is what makes a deep model in 16 bits wander off: on an H200,
    1B with random weights, the worst gradient of an adapter had a cosine of 0.9985 to float32's.

    Args:
        stream: the residual stream [n, e], float32 (float64 for float64), contiguous; the sum is written to it.
        added: what is added [n, e], in the dtype of the computation.
        weight: scale [e].
        eps: added to the mean square.
        offset: added to the weight.
        out: where y is written [n, e] in added's dtype; None allocates.

    Returns:
        y [n, e], the sum [n, e] rounded to added's dtype, and the reciprocal root mean squares [n].
    """
    if runs_fused(added.device) and added.dtype != torch.float64:
        from core.kernels.rms_norm import fused

        return fused.accumulate_rms_norm(stream, added, weight, eps, offset=offset, out=out)
    return reference.accumulate_rms_norm(stream, added, weight, eps, offset=offset, out=out)


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
