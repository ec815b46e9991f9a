"""The residual stream's sum and its norm in Triton: whole rows to a program, every number read and written once."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.rms_norm.reference import MOVED, Accumulated


class Tiles(NamedTuple):
    """How the kernel cuts its work."""

    rows: int
    columns: int
    """Of a part of a row."""
    warps: int


def accumulate_rms_norm(
    stream: torch.Tensor,
    rest: torch.Tensor | None,
    added: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> Accumulated:
    """Return the norm of stream + rest + added, and the sum in two parts; one launch.

    A program reads all of its rows before it writes them: what rounding takes off may lie where it lay.
    """
    n, width = added.shape
    out = torch.empty_like(stream, dtype=added.dtype) if out is None else out
    rounded = torch.empty_like(stream, dtype=added.dtype)
    left = torch.empty_like(stream, dtype=torch.int8) if rest is None and added.dtype in MOVED else rest
    rstd = torch.empty(n, dtype=torch.float32, device=added.device)
    tiles = tiles or plain_tiles(width)
    _accumulate[(triton.cdiv(n, tiles.rows),)](
        stream, rest, added, weight, out, rounded, left, rstd, added.stride(0), out.stride(0), n, width, eps, offset,
        MOVED=MOVED.get(added.dtype, 0), ROWS=tiles.rows, COLUMNS=tiles.columns,
        COUNT=triton.cdiv(width, tiles.columns), IS_EVEN=width % tiles.columns == 0, num_warps=tiles.warps,
    )  # fmt: skip
    return Accumulated(out, rounded, left, rstd)


@functools.cache
def plain_tiles(width: int) -> Tiles:
    """Return parts that leave at most an eighth of their width empty; a thread has 8 numbers or 16 of each."""
    columns = min(4096, max(16, triton.next_power_of_2(width)))
    while columns > 512 and 8 * (-width % columns) > width:
        columns //= 2
    count = triton.cdiv(width, columns)
    rows = max(1, 4096 // (columns * triton.next_power_of_2(count)))
    return Tiles(rows, columns, warps=max(1, min(8, rows * columns // 256)))


@triton.jit
def _is_real(row, n, column, width, IS_EVEN: tl.constexpr):
    """Tell which numbers of a part [ROWS, COLUMNS] there are."""
    is_row = (row < n)[:, None]
    return is_row if IS_EVEN else is_row & (column < width)


@triton.jit
def _fetched(stream, rest, added, line, added_stride, width, column, real):
    """Return a part of the stream, of its rest (anything, if there is none) and of what is added."""
    # The hint lays bytes out as the 16-bit numbers are: 8 to a thread, not 16.
    place = tl.max_contiguous(line * width + column, [1, 8])
    before = tl.load(stream + place, mask=real, other=0.0, cache_modifier=".cg")
    off = before
    if rest is not None:
        off = tl.load(rest + place, mask=real, other=0, cache_modifier=".cg")
    more = tl.load(added + line * added_stride + column, mask=real, other=0.0, cache_modifier=".cg")
    return before, off, more


@triton.jit
def _exact(stream, rest, MOVED: tl.constexpr):
    """Return the stream with what rounding took off."""
    wide = stream.to(tl.float32)
    bits = wide.to(tl.int32, bitcast=True) + (rest.to(tl.int32) << MOVED)
    moved = bits.to(tl.float32, bitcast=True)
    if stream.dtype == tl.float16:
        # GPUs widen its NaN to 31 ones: with more on top it would be a number near zero. bfloat16's end in zeros.
        moved = tl.where(wide == wide, moved, wide)
    return moved


@triton.jit
def _taken_off(total, rounded, MOVED: tl.constexpr):
    """Return what rounding took off, in 256ths of the last place."""
    wide = rounded.to(tl.float32)
    off = total.to(tl.int32, bitcast=True) - wide.to(tl.int32, bitcast=True) + (1 << (MOVED - 1))
    off = tl.minimum(off, (128 << MOVED) - 1)
    if rounded.dtype == tl.float16:
        off = tl.where(tl.abs(wide) == float("inf"), 0, tl.maximum(off, -(128 << MOVED)))
    return (off >> MOVED).to(tl.int8)


@triton.jit
def _keep(total, rounded, left_over, place, real, MOVED: tl.constexpr):
    """Write a part of the sum, and what rounding took off it."""
    nearest = total.to(rounded.dtype.element_ty)
    tl.store(rounded + place, nearest, mask=real)
    if left_over is not None:
        tl.store(left_over + place, _taken_off(total, nearest, MOVED), mask=real)


@triton.jit
def _scale(weight, offset, column, width, IS_EVEN: tl.constexpr):
    if IS_EVEN:
        return tl.load(weight + column).to(tl.float32) + offset
    return tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32) + offset


@triton.jit(do_not_specialize=["n"])
def _accumulate(
    stream, rest, added, weight, y, rounded, left_over, rstd, added_stride, y_stride, n, width, eps, offset,
    MOVED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, COUNT: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    line = row.to(tl.int64)[:, None]
    first = tl.arange(0, COLUMNS)[None, :]
    parts, totals = (), ()
    # Everything is asked for before anything is needed.
    for turn in tl.static_range(COUNT):
        column = turn * COLUMNS + first
        real = _is_real(row, n, column, width, IS_EVEN)
        parts += (_fetched(stream, rest, added, line, added_stride, width, column, real),)
    for turn in tl.static_range(COUNT):
        column = turn * COLUMNS + first
        before, off, more = parts[turn]
        total = before.to(tl.float32) if rest is None else _exact(before, off, MOVED)
        total += more.to(tl.float32)
        place = tl.max_contiguous(line * width + column, [1, 8])
        _keep(total, rounded, left_over, place, _is_real(row, n, column, width, IS_EVEN), MOVED)
        totals += (total,)
    squares = totals[0] * totals[0]
    for turn in tl.static_range(1, COUNT):
        squares += totals[turn] * totals[turn]
    reciprocal = tl.rsqrt(tl.sum(squares, axis=1) / width + eps)
    tl.store(rstd + row, reciprocal, mask=row < n)
    for turn in tl.static_range(COUNT):
        column = turn * COLUMNS + first
        # Read as if each row had a weight of its own, it comes in the rows' layout.
        scale = _scale(weight, offset, tl.broadcast_to(column, (ROWS, COLUMNS)), width, IS_EVEN)
        result = (totals[turn] * reciprocal[:, None] * scale).to(y.dtype.element_ty)
        tl.store(y + line * y_stride + column, result, mask=_is_real(row, n, column, width, IS_EVEN))
