"""The rotary embedding's gradient in Triton, with the adapters' thin products while the numbers are in registers.

Alone each such product would read a whole activation again, to make a few columns of it.
"""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from core.kernels.ranks import padded
from core.kernels.rope.fused import angles, halves, store_halves, strides
from core.kernels.rope.reference import Heads, RopeGradients


class Tiles(NamedTuple):
    """How the kernel cuts its work."""

    rows: int
    columns: int
    """Of the first halves of heads that lie beside one another, padded; as many of the second halves."""
    warps: int
    stages: int
    """Two for each tile fetched ahead, and one: where an angle lies is fetched itself."""
    registers: int | None
    """Most of a thread: fewer than the compiler would take, if then one program more runs beside another."""
    programs: int
    """Wanted in all: what an H200's 132 processors run at once. More would leave more parts of sums, and a last round
    in which few processors have work."""


BACKWARD = Tiles(16, 128, 8, 5, registers=128, programs=264)
"""For up to 32 ranks, as padded."""
BACKWARD_MANY = Tiles(16, 64, 4, 5, registers=168, programs=396)
"""For more ranks: their sums need the registers."""
BACKWARD_WIDE = Tiles(16, 128, 8, 5, registers=None, programs=132)
"""For more ranks of heads whose halves are wider than 64."""
SHORTEST = 128
"""Rows of the shortest chunk: below, reading and writing the parts of the sums costs too much."""


def rope_gradients(
    dq: torch.Tensor,
    dk: torch.Tensor,
    dv: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    positions: torch.Tensor,
    heads: Heads,
    *,
    qkv: torch.Tensor,
    low: torch.Tensor,
    ranks: tuple[int, int, int],
    q_weight: torch.Tensor | None = None,
    k_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    offset: float = 0.0,
    out: torch.Tensor | None = None,
    tiles: Tiles | None = None,
) -> RopeGradients:
    """Return the gradient, its three products with inner values and that with z; one launch, two sums of parts."""
    (n, width), length = qkv.shape, dq.shape[2]
    out = torch.empty((n, width), dtype=dq.dtype, device=dq.device) if out is None else out
    most, block = max(ranks), max(8, triton.next_power_of_2(heads.width // 2))
    tiles = tiles or _tiles(padded(most), block)
    group = max(1, tiles.columns // block)
    blocks = triton.cdiv(heads.query, group) + 2 * triton.cdiv(heads.key, group)
    chunk = _chunk(n, blocks, tiles)
    chunks = triton.cdiv(n, chunk)
    parts = torch.empty((chunks, most, width), dtype=torch.float32, device=dq.device)
    dots = torch.empty((blocks, n), dtype=torch.float32, device=dq.device)
    _rope_gradients[(blocks, chunks)](
        dq, dk, dv, qkv, low, out, parts, dots, cos, sin, positions, q_weight, k_weight,
        *strides(dq), *strides(dk), *strides(dv),
        qkv.stride(0), low.stride(0), out.stride(0), cos.stride(0), sin.stride(0), n, length, chunk, eps, offset,
        *ranks, MOST=most, PADDED=padded(most), EVEN=all(_is_even(each) for each in (dq, dk, dv)),
        QUERY=heads.query, KEY=heads.key, HALF=heads.width // 2, BLOCK=block, GROUP=group,
        ROWS=tiles.rows, STAGES=tiles.stages, num_warps=tiles.warps * max(1, block // tiles.columns), maxnreg=tiles.registers,
    )  # fmt: skip
    outputs = [count * heads.width for count in (heads.query, heads.key, heads.key)]
    columns = parts.sum(0).split(outputs, dim=1)
    b_q, b_k, b_v = (of_all[:rank].t() for of_all, rank in zip(columns, ranks, strict=True))
    return RopeGradients(out, b_q, b_k, b_v, dots.sum(0))


def _tiles(padded: int, block: int) -> Tiles:
    if padded <= 32:
        return BACKWARD
    return BACKWARD_MANY if block <= BACKWARD_MANY.columns else BACKWARD_WIDE


def _chunk(n: int, blocks: int, tiles: Tiles) -> int:
    """Return the rows of a program, in whole tiles."""
    wanted = max(SHORTEST, triton.cdiv(n, max(1, tiles.programs // blocks)))
    return triton.cdiv(min(wanted, max(n, 1)), tiles.rows) * tiles.rows


def _is_even(x: torch.Tensor) -> bool:
    """Tell whether all tokens of a batch lie at one distance."""
    of_batch, _, of_token = strides(x)
    return x.shape[0] == 1 or of_batch == x.shape[2] * of_token


@triton.jit
def _chosen(is_query, turns, of_queries, of_keys, of_values):
    """Return what holds for a program's projection."""
    return tl.where(is_query, of_queries, tl.where(turns, of_keys, of_values))


@triton.jit
def _of_rows(row, length, of_batch, of_token):
    """Return where rows begin whose batches do not lie evenly [ROWS, 1]."""
    return ((row // length).to(tl.int64) * of_batch + (row % length).to(tl.int64) * of_token)[:, None]


@triton.jit
def _of_heads(x, BLOCK: tl.constexpr):
    """Return the sum over each head's columns [ROWS, GROUP]."""
    return tl.sum(tl.reshape(x, (x.shape[0], x.shape[1] // BLOCK, BLOCK)), axis=2)


@triton.jit
def _to_columns(x, BLOCK: tl.constexpr):
    """Repeat each head's number in all its columns [ROWS, GROUP * BLOCK]."""
    repeated = tl.broadcast_to(x[:, :, None], (x.shape[0], x.shape[1], BLOCK))
    return tl.reshape(repeated, (x.shape[0], x.shape[1] * BLOCK))


@triton.jit
def _for_all_heads(x, GROUP: tl.constexpr):
    """Repeat what holds for every head [ROWS, GROUP * BLOCK]."""
    repeated = tl.broadcast_to(x[:, None, :], (x.shape[0], GROUP, x.shape[1]))
    return tl.reshape(repeated, (x.shape[0], GROUP * x.shape[1]))


@triton.jit
def _through_norm(first, second, first_raw, second_raw, eps, HALF: tl.constexpr, BLOCK: tl.constexpr):
    """Carry scaled gradients through the norms over heads; return them, and the rows' products with the raw heads."""
    mean_square = _of_heads(first_raw * first_raw + second_raw * second_raw, BLOCK) / (2 * HALF) + eps
    # What is padded may be zero, and eps too.
    reciprocal = tl.where(mean_square > 0.0, tl.rsqrt(mean_square), 0.0)
    pull = _of_heads(first * first_raw + second * second_raw, BLOCK) * (reciprocal * reciprocal * reciprocal)
    # Of the product with a raw head all but the share of eps cancels.
    dot = tl.sum(pull, axis=1) * eps
    reciprocal, pull = _to_columns(reciprocal, BLOCK), _to_columns(pull / (2 * HALF), BLOCK)
    return reciprocal * first - first_raw * pull, reciprocal * second - second_raw * pull, dot


@triton.jit
def _keep_sums(of_first, of_second, parts, width, place, is_column, inner, rank, HALF: tl.constexpr):
    sums, is_sum = parts + inner * width + place, (inner < rank) & is_column
    tl.store(sums, tl.trans(of_first), mask=is_sum)
    tl.store(sums + HALF, tl.trans(of_second), mask=is_sum)


@triton.jit(do_not_specialize=["n", "length", "chunk"])
def _rope_gradients(
    dq, dk, dv, qkv, low, out, parts, dots, cos, sin, positions, q_weight, k_weight,
    dq_batch, dq_head, dq_token, dk_batch, dk_head, dk_token, dv_batch, dv_head, dv_token,
    qkv_stride, low_stride, out_stride, cos_stride, sin_stride, n, length, chunk, eps, offset,
    RANK_Q: tl.constexpr, RANK_K: tl.constexpr, RANK_V: tl.constexpr,
    MOST: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr, QUERY: tl.constexpr, KEY: tl.constexpr,
    HALF: tl.constexpr, BLOCK: tl.constexpr, GROUP: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    # A program has queries, keys or values alone, and chooses by numbers: a loop for each would be three times the
    # code. Programs that run at the same time lie side by side, so that memory is read in whole rows.
    of_queries: tl.constexpr = (QUERY + GROUP - 1) // GROUP
    of_both: tl.constexpr = of_queries + (KEY + GROUP - 1) // GROUP
    block = tl.program_id(0)
    is_query, turns = block < of_queries, block < of_both
    upstream = _chosen(is_query, turns, dq, dk, dv)
    of_batch = _chosen(is_query, turns, dq_batch, dk_batch, dv_batch).to(tl.int64)
    of_head = _chosen(is_query, turns, dq_head, dk_head, dv_head).to(tl.int64)
    of_token = _chosen(is_query, turns, dq_token, dk_token, dv_token).to(tl.int64)
    rank = _chosen(is_query, turns, RANK_Q, RANK_K, RANK_V)
    low += _chosen(is_query, turns, 0, RANK_Q, RANK_Q + RANK_K)
    weight = q_weight
    if q_weight is not None:
        weight = tl.where(is_query, q_weight, k_weight)
    first_head = (block - _chosen(is_query, turns, 0, of_queries, of_both)) * GROUP
    before, count = _chosen(is_query, turns, 0, QUERY, QUERY + KEY), tl.where(is_query, QUERY, KEY)
    width: tl.constexpr = (QUERY + 2 * KEY) * 2 * HALF
    parts += tl.program_id(1).to(tl.int64) * MOST * width
    dots += block.to(tl.int64) * n
    _walk(
        upstream, of_batch, of_head, of_token, qkv, qkv_stride, low, low_stride, rank, out, out_stride, parts, width,
        dots, cos, cos_stride, sin, sin_stride, positions, weight, turns, before, first_head, count,
        tl.program_id(1) * chunk, n, length, chunk, eps, offset,
        MOST, PADDED, EVEN, HALF, BLOCK, GROUP, ROWS, STAGES,
    )  # fmt: skip


@triton.jit
def _walk(
    upstream, of_batch, of_head, of_token, qkv, qkv_stride, low, low_stride, rank, out, out_stride, parts, width,
    dots, cos, cos_stride, sin, sin_stride, positions, weight, turns, before, first_head, count,
    first_row, n, length, chunk, eps, offset,
    MOST: tl.constexpr, PADDED: tl.constexpr, EVEN: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
    GROUP: tl.constexpr, ROWS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Go down a chunk of rows with some of ``count`` heads, which lie behind ``before`` others."""
    columns, half = tl.arange(0, GROUP * BLOCK)[None, :], tl.arange(0, BLOCK)[None, :]
    head, column, inner = first_head + columns // BLOCK, columns % BLOCK, tl.arange(0, PADDED)[None, :]
    is_column, place = (column < HALF) & (head < count), (before + head) * (2 * HALF) + column
    if weight is not None:
        first_scale, second_scale = halves(weight, column, is_column, HALF)
        first_scale, second_scale = first_scale + offset, second_scale + offset
    shape: tl.constexpr = (GROUP * BLOCK, PADDED)
    of_first, of_second = tl.zeros(shape, dtype=tl.float32), tl.zeros(shape, dtype=tl.float32)
    # Places move on by addition: to multiply rows and strides anew for every tile is a tenth of all instructions.
    line, step = (first_row + tl.arange(0, ROWS)).to(tl.int64)[:, None], tl.full((), ROWS, tl.int64)
    upstream += head * of_head + column + (line * of_token if EVEN else 0)
    kept, target = qkv + line * qkv_stride + place, out + line * out_stride + place
    low += line * low_stride + inner
    values = tl.load(low, mask=(first_row + tl.arange(0, ROWS) < n)[:, None] & (inner < rank), other=0.0)
    # Stages are the loop's: as an option of the launch they would hold for some loads only.
    for start in tl.range(first_row, min(first_row + chunk, n), ROWS, num_stages=STAGES):
        row = start + tl.arange(0, ROWS)
        is_row, is_turned, real = row < n, (row < n) & turns, (row < n)[:, None] & is_column
        low += step * low_stride
        # Of few ranks a thread's share is too small for the stages: the next tile's are asked for here.
        following = tl.load(low, mask=(row + ROWS < n)[:, None] & (inner < rank), other=0.0)
        source = upstream if EVEN else upstream + _of_rows(row, length, of_batch, of_token)
        first, second = halves(source, 0, real, HALF)
        first_kept, second_kept = halves(kept, 0, real, HALF)
        # Each angle is fetched once, not for every head; values do not turn.
        is_angle = is_turned[:, None] & (half < HALF)
        c, s = angles(cos, sin, positions, row, half, is_angle, is_turned, cos_stride, sin_stride)
        c, s = _for_all_heads(c, GROUP), _for_all_heads(s, GROUP)
        dot = tl.sum(first * first_kept + second * second_kept, axis=1)
        first_result, second_result = first * c + second * s, second * c - first * s
        if weight is not None:
            first_result, second_result, of_normed = _through_norm(
                first_result * first_scale, second_result * second_scale, first_kept, second_kept, eps, HALF, BLOCK
            )  # fmt: skip
            dot = tl.where(turns, of_normed, dot)
        first_result = tl.where(turns, first_result, first).to(out.dtype.element_ty)
        second_result = tl.where(turns, second_result, second).to(out.dtype.element_ty)
        store_halves(target, 0, first_result, second_result, real, HALF)
        tl.store(dots + row, dot, mask=is_row)
        if MOST > 0:
            of_first = tl.dot(tl.trans(first_result), values, of_first)
            of_second = tl.dot(tl.trans(second_result), values, of_second)
        kept, target, values = kept + step * qkv_stride, target + step * out_stride, following
        upstream += step * of_token if EVEN else 0
    if MOST > 0:
        _keep_sums(of_first, of_second, parts, width, place, is_column, tl.trans(inner), rank, HALF)
