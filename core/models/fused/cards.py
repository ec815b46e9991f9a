"""How fast a card is, from what its driver says of it; no PyTorch."""

from core.models.fused.costs import H200, Rates, rates_of

CLOCK, MEMORY = 1.5e9, 0.5e12
"""Hertz and bytes/s of a card that does not tell them."""


def card_rates(
    name: str, processors: int, capability: tuple[int, int], clock: float, memory_clock: float, bus: int
) -> Rates:
    """Return a card's rates: measured ones of an H200, else estimated ones.

    Args:
        name: As the driver calls it.
        processors: Streaming multiprocessors.
        capability: Compute capability, such as (8, 9).
        clock: Highest clock of the processors in kilohertz.
        memory_clock: Of the memory, in kilohertz.
        bus: Width of the way to the memory in bits. Where one of the three is 0, both clocks are guessed.
    """
    if "H200" in name:
        return H200
    if not (clock and memory_clock and bus):
        return rates_of(processors, capability, CLOCK, MEMORY)
    # Memory moves two words a cycle.
    return rates_of(processors, capability, clock * 1e3, 2 * memory_clock * 1e3 * bus / 8)
