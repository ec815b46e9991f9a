"""Weights of four bits, unpacked: one launch, bit for bit what bitsandbytes gives."""

from collections.abc import Callable
from functools import partial

import torch

from core.kernels.backend import runs_fused
from core.kernels.nf4 import reference
from core.kernels.nf4.reference import Packed

__all__ = ["Packed", "dequantize", "unpacking"]


def dequantize(packed: Packed, out: torch.Tensor | None = None) -> torch.Tensor:
    """Unpack a weight of four bits.

    Args:
        packed: The weight.
        out: Where to write, [rows, columns] in `packed.dtype`, rows may lie further apart than `columns`
            (what lies between them is left alone). None allocates.

    Returns:
        The weight [rows, columns], equal to bitsandbytes' `dequantize_4bit` in every bit.
    """
    if runs_fused(packed.data.device):
        from core.kernels.nf4 import fused

        return fused.dequantize(packed, out)
    return reference.dequantize(packed, out)


def unpacking(packed: Packed, out: torch.Tensor) -> Callable[[], object]:
    """Prepare to unpack the same weight into the same place again and again; what is returned does it.

    Args:
        packed: The weight; its tensors must stay where they are.
        out: See ``dequantize``.
    """
    if runs_fused(packed.data.device):
        from core.kernels.nf4 import fused

        return fused.unpacking(packed, out)
    return partial(reference.dequantize, packed, out)
