"""The adapters' own small steps in Triton: into the extended matrix in one launch, and onto a residual in one pass."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

import functools
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.lora_linear.reference import Adapter, Projection

MOST = 4
"""Adapters that one launch spreads."""
BLOCK = 2048


class Tiles(NamedTuple):
    """How a kernel cuts its work."""

    rows: int
    columns: int
    across: int
    """Tiles of columns that one program goes through."""
    stages: int
    """Tiles that are on their way at a time."""
    warps: int


PLUS_CANDIDATES = (
    Tiles(64, 128, 1, 1, 4),
    Tiles(64, 128, 4, 3, 4),
    Tiles(64, 128, 8, 2, 4),
    Tiles(128, 64, 8, 3, 4),
    Tiles(128, 128, 4, 2, 8),
    Tiles(64, 256, 1, 1, 4),
)
"""For ``plus_low_rank``; `python -m tests.bench.h200.kernels OUT --only shares,pairs` times all candidates."""
PLUS = PLUS_CANDIDATES[0]
BOTH_CANDIDATES = Tiles(64, 512, 1, 2, 8), Tiles(64, 512, 1, 2, 16), Tiles(64, 256, 1, 2, 4)
BOTH, BOTH_64 = BOTH_CANDIDATES[0], Tiles(64, 256, 1, 2, 8)
"""For ``both_gradients`` of up to 32 ranks, and of up to 64."""
WIDE = Tiles(16, 32, 1, 1, 4)
"""For float32, whose products are written out multiplication by multiplication: larger tiles take minutes to compile."""


def spread(matrix: torch.Tensor, projections: tuple[Projection, ...], n: int, k: int) -> None:
    """Write scaled A and B of all adapters into the spare rows and columns of an extended matrix.

    Args:
        matrix: [n + R, k + R], contiguous rows.
        projections: In the order of their rows.
        n: Outputs of all of them.
        k: Inputs.
    """
    places: list[tuple[Adapter, int, int]] = []
    row = column = 0
    for each in projections:
        for adapter in each.adapters:
            places.append((adapter, row, column))
            column += adapter.a.shape[0]
        row += each.rows
    for first in range(0, len(places), MOST):
        _launch(matrix, places[first : first + MOST], projections, n, k)


def _launch(
    matrix: torch.Tensor,
    places: list[tuple[Adapter, int, int]],
    projections: tuple[Projection, ...],
    n: int,
    k: int,
) -> None:
    count = len(places)
    filled = places + [places[0]] * (MOST - count)
    tensors = [each for adapter, _, _ in filled for each in (adapter.a, adapter.b)]
    if any(not each.is_contiguous() for each in tensors):
        tensors = [each.contiguous() for each in tensors]
    numbers = [
        each
        for adapter, row, column in filled
        for each in (adapter.b.shape[0], adapter.a.shape[0], row, column, adapter.scale)
    ]
    most = max(max(adapter.a.numel(), adapter.b.numel()) for adapter, _, _ in places)
    _spread[(-(-most // BLOCK), 2 * count)](matrix, *tensors, *numbers, matrix.stride(0), n, k, BLOCK=BLOCK)


def plus_low_rank(
    other: torch.Tensor, low: torch.Tensor, up: torch.Tensor, tiles: Tiles | None = None
) -> torch.Tensor:
    """Return other + low up', rounded once.

    Args:
        other: [t, n], any row stride.
        low: [t, r], r a multiple of 16.
        up: [n, r], any row stride.
        tiles: For 16 bits; None takes ``PLUS``.
    """
    tokens, n = other.shape
    out = torch.empty(tokens, n, dtype=other.dtype, device=other.device)
    rank, is_wide = low.shape[1], other.dtype == torch.float32
    whole = 16 if is_wide else next(size for size in (128, 64, 32, 16) if rank % size == 0)
    tiles = WIDE if is_wide else tiles or PLUS
    grid = -(-n // (tiles.columns * tiles.across)), -(-tokens // tiles.rows)
    _plus_low_rank[grid](
        other, low, up, out, other.stride(0), low.stride(0), up.stride(0), tokens, n,
        ROWS=tiles.rows, COLUMNS=tiles.columns, ACROSS=tiles.across, STAGES=tiles.stages,
        RANK=whole, CHUNKS=rank // whole, EXACT="ieee" if is_wide else "tf32", num_warps=tiles.warps,
    )  # fmt: skip
    return out


def both_gradients(
    dy: torch.Tensor, up: torch.Tensor, low: torch.Tensor, out: torch.Tensor, tiles: Tiles | None = None
) -> torch.Tensor:
    """Read a gradient once for both of an adapter's: write dy B to ``out`` and return dy' low.

    A program keeps a block of B's gradient in registers while it walks down its share of the tokens. What it has of
    dy B for its columns, and at the end of B's gradient for its tokens, it leaves in float32 for a second kernel to
    add up, always in the same order.

    Args:
        dy: [t, n], any row stride.
        up: [n, R], any row stride, R at most 64.
        low: [t, R], any row stride.
        out: [t, >= R], any row stride; columns beyond R become zero.
        tiles: For 16 bits; None takes those for R.

    Returns:
        [n, R] float32.
    """
    (tokens, n), rank = dy.shape, up.shape[1]
    whole = max(16, triton.next_power_of_2(rank))
    is_wide = dy.dtype == torch.float32
    tiles = WIDE if is_wide else tiles or (BOTH if whole <= 32 else BOTH_64)
    blocks, steps = -(-n // tiles.columns), -(-tokens // tiles.rows)
    share = -(-steps // chunks_of(blocks, steps, processors(dy.device))) * tiles.rows
    chunks = -(-tokens // share)
    of_low = torch.empty(blocks, tokens, whole, dtype=torch.float32, device=dy.device)
    of_up = torch.empty(chunks, n, whole, dtype=torch.float32, device=dy.device)
    _both_gradients[blocks, chunks](
        dy, up, low, of_low, of_up, dy.stride(0), up.stride(0), low.stride(0), tokens, n, rank, share,
        ROWS=tiles.rows, COLUMNS=tiles.columns, STAGES=tiles.stages, RANK=whole,
        EXACT="ieee" if is_wide else "tf32", num_warps=tiles.warps,
    )  # fmt: skip
    _summed_into(out, of_low, rank)
    return _summed_into(torch.empty(n, rank, dtype=torch.float32, device=dy.device), of_up, rank)


def _summed_into(out: torch.Tensor, parts: torch.Tensor, rank: int) -> torch.Tensor:
    """Write the sum of parts [c, m, R] to out [m, >= rank], zero beyond ``rank``."""
    count, lines, whole = parts.shape
    width = triton.next_power_of_2(out.shape[1])
    rows = max(1, 1024 // width)
    _summed[(-(-lines // rows),)](
        parts, out, out.stride(0), count, lines, rank, out.shape[1],
        ROWS=rows, WIDTH=width, RANK=whole, num_warps=4,
    )  # fmt: skip
    return out


def chunks_of(blocks: int, steps: int, programs: int) -> int:
    """Cut the tokens so that the GPU's rounds of programs are full, and as few as that allows.

    Args:
        blocks: Programs side by side.
        steps: Tiles of tokens that each of them walks down if they are not cut.
        programs: How many run at a time.
    """

    def longest(chunks: int) -> int:
        # A program's start and end, which overlap with nothing, take about as long as one step.
        return -(-blocks * chunks // programs) * (-(-steps // chunks) + 1)

    return min(range(1, min(steps, 64) + 1), key=longest)


@functools.cache
def processors(device: torch.device) -> int:
    """Return how many programs with large tiles a GPU runs at a time."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


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
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, ACROSS: tl.constexpr, STAGES: tl.constexpr,
    RANK: tl.constexpr, CHUNKS: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time lie side by side, so that memory is read in whole rows.
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    line, is_row, inner = row.to(tl.int64)[:, None], (row < tokens)[:, None], tl.arange(0, RANK)
    left = tl.load(low + line * low_stride + inner[None, :], mask=is_row, other=0.0)
    for step in tl.range(0, ACROSS, num_stages=STAGES):
        column = (tl.program_id(0) * ACROSS + step) * COLUMNS + tl.arange(0, COLUMNS)
        real = is_row & (column < n)[None, :]
        place = up + column.to(tl.int64)[None, :] * up_stride + inner[:, None]
        given = tl.load(other + line * other_stride + column[None, :], mask=real, other=0.0)
        right = tl.load(place, mask=(column < n)[None, :], other=0.0)
        total = tl.dot(left, right, given.to(tl.float32), input_precision=EXACT)
        for chunk in tl.static_range(1, CHUNKS):
            more = low + line * low_stride + (chunk * RANK + inner)[None, :]
            right = tl.load(place + chunk * RANK, mask=(column < n)[None, :], other=0.0)
            total = tl.dot(tl.load(more, mask=is_row, other=0.0), right, total, input_precision=EXACT)
        tl.store(out + line * n + column[None, :], total.to(out.dtype.element_ty), mask=real)


@triton.jit(do_not_specialize=["tokens", "share"])
def _both_gradients(
    dy, up, low, of_low, of_up, dy_stride, up_stride, low_stride, tokens, n, rank, share,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, RANK: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    block, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    column, inner = block * COLUMNS + tl.arange(0, COLUMNS), tl.arange(0, RANK)
    is_column, is_inner = column < n, (inner < rank)[None, :]
    right = tl.load(
        up + column[:, None] * up_stride + inner[None, :], mask=is_column[:, None] & is_inner, other=0.0
    )
    total = tl.zeros([COLUMNS, RANK], dtype=tl.float32)
    first = tl.program_id(1) * share
    for start in tl.range(first, tl.minimum(first + share, tokens), ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        line, is_row = row.to(tl.int64)[:, None], (row < tokens)[:, None]
        tile = tl.load(dy + line * dy_stride + column[None, :], mask=is_row & is_column[None, :], other=0.0)
        left = tl.load(low + line * low_stride + inner[None, :], mask=is_row & is_inner, other=0.0)
        back = tl.dot(tile, right, input_precision=EXACT)
        tl.store(of_low + (block * tokens + line) * RANK + inner[None, :], back, mask=is_row)
        total = tl.dot(tl.trans(tile), left, total, input_precision=EXACT)
    place = of_up + (chunk * n + column[:, None]) * RANK + inner[None, :]
    tl.store(place, total, mask=is_column[:, None])


@triton.jit(do_not_specialize=["count", "lines"])
def _summed(
    parts, out, stride, count, lines, rank, columns,
    ROWS: tl.constexpr, WIDTH: tl.constexpr, RANK: tl.constexpr,
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS), tl.arange(0, WIDTH)
    is_row = (row < lines)[:, None]
    real = is_row & (column < rank)[None, :]
    total = tl.zeros([ROWS, WIDTH], dtype=tl.float32)
    place = parts + row[:, None] * RANK + column[None, :]
    for _ in tl.range(0, count, loop_unroll_factor=4):
        total += tl.load(place, mask=real, other=0.0)
        place += lines.to(tl.int64) * RANK
    kind = out.dtype.element_ty
    tl.store(
        out + row[:, None] * stride + column[None, :],
        total.to(kind),
        mask=is_row & (column < columns)[None, :],
    )
