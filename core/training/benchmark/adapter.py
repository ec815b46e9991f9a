"""Adapter weights that do something, and are the same under every system."""

import hashlib
import math

import torch
from torch import Tensor, nn

B_STD = 0.02
"""B starts at zero in training, where the gradient of A is zero: nothing could be compared."""


def plain_name(name: str) -> str:
    """Return a tensor's name from the layer on; what stands before it differs between wrappers."""
    place = name.find("layers.")
    return name[place:] if place >= 0 else name


def adapter_tensors(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what is trained, by plain name."""
    return {plain_name(name): p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def fill(model: nn.Module, seed: int) -> None:
    """Draw every adapter tensor from a generator that its own name seeds: A as PEFT does, B small."""
    for name, parameter in adapter_tensors(model).items():
        digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        drawn = torch.empty(parameter.shape)
        if "lora_A" in name:
            drawn.uniform_(-1, 1, generator=generator).div_(math.sqrt(parameter.shape[-1]))
        else:
            drawn.normal_(0.0, B_STD, generator=generator)
        parameter.copy_(drawn)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of every adapter tensor's gradient, float32, on the CPU; tensors without one are left out."""
    found = {name: p.grad for name, p in adapter_tensors(model).items()}
    return {name: grad.detach().float().cpu().clone() for name, grad in found.items() if grad is not None}
