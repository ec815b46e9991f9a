"""What the layers of one forward pass keep for the backward pass, on the GPU or in pinned main memory.

Copies run on streams of their own beside the computation. A tensor on its way out is let go of one layer later, or two; a
tensor on its way in is asked for one phase of a layer ahead.
"""

import contextlib
import warnings
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from core.models.fused.main_memory import free_main_memory
from core.models.fused.policy import Place

WASTE = 2
"""How many times larger than needed a buffer may be."""
LOCKED_SHARE = 0.6
"""Share of the main memory there is that may be locked at last; a little more than is planned with (HOST_SHARE)."""
Key = tuple[int, str]
"""Layer and name of a tensor."""


class PinningFailed(RuntimeError):
    """Main memory cannot be locked for copies."""


class HostMemory:
    """Pinned buffers, used again and again; as many as one forward pass needs.

    What is free is asked once more for each new buffer: a plan's share was counted when the process began, and other
    processes on the machine may have counted with the same memory. Each then stops short of what the others left.
    """

    def __init__(
        self, lock: Callable[[Tensor], bool] | None = None, unused: Callable[[], int] = free_main_memory
    ) -> None:
        """Start empty.

        Args:
            lock: Pins the memory of a tensor and tells whether it could; None asks CUDA.
            unused: Tells the bytes of main memory that are free.
        """
        self.lock, self.unused = lock or pinned, unused
        self.free: dict[int, list[Tensor]] = {}
        self.nbytes = 0
        self.limit: int | None = None
        """What could be locked when more was refused; None as long as nothing was."""
        self.pair: tuple[torch.cuda.Stream, torch.cuda.Stream] | None = None

    def streams(self, device: torch.device) -> tuple[torch.cuda.Stream, torch.cuda.Stream]:
        """Return the streams for copies out of the GPU and into it."""
        if self.pair is None:
            self.pair = torch.cuda.Stream(device), torch.cuda.Stream(device)
        return self.pair

    def take(self, nbytes: int) -> Tensor:
        """Return a buffer [nbytes] uint8.

        Raises:
            PinningFailed: If there is no more memory to lock.
        """
        fitting = [
            size for size, buffers in self.free.items() if buffers and nbytes <= size <= WASTE * nbytes
        ]
        if fitting:
            return self.free[min(fitting)].pop()
        idle = sum(size * len(buffers) for size, buffers in self.free.items())
        if self.limit is not None and self.nbytes - idle + nbytes > self.limit:
            raise PinningFailed(f"no more than {self.limit >> 20} MiB of main memory could be locked before")
        self._forget(nbytes)
        buffer = self._locked(nbytes)
        if buffer is None:
            self.limit = self.nbytes
            raise PinningFailed(f"main memory beyond {self.nbytes >> 20} MiB could not be locked")
        self.nbytes += nbytes
        return buffer

    def _locked(self, nbytes: int) -> Tensor | None:
        """Make a buffer; None if the machine is too short of memory, or refuses."""
        if self.nbytes + nbytes > LOCKED_SHARE * (self.unused() + self.nbytes):
            return None
        try:
            buffer = torch.empty(nbytes, dtype=torch.uint8)
            return buffer if self.lock(buffer) else None
        except RuntimeError:
            return None

    def give(self, buffer: Tensor) -> None:
        """Take a buffer back."""
        self.free.setdefault(buffer.numel(), []).append(buffer)

    def _forget(self, nbytes: int) -> None:
        """Unlock idle buffers of other sizes, the smallest first: lengths that vary must not add up."""
        freed = 0
        for size in sorted(self.free):
            while self.free[size] and freed < nbytes:
                self._unlock(self.free[size].pop())
                freed += size

    def _unlock(self, buffer: Tensor) -> None:
        self.nbytes -= buffer.numel()
        if self.lock is pinned:
            if self.pair is not None:
                for stream in self.pair:
                    stream.synchronize()
            torch.cuda.cudart().cudaHostUnregister(buffer.data_ptr())  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Unlock and forget the buffers that nobody uses."""
        for buffers in self.free.values():
            for buffer in buffers:
                self._unlock(buffer)
        self.free.clear()

    def __del__(self) -> None:
        """Unlock everything: memory that is given back locked cannot be locked again by whoever gets it."""
        self.close()


def pinned(buffer: Tensor) -> bool:
    """Lock a tensor's memory, to the byte; PyTorch's own pinned memory comes in powers of two."""
    status = torch.cuda.cudart().cudaHostRegister(buffer.data_ptr(), buffer.numel(), 0)  # type: ignore[no-untyped-call]
    if int(status) == 0:
        return True
    # CUDA would report this once more, as the failure of whatever is launched next.
    with contextlib.suppress(RuntimeError):
        torch.zeros(1, device="cuda")
    return False


class Kept(NamedTuple):
    """A tensor in main memory."""

    buffer: Tensor
    view: Tensor
    """The tensor itself, in the buffer."""


class Store:
    """The kept tensors of one forward pass; its buffers go back when nobody refers to the pass any more."""

    def __init__(self, device: torch.device, host: HostMemory) -> None:
        """Start empty.

        Args:
            device: Where the computation runs.
            host: Where buffers come from.
        """
        self.device, self.host = device, host
        self.is_gpu = device.type == "cuda"
        self.ahead = 0
        """Layers whose copies out may still run while the one after the next is computed."""
        self.here: dict[Key, Tensor] = {}
        self.states: dict[int, tuple[Any, ...]] = {}
        """What attention's kernel needs besides its tensors, by layer; small."""
        self.there: dict[Key, Kept] = {}
        self.coming: dict[Key, tuple[Tensor, torch.cuda.Event]] = {}
        self.leaving: deque[tuple[int, torch.cuda.Event, list[Tensor]]] = deque()
        if self.is_gpu:
            self.outward, self.inward = host.streams(device)

    def keep(self, layer: int, items: Iterable[tuple[str, Tensor, Place]]) -> None:
        """Keep a layer's tensors where their places say; they must not be written to afterwards.

        What cannot be pinned stays on the GPU.
        """
        leaving: list[Tensor] = []
        for name, tensor, place in items:
            if place is Place.DEVICE or (place is Place.HOST and not self.is_gpu):
                # Detached: a layer's input refers to the pass by its graph.
                self.here[layer, name] = tensor.detach()
            elif place is Place.HOST:
                leaving += self._send(layer, name, tensor)
        if leaving:
            self.leaving.append((layer, self.outward.record_event(), leaving))
        while self.leaving and self.leaving[0][0] < layer - self.ahead:
            _, event, _ = self.leaving.popleft()
            torch.cuda.current_stream(self.device).wait_event(event)

    def _send(self, layer: int, name: str, tensor: Tensor) -> list[Tensor]:
        try:
            buffer = self.host.take(tensor.nbytes)
        except PinningFailed as error:
            warnings.warn(f"activations stay on the GPU: {error}", RuntimeWarning, stacklevel=2)
            self.here[layer, name] = tensor.detach()
            return []
        view = buffer[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        self.there[layer, name] = Kept(buffer, view)
        self.outward.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.outward):
            view.copy_(tensor, non_blocking=True)
        # Detached, as above: a pass that dies before it walks back must be free.
        return [tensor.detach()]

    def ask(self, layer: int, names: Iterable[str]) -> None:
        """Start copying tensors back; ``take`` waits for them."""
        wanted = [(layer, name) for name in names if (layer, name) in self.there]
        wanted = [key for key in wanted if key not in self.coming]
        if not wanted:
            return
        fresh = {key: torch.empty_like(self.there[key].view, device=self.device) for key in wanted}
        self.inward.wait_stream(torch.cuda.current_stream(self.device))
        self.inward.wait_stream(self.outward)
        with torch.cuda.stream(self.inward):
            for key, tensor in fresh.items():
                tensor.copy_(self.there[key].view, non_blocking=True)
                self.coming[key] = tensor, self.inward.record_event()

    def take(self, layer: int, name: str) -> Tensor | None:
        """Return a kept tensor, or None if it must be computed again; its place on the GPU is given up."""
        key = layer, name
        while self.leaving:
            _, event, _ = self.leaving.popleft()
            torch.cuda.current_stream(self.device).wait_event(event)
        if key in self.there:
            self.ask(layer, [name])
            tensor, event = self.coming.pop(key)
            torch.cuda.current_stream(self.device).wait_event(event)
            return tensor
        return self.here.pop(key, None)

    def look(self, layer: int, name: str) -> Tensor | None:
        """Return a small tensor that stays until the pass is forgotten."""
        return self.here.get((layer, name))

    def __del__(self) -> None:
        """Give the buffers back, once no copy uses them."""
        if not self.there:
            return
        main = torch.cuda.current_stream(self.device)
        main.wait_stream(self.outward)
        main.wait_stream(self.inward)
        for kept in self.there.values():
            self.host.give(kept.buffer)
