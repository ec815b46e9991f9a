"""The norm's gradient in Triton, with the thin products of the adapters around it while the numbers are in registers.

Alone each such product would read a whole activation again, to make a few columns of it.
"""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.ranks import padded
from core.kernels.rms_norm.reference import NormGradients
from core.kernels.thin_sums import keep_sum, keep_turned


class Tiles(NamedTuple):
    """How the kernel cuts its work."""

    rows: int
    columns: int
    warps: int
    stages: int
    registers: int | None
    """Most of a thread: fewer than the compiler would take, if then one program more runs beside another."""
    programs: int
    """Wanted in all: what an H200's 132 processors run at once. More would leave more parts of sums, and a last round
    in which few processors have work."""


BACKWARD = Tiles(32, 128, 8, 3, registers=128, programs=264)
"""For up to 64 ranks in all, as padded."""
BACKWARD_MANY = Tiles(32, 64, 4, 3, registers=None, programs=396)
"""For more ranks: their sums need the registers."""
SHORTEST = 128
"""Rows of the shortest chunk: below, reading and writing the parts of the sums costs too much."""


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
    tiles: Tiles | None = None,
) -> NormGradients:
    """Return the gradient of x and three sums over rows; one launch, and one sum of parts.

    A program reads its tile of dy, x and add before it writes the gradient: the result may lie over dy or add.
    """
    n, width = dy.shape
    if out is None:
        out = torch.empty((n, width), dtype=dy.dtype, device=dy.device)
    low_add, low_x = low if low_add is None else low_add, low if low_x is None else low_x
    ranks = [rank, rank_add, rank_x]
    tiles = tiles or (BACKWARD if sum(padded(each) for each in ranks if each) <= 64 else BACKWARD_MANY)
    blocks = triton.cdiv(width, tiles.columns)
    chunk = _chunk(n, blocks, tiles)
    chunks = triton.cdiv(n, chunk)
    # Of each chunk all sums one after another, laid out as the gradients they become: nobody need copy them.
    parts = torch.empty((chunks, sum(ranks) * width), dtype=torch.float32, device=dy.device)
    _rms_norm_gradients[(blocks, chunks)](
        dy, x, weight, rstd, dot, low, narrow, add, low_add, low_x, out, parts,
        dy.stride(0), x.stride(0), low.stride(0), narrow.stride(0), add.stride(0), low_add.stride(0), low_x.stride(0),
        out.stride(0), n, width, chunk, offset, RANK=rank, RANK_ADD=rank_add, RANK_X=rank_x,
        PADDED=padded(rank), PADDED_ADD=padded(rank_add), PADDED_X=padded(rank_x),
        ROWS=tiles.rows, COLUMNS=tiles.columns, STAGES=tiles.stages,
        num_warps=tiles.warps, maxnreg=tiles.registers,
    )  # fmt: skip
    of_narrow, of_add, of_x = parts.sum(0).split([each * width for each in ranks])
    return NormGradients(
        out, of_narrow.view(rank, width), of_add.view(width, rank_add), of_x.view(width, rank_x)
    )


def _chunk(n: int, blocks: int, tiles: Tiles) -> int:
    """Return the rows of a program, in whole tiles."""
    wanted = max(SHORTEST, triton.cdiv(n, max(1, tiles.programs // blocks)))
    return triton.cdiv(min(wanted, max(n, 1)), tiles.rows) * tiles.rows


@triton.jit
def _thin_sum(total, thin, is_row, tile, RANK: tl.constexpr, PADDED: tl.constexpr):
    """Add tile' thin [COLUMNS, PADDED] to the sums: with the tile on the left Hopper's wgmma can be taken."""
    if RANK > 0:
        inner = tl.arange(0, PADDED)[None, :]
        values = tl.load(thin, mask=is_row & (inner < RANK), other=0.0)
        total = tl.dot(tl.trans(tile), values, total)
    return total


@triton.jit
def _last_sum(bits, thin, is_row, tile, RANK: tl.constexpr, PADDED: tl.constexpr):
    """Add to sums that are carried as whole numbers, which makes the compiler wait for them, and so for all before.

    It would leave the products under way into the next tile, where the share's needs a wait; ptxas then runs them all
    one by one.
    """
    total = _thin_sum(bits.to(tl.float32, bitcast=True), thin, is_row, tile, RANK, PADDED)
    return total.to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["n", "chunk"])
def _rms_norm_gradients(
    dy, x, weight, rstd, dot, low, narrow, add, low_add, low_x, dx, parts,
    dy_stride, x_stride, low_stride, narrow_stride, add_stride, low_add_stride, low_x_stride,
    dx_stride, n, width, chunk, offset, RANK: tl.constexpr, RANK_ADD: tl.constexpr, RANK_X: tl.constexpr,
    PADDED: tl.constexpr, PADDED_ADD: tl.constexpr, PADDED_X: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time lie side by side, so that memory is read in whole rows.
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    is_column = column < width
    scale = tl.load(weight + column, mask=is_column, other=0.0).to(tl.float32) + offset
    inner = tl.arange(0, PADDED)
    place = narrow + inner.to(tl.int64)[:, None] * narrow_stride + column
    right = tl.load(place, mask=(inner < RANK)[:, None] & is_column, other=0.0)
    of_narrow = tl.zeros((COLUMNS, PADDED), dtype=tl.float32)
    of_add = tl.zeros((COLUMNS, PADDED_ADD), dtype=tl.float32)
    of_x = tl.zeros((COLUMNS, PADDED_X), dtype=tl.int32)
    kind = dx.dtype.element_ty
    first, share_of_row = tl.program_id(1) * chunk, 1.0 / width
    # Places move on by addition: to multiply rows and strides anew for every tile is a tenth of all instructions.
    line, step = (first + tl.arange(0, ROWS)).to(tl.int64)[:, None], tl.full((), ROWS, tl.int64)
    dy, x = dy + line * dy_stride + column, x + line * x_stride + column
    add, dx = add + line * add_stride + column, dx + line * dx_stride + column
    low += line * low_stride + inner[None, :]
    low_add += line * low_add_stride + tl.arange(0, PADDED_ADD)[None, :]
    low_x += line * low_x_stride + tl.arange(0, PADDED_X)[None, :]
    # Stages are the loop's: as an option of the launch they would not hold for dy, which only begins a product's sum.
    for start in tl.range(first, min(first + chunk, n), ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        is_row = (row < n)[:, None]
        real = is_row & is_column
        reciprocal = tl.load(rstd + row, mask=row < n, other=0.0)[:, None]
        mean = tl.load(dot + row, mask=row < n, other=0.0)[:, None] * share_of_row
        full = tl.load(dy, mask=real, other=0.0).to(tl.float32)
        values = tl.load(x, mask=real, other=0.0)
        added = tl.load(add, mask=real, other=0.0)
        left = tl.load(low, mask=is_row & (inner < RANK)[None, :], other=0.0)
        full += tl.dot(left, right)
        result = reciprocal * (full * scale - values.to(tl.float32) * (reciprocal * mean))
        rounded = (result + added.to(tl.float32)).to(kind)
        tl.store(dx, rounded, mask=real)
        of_narrow = tl.dot(tl.trans(values), (left.to(tl.float32) * reciprocal).to(kind), of_narrow)
        of_add = _thin_sum(of_add, low_add, is_row, added, RANK_ADD, PADDED_ADD)
        of_x = _last_sum(of_x, low_x, is_row, rounded, RANK_X, PADDED_X)
        dy, x, add = dy + step * dy_stride, x + step * x_stride, add + step * add_stride
        dx, low = dx + step * dx_stride, low + step * low_stride
        low_add, low_x = low_add + step * low_add_stride, low_x + step * low_x_stride
    place = parts + tl.program_id(1).to(tl.int64) * (RANK + RANK_ADD + RANK_X) * width
    keep_sum(of_narrow * tl.trans(scale), place, width, column, RANK, PADDED, True)
    keep_turned(of_add, place + RANK * width, width, column, RANK_ADD, PADDED_ADD, True)
    keep_turned(
        of_x.to(tl.float32, bitcast=True), place + (RANK + RANK_ADD) * width, width, column, RANK_X, PADDED_X, True
    )  # fmt: skip
