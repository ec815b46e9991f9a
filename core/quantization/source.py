"""The 16-bit file that the other types are made from: which of the two 16-bit types keeps every weight."""

from pathlib import Path
from typing import Literal

import torch
from safetensors import safe_open

from core.errors import ModelError

LARGEST_F16 = 65504.0
"""Largest finite number of IEEE half precision."""

SixteenBits = Literal["f16", "bf16"]


def sixteen_bit_type(folder: Path) -> SixteenBits:
    """Choose the type of the 16-bit file: f16 unless a weight is too large for it.

    f16 has three more bits of precision, bf16 the range of float32. Vectors do not count: they are always float32.

    Args:
        folder: Model folder with safetensors.

    Raises:
        ModelError: If a weight is not a finite number.
    """
    largest = 0.0
    for shard in sorted(folder.glob("*.safetensors")):
        largest = max(largest, _largest(shard))
    return "f16" if largest <= LARGEST_F16 else "bf16"


def _largest(shard: Path) -> float:
    largest = 0.0
    with safe_open(str(shard), framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118  (not a mapping)
            tensor: torch.Tensor = weights.get_tensor(name)
            if not tensor.is_floating_point():
                continue
            size = float(tensor.abs().max()) if tensor.numel() else 0.0
            # NaN is below nothing and above nothing.
            if not size < float("inf"):
                raise ModelError(f"the weight {name} holds values that are no numbers", where=str(shard))
            largest = max(largest, size if tensor.ndim > 1 else 0.0)
    return largest
