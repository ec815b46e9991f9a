"""The residual stream's sum and its norm in Triton: whole rows to a program, every number read and written once.

The adapters' share is a product for tensor cores, whose tiles have 16 rows: written out multiplication by
multiplication it takes 50 instructions a number at 16 ranks, this way 28 (counted in sm_90 code). So a row's parts are
cut in pieces, which lie below one another until there are 16 rows, and each piece sees its own ranks only.
"""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.ranks import padded
from core.kernels.rms_norm.reference import MOVED, Accumulated


class Tiles(NamedTuple):
    """How the kernel cuts its work."""

    rows: int
    groups: int
    """Pieces of a row's part, which lie below one another: with a share rows * groups is 16."""
    columns: int
    """Of a piece."""
    warps: int
    ahead: int
    """Parts that are asked for before they are needed."""
    registers: int | None = None
    """Most of a thread: fewer than the compiler would take, if then one program more runs beside another."""


def accumulate_rms_norm(
    stream: torch.Tensor,
    rest: torch.Tensor | None,
    added: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    *,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
    low: torch.Tensor | None = None,
    narrow: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> Accumulated:
    """Return the norm of stream + rest + added (+ low narrow), and the sum in two parts; one launch.

    A program reads a part of its rows before it writes it: what rounding takes off may lie where it lay.
    """
    n, width = added.shape
    out = torch.empty_like(stream, dtype=added.dtype) if out is None else out
    rounded = torch.empty_like(stream, dtype=added.dtype)
    left = torch.empty_like(stream, dtype=torch.int8) if rest is None and added.dtype in MOVED else rest
    rstd = torch.empty(n, dtype=torch.float32, device=added.device)
    rank = 0 if narrow is None else narrow.shape[0]
    tiles = tiles or (shared_tiles(width, rank) if rank else plain_tiles(width))
    part = tiles.groups * tiles.columns
    count = triton.cdiv(width, part)
    _accumulate[(triton.cdiv(n, tiles.rows),)](
        stream, rest, added, low, narrow, weight, out, rounded, left, rstd,
        added.stride(0), 0 if low is None else low.stride(0), out.stride(0), n, width, eps, offset,
        MOVED=MOVED.get(added.dtype, 0), RANK=rank, PADDED=padded(rank), ROWS=tiles.rows, GROUPS=tiles.groups,
        COLUMNS=tiles.columns, COUNT=count, AHEAD=min(tiles.ahead, count), IS_EVEN=width % part == 0,
        num_warps=tiles.warps, maxnreg=tiles.registers,
    )  # fmt: skip
    return Accumulated(out, rounded, left, rstd)


@functools.cache
def plain_tiles(width: int) -> Tiles:
    """Return the tiles without a share: everything is asked for at once.

    Parts leave at most an eighth of their width empty; a thread has 8 numbers or 16 of each.
    """
    columns = min(4096, max(16, triton.next_power_of_2(width)))
    while columns > 512 and 8 * (-width % columns) > width:
        columns //= 2
    count = triton.cdiv(width, columns)
    rows = max(1, 4096 // (columns * triton.next_power_of_2(count)))
    return Tiles(rows, 1, columns, warps=max(1, min(8, rows * columns // 256)), ahead=count)


@functools.cache
def shared_tiles(width: int, rank: int) -> Tiles:
    """Return the tiles with a share: rows such that two programs with some 64 numbers a thread run side by side.

    More rows would leave a program alone, which waits for memory and computes in turns; with fewer, ``narrow`` is read
    more often. What two programs ask for ahead is 40 KB of a processor's at least; memory takes about a microsecond,
    in which 17 KB arrive: half of 4.5 TB/s are reads.
    """
    most = 20480 if rank <= 16 else 16384
    rows = next((rows for rows in (16, 8) if rows * width <= most), 4)
    groups, warps = 16 // rows, 8 if width <= 4096 else 16
    columns = min(16 * warps, max(16, triton.next_power_of_2(triton.cdiv(width, groups))))
    return Tiles(rows, groups, columns, warps, ahead=2 if rank <= 16 and warps == 8 else 1, registers=128)


@triton.jit
def _is_real(row, n, column, width, IS_EVEN: tl.constexpr):
    """Tell which numbers of a part [GROUPS, ROWS, COLUMNS] there are."""
    is_row = (row < n)[None, :, None]
    return is_row if IS_EVEN else is_row & (column < width)


@triton.jit
def _left(
    low, low_stride, n, RANK: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr
):
    """Return the share's left factor [GROUPS * ROWS, GROUPS * PADDED]: a group sees its own ranks only."""
    index = tl.arange(0, GROUPS * ROWS)[:, None]
    inner = tl.arange(0, GROUPS * PADDED)[None, :]
    row, rank = tl.program_id(0) * ROWS + index % ROWS, inner % PADDED
    own = (index // ROWS == inner // PADDED) & (row < n) & (rank < RANK)
    return tl.load(low + row.to(tl.int64) * low_stride + rank, mask=own, other=0.0)


@triton.jit
def _share(
    left, narrow, width, start,
    RANK: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, COLUMNS: tl.constexpr,
    IS_EVEN: tl.constexpr,
):  # fmt: skip
    """Return the adapters' share of a part."""
    inner = tl.arange(0, GROUPS * PADDED)[:, None]
    column = start + inner // PADDED * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    rank = inner % PADDED
    if IS_EVEN and RANK == PADDED:
        right = tl.load(narrow + rank * width + column)
    else:
        right = tl.load(narrow + rank * width + column, mask=(rank < RANK) & (column < width), other=0.0)
    return tl.reshape(tl.dot(left, right, input_precision="ieee"), (GROUPS, ROWS, COLUMNS))


@triton.jit
def _fetched(stream, rest, added, line, added_stride, width, column, real):
    """Return a part of the stream, of its rest (anything, if there is none) and of what is added."""
    # The hint lays bytes out as the 16-bit numbers are: 8 to a thread, not 16. All of it passes the first cache by,
    # where the share's right factor is to stay.
    place = tl.max_contiguous(line * width + column, [1, 1, 8])
    before = tl.load(stream + place, mask=real, other=0.0, cache_modifier=".cg")
    off = before
    if rest is not None:
        off = tl.load(rest + place, mask=real, other=0, cache_modifier=".cg")
    more = tl.load(added + line * added_stride + column, mask=real, other=0.0, cache_modifier=".cg")
    return before, off, more


@triton.jit
def _exact(stream, rest, MOVED: tl.constexpr):
    """Return the stream with what rounding took off."""
    bits = stream.to(tl.float32).to(tl.int32, bitcast=True) + (rest.to(tl.int32) << MOVED)
    return bits.to(tl.float32, bitcast=True)


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
    stream, rest, added, low, narrow, weight, y, rounded, left_over, rstd,
    added_stride, low_stride, y_stride, n, width, eps, offset,
    MOVED: tl.constexpr, RANK: tl.constexpr, PADDED: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr,
    COLUMNS: tl.constexpr, COUNT: tl.constexpr, AHEAD: tl.constexpr, IS_EVEN: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    line = row.to(tl.int64)[None, :, None]
    first = tl.arange(0, GROUPS)[:, None, None] * COLUMNS + tl.arange(0, COLUMNS)[None, None, :]
    shares, parts, totals = (), (), ()
    for turn in tl.static_range(COUNT + AHEAD):
        if turn < COUNT:
            column = turn * GROUPS * COLUMNS + first
            if RANK > 0:
                if turn == 0 or PADDED > 16:  # More of it would take the rows' registers, were it kept.
                    left = _left(low, low_stride, n, RANK, PADDED, ROWS, GROUPS)
                start = turn * GROUPS * COLUMNS
                shares += (_share(left, narrow, width, start, RANK, PADDED, ROWS, GROUPS, COLUMNS, IS_EVEN),)
            # After the product: what both meet in is laid out as the later one is, not as tensor cores leave it.
            real = _is_real(row, n, column, width, IS_EVEN)
            parts += (_fetched(stream, rest, added, line, added_stride, width, column, real),)
        if turn >= AHEAD:
            column = (turn - AHEAD) * GROUPS * COLUMNS + first
            before, off, more = parts[turn - AHEAD]
            total = before.to(tl.float32) if rest is None else _exact(before, off, MOVED)
            total += more.to(tl.float32)
            if RANK > 0:
                total += shares[turn - AHEAD]
            place = tl.max_contiguous(line * width + column, [1, 1, 8])
            _keep(total, rounded, left_over, place, _is_real(row, n, column, width, IS_EVEN), MOVED)
            totals += (total,)
    squares = totals[0] * totals[0]
    for turn in tl.static_range(1, COUNT):
        squares += totals[turn] * totals[turn]
    reciprocal = tl.rsqrt(tl.sum(tl.sum(squares, axis=2), axis=0) / width + eps)
    tl.store(rstd + row, reciprocal, mask=row < n)
    for turn in tl.static_range(COUNT):
        column = turn * GROUPS * COLUMNS + first
        # Read as if each row had a weight of its own, it comes in the rows' layout.
        scale = _scale(weight, offset, tl.broadcast_to(column, (GROUPS, ROWS, COLUMNS)), width, IS_EVEN)
        result = (totals[turn] * reciprocal[None, :, None] * scale).to(y.dtype.element_ty)
        tl.store(y + line * y_stride + column, result, mask=_is_real(row, n, column, width, IS_EVEN))
