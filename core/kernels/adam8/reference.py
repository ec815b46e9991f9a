"""AdamW with moments of 8 bits in plain PyTorch: the definition.

AdamW is arXiv 1711.05101, algorithm 2; moments of 8 bits, each block of 256 with a scale of its own, are
arXiv 2110.02861, section 2. The layout is bitsandbytes', so either may take any step of a training.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import functional

BLOCK = 256
"""Moments that share a scale."""


class Slot(NamedTuple):
    """A parameter of n numbers and its moments, contiguous, of any shape; an update writes all of them.

    Attributes:
        parameter: n numbers.
        m: uint8, n codes of the first moment.
        v: uint8, n codes of the second moment.
        m_scale: [ceil(n / 256)] float32: a moment is its code's value times the scale of its block.
        v_scale: [ceil(n / 256)] float32.
    """

    parameter: torch.Tensor
    m: torch.Tensor
    v: torch.Tensor
    m_scale: torch.Tensor
    v_scale: torch.Tensor


class Codes(NamedTuple):
    """What the codes stand for: 256 ascending float32 numbers each, up to 1, zero among them."""

    m: torch.Tensor
    """From about -1."""
    v: torch.Tensor
    """From 0."""


class Rates(NamedTuple):
    """The settings of one update."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    step: int
    """Number of the step, from 1."""


class Factors(NamedTuple):
    """What an element's update multiplies with and adds; worked out in float64."""

    beta1: float
    rest1: float
    beta2: float
    rest2: float
    kept: float
    """Share of the parameter that weight decay leaves."""
    rate: float
    """Learning rate with both corrections for moments that began at zero."""
    eps: float
    """As it stands beside the uncorrected root of v."""


def update(slots: Sequence[Slot], gradients: Sequence[torch.Tensor], codes: Codes, rates: Rates) -> None:
    """Update parameters and moments in place; see `core.kernels.adam8.Adam8.update`."""
    factors = factors_of(rates)
    for slot, gradient in zip(slots, gradients, strict=True):
        _update(slot, gradient, codes, factors)


def factors_of(rates: Rates) -> Factors:
    """Work out what every element's update has in common."""
    correction = math.sqrt(1.0 - rates.beta2**rates.step)
    return Factors(
        rates.beta1,
        1.0 - rates.beta1,
        rates.beta2,
        1.0 - rates.beta2,
        1.0 - rates.lr * rates.weight_decay,
        rates.lr * correction / (1.0 - rates.beta1**rates.step),
        rates.eps * correction,
    )


def thresholds(code: torch.Tensor) -> torch.Tensor:
    """Say where the next code begins: the code of x is how many thresholds are not above x.

    A number gets the nearest code. Half way between two it gets the even one, as bitsandbytes' CUDA kernel has it;
    and no negative number becomes zero, for the first moment keeps its sign.

    Args:
        code: [256] ascending float32.

    Returns:
        [255] ascending float32.
    """
    below, above = code[:-1], code[1:]
    middle = (below + above) * 0.5
    middle[::2] = torch.nextafter(middle[::2], torch.full_like(middle[::2], math.inf))
    return middle.masked_fill((below < 0) & (above >= 0), 0.0)


def quantize(x: torch.Tensor, code: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give numbers as codes and scales.

    Args:
        x: [blocks, 256].
        code: [256] ascending float32.

    Returns:
        Codes [blocks, 256] uint8, and the largest amount of each block [blocks]. A block of zeros gets zero's code.
    """
    scale = x.abs().amax(1)
    shares = x / scale.masked_fill(scale == 0, 1.0)[:, None]
    found = torch.bucketize(shares, thresholds(code).to(x.dtype), right=True)
    return found.to(torch.uint8), scale


def _update(slot: Slot, gradient: torch.Tensor, codes: Codes, factors: Factors) -> None:
    wide = torch.promote_types(slot.parameter.dtype, torch.float32)
    p, g = _blocks(slot.parameter.to(wide)), _blocks(gradient.to(wide))
    m = _blocks(codes.m.to(wide)[slot.m.int()]) * slot.m_scale[:, None]
    v = _blocks(codes.v.to(wide)[slot.v.int()]) * slot.v_scale[:, None]
    good = g.isfinite()
    m = torch.where(good, factors.beta1 * m + factors.rest1 * g, 0.0)
    v = torch.where(good, factors.beta2 * v + factors.rest2 * g * g, 0.0)
    p = torch.where(good, factors.kept * p - factors.rate * (m / (v.sqrt() + factors.eps)), p)
    m_codes, m_scale = quantize(m, codes.m)
    v_codes, v_scale = quantize(v, codes.v)
    for old, new in ((slot.parameter, p), (slot.m, m_codes), (slot.v, v_codes)):
        old.copy_(new.view(-1)[: old.numel()].view(old.shape))
    slot.m_scale.copy_(m_scale)
    slot.v_scale.copy_(v_scale)


def _blocks(x: torch.Tensor) -> torch.Tensor:
    """Cut numbers into [blocks, 256]; the last block ends with zeros."""
    x = x.reshape(-1)
    return functional.pad(x, (0, -x.numel() % BLOCK)).view(-1, BLOCK)
