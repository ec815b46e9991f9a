"""The adapters' own small steps in Triton: into the extended matrix in one launch, and onto a residual in one pass."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.launches import Launch
from core.kernels.lora_linear.reference import Adapter, Projection, placed

MOST = 4
"""Adapters that one launch spreads."""
BLOCK = 2048


class Place(NamedTuple):
    """Where an adapter goes."""

    adapter: Adapter
    row: int
    """The first of its outputs."""
    column: int
    """The first of its ranks."""


class Tiles(NamedTuple):
    """How a kernel cuts its work."""

    rows: int
    columns: int
    warps: int


PLUS = Tiles(64, 128, 4)
"""For ``plus_low_rank`` in 16 bits."""
WIDE = Tiles(16, 32, 4)
"""For float32, whose products are written out multiplication by multiplication: larger tiles take minutes to compile."""


def spreading(
    matrix: torch.Tensor, projections: tuple[Projection, ...], n: int, k: int
) -> list[Callable[[], object]]:
    """Prepare to write scaled A and B of all adapters into the spare rows and columns of an extended matrix.

    Args:
        matrix: [n + R, k + R], contiguous rows.
        projections: In the order of their rows; their adapters stay where they are.
        n: Outputs of all of them.
        k: Inputs.

    Returns:
        What does it, step by step.
    """
    places: list[Place] = []
    column = 0
    for each, rows in placed(projections):
        for adapter in each.adapters:
            places.append(Place(adapter, rows.start, column))
            column += adapter.a.shape[0]
    parts = [places[first : first + MOST] for first in range(0, len(places), MOST)]
    if all(tensor.is_contiguous() for place in places for tensor in place.adapter[:2]):
        return [_spreading(matrix, part, n, k) for part in parts]
    # What is copied first lies elsewhere every time.
    return [partial(_spread_copies, matrix, part, n, k) for part in parts]


def _spread_copies(matrix: torch.Tensor, places: list[Place], n: int, k: int) -> None:
    def copied(adapter: Adapter) -> Adapter:
        return adapter._replace(a=adapter.a.contiguous(), b=adapter.b.contiguous())

    _spreading(matrix, [each._replace(adapter=copied(each.adapter)) for each in places], n, k)()


def _spreading(matrix: torch.Tensor, places: list[Place], n: int, k: int) -> Launch:
    count = len(places)
    filled = places + [places[0]] * (MOST - count)
    tensors = [each for place in filled for each in place.adapter[:2]]
    numbers = [
        each
        for adapter, row, column in filled
        for each in (adapter.b.shape[0], adapter.a.shape[0], row, column, adapter.scale)
    ]
    most = max(max(place.adapter.a.numel(), place.adapter.b.numel()) for place in places)
    grid = -(-most // BLOCK), 2 * count
    return Launch(_spread, grid, matrix, *tensors, *numbers, matrix.stride(0), n, k, BLOCK)


def plus_low_rank(other: torch.Tensor, low: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return other + low up', rounded once.

    Args:
        other: [t, n], any row stride.
        low: [t, r], r a multiple of 16.
        up: [n, r], any row stride.
    """
    tokens, n = other.shape
    out = torch.empty(tokens, n, dtype=other.dtype, device=other.device)
    rank, is_wide = low.shape[1], other.dtype == torch.float32
    whole = 16 if is_wide else next(size for size in (128, 64, 32, 16) if rank % size == 0)
    tiles = WIDE if is_wide else PLUS
    grid = -(-n // tiles.columns), -(-tokens // tiles.rows)
    _plus_low_rank[grid](
        other, low, up, out, other.stride(0), low.stride(0), up.stride(0), tokens, n,
        ROWS=tiles.rows, COLUMNS=tiles.columns, RANK=whole, CHUNKS=rank // whole,
        EXACT="ieee" if is_wide else "tf32", num_warps=tiles.warps,
    )  # fmt: skip
    return out


@triton.jit
def _spread_one(a, b, rows, rank, row, column, scale, matrix, stride, n, k, is_b, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    kind = matrix.dtype.element_ty
    if is_b:
        inside = at < rows * rank
        value = tl.load(b + at, mask=inside, other=0.0).to(tl.float32)
        line = (row + at // rank).to(tl.int64)
        tl.store(matrix + line * stride + k + column + at % rank, value.to(kind), mask=inside)
    else:
        inside = at < rank * k
        value = tl.load(a + at, mask=inside, other=0.0).to(tl.float32) * scale
        line = (n + column + at // k).to(tl.int64)
        tl.store(matrix + line * stride + at % k, value.to(kind), mask=inside)


@triton.jit
def _spread(
    matrix, a0, b0, a1, b1, a2, b2, a3, b3,
    rows0, rank0, row0, column0, scale0, rows1, rank1, row1, column1, scale1,
    rows2, rank2, row2, column2, scale2, rows3, rank3, row3, column3, scale3,
    stride, n, k, BLOCK: tl.constexpr,
):  # fmt: skip
    which = tl.program_id(1) // 2
    is_b = tl.program_id(1) % 2 == 1
    if which == 0:
        _spread_one(a0, b0, rows0, rank0, row0, column0, scale0, matrix, stride, n, k, is_b, BLOCK)
    elif which == 1:
        _spread_one(a1, b1, rows1, rank1, row1, column1, scale1, matrix, stride, n, k, is_b, BLOCK)
    elif which == 2:
        _spread_one(a2, b2, rows2, rank2, row2, column2, scale2, matrix, stride, n, k, is_b, BLOCK)
    else:
        _spread_one(a3, b3, rows3, rank3, row3, column3, scale3, matrix, stride, n, k, is_b, BLOCK)


@triton.jit(do_not_specialize=["tokens"])
def _plus_low_rank(
    other, low, up, out, other_stride, low_stride, up_stride, tokens, n,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANK: tl.constexpr, CHUNKS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time lie side by side, so that memory is read in whole rows.
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    line, is_row, inner = row.to(tl.int64)[:, None], (row < tokens)[:, None], tl.arange(0, RANK)
    left = tl.load(low + line * low_stride + inner[None, :], mask=is_row, other=0.0)
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    is_column = (column < n)[None, :]
    real = is_row & is_column
    place = up + column.to(tl.int64)[None, :] * up_stride + inner[:, None]
    given = tl.load(other + line * other_stride + column[None, :], mask=real, other=0.0)
    right = tl.load(place, mask=is_column, other=0.0)
    total = tl.dot(left, right, given.to(tl.float32), input_precision=EXACT)
    for chunk in tl.static_range(1, CHUNKS):
        more = low + line * low_stride + (chunk * RANK + inner)[None, :]
        right = tl.load(place + chunk * RANK, mask=is_column, other=0.0)
        total = tl.dot(tl.load(more, mask=is_row, other=0.0), right, total, input_precision=EXACT)
    tl.store(out + line * n + column[None, :], total.to(out.dtype.element_ty), mask=real)
