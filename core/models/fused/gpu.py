"""What a GPU says of itself: how fast it is, and how much of its memory is left."""

import torch

from core.models.fused.cards import card_rates
from core.models.fused.costs import H200, SPARE, Rates


def rates_here(device: torch.device) -> Rates:
    """Return the rates of the GPU there is; without one nothing is planned."""
    if device.type != "cuda":
        return H200
    found = torch.cuda.get_device_properties(device)
    clock, memory, bus = (
        getattr(found, name, 0) for name in ("clock_rate", "memory_clock_rate", "memory_bus_width")
    )
    capability = found.major, found.minor
    return card_rates(found.name, found.multi_processor_count, capability, clock, memory, bus)


def unheld(device: torch.device) -> int:
    """Return the bytes of a GPU that nothing holds, less a reserve."""
    free, total = torch.cuda.mem_get_info(device)
    reserved = torch.cuda.memory_reserved(device)
    unused = reserved - torch.cuda.memory_allocated(device)
    allowed = allowed_share(device) * total
    return int(min(free, allowed - reserved) + unused - SPARE * allowed)


def allowed_share(device: torch.device) -> float:
    """Return the share of a GPU's memory that this process was told to stay within; old releases do not say."""
    asked = getattr(torch.cuda, "get_per_process_memory_fraction", None)
    return float(asked(device)) if asked else 1.0
