"""How many layers' 4-bit weights stay expanded: memory that activations could have, for time in every pass.

Plain arithmetic: no PyTorch here.
"""

from core.models.fused.costs import LayerShape, Rates

UNPACK_BYTES = 2.6
"""Bytes read and written to expand a 4-bit weight."""


def unpack_ms(shape: LayerShape, expanded_bytes: int, rates: Rates) -> float:
    """Predict what expanding a layer's 4-bit weights takes of a micro-batch: once in the forward, once in the backward pass.

    Args:
        shape: The layer.
        expanded_bytes: What they take once expanded, extra rows and columns among them; 0 for weights of 16 bits.
        rates: How fast the GPU is.
    """
    numbers = min(shape.weights, expanded_bytes // shape.width)
    return 2e3 * UNPACK_BYTES * numbers / rates.memory


def fitting(expansions: tuple[int, ...], room: int) -> list[int]:
    """List the numbers of first layers that could stay expanded, 0 first; layers without 4-bit weights add none.

    Args:
        expansions: Bytes by layer of its expanded 4-bit weights.
        room: Bytes there are.
    """
    stops, left = [0], room
    for number, size in enumerate(expansions, start=1):
        left -= size
        if size and left >= 0:
            stops.append(number)
    return stops
