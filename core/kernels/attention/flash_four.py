"""Flash attention 4 (the package flash-attn-4): Hopper's own instructions, also for documents and windows.

It is called below autograd, through what the package itself calls there; those names are not promised to stay, so
another release than the pinned one may be passed over. Its kernels are compiled at their first use, 3 to 6 s each.
"""

import functools
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from core.kernels.attention.kernel import GRAIN, Attended, Documents, KernelNotice, flattened, window_of

HOPPER = 9
"""Major compute capability of the cards it was tried on; newer ones have other kernels there."""
# 2026-11-22, 4.0.0b36 on an H200: right at these widths, gradients of width 80 err by 0.7 to 1.3; no other was tried.
WIDTHS = (64, 128, 256)
NAMES = ("_flash_attn_fwd", "_flash_attn_bwd")


@functools.cache
def package() -> ModuleType | None:
    """Return what computes, or None where it is not installed or does not load."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from flash_attn.cute import interface
    except Exception as error:  # noqa: BLE001 - it loads a compiler of its own, and what is wrong with that is no error here
        if isinstance(error, ModuleNotFoundError) and error.name in ("flash_attn", "flash_attn.cute"):
            return None
        problem = f"{type(error).__name__}: {error}"
    else:
        missing = [name for name in NAMES if not hasattr(interface, name)]
        if not missing:
            found: ModuleType = interface
            return found
        problem = f"it has no {missing[0]}"
    warnings.warn(f"flash-attn-4 is installed and not used: {problem}", KernelNotice, stacklevel=2)
    return None


class FlashFour:
    """Flash attention for Hopper (arXiv:2407.08608, in the package's CuTe): rows, documents, windows."""

    name = "flash4"
    is_trusted = False

    def fits(self, q: Tensor, k: Tensor, window: int | None, documents: Documents | None) -> bool:
        """Tell whether it computes this."""
        # Short rows are compiled apart there, and a choice for some lengths must not stand for those.
        is_long = (q.shape[2] if documents is None else documents.longest) > GRAIN
        is_fit = is_long and q.shape[3] in WIDTHS and q.dtype in (torch.bfloat16, torch.float16)
        if torch.are_deterministic_algorithms_enabled():
            return False
        # The package comes last: importing it takes seconds.
        return is_fit and is_hopper(q.device) and package() is not None

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, documents: Documents | None
    ) -> Attended:
        """Compute attention."""
        flat = [laid_out(each, documents) for each in (q, k, v)]
        found = called("_flash_attn_fwd", *flat, return_lse=True, **settings(scale, window, documents))
        b, h, s, d = q.shape
        return Attended(found[0].view(b, s, h, d).transpose(1, 2), (found[1],))

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
        flat = [laid_out(each, documents) for each in (q, k, v, done.out, grad)]
        found = called("_flash_attn_bwd", *flat, *done.state, **settings(scale, window, documents))
        b, _, s, d = q.shape
        dq, dk, dv = (each.view(b, s, -1, d).transpose(1, 2) for each in found[:3])
        return dq, dk, dv


def is_hopper(device: torch.device) -> bool:
    """Tell whether a GPU is NVIDIA's of that generation; AMD's numbers begin with 9 too."""
    return torch.version.cuda is not None and torch.cuda.get_device_capability(device)[0] == HOPPER


def called(name: str, *tensors: Tensor, **more: Any) -> tuple[Tensor, ...]:
    """Call the package.

    Raises:
        RuntimeError: It has no kernel for this; memory that ran out is said as such.
    """
    try:
        found: tuple[Tensor, ...] = getattr(package(), name)(*tensors, **more)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise RuntimeError(f"flash-attn-4: {type(error).__name__}: {error}") from error
    return found


def laid_out(tensor: Tensor, documents: Documents | None) -> Tensor:
    """View [b, h, s, d] as [b, s, h, d], or where documents lie in it as [b * s, h, d]."""
    return tensor.transpose(1, 2) if documents is None else flattened(tensor)


def settings(scale: float, window: int | None, documents: Documents | None) -> dict[str, Any]:
    """Say in the package's words what a token sees."""
    said: dict[str, Any] = {"softmax_scale": scale}
    said |= window_of(window) or {"causal": True}
    if documents is not None:
        for side in ("q", "k"):
            said |= {f"cu_seqlens_{side}": documents.starts, f"max_seqlen_{side}": documents.longest}
    return said
