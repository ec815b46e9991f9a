"""The RMS norm in Triton: every row is read once and written once."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

import functools

import torch
import triton
import triton.language as tl


def rms_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
    residual: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y [n, e] and the reciprocal root mean squares [n]; one launch."""
    out = _allocated(x) if out is None else out
    return out, _launch_forward(x, residual, weight, eps, offset, out)


def accumulate_rms_norm(
    stream: torch.Tensor,
    added: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return y [n, e], the rounded sum [n, e] and the reciprocal root mean squares [n]; one launch."""
    out = _allocated(added) if out is None else out
    rounded = _allocated(added)
    n, width = added.shape
    rstd = torch.empty(n, dtype=torch.float32, device=added.device)
    rows, block, warps = _tile(width)
    _rms_norm_accumulate[(-(-n // rows),)](
        stream, added, weight, out, rounded, rstd, added.stride(0), out.stride(0),
        n, width, eps, offset, ROWS=rows, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out, rounded, rstd


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
    """Return the gradient of x [n, e]; one launch. A program reads all of its rows before it writes them."""
    out = _allocated(dy) if out is None else out
    n, width = x.shape
    rows, block, warps = _tile(width)
    _rms_norm_backward[(-(-n // rows),)](
        dy, x, weight, rstd, add, out,
        dy.stride(0), x.stride(0), 0 if add is None else add.stride(0), out.stride(0),
        n, width, offset, ROWS=rows, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return out


def _launch_forward(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    eps: float,
    offset: float,
    out: torch.Tensor,
) -> torch.Tensor:
    n, width = x.shape
    rstd = torch.empty(n, dtype=torch.float32, device=x.device)
    rows, block, warps = _tile(width)
    _rms_norm_forward[(-(-n // rows),)](
        x, residual, weight, out, rstd,
        x.stride(0), 0 if residual is None else residual.stride(0), out.stride(0),
        n, width, eps, offset, ROWS=rows, BLOCK=block, num_warps=warps,
    )  # fmt: skip
    return rstd


def _allocated(like: torch.Tensor) -> torch.Tensor:
    return torch.empty(like.shape, dtype=like.dtype, device=like.device)


@functools.cache
def _tile(width: int) -> tuple[int, int, int]:
    """Return rows per program, their padded width, and warps such that a thread holds about 16 numbers."""
    block = max(16, triton.next_power_of_2(width))
    rows = max(1, 2048 // block)
    return rows, block, min(16, max(4, rows * block // (32 * 16)))


@triton.jit(do_not_specialize=["n"])
def _rms_norm_forward(
    x, residual, weight, y, rstd,
    x_stride, residual_stride, y_stride,
    n, width, eps, offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    real = (row < n)[:, None] & (column < width)
    line = row.to(tl.int64)[:, None]
    values = tl.load(x + line * x_stride + column, mask=real, other=0.0).to(tl.float32)
    # Everything is asked for before the sum over the row makes the threads wait for one another.
    scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + offset
    if residual is not None:
        added = tl.load(residual + line * residual_stride + column, mask=real, other=0.0).to(tl.float32)
    reciprocal = tl.rsqrt(tl.sum(values * values, axis=1) / width + eps)
    tl.store(rstd + row, reciprocal, mask=row < n)
    result = values * reciprocal[:, None] * scale
    if residual is not None:
        result += added
    tl.store(y + line * y_stride + column, result.to(y.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["n"])
def _rms_norm_accumulate(
    stream, added, weight, y, rounded, rstd, added_stride, y_stride, n, width, eps, offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    real = (row < n)[:, None] & (column < width)
    line = row.to(tl.int64)[:, None]
    values = tl.load(stream + line * width + column, mask=real, other=0.0)
    values += tl.load(added + line * added_stride + column, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + offset
    tl.store(stream + line * width + column, values, mask=real)
    tl.store(rounded + line * width + column, values.to(rounded.dtype.element_ty), mask=real)
    reciprocal = tl.rsqrt(tl.sum(values * values, axis=1) / width + eps)
    tl.store(rstd + row, reciprocal, mask=row < n)
    tl.store(
        y + line * y_stride + column, (values * reciprocal[:, None] * scale).to(y.dtype.element_ty), mask=real
    )


@triton.jit(do_not_specialize=["n"])
def _rms_norm_backward(
    dy, x, weight, rstd, add, dx,
    dy_stride, x_stride, add_stride, dx_stride,
    n, width, offset,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)[None, :]
    real = (row < n)[:, None] & (column < width)
    line = row.to(tl.int64)[:, None]
    inner = tl.load(dy + line * dy_stride + column, mask=real, other=0.0).to(tl.float32)
    values = tl.load(x + line * x_stride + column, mask=real, other=0.0).to(tl.float32)
    scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + offset
    reciprocal = tl.load(rstd + row, mask=row < n, other=0.0)[:, None]
    if add is not None:
        added = tl.load(add + line * add_stride + column, mask=real, other=0.0).to(tl.float32)
    inner *= scale
    values *= reciprocal
    mean = tl.sum(inner * values, axis=1)[:, None] / width
    result = reciprocal * (inner - values * mean)
    if add is not None:
        result += added
    tl.store(dx + line * dx_stride + column, result.to(dx.dtype.element_ty), mask=real)
