"""Whether a kernel that is not PyTorch's own computes what PyTorch's does: both run on the same drawn numbers.

Real activations would be the worse judge. Where keys have much in common, gradients of scores cancel, and two right
kernels differ by more than their rounding.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from core.kernels.attention.kernel import Documents, Kernel

ALLOWED = 0.03
"""Error that passes, as a share of the norm: right kernels of 16 bits are within 0.01 of each other, wrong ones err by 1."""
LEAST = 0.01
"""Root mean square below which a result counts as zero, and the error is taken as a share of this."""


def disagreement(
    kernel: Kernel,
    trusted: Sequence[Kernel],
    q: Tensor,
    k: Tensor,
    scale: float,
    window: int | None,
    documents: Documents | None,
) -> float:
    """Compare a kernel with the first of others that runs, at a shape.

    Args:
        kernel: Whose result and gradients are judged.
        trusted: Whose are right.
        q: [b, h, s, d]; the shape counts, not the numbers.
        k: [b, g, s, d].
        scale: Factor of the scores.
        window: Tokens that a token sees, itself included; None sees all.
        documents: Whose tokens see each other; None takes rows.

    Returns:
        The worst error among result and gradients, as a share of the norm; NaN if one is NaN.

    Raises:
        RuntimeError: The kernel does not run, or none of the others does.
    """
    inputs = drawn(q, k)
    theirs = right(trusted, inputs, scale, window, documents)
    with warnings.catch_warnings():
        # Compilers speak of themselves at the first use. Not for every call: this makes Python forget what it told.
        warnings.simplefilter("ignore")
        ours = walked(kernel, inputs, scale, window, documents)
    # Python's max would pass over a NaN.
    return torch.stack([relative(*pair) for pair in zip(ours, theirs, strict=True)]).max().item()


def drawn(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw queries, keys, values and a gradient, laid out as a layer has them; nobody's random numbers are used up."""
    (b, h, s, d), g = q.shape, k.shape[1]
    generator = torch.Generator(q.device).manual_seed(0)
    wide, grad = (
        torch.randn(b, s, heads, d, generator=generator, device=q.device, dtype=q.dtype)
        for heads in (h + 2 * g, h)
    )
    query, key, value = (each.transpose(1, 2) for each in wide.split([h, g, g], dim=2))
    return query, key, value, grad.transpose(1, 2)


def right(
    trusted: Sequence[Kernel],
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float,
    window: int | None,
    documents: Documents | None,
) -> list[Tensor]:
    """Return what is right, in main memory: the GPU holds no more than one kernel's tensors at a time."""
    for each in trusted:
        try:
            return [found.cpu() for found in walked(each, inputs, scale, window, documents)]
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:
            # It has no plan for the shape.
            continue
    raise RuntimeError("nothing to compare with")


def walked(
    kernel: Kernel,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor],
    scale: float,
    window: int | None,
    documents: Documents | None,
) -> tuple[Tensor, ...]:
    """Return a kernel's result and its gradients of q, k and v."""
    q, k, v, grad = inputs
    done = kernel.forward(q, k, v, scale, window, documents)
    return done.out, *kernel.backward(grad, q, k, v, done, scale, window, documents)


def relative(found: Tensor, right: Tensor) -> Tensor:
    """Return the Frobenius norm of an error as a share of the right one's: a number, on found's device."""
    right = right.to(found.device)
    norm = norm_of(right).clamp_min(LEAST * right.numel() ** 0.5)
    return norm_of(right - found) / norm


def norm_of(tensor: Tensor) -> Tensor:
    """Return the Frobenius norm, summed in float32."""
    found: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32)
    return found
