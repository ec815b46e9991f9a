"""The definition of the RMS norm in plain PyTorch: any device, any float dtype, one rounding at the end."""

import torch


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
    added: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Add to the stream in place; return the norm of the sum [n, e], the rounded sum [n, e] and rstd [n]."""
    stream += added
    y, rstd = rms_norm(stream, weight, eps, offset=offset)
    return _written(y, added.dtype, out), stream.to(added.dtype, copy=True), rstd


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


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _written(value: torch.Tensor, dtype: torch.dtype, out: torch.Tensor | None) -> torch.Tensor:
    return value.to(dtype) if out is None else out.copy_(value)
