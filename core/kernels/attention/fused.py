"""Attention through the fastest exact kernel, found by timing the candidates once for every shape.

The kernels are called below autograd, so that their caller decides what is kept for the backward pass. Of PyTorch's
own on an H200, cuDNN is nearly twice as fast as flash attention wherever rows are dense; packed documents and windows
are flash's. cuDNN's own kernels for packed documents reached 7 TFLOP/s in PyTorch 2.11 and read beyond their buffers
at 32,768 tokens, so they are no candidates. Flash attention 4 computes all of these at some head widths: forward
about as fast as cuDNN, backward in up to 16 % less time (at width 256 it takes 6 % more), and in 20 to 47 % less than
PyTorch's flash attention. Not being PyTorch's, it is a candidate for a shape only if it agrees there with a kernel that is.
"""

import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from core.kernels.attention.agreement import ALLOWED, disagreement
from core.kernels.attention.flash_four import FlashFour
from core.kernels.attention.kernel import (
    GRAIN,
    Attended,
    Documents,
    Kernel,
    KernelNotice,
    flattened,
    window_of,
)
from core.kernels.attention.reference import attention, visible


class Plain:
    """The definition, differentiated by autograd; on any device."""

    name = "plain"
    is_trusted = True

    def fits(self, q: Tensor, k: Tensor, window: int | None, documents: Documents | None) -> bool:
        """Tell whether it computes this."""
        return True

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, documents: Documents | None
    ) -> Attended:
        """Compute attention."""
        seen = visible(q.shape[2], window=window, documents=numbered(q, documents), device=q.device)
        out = attention(q, k, v, seen, scale)
        return Attended(out.transpose(1, 2).contiguous().transpose(1, 2), ())

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
        """Compute the gradients from the start."""
        seen = visible(q.shape[2], window=window, documents=numbered(q, documents), device=q.device)
        with torch.enable_grad():
            q, k, v = (each.detach().requires_grad_() for each in (q, k, v))
            out = attention(q, k, v, seen, scale)
            dq, dk, dv = torch.autograd.grad(out, (q, k, v), grad)
        return dq, dk, dv


class Cudnn:
    """cuDNN, for dense rows without a window."""

    name = "cudnn"
    is_trusted = True

    def fits(self, q: Tensor, k: Tensor, window: int | None, documents: Documents | None) -> bool:
        """Tell whether it computes this."""
        is_narrow = window is not None and window < q.shape[2]
        modern = torch.cuda.get_device_capability(q.device) >= (8, 0)
        # One token alone is something it refuses.
        is_fit = q.shape[2] > 1 and q.shape[3] % 8 == 0 and q.shape[3] <= 256
        return modern and documents is None and not is_narrow and is_fit

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, documents: Documents | None
    ) -> Attended:
        """Compute attention."""
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, True, 0.0, True, False, scale=scale
        )
        return Attended(found[0], tuple(found[1:8]))

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
        """Compute the gradients."""
        lse, starts_q, starts_k, most_q, most_k, seed, offset = done.state
        found: tuple[Tensor, Tensor, Tensor] = (
            torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
                grad, q, k, v, done.out, lse, seed, offset, None, starts_q, starts_k, most_q, most_k, 0.0, True,
                scale=scale,
            )
        )  # fmt: skip
        return found


class Flash:
    """Flash attention (arXiv:2307.08691): documents, windows, any rows."""

    name = "flash"
    is_trusted = True

    def fits(self, q: Tensor, k: Tensor, window: int | None, documents: Documents | None) -> bool:
        """Tell whether it computes this."""
        modern = torch.cuda.get_device_capability(q.device) >= (8, 0)
        return modern and q.shape[3] % 8 == 0 and q.shape[3] <= 256

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, documents: Documents | None
    ) -> Attended:
        """Compute attention over the flattened batch."""
        starts, longest = documents or evenly(q)
        flat = [flattened(each) for each in (q, k, v)]
        found = torch.ops.aten._flash_attention_forward(
            *flat, starts, starts, longest, longest, 0.0, True, False, scale=scale, **window_of(window)
        )
        b, h, s, d = q.shape
        return Attended(found[0].view(b, s, h, d).transpose(1, 2), tuple(found[1:4]))

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
        """Compute the gradients."""
        starts, longest = documents or evenly(q)
        lse, seed, offset = done.state
        flat = [flattened(each) for each in (grad, q, k, v, done.out)]
        found = torch.ops.aten._flash_attention_backward(
            *flat,
            lse,
            starts,
            starts,
            longest,
            longest,
            0.0,
            True,
            seed,
            offset,
            scale=scale,
            **window_of(window),
        )
        b, _, s, d = q.shape
        dq, dk, dv = (each.view(b, s, -1, d).transpose(1, 2) for each in found[:3])
        return dq, dk, dv


HOST_WEIGHT = 1.5
"""How much of the GPU's time a kernel's own launching may cost: the host has all of a layer to launch meanwhile, and a
kernel that keeps it longer would make the GPU wait for the rest."""
KERNELS: tuple[Kernel, ...] = (Cudnn(), FlashFour(), Flash())
PLAIN: Kernel = Plain()
Timer = Callable[[Callable[[], object]], float]


class Chooser:
    """Remembers which kernel is the fastest for a shape."""

    def __init__(self, timer: Timer | None = None, kernels: tuple[Kernel, ...] = KERNELS) -> None:
        """Take the candidates.

        Args:
            timer: Returns the milliseconds of some work; None uses the GPU's own clock.
            kernels: The first is preferred on a tie.
        """
        self.timer = timer or milliseconds
        self.kernels = kernels
        self.known: dict[tuple[object, ...], Kernel] = {}
        self.told: set[str] = set()
        """Names of kernels that were said to be wrong."""

    def choose(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, documents: Documents | None
    ) -> Kernel:
        """Return the fastest kernel for tensors like these."""
        if q.device.type != "cuda" or q.dtype not in (torch.bfloat16, torch.float16):
            return PLAIN
        b, h, tokens, width = q.shape
        # Lengths that nearly agree share a choice; every new one would be timed.
        about = -(-tokens // GRAIN)
        is_long = None if documents is None else documents.longest > GRAIN
        key = (b, h, about, width, k.shape[1], q.dtype, window, is_long, q.device)
        found = self.known.get(key)
        if found is None:
            found = self.known[key] = self.measure(q, k, v, scale, window, documents)
        return found

    def measure(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, documents: Documents | None
    ) -> Kernel:
        """Return the fastest of the candidates that compute this, and rightly; remembers nothing."""
        fitting = [each for each in self.kernels if each.fits(q, k, window, documents)]
        trusted = [each for each in fitting if each.is_trusted]
        fitting = [
            each
            for each in fitting
            if each.is_trusted or self._agrees(each, trusted, q, k, scale, window, documents)
        ]
        if len(fitting) < 2:
            return fitting[0] if fitting else PLAIN
        took: dict[str, float] = {}
        for each in fitting:

            def both(kernel: Kernel = each) -> None:
                done = kernel.forward(q, k, v, scale, window, documents)
                kernel.backward(done.out, q, k, v, done, scale, window, documents)

            try:
                took[each.name] = self.timer(both)
            except RuntimeError as error:
                # A kernel that has no plan for a shape says so; one that finds no memory is not to blame.
                if isinstance(error, torch.OutOfMemoryError):
                    raise
        best = min(took, key=lambda name: took[name], default=PLAIN.name)
        return next((each for each in fitting if each.name == best), PLAIN)

    def _agrees(
        self,
        kernel: Kernel,
        trusted: list[Kernel],
        q: Tensor,
        k: Tensor,
        scale: float,
        window: int | None,
        documents: Documents | None,
    ) -> bool:
        """Tell whether a kernel computes what a trusted one does; say so if it does not."""
        try:
            error = disagreement(kernel, trusted, q, k, scale, window, documents)
        except RuntimeError as problem:
            # No room to compare in is no reason to fail: what is trusted needs no comparison.
            found = f"it could not be compared: {problem}"
        else:
            if error <= ALLOWED:
                return True
            found = f"it errs by {error:.2g} of the right result or gradient, {ALLOWED} is allowed"
        if kernel.name not in self.told:
            self.told.add(kernel.name)
            shape = f"{list(q.shape)}, {k.shape[1]} heads of keys, {q.dtype}"
            warnings.warn(f"attention by {kernel.name} is not used: {found} ({shape})", KernelNotice, 2)
        return False


def milliseconds(work: Callable[[], object]) -> float:
    """Time work, the best of three after a warm-up: on the GPU, or what launching it keeps from it."""
    work()
    found: list[float] = []
    for _ in range(3):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        began = time.perf_counter()
        work()
        launched = 1e3 * (time.perf_counter() - began)
        end.record()
        end.synchronize()
        found.append(cost(start.elapsed_time(end), launched))
    return min(found)


def cost(gpu_ms: float, host_ms: float) -> float:
    """Return what a kernel counts for: its time on the GPU, or its launching's where that weighs more."""
    return max(gpu_ms, HOST_WEIGHT * host_ms)


def evenly(q: Tensor) -> Documents:
    """Take every row of a batch as one document."""
    b, _, s, _ = q.shape
    return Documents(torch.arange(0, b * s + 1, s, device=q.device, dtype=torch.int32), s)


def numbered(q: Tensor, documents: Documents | None) -> Tensor | None:
    """Number the documents of a batch: [b, s]."""
    if documents is None:
        return None
    places = torch.arange(q.shape[0] * q.shape[2], device=q.device, dtype=torch.int32)
    return torch.bucketize(places, documents.starts[1:], right=True).view(q.shape[0], q.shape[2])
