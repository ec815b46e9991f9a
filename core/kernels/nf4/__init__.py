"""Weights of four bits, unpacked: one launch, bit for bit what bitsandbytes gives."""

import torch

from core.kernels.backend import runs_fused
from core.kernels.nf4 import reference
from core.kernels.nf4.reference import Packed

__all__ = ["Packed", "dequantize"]


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
