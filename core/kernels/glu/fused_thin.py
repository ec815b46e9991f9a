"""The gradient of gated linear units in Triton, with the adapters' thin products while the numbers are in registers.

Alone each such product would read a whole activation again, to make a few columns of it.
"""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.glu.fused import share_of, slope_of
from core.kernels.glu.reference import Activation, GluGradients
from core.kernels.ranks import padded
from core.kernels.thin_sums import keep_sum, keep_turned


class Tiles(NamedTuple):
    """How the kernel cuts its work."""

    rows: int
    columns: int
    programs: int
    """What an H200's 132 processors run at once; taken for every card, and right to rounding on all."""
    warps: int
    stages: int
    turned: bool
    """Whether the tile is the left factor of its thin product; the right one, else."""
    registers: int | None
    """Most of a thread: fewer than the compiler would take, if then one program more runs beside another."""


BACKWARD = Tiles(32, 128, 264, 8, 3, turned=True, registers=128)
"""For up to 48 ranks in all, as padded."""
BACKWARD_MANY = Tiles(32, 64, 264, 4, 2, turned=False, registers=None)
"""For more ranks: their sums need the registers."""
BACKWARD_SHARED = Tiles(32, 64, 396, 4, 3, turned=True, registers=168)
"""For 49 to 96 ranks if the share is added: three programs run beside one another, and else two."""
ROUNDS = 3
"""Times that all processors are filled: more leave more parts of sums, fewer wait longer for the last program."""
SHORTEST, LONGEST = 256, 8192
"""Rows of a chunk: below, reading and writing the parts of the sums costs too much; beyond, they lose digits."""


def glu_gradients(
    dh: torch.Tensor,
    gate_up: torch.Tensor,
    activation: Activation,
    *,
    low: torch.Tensor,
    ranks: tuple[int, int],
    d_low: torch.Tensor,
    rank_down: int,
    narrow: torch.Tensor | None = None,
    out: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> GluGradients:
    """Return all gradients that need what a gated linear unit computes; one launch, and two sums of parts.

    A program reads its tile of dh, gate and up before it writes their gradients: the result may lie over gate and up.
    """
    n, width = dh.shape
    if out is None:
        out = torch.empty((n, 2 * width), dtype=gate_up.dtype, device=gate_up.device)
    gate, up, down = *ranks, rank_down
    narrow = narrow if down else None
    tiles = tiles or _tiles((gate, up, down), narrow is not None)
    blocks = triton.cdiv(width, tiles.columns)
    chunk = _chunk(n, blocks, tiles)
    chunks = triton.cdiv(n, chunk)
    # Of each chunk all sums one after another, laid out as the gradients they become: nobody need copy them.
    parts = torch.empty((chunks, (gate + up + down) * width), dtype=torch.float32, device=dh.device)
    dots = torch.empty((blocks, n), dtype=torch.float32, device=dh.device)
    _glu_gradients[(blocks, chunks)](
        dh, gate_up, low, d_low, narrow, out, parts, dots,
        dh.stride(0), gate_up.stride(0), low.stride(0), d_low.stride(0), 0 if narrow is None else narrow.stride(0),
        out.stride(0), n, width, chunk, 1.0,
        ACTIVATION=activation, GATE=gate, UP=up, DOWN=down,
        PADDED_GATE=padded(gate), PADDED_UP=padded(up), PADDED_DOWN=padded(down),
        ROWS=tiles.rows, COLUMNS=tiles.columns, TURNED=tiles.turned,
        num_warps=tiles.warps, num_stages=tiles.stages, maxnreg=tiles.registers,
    )  # fmt: skip
    of_gate, of_up, of_down = parts.sum(0).split([gate * width, up * width, down * width])
    return GluGradients(
        out, of_gate.view(width, gate), of_up.view(width, up), of_down.view(down, width), dots.sum(0)
    )


def _tiles(ranks: tuple[int, int, int], has_share: bool) -> Tiles:
    total = sum(padded(rank) for rank in ranks if rank)
    if total <= 48:
        return BACKWARD
    return BACKWARD_SHARED if has_share and total <= 96 else BACKWARD_MANY


def _chunk(n: int, blocks: int, tiles: Tiles) -> int:
    """Return the rows of a program, in whole tiles: as many programs as fill the last round too."""
    wanted = min(LONGEST, max(SHORTEST, triton.cdiv(n, max(1, ROUNDS * tiles.programs // blocks))))
    return triton.cdiv(min(wanted, max(n, 1)), tiles.rows) * tiles.rows


@triton.jit
def _inner_values(thin, stride, line, is_row, RANK: tl.constexpr, PADDED: tl.constexpr):
    """Load the rows' inner values [ROWS, PADDED]."""
    inner = tl.arange(0, PADDED)[None, :]
    return tl.load(thin + line * stride + inner, mask=is_row & (inner < RANK), other=0.0)


@triton.jit
def _low_rank(values, across, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return values across' [ROWS, COLUMNS]; the columns are the left factor: the rows are too few for Hopper."""
    product = tl.trans(tl.dot(across, tl.trans(values)))
    # This computes nothing. But no layout passes through a broadcast: else the compiler would take the product's for
    # all that follows, read the tiles across their rows, and compute the activation once more in the tiles' own.
    product, _ = tl.split(tl.broadcast_to(product[:, :, None], (ROWS, COLUMNS, 2)))
    return product


@triton.jit
def _thin_sum(total, values, tile, RANK: tl.constexpr, TURNED: tl.constexpr):
    """Add values' tile [PADDED, COLUMNS] to the sums, or all of it turned."""
    if RANK > 0:
        total = tl.dot(tl.trans(tile), values, total) if TURNED else tl.dot(tl.trans(values), tile, total)
    return total


@triton.jit
def _last_sum(bits, values, tile, RANK: tl.constexpr, TURNED: tl.constexpr):
    """Add to sums that are carried as whole numbers, which makes the compiler wait for them, and so for all before.

    It would leave the products under way into the next tile, where the share's needs a wait; ptxas then runs them all
    one by one.
    """
    total = _thin_sum(bits.to(tl.float32, bitcast=True), values, tile, RANK, TURNED)
    return total.to(tl.int32, bitcast=True)


@triton.jit(do_not_specialize=["n", "chunk"])
def _glu_gradients(
    dh, gate_up, low, d_low, narrow, gradient, parts, dots,
    dh_stride, gate_up_stride, low_stride, d_low_stride, narrow_stride, gradient_stride, n, width, chunk, one,
    ACTIVATION: tl.constexpr, GATE: tl.constexpr, UP: tl.constexpr, DOWN: tl.constexpr,
    PADDED_GATE: tl.constexpr, PADDED_UP: tl.constexpr, PADDED_DOWN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, TURNED: tl.constexpr,
):  # fmt: skip
    # Programs that run at the same time lie side by side, so that memory is read in whole rows.
    column = (tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS))[None, :]
    is_column = column < width
    of_gate = tl.zeros((COLUMNS, PADDED_GATE) if TURNED else (PADDED_GATE, COLUMNS), dtype=tl.float32)
    of_up = tl.zeros((COLUMNS, PADDED_UP) if TURNED else (PADDED_UP, COLUMNS), dtype=tl.float32)
    of_down = tl.zeros((COLUMNS, PADDED_DOWN) if TURNED else (PADDED_DOWN, COLUMNS), dtype=tl.int32)
    if narrow is not None:
        inner = tl.arange(0, PADDED_DOWN)[None, :]
        place = narrow + inner.to(tl.int64) * narrow_stride + tl.trans(column)
        across = tl.load(place, mask=(inner < DOWN) & tl.trans(is_column), other=0.0)
    kind = gradient.dtype.element_ty
    first = tl.program_id(1) * chunk
    for start in range(first, min(first + chunk, n), ROWS):
        row = start + tl.arange(0, ROWS)
        line, is_row = row.to(tl.int64)[:, None], (row < n)[:, None]
        real = is_row & is_column
        source = gate_up + line * gate_up_stride + column
        gate = tl.load(source, mask=real, other=0.0).to(tl.float32)
        up = tl.load(source + width, mask=real, other=0.0).to(tl.float32)
        upstream = tl.load(dh + line * dh_stride + column, mask=real, other=0.0).to(tl.float32)
        below = _inner_values(d_low, d_low_stride, line, is_row, DOWN, PADDED_DOWN)
        if narrow is not None:
            upstream += _low_rank(below, across, ROWS, COLUMNS)
        share, power = share_of(gate, one, ACTIVATION)
        activated, slope, both = gate * share, slope_of(gate, share, power, ACTIVATION), upstream * up
        gate_gradient, up_gradient = both * slope, upstream * activated
        dot = tl.sum(both * (slope * gate + activated), axis=1)
        tl.store(dots + tl.program_id(0).to(tl.int64) * n + row, dot, mask=row < n)
        target = gradient + line * gradient_stride + column
        tl.store(target, gate_gradient.to(kind), mask=real)
        tl.store(target + width, up_gradient.to(kind), mask=real)
        values = _inner_values(low, low_stride, line, is_row, GATE, PADDED_GATE)
        of_gate = _thin_sum(of_gate, values, gate_gradient.to(kind), GATE, TURNED)
        values = _inner_values(low + GATE, low_stride, line, is_row, UP, PADDED_UP)
        of_up = _thin_sum(of_up, values, up_gradient.to(kind), UP, TURNED)
        of_down = _last_sum(of_down, below, (activated * up).to(kind), DOWN, TURNED)
    place = parts + tl.program_id(1).to(tl.int64) * (GATE + UP + DOWN) * width
    keep_turned(of_gate, place, width, column, GATE, PADDED_GATE, TURNED)
    keep_turned(of_up, place + GATE * width, width, column, UP, PADDED_UP, TURNED)
    of_down = of_down.to(tl.float32, bitcast=True)
    keep_sum(of_down, place + (GATE + UP) * width, width, column, DOWN, PADDED_DOWN, TURNED)
