"""Output layer and cross-entropy in plain PyTorch: the definition, a tile of tokens at a time."""

from typing import NamedTuple

import torch
from torch.nn import functional

TILE_NUMBERS = 1 << 28
IGNORED = -100


class Outcome(NamedTuple):
    """What one pass over the tokens gives.

    Attributes:
        loss: Sum of the weighted losses [] (float32; float64 for float64 inputs).
        d_hidden: d loss / d hidden [n, e] in hidden's dtype, or None when not asked for.
        d_weight: d loss / d weight [v, e] (float32; float64 for float64 inputs), or None when not asked for.
    """

    loss: torch.Tensor
    d_hidden: torch.Tensor | None
    d_weight: torch.Tensor | None


class Shape(NamedTuple):
    """How logits are made of products and what of them counts: y = softcap * tanh(scale * (x + bias) / softcap).

    Attributes:
        softcap: Bound of the logits (Gemma 2, arXiv 2408.00118 section 2), or None.
        scale: Factor of the logits (Cohere, Granite).
        ignore_index: Label of tokens without a loss.
        tile_numbers: Logits that may exist at once.
    """

    softcap: float | None = None
    scale: float = 1.0
    ignore_index: int = IGNORED
    tile_numbers: int = TILE_NUMBERS


def linear_cross_entropy(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    shape: Shape,
    need_grad: bool,
    need_weight_grad: bool,
) -> Outcome:
    """Compute the summed cross-entropy and its gradients; see `core.kernels.linear_cross_entropy`."""
    exact = torch.promote_types(hidden.dtype, torch.float32)
    loss = torch.zeros((), dtype=exact, device=hidden.device)
    d_hidden = torch.empty_like(hidden) if need_grad else None
    d_weight = torch.zeros_like(weight, dtype=exact) if need_weight_grad else None
    for start, stop in tiles(hidden.shape[0], weight.shape[0], shape.tile_numbers):
        rows = hidden[start:stop].detach().requires_grad_(need_grad)
        head = weight.detach().requires_grad_(need_weight_grad)
        token_weights = None if weights is None else weights[start:stop]
        with torch.enable_grad():
            part = summed_loss(rows, head, targets[start:stop], bias, token_weights, shape)
        loss += part.detach()
        if need_grad or need_weight_grad:
            part.backward()  # type: ignore[no-untyped-call]
        if d_hidden is not None and rows.grad is not None:
            d_hidden[start:stop] = rows.grad
        if d_weight is not None and head.grad is not None:
            d_weight += head.grad
    return Outcome(loss, d_hidden, d_weight)


def summed_loss(
    rows: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor | None,
    weights: torch.Tensor | None,
    shape: Shape,
) -> torch.Tensor:
    """Sum the weighted losses of a tile of tokens.

    Args:
        rows: Inputs [n, e].
        weight: Output layer [v, e].
        targets: Classes [n].
        bias: Bias [v], or None.
        weights: Factors of the losses [n], or None.
        shape: How logits are made.

    Returns:
        The sum [] in at least float32.
    """
    logits = (rows @ weight.T).to(torch.promote_types(rows.dtype, torch.float32))
    if bias is not None:
        logits = logits + bias
    logits = logits * shape.scale
    if shape.softcap is not None:
        logits = shape.softcap * torch.tanh(logits / shape.softcap)
    if weights is not None:
        targets = targets.masked_fill(weights == 0, shape.ignore_index)
    # Nothing an ignored token holds may matter, not even an infinity.
    logits = logits.masked_fill((targets == shape.ignore_index)[:, None], 0.0)
    losses = functional.cross_entropy(logits, targets, ignore_index=shape.ignore_index, reduction="none")
    return losses.sum() if weights is None else (losses * weights).sum()


def tiles(rows: int, classes: int, tile_numbers: int) -> list[tuple[int, int]]:
    """Cut the rows so that a tile of logits stays within a bound, in whole multiples of 128 where that is possible.

    Args:
        rows: Rows in all.
        classes: Logits in a row.
        tile_numbers: Logits that may exist at once.

    Returns:
        The first row of each tile and the one after its last.
    """
    size = max(1, tile_numbers // classes)
    size = size // 128 * 128 or size
    return [(start, min(start + size, rows)) for start in range(0, rows, size)]


def scaled(gradient: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply by a number and round once; see `core.kernels.linear_cross_entropy`."""
    exact = torch.promote_types(gradient.dtype, torch.float32)
    return (gradient.to(exact) * factor.to(exact)).to(gradient.dtype)
