"""y = x W' + bias + sum over adapters of scale (x A') B' (arXiv:2106.09685, section 4.1)."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from core.kernels.nf4 import Packed, dequantize


class Adapter(NamedTuple):
    """A low-rank update of one layer."""

    a: Tensor
    """[r, k], any float dtype."""
    b: Tensor
    """[n, r]."""
    scale: float
    """alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv:2312.03732)."""


class Projection(NamedTuple):
    """One frozen layer and its adapters."""

    weight: Tensor | Packed
    """[n, k]."""
    bias: Tensor | None = None
    """[n], frozen."""
    adapters: tuple[Adapter, ...] = ()

    @property
    def rows(self) -> int:
        """Return n."""
        return int(self.weight.shape[0])

    @property
    def columns(self) -> int:
        """Return k."""
        return int(self.weight.shape[1])

    @property
    def rank(self) -> int:
        """Return the ranks of all adapters together."""
        return sum(int(each.a.shape[0]) for each in self.adapters)


def placed(projections: Sequence[Projection]) -> list[tuple[Projection, slice]]:
    """Return projections with their rows."""
    found, row = [], 0
    for each in projections:
        found.append((each, slice(row, row + each.rows)))
        row += each.rows
    return found


def lora_linear(x: Tensor, projection: Projection) -> Tensor:
    """Apply one projection.

    Args:
        x: [.., k].
        projection: Its weight is read in its own dtype, adapters in x's.

    Returns:
        [.., n] in x's dtype.
    """
    held = projection.weight
    weight = dequantize(held) if isinstance(held, Packed) else held
    y = x @ weight.to(x.dtype).t()
    if projection.bias is not None:
        y = y + projection.bias.to(x.dtype)
    for a, b, scale in projection.adapters:
        y = y + scale * ((x @ a.to(x.dtype).t()) @ b.to(x.dtype).t())
    return y
