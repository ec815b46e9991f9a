"""Where the fused kernels run: on NVIDIA GPUs with Triton; everywhere else the plain definitions do."""

import functools
import importlib.util

import torch


def runs_fused(device: torch.device) -> bool:
    """Tell whether the Triton kernels run on a device.

    AMD's GPUs call themselves "cuda" too; nobody has measured these kernels there, so they take the plain path.
    """
    return device.type == "cuda" and torch.version.cuda is not None and has_triton()


@functools.cache
def has_triton() -> bool:
    """Tell whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None
