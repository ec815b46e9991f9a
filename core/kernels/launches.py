"""Launches of a Triton kernel that are made again and again with the very same arguments."""

from collections.abc import Callable, Sequence
from typing import Any


class Launch:
    """One launch, to be called as often as it is wanted.

    Triton looks at every argument of every launch to find the kernel that was compiled for its kind, which takes the
    host longer than the launch itself. Where nothing changes but what the memory holds, it need only look once.
    """

    def __init__(self, kernel: Any, grid: Sequence[int], *arguments: Any, **options: Any) -> None:
        """Describe a launch.

        Args:
            kernel: A function of ``triton.jit``.
            grid: Programs along each axis.
            arguments: All of the kernel's, in its order, constants too. Tensors are held; they must stay where they
                are, and the launch on the GPU that was the current one when it was called first.
            options: Of the compilation, such as ``num_warps``.
        """
        self._kernel, self._grid, self._arguments, self._options = kernel, tuple(grid), arguments, options
        self._ready: Callable[..., object] | None = None

    def __call__(self) -> None:
        """Launch."""
        if self._ready is not None:
            self._ready(*self._arguments)
            return
        compiled = self._kernel[self._grid](*self._arguments, **self._options)
        # The interpreter compiles nothing.
        if compiled is not None:
            self._ready = compiled[(*self._grid, 1, 1)[:3]]
