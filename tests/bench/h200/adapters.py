"""The adapters' own small steps, with every candidate of tiles, beside what cuBLAS takes for them.

Used by `tests.bench.h200.kernels`.
"""

from collections.abc import Callable, Iterator

import torch

from core.kernels.lora_linear import fused
from core.kernels.lora_linear.group import exact_product

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
    for tiles in fused.PLUS_CANDIDATES:

        def share(tiles: fused.Tiles = tiles) -> Tensors:
            return (fused.plus_low_rank(other, low, up, tiles),)

        yield f"plus_low_rank {width} r{rank} {'/'.join(map(str, tiles))}", share, plain, moved
    yield f"addmm {width} r{rank}", lambda: plain(False), None, moved


def pairs(n: int, width: int, rank: int) -> Iterator[Row]:
    """Give the two small products that read an output's gradient."""
    dy, low, up = draw(n, width), draw(n, rank), draw(width, rank)
    out, spare = (torch.zeros(n, 64, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    wide_up = torch.zeros(width, 64, device="cuda", dtype=torch.bfloat16)
    wide_up[:, :rank] = up

    def plain(is_wide: bool) -> Tensors:
        if not is_wide:
            return torch.mm(dy, wide_up, out=spare), exact_product(dy.t(), low)
        exact = dy.float()
        return exact @ wide_up.float(), exact.t() @ low.float()

    moved = 2.0 * n * width
    for tiles in fused.BOTH_CANDIDATES if rank <= 32 else (fused.BOTH_64,):

        def both(tiles: fused.Tiles = tiles) -> Tensors:
            of_up = fused.both_gradients(dy, up, low, out, tiles)
            return out, of_up

        yield f"both gradients {width} r{rank} {'/'.join(map(str, tiles))}", both, plain, moved
    yield f"two products {width} r{rank}", lambda: plain(False), None, moved
