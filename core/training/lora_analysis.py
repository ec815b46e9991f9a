"""What an adapter's matrices look like: their norms, their rank in effect, their largest singular values."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from core.training.reports import LoraAnalysis, LoraLayer

TOP = 5


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Return the singular values of B A without forming it.

    With B = Q_b R_b and A^T = Q_a R_a, B A = Q_b (R_b R_a^T) Q_a^T: the orthogonal factors leave singular values
    alone, and the matrix between them is r x r.

    Args:
        a: [r, in]
        b: [out, r]

    Returns:
        [min(r, in, out)] float64, largest first.
    """
    left = torch.linalg.qr(b.double(), mode="r").R
    right = torch.linalg.qr(a.double().T, mode="r").R
    values: Tensor = torch.linalg.svdvals(left @ right.T)
    return values


def effective_rank(sigma: Tensor) -> float:
    """Return exp(entropy) of the singular values' shares (Roy & Vetterli 2007); 0 for a matrix of zeros."""
    total = float(sigma.sum())
    if total == 0:
        return 0.0
    shares = sigma / total
    return math.exp(float(torch.special.entr(shares).sum()))


def analyse(name: str, a: Tensor, b: Tensor, scale: float) -> LoraLayer:
    """Describe one adapted layer, W + scale B A.

    Args:
        name: The layer.
        a: [r, in]
        b: [out, r]
        scale: What the product is multiplied with.
    """
    sigma = singular_values(a, b) * scale
    return LoraLayer(
        name=name,
        rank=a.shape[0],
        norm_a=float(a.double().norm()),
        norm_b=float(b.double().norm()),
        norm_update=float(sigma.norm()),
        effective_rank=effective_rank(sigma),
        top=tuple(sigma[:TOP].tolist()),
    )


def analyse_adapter(folder: Path, scale: float) -> LoraAnalysis:
    """Describe every layer of an adapter folder that PEFT wrote.

    Args:
        folder: Holds ``adapter_model.safetensors``.
        scale: lora_alpha / r, or lora_alpha / sqrt(r) with rsLoRA.
    """
    tensors = load_file(folder / "adapter_model.safetensors")
    return LoraAnalysis(scale=scale, layers=tuple(_layers(tensors, scale)))


def _layers(tensors: Mapping[str, Tensor], scale: float) -> Iterator[LoraLayer]:
    end = ".lora_A.weight"
    for key in sorted(tensors):
        if key.endswith(end):
            name = key.removesuffix(end)
            yield analyse(
                name.removeprefix("base_model.model."), tensors[key], tensors[f"{name}.lora_B.weight"], scale
            )
