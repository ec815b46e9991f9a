"""When memory runs out: less is kept, or smaller micro-batches, more of them; the same optimizer step."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch

from core.errors import ResourceError
from core.training.hints import hint

T = TypeVar("T")

# What PyTorch's allocators and libraries say in a plain RuntimeError.
_SAID = (
    "DefaultCPUAllocator: not enough memory",
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means that memory ran out, on a GPU or on the CPU."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _SAID)


def out_of_memory(where: str = "training.per_device_train_batch_size") -> ResourceError:
    """Return the message for memory that ran out in training."""
    return ResourceError("memory ran out during training", where=where, fix=hint("oom"))


@contextmanager
def explained() -> Iterator[None]:
    """Turn running out of memory into advice."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory() from error


class MicroBatches:
    """Cuts the rows of an optimizer step into micro-batches that fit into memory.

    The rows of a step and their order stay; a loss divided by the tokens of the whole step does not depend on
    how they are cut.
    """

    def __init__(
        self,
        size: int,
        accumulation: int,
        *,
        may_shrink: bool,
        shrinks: int = 0,
        relief: Callable[[], bool] | None = None,
    ) -> None:
        """Remember the sizes.

        Args:
            size: Rows of a micro-batch, as configured.
            accumulation: Micro-batches of a step, as configured.
            may_shrink: Halve the size when memory runs out.
            shrinks: Times that it was halved already, by the run that is resumed.
            relief: Tried before the size is halved: makes a pass with gradients take less memory; tells whether
                it could.
        """
        self.size, self.per_step = size, size * accumulation
        self.may_shrink, self.shrinks = may_shrink, 0
        self.relief, self.reliefs = relief, 0
        for _ in range(shrinks):
            self._halve()

    @property
    def accumulation(self) -> int:
        """Return the micro-batches of a full step."""
        return -(-self.per_step // self.size)

    @property
    def figures(self) -> dict[str, float]:
        """Return what a log is told of the size."""
        return {"micro_batch": self.size, "accumulation": self.accumulation}

    def split(self, rows: Sequence[T]) -> list[Sequence[T]]:
        """Cut rows in order; the last part may be smaller."""
        return [rows[first : first + self.size] for first in range(0, len(rows), self.size)]

    def give_way(self, *, trains: bool = True) -> dict[str, float]:
        """Take less memory from now on: by relief if there is any, else by halving the size.

        Args:
            trains: It ran out in a pass with gradients; relief is for no other.

        Returns:
            What a log is told of it.

        Raises:
            ResourceError: If a single row is too much, or shrinking is not allowed.
        """
        if trains and self.relief and self.relief():
            self.reliefs += 1
            return {"reliefs": self.reliefs}
        if not self.may_shrink or self.size == 1:
            raise out_of_memory()
        self._halve()
        return {**self.figures, "shrinks": self.shrinks}

    def _halve(self) -> None:
        self.size = max(1, self.size // 2)
        self.shrinks += 1


def until_it_fits(attempt: Callable[[], T], give_way: Callable[[], None]) -> T:
    """Return what ``attempt`` returns, trying again after ``give_way`` while memory runs out.

    Args:
        attempt: May be started again from its beginning.
        give_way: Makes room, or raises.
    """
    while True:
        try:
            return attempt()
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        # Only here, outside the handler, are the tensors free that the error's traceback kept alive.
        give_way()
        free_memory()


def free_memory() -> None:
    """Let go of what nobody holds any more, on a GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
