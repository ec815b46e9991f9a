"""The adapters' own small steps, beside what cuBLAS takes for them.

Used by `tests.bench.h200.kernels`.
"""

from collections.abc import Callable, Iterator

import torch

from core.kernels.lora_linear import fused

Tensors = tuple[torch.Tensor, ...]
Row = tuple[str, Callable[[], Tensors], Callable[[bool], Tensors] | None, float]
"""Name, what is timed, the definition, bytes that must be moved: the fields of `kernels.Case`."""


def draw(*shape: int) -> torch.Tensor:
    """Draw bfloat16 numbers that lie in wider rows, as an extended matrix has them."""
    wide = torch.randn(shape[0], shape[1] + 64, device="cuda", dtype=torch.bfloat16)
    return wide[:, : shape[1]]


def shares(n: int, width: int, rank: int) -> Iterator[Row]:
    """Give the sum of a residual and the adapters' share."""
    other, low, up = draw(n, width).contiguous(), draw(n, rank).contiguous(), draw(width, rank)

    def plain(is_wide: bool) -> Tensors:
        parts = (other, low, up)
        a, b, c = (each.float() for each in parts) if is_wide else parts
        return (torch.addmm(a, b, c.t()),)

    moved = 2.0 * (2 * n * width + (n + width) * rank)
    yield f"plus_low_rank {width} r{rank}", lambda: (fused.plus_low_rank(other, low, up),), plain, moved
    yield f"addmm {width} r{rank}", lambda: plain(False), None, moved
