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


@functools.cache
def capability(device: torch.device) -> tuple[int, int]:
    """Return an NVIDIA GPU's compute capability; where there is none, kernels are interpreted, and nothing is missing."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (9, 0)


def multiplies_from_shared_memory(device: torch.device) -> bool:
    """Tell whether products read their factors from shared memory (``wgmma``, ``tcgen05``), not from registers.

    Kernels that hold a tile and its sums in registers spill where these must hold the factors too.
    """
    return capability(device)[0] in (9, 10)
