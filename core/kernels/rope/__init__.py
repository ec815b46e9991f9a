"""Rotary position embedding of queries and keys, with the norm over each head that some models put before it."""

import torch

from core.kernels.backend import runs_fused
from core.kernels.rope import reference
from core.kernels.rope.reference import Heads

__all__ = ["Heads", "rope", "rope_backward"]


def rope(
    qkv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    heads: Heads,
    *,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Rotate queries and keys by their positions (arXiv 2104.09864, section 3.4.2; halves paired, not neighbours).

    Args:
        qkv: projected rows, queries | keys | values [n, (query + 2 * key) * width]; the last dimension is contiguous,
            the row stride is free (so for every matrix here).
        cos: cosines [p, width] in float32, row = position, second half a copy of the first.
        sin: sines, alike.
        positions: row of `cos` and `sin` for each token [n], int32 or int64.
        heads: how many heads of which width.
        q_weight: scale [width] of an RMS norm over each query head before the rotation; both weights or neither.
        k_weight: scale for the key heads [width].
        eps: added to the norms' mean square.
        offset: added to both weights (Gemma stores the scale less one: 1.0).
        out: where the rotated queries | keys are written [n, (query + key) * width]; None rotates them in place.

    Returns:
        The rotated queries | keys [n, (query + key) * width]: `out`, or the view of qkv's columns. Values stay.

    Raises:
        ValueError: if only one of the two weights is given.
    """
    if (q_weight is None) != (k_weight is None):
        raise ValueError("the norms over query and key heads need both weights or neither")
    if runs_fused(qkv.device) and qkv.dtype != torch.float64:
        from core.kernels.rope import fused

        return fused.rope(
            qkv,
            cos,
            sin,
            positions,
            heads,
            q_weight=q_weight,
            k_weight=k_weight,
            eps=eps,
            offset=offset,
            out=out,
        )
    return reference.rope(
        qkv, cos, sin, positions, heads, q_weight=q_weight, k_weight=k_weight, eps=eps, offset=offset, out=out
    )


def rope_backward(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    heads: Heads,
    *,
    raw: torch.Tensor | None = None,
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Gather attention's gradients into one matrix, rotated back and carried through the norms over the heads.

    Args:
        dq: gradient of the rotated queries [b, query, s, width]; token i of the rows is (i // s, i % s). Only the
            last dimension must be contiguous (so for dk and dv).
        dk: gradient of the rotated keys [b, key, s, width].
        dv: gradient of the values [b, key, s, width].
        cos: cosines [p, width], as in the forward pass.
        sin: sines [p, width].
        positions: row of `cos` and `sin` for each token [n].
        heads: how many heads of which width.
        raw: queries | keys before norm and rotation [n, at least (query + key) * width]; needed with weights.
        q_weight: scale of the norm over query heads [width]; both weights or neither.
        k_weight: scale for the key heads [width].
        eps: added to the norms' mean square.
        offset: added to both weights.
        out: where the gradient is written, may be `raw` itself; None allocates.

    Returns:
        The gradient of queries | keys | values [n, (query + 2 * key) * width] in dq's dtype.

    Raises:
        ValueError: if only one of the two weights is given, or weights without the raw rows.
    """
    if (q_weight is None) != (k_weight is None) or (q_weight is not None and raw is None):
        raise ValueError(
            "the norms over query and key heads need both weights and the raw rows, or neither weight"
        )
    if runs_fused(dq.device) and dq.dtype != torch.float64:
        from core.kernels.rope import fused

        return fused.rope_backward(
            dq, dk, dv, cos, sin, positions, heads,
            raw=raw, q_weight=q_weight, k_weight=k_weight, eps=eps, offset=offset, out=out,
        )  # fmt: skip
    return reference.rope_backward(
        dq, dk, dv, cos, sin, positions, heads,
        raw=raw, q_weight=q_weight, k_weight=k_weight, eps=eps, offset=offset, out=out,
    )  # fmt: skip
