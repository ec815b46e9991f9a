"""The definition of the rotary embedding in plain PyTorch: any device, any float dtype, one rounding at the end."""

from typing import NamedTuple

import torch


class Heads(NamedTuple):
    """Say how many heads a row of queries, keys and values holds, and how wide one is; values have `key` heads too."""

    query: int
    key: int
    width: int


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
    """Write x * cos + rotate_half(x) * sin of every query and key head, x normalised first if weights are given."""
    columns = (heads.query + heads.key) * heads.width
    x = _widened(_heads_of(qkv[:, :columns], heads))
    if q_weight is not None and k_weight is not None:
        x = x * _rstd(x, eps) * (offset + _head_weights(q_weight, k_weight, heads, x.dtype))
    turned = x * _rows(cos, positions, x.dtype) + _rotate_half(x) * _rows(sin, positions, x.dtype)
    target = qkv[:, :columns] if out is None else out
    target.copy_(turned.flatten(1))
    return target


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
    """Return the gradient of the raw queries, keys and values [n, (query + 2 * key) * width]."""
    turned = _widened(torch.cat((_by_token(dq), _by_token(dk)), dim=1))
    dx = turned * _rows(cos, positions, turned.dtype)
    dx = dx - _rotate_half(turned * _rows(sin, positions, turned.dtype))
    if raw is not None and q_weight is not None and k_weight is not None:
        x = _heads_of(raw[:, : (heads.query + heads.key) * heads.width], heads).to(dx.dtype)
        dx = _norm_backward(dx * (offset + _head_weights(q_weight, k_weight, heads, dx.dtype)), x, eps)
    gradient = torch.cat((dx, _by_token(dv).to(dx.dtype)), dim=1).flatten(1)
    return gradient.to(dq.dtype) if out is None else out.copy_(gradient)


def _norm_backward(inner: torch.Tensor, x: torch.Tensor, eps: float) -> torch.Tensor:
    rstd = _rstd(x, eps)
    normalised = x * rstd
    return rstd * (inner - normalised * (inner * normalised).mean(-1, keepdim=True))


def _rstd(x: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _head_weights(
    q_weight: torch.Tensor, k_weight: torch.Tensor, heads: Heads, dtype: torch.dtype
) -> torch.Tensor:
    both = (q_weight.expand(heads.query, heads.width), k_weight.expand(heads.key, heads.width))
    return torch.cat(both).to(dtype)


def _rows(table: torch.Tensor, positions: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return table[positions].to(dtype).unsqueeze(1)


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _heads_of(x: torch.Tensor, heads: Heads) -> torch.Tensor:
    return x.view(x.shape[0], heads.query + heads.key, heads.width)


def _by_token(x: torch.Tensor) -> torch.Tensor:
    return x.transpose(1, 2).flatten(0, 1)


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
