"""Gated linear units: the activated gate times the up projection, and the gradient of both."""

from typing import get_args

import torch

from core.kernels.backend import runs_fused
from core.kernels.glu import reference
from core.kernels.glu.reference import Activation

__all__ = ["ACTIVATIONS", "Activation", "glu", "glu_backward"]

ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


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


def _check(activation: str) -> None:
    if activation not in ACTIVATIONS:
        raise ValueError(f"no such activation: {activation}; there are {', '.join(ACTIVATIONS)}")
