"""Gated linear units: the activated gate times the up projection, and the gradient of both."""

from collections.abc import Iterable
from typing import get_args

import torch

from core.kernels.backend import runs_fused
from core.kernels.glu import reference
from core.kernels.glu.reference import Activation, GluGradients

__all__ = [
    "ACTIVATIONS",
    "MOST_RANKS",
    "Activation",
    "GluGradients",
    "fits_thin",
    "glu",
    "glu_backward",
    "glu_gradients",
]

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)
MOST_RANKS = 64
"""Ranks of one thin product that its kernel keeps in registers."""


def glu(gate_up: torch.Tensor, activation: Activation, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Multiply the activated gate with the up projection (arXiv 2002.05202, section 2).

    Args:
        gate_up: gate in columns 0..f, up in f..2f [n, 2f]; the last dimension is contiguous, the row stride is free
            (so for every matrix here).
        activation: "silu", "gelu_tanh" (the tanh approximation) or "gelu" (exact).
        out: where the result is written [n, f]; None allocates.

    Returns:
        h = activation(gate) * up [n, f] in gate_up's dtype, computed in float32 (float64 for float64), rounded once.

    Raises:
        ValueError: if the activation is none of the three.
    """
    _check(activation)
    if runs_fused(gate_up.device) and gate_up.dtype != torch.float64:
        from core.kernels.glu import fused

        return fused.glu(gate_up, activation, out=out)
    return reference.glu(gate_up, activation, out=out)


def glu_backward(
    dh: torch.Tensor,
    gate_up: torch.Tensor,
    activation: Activation,
    *,
    h_out: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Recompute h and carry its gradient to gate and up, in one pass.

    Args:
        dh: gradient of h [n, f].
        gate_up: the forward pass's input [n, 2f].
        activation: as in the forward pass.
        h_out: where h is written [n, f], may be `dh` itself; None allocates.
        out: where the gradient is written [n, 2f], may be `gate_up` itself; None allocates.

    Returns:
        h [n, f] and the gradient of gate_up [n, 2f].

    Raises:
        ValueError: if the activation is none of the three.
    """
    _check(activation)
    if runs_fused(gate_up.device) and gate_up.dtype != torch.float64:
        from core.kernels.glu import fused

        return fused.glu_backward(dh, gate_up, activation, h_out=h_out, out=out)
    return reference.glu_backward(dh, gate_up, activation, h_out=h_out, out=out)


def fits_thin(ranks: Iterable[int], dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether ``glu_gradients`` saves anything, or ``glu_backward`` and products are to be taken.

    Args:
        ranks: Of each thin product.
        dtype: What is computed in.
        device: Where; without the fused kernels there is nothing to lose.
    """
    return not runs_fused(device) or (dtype.itemsize == 2 and max(ranks, default=0) <= MOST_RANKS)


def glu_gradients(
    dh: torch.Tensor,
    gate_up: torch.Tensor,
    activation: Activation,
    *,
    low: torch.Tensor,
    ranks: tuple[int, int],
    d_low: torch.Tensor,
    rank_down: int,
    narrow: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> GluGradients:
    """Carry h's gradient to gate and up, and to the adapters' matrices that touch any of the three.

    h itself is computed again but not written.

    Args:
        dh: gradient of h [n, f]; with ``narrow`` without the share of the adapters below.
        gate_up: the forward pass's input [n, 2f].
        activation: as in the forward pass.
        low: inner values of the gate's adapters and then of up's [n, ranks or more], any row stride.
        ranks: of the gate's adapters together and of up's; each may be 0.
        d_low: gradient of the inner values of the adapters below, whose input is h [n, rank_down or more].
        rank_down: of those; may be 0.
        narrow: sA of the adapters below [rank_down or more, f], any row stride: d_low (sA) is added to dh in the
            precision of the computation, before anything else. None: dh is whole.
        out: where the gradient is written [n, 2f], may be `gate_up` itself; None allocates.

    Returns:
        The gradients. Sums over rows are of rounded factors, in float32 (float64 for float64).

    Raises:
        ValueError: if the activation is none of the three.
    """
    _check(activation)
    if runs_fused(gate_up.device) and fits_thin([*ranks, rank_down], gate_up.dtype, gate_up.device):
        from core.kernels.glu import fused_thin

        return fused_thin.glu_gradients(
            dh, gate_up, activation, low=low, ranks=ranks, d_low=d_low, rank_down=rank_down, narrow=narrow, out=out,
        )  # fmt: skip
    return reference.glu_gradients(
        dh, gate_up, activation, low=low, ranks=ranks, d_low=d_low, rank_down=rank_down, narrow=narrow, out=out,
    )  # fmt: skip


def _check(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"no such activation: {activation}; there are {', '.join(ACTIVATIONS)}")
