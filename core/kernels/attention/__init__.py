"""Causal attention with grouped keys, windows and packed documents."""

from core.kernels.attention.fused import Attended, Chooser, Documents, Kernel
from core.kernels.attention.reference import attention, visible

__all__ = ["Attended", "Chooser", "Documents", "Kernel", "attention", "visible"]
