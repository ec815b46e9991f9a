"""What this machine has: a GPU or not, free memory, free disk. Asks the driver's tool, never torch."""

import importlib.metadata
import platform
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import psutil

from core.errors import ResourceError
from core.models.fused.costs import Rates
from core.models.resources import GB
from flows.preflight.card import find_rates

INTEGER_PROCESSORS = frozenset({"x86_64", "amd64", "aarch64", "arm64"})


class Device(NamedTuple):
    """Where a run would compute."""

    words: str
    is_gpu: bool
    free: int
    """Bytes that a run could take."""
    total: int
    """Bytes there are."""
    rates: Rates | None = None
    """How fast it is; None where nobody tells."""


def find_device() -> Device:
    """Find the first GPU and its free memory by nvidia-smi, else this machine's memory."""
    tool = shutil.which("nvidia-smi")
    # A CPU build of torch leaves the GPU idle, whatever the driver says.
    if tool and not importlib.metadata.version("torch").endswith("+cpu") and (gpu := read_gpu(tool)):
        return gpu
    memory = psutil.virtual_memory()
    return Device(f"CPU, {memory.total / GB:.1f} GB memory", False, memory.available, memory.total)


def read_gpu(tool: str) -> Device | None:
    """Read the first GPU's name and memory from nvidia-smi; None if it reports none of its own."""
    query = [tool, "--query-gpu=name,memory.total,memory.free", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
        name, total, free = answer.splitlines()[0].rsplit(",", 2)
        words = f"{name}, {int(total) / 1024:.1f} GB"
        return Device(words, True, int(free) * 1024**2, int(total) * 1024**2, find_rates(name))
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None  # no driver behind the tool, or a GPU that shares the machine's memory ("[N/A]")


def find_integer_obstacle(machine: str | None = None) -> ResourceError | None:
    """Say why PyTorch cannot multiply 8-bit integers on a processor; None if it can.

    Args:
        machine: The processor's kind as ``platform.machine`` names it; None takes this one's.
    """
    kind = machine or platform.machine()
    if kind.lower() in INTEGER_PROCESSORS:
        return None
    what = f"PyTorch multiplies 8-bit integers on x86 and ARM processors only, and this one is {kind}"
    return ResourceError(what, where="quantization.pytorch", fix="quantization.pytorch: []")


def nearest_folder(path: Path) -> Path:
    """Return the path or its nearest parent that exists."""
    absolute = path.expanduser().absolute()
    return next(place for place in (absolute, *absolute.parents) if place.is_dir())
