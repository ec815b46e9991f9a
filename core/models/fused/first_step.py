"""What the first optimizer step takes of a GPU's memory, and later ones find there."""

from collections.abc import Iterable

from torch import Tensor

from core.models.fused.gathering import Gathering

GRADIENT_BYTES, STATE_BYTES = 4, 8
"""What a trained number takes beside itself: the widest optimizer keeps two of 32 bits."""


class FirstStep:
    """Follows the gradients: once they were there and are gone, the optimizer has stepped and has its state."""

    def __init__(self) -> None:
        """Begin before the first pass."""
        self.has_gradients = self.is_done = False

    def look(self, parameters: Iterable[Tensor], gathering: Gathering | None = None) -> None:
        """See what is there before a pass; micro-batches of one step leave gradients to each other.

        Args:
            parameters: Of a layer.
            gathering: Where gradients may wait that are in no ``.grad`` yet.
        """
        waits = gathering is not None and gathering.has_some
        has_now = waits or any(each.grad is not None for each in parameters)
        had, self.has_gradients = self.has_gradients, has_now
        self.is_done = self.is_done or (had and not self.has_gradients)

    def to_come(self, trained: int) -> int:
        """Count the bytes that so many trained numbers will still take."""
        if self.is_done:
            return 0
        return trained * (STATE_BYTES if self.has_gradients else STATE_BYTES + GRADIENT_BYTES)
