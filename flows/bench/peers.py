"""Which systems can run here."""

import importlib.util
from collections.abc import Iterable

from core.models.frameworks import INSTALL_UNSLOTH
from core.training.benchmark.case import System

INSTALL_LIGER = "pip install 'data-factory[bench]'"
LIBRARIES: dict[System, tuple[str, str]] = {
    "liger": ("liger_kernel", INSTALL_LIGER),
    "unsloth": ("unsloth", INSTALL_UNSLOTH),
}
"""The library that a system needs besides ours, and how to get it."""


def obstacles(systems: Iterable[System], *, has_gpu: bool) -> dict[System, str]:
    """Say of each system that cannot run here why not."""
    found: dict[System, str] = {}
    for system in systems:
        if system not in LIBRARIES:
            continue
        library, install = LIBRARIES[system]
        if importlib.util.find_spec(library) is None:
            found[system] = f"not installed: {install}"
        elif not has_gpu:
            found[system] = "needs a GPU, and PyTorch finds none"
    return found
