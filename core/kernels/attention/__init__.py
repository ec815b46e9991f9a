"""Causal attention with grouped keys, windows and packed documents."""

from core.kernels.attention.fused import Chooser
from core.kernels.attention.kernel import Attended, Documents, Kernel, KernelNotice
from core.kernels.attention.reference import attention, visible

__all__ = ["Attended", "Chooser", "Documents", "Kernel", "KernelNotice", "attention", "visible"]
