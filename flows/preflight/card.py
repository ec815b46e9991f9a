"""How fast the first GPU is, by the library behind nvidia-smi: no torch, and no CUDA in a process that may fork."""

import ctypes
import os
from typing import Any

from core.models.fused.cards import card_rates
from core.models.fused.costs import Rates

LIBRARY = "nvml.dll" if os.name == "nt" else "libnvidia-ml.so.1"
SM_CLOCK, MEMORY_CLOCK = 1, 2
"""Kinds of clocks (nvmlClockType_t)."""


def find_rates(name: str, library: Any = None) -> Rates | None:
    """Estimate the rates of the first GPU as the fused engine will.

    Args:
        name: As nvidia-smi calls it.
        library: NVML; None loads it.

    Returns:
        None where the driver does not tell them: without a GPU, of a slice of one, before version 510.
    """
    try:
        driver = library or ctypes.CDLL(LIBRARY)
        if driver.nvmlInit_v2():
            return None
        try:
            return _read(driver, name)
        finally:
            driver.nvmlShutdown()
    except (OSError, AttributeError):
        # No driver, or one that lacks a function.
        return None


def _read(driver: Any, name: str) -> Rates | None:
    """Ask the library; every function answers 0 if it could."""
    card = ctypes.c_void_p()
    major, minor = ctypes.c_int(), ctypes.c_int()
    cores, bus, clock, memory = (ctypes.c_uint() for _ in range(4))
    refused = (
        driver.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(card))
        or driver.nvmlDeviceGetCudaComputeCapability(card, ctypes.byref(major), ctypes.byref(minor))
        or driver.nvmlDeviceGetNumGpuCores(card, ctypes.byref(cores))
        or driver.nvmlDeviceGetMemoryBusWidth(card, ctypes.byref(bus))
        or driver.nvmlDeviceGetMaxClockInfo(card, SM_CLOCK, ctypes.byref(clock))
        or driver.nvmlDeviceGetMaxClockInfo(card, MEMORY_CLOCK, ctypes.byref(memory))
    )
    if refused:
        return None
    capability = major.value, minor.value
    processors = cores.value // cores_of_one(capability)
    # NVML's clocks are megahertz.
    return card_rates(name, processors, capability, 1e3 * clock.value, 1e3 * memory.value, bus.value)


def cores_of_one(capability: tuple[int, int]) -> int:
    """Return the cores for float32 of one streaming multiprocessor."""
    return 64 if capability <= (8, 0) and capability != (6, 1) else 128
