"""The RMS norm in Triton: every number is read once and written once.

A program has whole rows where it must add them up first, and a tile of rows and columns where the sum is known.
"""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.rms_norm.fused_stream import accumulate_rms_norm

__all__ = ["accumulate_rms_norm", "rms_norm", "rms_norm_backward", "rms_norm_backward_low"]


class Tiles(NamedTuple):
    """How a kernel cuts its work."""

    rows: int
    columns: int
    warps: int
    count: int = 1
    """Tiles of a program, side by side; the next ones are fetched while one is computed."""
    stages: int = 1


LOW = Tiles(32, 128, 4, count=4, stages=3)
"""For ``rms_norm_backward_low`` in 16 bits."""
WIDE = Tiles(16, 32, 4)
"""For float32, whose products are written out multiplication by multiplication: larger tiles take minutes to compile."""


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
    """Return the gradient of x [n, e]; one launch. A program reads all of its tile before it writes it."""
    out = _allocated(dy) if out is None else out
    n, width = x.shape
    rank, is_wide = low.shape[1] if rank is None else rank, low.dtype == torch.float32
    tiles = WIDE if is_wide else LOW
    chunk, chunks = _chunks(rank, 16 if is_wide else 64)
    _rms_norm_backward_low[-(-width // (tiles.columns * tiles.count)), -(-n // tiles.rows)](
        dy, x, weight, rstd, dot, low, narrow, add, out,
        dy.stride(0), x.stride(0), low.stride(0), narrow.stride(0), 0 if add is None else add.stride(0), out.stride(0),
        n, width, offset, ROWS=tiles.rows, COLUMNS=tiles.columns, COUNT=tiles.count, STAGES=tiles.stages,
        RANK=rank, CHUNK=chunk, CHUNKS=chunks, EXACT="ieee" if is_wide else "tf32", num_warps=tiles.warps,
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


@functools.cache
def _chunks(rank: int, most: int) -> tuple[int, int]:
    """Return the widest chunk, a power of two from 16 to ``most``, that cuts a rank of whole sixteens, and how many."""
    padded = -(-rank // 16) * 16
    chunk = max(16, min(most, padded & -padded))
    return chunk, padded // chunk


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


@triton.jit(do_not_specialize=["n"])
def _rms_norm_backward_low(
    dy, x, weight, rstd, dot, low, narrow, add, dx,
    dy_stride, x_stride, low_stride, narrow_stride, add_stride, dx_stride,
    n, width, offset,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, COUNT: tl.constexpr, STAGES: tl.constexpr,
    RANK: tl.constexpr, CHUNK: tl.constexpr, CHUNKS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time lie side by side, so that memory is read in whole rows.
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    line, is_row = row.to(tl.int64)[:, None], (row < n)[:, None]
    reciprocal = tl.load(rstd + row, mask=row < n, other=0.0)[:, None]
    mean = tl.load(dot + row, mask=row < n, other=0.0)[:, None] / width
    for tile in tl.range(COUNT, num_stages=STAGES):
        column = ((tl.program_id(0) * COUNT + tile) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
        is_column = column < width
        real = is_row & is_column
        full = tl.load(dy + line * dy_stride + column, mask=real, other=0.0).to(tl.float32)
        values = tl.load(x + line * x_stride + column, mask=real, other=0.0).to(tl.float32)
        if add is not None:
            added = tl.load(add + line * add_stride + column, mask=real, other=0.0).to(tl.float32)
        scale = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32) + offset
        share = tl.zeros((ROWS, COLUMNS), tl.float32)
        for chunk in tl.static_range(CHUNKS):
            # Beyond the rank there may be anything, NaN too, which no zero on the other side would hide.
            inner = chunk * CHUNK + tl.arange(0, CHUNK)
            left = tl.load(
                low + line * low_stride + inner[None, :], mask=is_row & (inner < RANK)[None, :], other=0.0
            )
            place = narrow + inner.to(tl.int64)[:, None] * narrow_stride + column
            right = tl.load(place, mask=(inner < RANK)[:, None] & is_column, other=0.0)
            share = tl.dot(left, right, share, input_precision=EXACT)
        result = reciprocal * ((full + share) * scale - values * reciprocal * mean)
        if add is not None:
            result += added
        tl.store(dx + line * dx_stride + column, result.to(dx.dtype.element_ty), mask=real)
