"""The definition of the gated linear units in plain PyTorch: any device, any float dtype, one rounding at the end."""

import math
from typing import Literal, NamedTuple

import torch
from torch.nn import functional

Activation = Literal["silu", "gelu_tanh", "gelu"]
# GELU's tanh approximation, arXiv 1606.08415, section 2.
TANH_SCALE = math.sqrt(2.0 / math.pi)
TANH_CUBIC = 0.044715


class GluGradients(NamedTuple):
    """What the backward pass makes of a gated linear unit between adapters; sums in float32 (float64 for float64)."""

    gate_up: torch.Tensor
    """Gradient of gate and up [n, 2f]."""
    b_gate: torch.Tensor
    """Gradient of B of the gate's adapters, side by side [f, r]; any strides."""
    b_up: torch.Tensor
    """Gradient of B of up's adapters [f, r]; any strides."""
    a_down: torch.Tensor
    """Gradient of A of the adapters below, one below the other [r, f]."""
    dot: torch.Tensor
    """Each row's product of gate and up with their gradient, before that is rounded [n]."""


def glu(gate_up: torch.Tensor, activation: Activation, *, out: torch.Tensor | None = None) -> torch.Tensor:
    """Return h = activation(gate) * up [n, f]."""
    gate, up = _widened(gate_up).chunk(2, dim=-1)
    return _written(_activated(gate, activation) * up, gate_up.dtype, out)


def glu_backward(
    dh: torch.Tensor,
    gate_up: torch.Tensor,
    activation: Activation,
    *,
    h_out: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return h [n, f] and the gradient (dh * up * activation'(gate) | dh * activation(gate)) [n, 2f]."""
    gate, up = _widened(gate_up).chunk(2, dim=-1)
    wide = dh.to(gate.dtype)
    activated = _activated(gate, activation)
    h = activated * up
    gradient = torch.cat((wide * up * _slope(gate, activation), wide * activated), dim=-1)
    return _written(h, dh.dtype, h_out), _written(gradient, gate_up.dtype, out)


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
    """Return all gradients that need what a gated linear unit computes."""
    whole, of_below = _widened(dh), _widened(d_low[:, :rank_down])
    if narrow is not None:
        whole = whole + of_below @ _widened(narrow[:rank_down])
    exact = glu_backward(whole, _widened(gate_up), activation)[1]
    dot = (exact * _widened(gate_up)).sum(dim=1)
    h = _widened(glu(gate_up, activation))
    gradient = exact.to(gate_up.dtype)
    of_gate, of_up = _widened(gradient).chunk(2, dim=1)
    of_low = _widened(low[:, : sum(ranks)])
    return GluGradients(
        _written(gradient, gate_up.dtype, out),
        of_gate.t() @ of_low[:, : ranks[0]],
        of_up.t() @ of_low[:, ranks[0] :],
        of_below.t() @ h,
        dot,
    )


def _activated(gate: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "silu":
        return functional.silu(gate)
    return functional.gelu(gate, approximate="tanh" if activation == "gelu_tanh" else "none")


def _slope(gate: torch.Tensor, activation: Activation) -> torch.Tensor:
    if activation == "silu":
        share = torch.sigmoid(gate)
        return share * (1.0 + gate * (1.0 - share))
    if activation == "gelu_tanh":
        # (1 + tanh(z)) / 2 is the sigmoid of 2z, and keeps its digits where 1 + tanh(z) would cancel.
        doubled = 2.0 * TANH_SCALE * (gate + TANH_CUBIC * gate.pow(3))
        inner = 2.0 * TANH_SCALE * (1.0 + 3.0 * TANH_CUBIC * gate.square())
        share = torch.sigmoid(doubled)
        return share + gate * share * torch.sigmoid(-doubled) * inner
    density = torch.exp(-0.5 * gate.square()) / math.sqrt(2.0 * math.pi)
    return 0.5 * torch.erfc(-gate / math.sqrt(2.0)) + gate * density


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _written(value: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None) -> torch.Tensor:
    return value.to(dtype) if out is None else out.copy_(value)
