"""Streams without a GPU, as late as the rules allow: a copy runs when somebody waits for it, and not before.

A missing wait then reads numbers that never arrived, and a tensor that is let go of too early is gone.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core.models.fused.store import HostMemory, Store


class Event:
    """A point in a stream's work."""

    def __init__(self, stream: "Stream") -> None:
        self.stream, self.place = stream, stream.queued


class Stream:
    """Work in order, done when it is waited for; the main stream's work is done at once."""

    def __init__(self) -> None:
        self.queued = self.done = 0
        self.work: list[Callable[[], None]] = []

    def add(self, work: Callable[[], None]) -> None:
        self.work.append(work)
        self.queued += 1

    def record_event(self) -> Event:
        return Event(self)

    def wait_event(self, event: Event) -> None:
        self._wait(event.stream, event.place)

    def wait_stream(self, other: "Stream") -> None:
        self._wait(other, other.queued)

    def _wait(self, other: "Stream", place: int) -> None:
        if other is MAIN:
            return
        if self is MAIN:
            other.run(place)
        else:
            self.add(lambda: other.run(place))

    def synchronize(self) -> None:
        self.run(self.queued)

    def run(self, place: int) -> None:
        while self.done < place:
            self.done += 1
            self.work.pop(0)()


MAIN = Stream()


class Late(TorchDispatchMode):
    """Puts copies into a stream; their targets hold NaN until they run."""

    def __init__(self, stream: Stream) -> None:
        super().__init__()
        self.stream = stream

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            target, source = args[0], weakref.ref(args[1].untyped_storage())
            size, stride, offset = args[1].shape, args[1].stride(), args[1].storage_offset()
            dtype = args[1].dtype

            def copy() -> None:
                storage = source()
                assert storage is not None, "a tensor was let go of before it was copied"
                target.copy_(torch.empty(0, dtype=dtype).set_(storage, offset, size, stride))

            target.fill_(float("nan"))
            self.stream.add(copy)
            return target
        return func(*args, **(kwargs or {}))


class Ashore(Store):
    """A store that takes the processor for a GPU."""

    made: "list[weakref.ref[Ashore]]" = []

    def __init__(self, device: torch.device, host: HostMemory) -> None:
        super().__init__(device, host)
        self.is_gpu = True
        host.pair = host.pair or (Stream(), Stream())  # type: ignore[assignment]
        self.outward, self.inward = host.pair
        Ashore.made.append(weakref.ref(self))


@contextmanager
def late(stream: Stream) -> Iterator[None]:
    """Stand in for ``torch.cuda.stream``."""
    with Late(stream):
        yield
