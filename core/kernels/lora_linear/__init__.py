"""Frozen linear layers that share an input, with low-rank adapters inside the same matrix product."""

from core.kernels.lora_linear.group import Group, Scratch
from core.kernels.lora_linear.reference import Adapter, Projection, lora_linear

__all__ = ["Adapter", "Group", "Projection", "Scratch", "lora_linear"]
