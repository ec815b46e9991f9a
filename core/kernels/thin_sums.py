"""How kernels that form thin products in passing leave the sums of their rows: parts, to be added up in one order."""

# Kernels are a species of their own: Triton types the arguments, constants are written in capitals.
# ruff: noqa: ANN001, ANN201, N803

import triton
import triton.language as tl


@triton.jit
def keep_sum(total, parts, width, column, RANK: tl.constexpr, PADDED: tl.constexpr, TURNED: tl.constexpr):
    """Store sums [PADDED, COLUMNS], or all of it turned, as [RANK, width]."""
    if RANK > 0:
        inner = tl.arange(0, PADDED)[:, None]
        value = tl.trans(total) if TURNED else total
        tl.store(parts + inner * width + column, value, mask=(inner < RANK) & (column < width))


@triton.jit
def keep_turned(total, parts, width, column, RANK: tl.constexpr, PADDED: tl.constexpr, TURNED: tl.constexpr):
    """Store them as [width, RANK]."""
    if RANK > 0:
        inner, line = tl.arange(0, PADDED)[None, :], tl.trans(column)
        value = total if TURNED else tl.trans(total)
        tl.store(parts + line * RANK + inner, value, mask=(inner < RANK) & (line < width))
