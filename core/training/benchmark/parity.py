"""Loss and gradients of a system beside those of the float32 reference."""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from core.training.benchmark.reports import Parity

LOSS = "loss"


def save_reference(file: Path, loss: float, gradients: Mapping[str, Tensor]) -> None:
    """Write what others are compared with."""
    save_file(dict(gradients), file, metadata={LOSS: repr(loss)})


def compare(file: Path, loss: float, gradients: Mapping[str, Tensor]) -> Parity:
    """Compare with a reference file, tensor by tensor.

    Args:
        file: Written by ``save_reference``.
        loss: Mean loss per learned token of the same batch.
        gradients: By the names of the reference; one that it lacks counts as different.
    """
    with safe_open(file, framework="pt") as opened:  # type: ignore[no-untyped-call]
        expected = float(opened.metadata()[LOSS])
        names = sorted(opened.keys())
        cosines = {name: cosine(opened.get_tensor(name), gradients.get(name)) for name in names}
    cosines |= dict.fromkeys(gradients.keys() - cosines.keys(), 0.0)
    worst = min(cosines, key=lambda name: cosines[name])
    return Parity(
        loss=loss if math.isfinite(loss) else None,
        reference_loss=expected,
        worst_cosine=cosines[worst],
        worst_tensor=worst,
        tensors=len(cosines),
    )


def cosine(one: Tensor, other: Tensor | None) -> float:
    """Return the cosine of two tensors in float64; 0 where the other is missing, zero, or not finite."""
    if other is None or other.shape != one.shape:
        return 0.0
    a, b = one.flatten().double(), other.flatten().double()
    norms = a.norm() * b.norm()
    value = float(torch.dot(a, b) / norms) if norms > 0 else 0.0
    return value if math.isfinite(value) else 0.0
