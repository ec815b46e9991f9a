"""What every way to compute attention takes and returns."""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

GRAIN = 256
"""Tokens of a row that a choice is made for. No kernel's tiles are longer: beyond it all of a kernel's loops are taken."""


class KernelNotice(UserWarning):
    """A kernel is not used."""


class Documents(NamedTuple):
    """Documents that lie end to end in a batch of tokens."""

    starts: Tensor
    """[d + 1] int32: first token of each in the flattened batch, and the number of tokens."""
    longest: int
    """Tokens of the longest, or more."""


class Attended(NamedTuple):
    """A result, and what its backward pass needs besides q, k and v."""

    out: Tensor
    """[b, h, s, d], laid out as [b, s, h, d]."""
    state: tuple[Any, ...]


class Kernel(Protocol):
    """One way to compute attention."""

    name: str
    is_trusted: bool
    """Whether it is right wherever it fits; another's results are compared with such a one's before it is used."""

    def fits(self, q: Tensor, k: Tensor, window: int | None, documents: Documents | None) -> bool:
        """Tell whether it computes this, and exactly."""
        ...

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, documents: Documents | None
    ) -> Attended:
        """Compute attention; see ``attend``."""
        ...

    def backward(
        self,
        grad: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        done: Attended,
        scale: float,
        window: int | None,
        documents: Documents | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the gradients of q, k and v; see ``attend_backward``."""
        ...


def flattened(tensor: Tensor) -> Tensor:
    """View [b, h, s, d] as [b * s, h, d]; a copy only where the batch does not lie evenly."""
    b, h, s, d = tensor.shape
    return tensor.transpose(1, 2).reshape(b * s, h, d)


def window_of(window: int | None) -> dict[str, int]:
    """Say in flash attention's words how far a token sees."""
    return {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
