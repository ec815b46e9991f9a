"""The rotary embedding in Triton: a program turns a stretch of consecutive heads, normalising them on the way."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN202, N803

import functools

import torch
import triton
import triton.language as tl

from core.kernels.rope.reference import Heads

NUMBERS, WARPS = 2048, 4
"""Of a program."""


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
    """Return the rotated queries | keys [n, (query + key) * width]; one launch.

    A program reads both halves of its heads before it writes them: the result may lie on its input.
    """
    out = qkv[:, : (heads.query + heads.key) * heads.width] if out is None else out
    n = qkv.shape[0]
    rows, block = _tile(heads.width)
    _rope_forward[(-(-n * (heads.query + heads.key) // rows),)](
        qkv, out, cos, sin, positions, q_weight, k_weight,
        qkv.stride(0), out.stride(0), cos.stride(0), sin.stride(0), n, eps, offset,
        QUERY=heads.query, KEY=heads.key, HALF=heads.width // 2, ROWS=rows, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return out


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
    """Return the gradient of queries | keys | values [n, (query + 2 * key) * width]; one launch."""
    batch, _, length, _ = dq.shape
    n = batch * length
    if out is None:
        columns = (heads.query + 2 * heads.key) * heads.width
        out = torch.empty((n, columns), dtype=dq.dtype, device=dq.device)
    rows, block = _tile(heads.width)
    programs = -(-n * heads.query // rows) + 2 * -(-n * heads.key // rows)
    _rope_backward[(programs,)](
        dq, dk, dv, out, cos, sin, positions, raw, q_weight, k_weight,
        *_strides(dq), *_strides(dk), *_strides(dv),
        out.stride(0), cos.stride(0), sin.stride(0), 0 if raw is None else raw.stride(0), n, length, eps, offset,
        QUERY=heads.query, KEY=heads.key, HALF=heads.width // 2, ROWS=rows, BLOCK=block, num_warps=WARPS,
    )  # fmt: skip
    return out


def _strides(x: torch.Tensor) -> tuple[int, int, int]:
    """Return the strides of [b, heads, s, width] but for the last.

    A dimension of one element may claim any stride, and an odd one would forbid 128-bit loads.
    """
    batch, heads, tokens, _ = x.shape
    of_batch, of_head, of_token, _ = x.stride()
    return of_batch if batch > 1 else 0, of_head if heads > 1 else 0, of_token if tokens > 1 else 0


@functools.cache
def _tile(width: int) -> tuple[int, int]:
    """Return heads per program, about ``NUMBERS`` numbers in all, and the padded half width.

    Programs count the heads of all tokens in one sequence: what one reads and writes lies together in memory.
    """
    block = max(8, triton.next_power_of_2(width // 2))
    return max(1, NUMBERS // (2 * block)), block


@triton.jit
def _halves(start, column, real, HALF: tl.constexpr):
    """Load the halves of heads in float32."""
    first = tl.load(start + column, mask=real, other=0.0).to(tl.float32)
    second = tl.load(start + column + HALF, mask=real, other=0.0).to(tl.float32)
    return first, second


@triton.jit
def _store_halves(start, column, first, second, real, HALF: tl.constexpr):
    """Store the halves of heads."""
    tl.store(start + column, first.to(start.dtype.element_ty), mask=real)
    tl.store(start + column + HALF, second.to(start.dtype.element_ty), mask=real)


@triton.jit
def _angles(cos, sin, positions, token, column, turned, turns, cos_stride, sin_stride):
    """Return cosines and sines [ROWS, BLOCK]; the tables' second halves repeat the first and stay unread."""
    position = tl.load(positions + token, mask=turns, other=0).to(tl.int64)[:, None]
    c = tl.load(cos + position * cos_stride + column, mask=turned, other=0.0).to(tl.float32)
    s = tl.load(sin + position * sin_stride + column, mask=turned, other=0.0).to(tl.float32)
    return c, s


@triton.jit
def _scales(q_weight, k_weight, head, column, turned, offset, QUERY: tl.constexpr, HALF: tl.constexpr):
    weight = tl.where(head < QUERY, q_weight, k_weight)[:, None]
    first, second = _halves(weight, column, turned, HALF)
    return first + offset, second + offset


@triton.jit
def _reciprocal(first, second, eps, HALF: tl.constexpr):
    """Return 1 / sqrt(mean(x^2) + eps) of every head [ROWS, 1]."""
    return tl.rsqrt(tl.sum(first * first + second * second, axis=1)[:, None] / (2 * HALF) + eps)


@triton.jit(do_not_specialize=["n"])
def _rope_forward(
    qkv, out, cos, sin, positions, q_weight, k_weight,
    qkv_stride, out_stride, cos_stride, sin_stride, n, eps, offset,
    QUERY: tl.constexpr, KEY: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = row // (QUERY + KEY)
    head = row % (QUERY + KEY)
    there = token < n
    column = tl.arange(0, BLOCK)[None, :]
    real = there[:, None] & (column < HALF)
    start = (head * (2 * HALF))[:, None]
    line = token.to(tl.int64)[:, None]
    first, second = _halves(qkv + line * qkv_stride + start, column, real, HALF)
    c, s = _angles(cos, sin, positions, token, column, real, there, cos_stride, sin_stride)
    if q_weight is not None:
        first_scale, second_scale = _scales(q_weight, k_weight, head, column, real, offset, QUERY, HALF)
        reciprocal = _reciprocal(first, second, eps, HALF)
        first *= reciprocal * first_scale
        second *= reciprocal * second_scale
    target = out + line * out_stride + start
    _store_halves(target, column, first * c - second * s, second * c + first * s, real, HALF)


@triton.jit(do_not_specialize=["n", "length"])
def _rope_backward(
    dq, dk, dv, out, cos, sin, positions, raw, q_weight, k_weight,
    dq_batch, dq_head, dq_token, dk_batch, dk_head, dk_token, dv_batch, dv_head, dv_token,
    out_stride, cos_stride, sin_stride, raw_stride, n, length, eps, offset,
    QUERY: tl.constexpr, KEY: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # A program has only queries, only keys or only values.
    program = tl.program_id(0)
    of_queries, of_keys = tl.cdiv(n * QUERY, ROWS), tl.cdiv(n * KEY, ROWS)
    if program < of_queries:
        _turn_back(
            dq, dq_batch, dq_head, dq_token, out, out_stride, raw, raw_stride, q_weight, cos, cos_stride,
            sin, sin_stride, positions, program * ROWS, n, length, eps, offset, 0, QUERY, HALF, ROWS, BLOCK,
        )  # fmt: skip
    elif program < of_queries + of_keys:
        _turn_back(
            dk, dk_batch, dk_head, dk_token, out, out_stride, raw, raw_stride, k_weight, cos, cos_stride,
            sin, sin_stride, positions, (program - of_queries) * ROWS, n, length, eps, offset,
            QUERY, KEY, HALF, ROWS, BLOCK,
        )  # fmt: skip
    else:
        row = (program - of_queries - of_keys) * ROWS + tl.arange(0, ROWS)
        token, head, column = row // KEY, row % KEY, tl.arange(0, BLOCK)[None, :]
        real = (token < n)[:, None] & (column < HALF)
        source = _upstream(dv, dv_batch, dv_head, dv_token, token, head, length)
        first = tl.load(source + column, mask=real, other=0.0)
        second = tl.load(source + column + HALF, mask=real, other=0.0)
        target = out + (token.to(tl.int64) * out_stride + (QUERY + KEY + head) * (2 * HALF))[:, None]
        _store_halves(target, column, first, second, real, HALF)


@triton.jit
def _upstream(start, of_batch, of_head, of_token, token, head, length):
    line = (token // length).to(tl.int64) * of_batch + (token % length).to(tl.int64) * of_token
    return (start + line + head.to(tl.int64) * of_head)[:, None]


@triton.jit
def _turn_back(
    upstream, of_batch, of_head, of_token, out, out_stride, raw, raw_stride, weight, cos, cos_stride,
    sin, sin_stride, positions, start, n, length, eps, offset,
    BEFORE: tl.constexpr, COUNT: tl.constexpr, HALF: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write the gradients of some of COUNT heads, which lie behind BEFORE others."""
    row = start + tl.arange(0, ROWS)
    token, head, column = row // COUNT, row % COUNT, tl.arange(0, BLOCK)[None, :]
    there = token < n
    real = there[:, None] & (column < HALF)
    dy = _upstream(upstream, of_batch, of_head, of_token, token, head, length)
    first, second = _halves(dy, column, real, HALF)
    line, place = token.to(tl.int64)[:, None], ((BEFORE + head) * (2 * HALF))[:, None]
    if weight is not None:
        first_raw, second_raw = _halves(raw + line * raw_stride + place, column, real, HALF)
        first_scale, second_scale = _halves(weight + place * 0, column, real, HALF)
    c, s = _angles(cos, sin, positions, token, column, real, there, cos_stride, sin_stride)
    first_result = first * c + second * s
    second_result = second * c - first * s
    if weight is not None:
        first_result *= first_scale + offset
        second_result *= second_scale + offset
        reciprocal = _reciprocal(first_raw, second_raw, eps, HALF)
        first_raw *= reciprocal
        second_raw *= reciprocal
        mean = tl.sum(first_result * first_raw + second_result * second_raw, axis=1)[:, None] / (2 * HALF)
        first_result = reciprocal * (first_result - first_raw * mean)
        second_result = reciprocal * (second_result - second_raw * mean)
    _store_halves(out + line * out_stride + place, column, first_result, second_result, real, HALF)
