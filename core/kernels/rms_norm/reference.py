"""The definition of the RMS norm in plain PyTorch: any device, any float dtype, one rounding at the end."""

from typing import NamedTuple

import torch

MOVED = {torch.bfloat16: 23 - 7 - 8, torch.float16: 23 - 10 - 8}
"""Bits of a float32 behind the 8 that ``rest`` keeps of what a number of 16 bits has no room for."""


class Accumulated(NamedTuple):
    """A residual stream after an addition, and its norm."""

    y: torch.Tensor
    """The sum normalised [n, e], in the dtype of the computation."""
    sum: torch.Tensor
    """The sum rounded to that dtype [n, e]: the new stream, contiguous, a tensor of its own."""
    rest: torch.Tensor | None
    """What rounding took off [n, e], int8, in 256ths of the last place; None in 32 and 64 bits."""
    rstd: torch.Tensor
    """The reciprocal root mean squares [n] in float32 (float64 for float64)."""


class NormGradients(NamedTuple):
    """What the backward pass makes of a norm between adapters; sums in float32 (float64 for float64)."""

    x: torch.Tensor
    """Gradient of what was normalised [n, e]."""
    a: torch.Tensor
    """Gradient of A of the adapters behind the norm, one below the other [rank, e]."""
    b_add: torch.Tensor
    """Gradient of B of the adapters whose result's gradient is ``add`` [e, rank_add]; any strides."""
    b_x: torch.Tensor
    """Gradient of B of the adapters whose result's gradient is x's [e, rank_x]; any strides."""


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y = x * rstd * (offset + weight) (+ residual) [n, e] and rstd = 1 / sqrt(mean(x^2) + eps) [n]."""
    wide = _widened(x)
    rstd = torch.rsqrt(wide.square().mean(-1) + eps)
    y = wide * rstd.unsqueeze(-1) * (offset + weight.to(wide.dtype))
    if residual is not None:
        y = y + residual
    return _written(y, x.dtype, out), rstd


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
    """Return the norm of the exact sum stream + rest + added, and the sum in two parts."""
    total = exact_stream(stream, rest) + added
    y, rstd = rms_norm(total, weight, eps, offset=offset)
    return Accumulated(_written(y, added.dtype, out), *_divided(total, rest, added.dtype), rstd)


def accumulate(
    stream: torch.Tensor, rest: torch.Tensor | None, added: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the sum stream + rest + added, rounded, and what rounding took off."""
    return _divided(exact_stream(stream, rest) + added, rest, added.dtype)


def exact_stream(stream: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
    """Return the stream [n, e] with what rounding took off, in float32 (float64 for float64).

    Numbers of one sign stand in the order of their bits. So ``rest`` simply counts how many 256ths of a last place
    the bits lie further on or back, also from one power of two to the next, and no power has to be worked out.
    """
    wide = _widened(stream)
    if rest is None:
        return wide
    moved = (wide.view(torch.int32) + (rest.to(torch.int32) << MOVED[stream.dtype])).view(torch.float32)
    # GPUs widen float16's NaN to 31 ones: with more on top it would be a number near zero. bfloat16's end in zeros.
    return torch.where(wide.isnan(), wide, moved) if stream.dtype == torch.float16 else moved


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
    """Return dx = rstd * (g - xhat * mean(g * xhat)) (+ add) [n, e] with g = dy * (offset + weight), xhat = x * rstd."""
    wide = _widened(x)
    scale = rstd.unsqueeze(-1)
    normalised = wide * scale
    inner = dy.to(wide.dtype) * (offset + weight.to(wide.dtype))
    dx = scale * (inner - normalised * (inner * normalised).mean(-1, keepdim=True))
    if add is not None:
        dx = dx + add
    return _written(dx, dy.dtype, out)


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
    """Return dx = rstd * (full * (offset + weight) - x * rstd * dot / e) (+ add) [n, e] with full = dy + low narrow."""
    wide = _widened(x)
    scale = rstd.unsqueeze(-1)
    full = torch.addmm(dy.to(wide.dtype), low[:, :rank].to(wide.dtype), narrow[:rank].to(wide.dtype))
    mean = dot.unsqueeze(-1) / x.shape[1]
    dx = scale * (full * (offset + weight.to(wide.dtype)) - wide * scale * mean)
    if add is not None:
        dx = dx + add
    return _written(dx, dy.dtype, out)


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
    """Return ``rms_norm_backward_low``'s gradient, low' norm(x), add' low_add and gradient' low_x."""
    gradient = rms_norm_backward_low(dy, x, weight, rstd, dot, low, narrow, rank=rank, offset=offset, add=add)
    wide = _widened(x)
    of_narrow = (_widened(low[:, :rank]) * rstd.unsqueeze(-1)).t() @ wide * (offset + weight.to(wide.dtype))
    of_add, of_x = _thin_product(add, low_add, rank_add), _thin_product(gradient, low_x, rank_x)
    return NormGradients(_written(gradient, dy.dtype, out), of_narrow, of_add, of_x)


def _thin_product(tall: torch.Tensor, thin: torch.Tensor | None, rank: int) -> torch.Tensor:
    return _widened(tall).t() @ _widened((tall if thin is None else thin)[:, :rank])


def _divided(
    total: torch.Tensor, rest: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return a sum rounded, and what rounding took off; half a last place is -128 or, for want of a 128, 127."""
    if dtype not in MOVED:
        return total, None
    rounded, moved = total.to(dtype), MOVED[dtype]
    off = total.view(torch.int32) - _widened(rounded).view(torch.int32)
    units = ((off + (1 << (moved - 1))) >> moved).clamp_(-128, 127)
    if dtype == torch.float16:
        # Between its last number and float32's there is much that counts as infinite.
        units = units.masked_fill_(rounded.isinf(), 0)
    return rounded, units.to(torch.int8) if rest is None else rest.copy_(units)


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _written(value: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None) -> torch.Tensor:
    return value.to(dtype) if out is None else out.copy_(value)
